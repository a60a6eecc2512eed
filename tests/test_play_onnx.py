"""The pieces that run networks in the page: a photograph's answers, and timings, in Chromium."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnlib.lab import classify, data, experiments, export
from mnlib.lab.images import prepare

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
rng = np.random.default_rng(0)


def node(code, *modules):
    """Return what ``code``, which may use all that ``modules`` export, makes ``result``: JSON."""
    imports = "".join(
        f"Object.assign(globalThis, await import({json.dumps((ROOT / 'book/play' / m).as_uri())}));"
        for m in modules
    )
    end = "process.stdout.write(JSON.stringify(result));"
    command = ["node", "--input-type=module", "--no-warnings", "-e", f"{imports}{code}{end}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
@pytest.mark.parametrize(
    ("width", "height", "apart"),
    # Pillow begins a tall picture with the vertical pass, and rounds in between
    [(37, 61, 0), (224, 224, 0), (320, 240, 0), (1001, 750, 0), (1, 1, 0), (100, 400, 1)],
)
def test_a_picture_is_resized_as_pillow_does(width, height, apart, tmp_path):
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    pixels.tofile(tmp_path / "in")
    resized = f"heights(widths(new Uint8Array(bytes), {width}, {height}, 224), 224, {height}, 224)"
    code = f"""
        import fs from "fs";
        const bytes = fs.readFileSync({json.dumps(str(tmp_path / "in"))});
        fs.writeFileSync({json.dumps(str(tmp_path / "out"))}, {resized});
        const result = null;
    """
    node(code, "resize.js")
    found = np.fromfile(tmp_path / "out", np.uint8).reshape(224, 224, 3)
    image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    expected = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))
    assert np.abs(found.astype(int) - expected).max() <= apart


@needs_node
def test_quantiles_are_numpys_and_the_saving_is_the_chapters():
    times = rng.uniform(1, 9, (3, 11)).round(3)
    code = f"const t = {times.tolist()}; const result = [quantile(t[0], 0.1), saved(t)];"
    tenth, saved = node(code, "telephone.js")
    assert tenth == pytest.approx(np.quantile(times[0], 0.1))
    before, after, whole = times
    percent = 100 * (before - after) / (whole - after + before)
    assert saved["percent"]["median"] == pytest.approx(np.median(percent))
    assert saved["ms"]["high"] == pytest.approx(np.quantile(before - after, 0.9))


@needs_node
def test_probabilities_and_evidence_are_pythons():
    logits, maps = rng.normal(0, 300, 5), rng.normal(0, 1, (5, 7, 7))
    code = f"const result = [softmax({logits.tolist()}), evidence({maps.ravel().tolist()}, 5, 3)];"
    shares, evidence = node(code, "photograph.js")
    np.testing.assert_allclose(shares, torch.tensor(logits).softmax(0), atol=1e-12)
    np.testing.assert_allclose(evidence, (maps[3] - maps.mean(0)).ravel(), atol=1e-12)


def built(folder, name, tier=""):
    """Build a book of one page, on which the pieces stand, below the path ``/sub``."""
    source, out = folder / f"source-{name}", folder / name / "sub"
    source.mkdir()
    (source / "conf.py").write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT / 'book/_ext')!r}, {str(ROOT)!r}]\n"
        'extensions = ["myst_parser", "play"]\nhtml_theme = "sphinx_book_theme"\n'
    )
    (source / "index.md").write_text(
        "# Page\n\n```{play} photograph\n```\n\n```{play} telephone\n```\n"
    )
    code = (
        "import os, sys; os.environ['MNLIB_TIER'] = sys.argv.pop();"
        "from sphinx.cmd.build import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "-q", str(source), str(out), tier]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_without_the_runtime_there_is_a_table_and_a_sentence(tmp_path):
    page = (built(tmp_path, "still", "embedded") / "index.html").read_text()
    assert "This build is without onnxruntime_web, which mnlib fetch brings" in page
    assert "MobileNetV3-Small" in page
    assert "before the redesign" in page
    assert "loader.js" not in page


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the site, and of book/play/ beside it, served by this machine."""
    if data.tier("onnxruntime_web") != "real data":
        pytest.skip("onnxruntime_web is not in the data folders: run: mnlib fetch onnxruntime_web")
    folder = tmp_path_factory.mktemp("site")
    out = built(folder, "site")
    shutil.copytree(ROOT / "book/play", out.parent / "modules")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(out.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("MNLIB_BROWSER") else pytest.skip)("chromium is not there")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


@pytest.fixture
def page(site, browser):
    """The page, on a telephone; ``page.requested`` lists all that it asked for."""
    opened = browser.new_page(viewport={"width": 390, "height": 844})
    opened.requested = []
    opened.on("request", lambda request: opened.requested.append(request.url))
    opened.set_default_timeout(120_000)
    opened.goto(f"{site}/sub/index.html")
    yield opened
    assert all(url.startswith((site, "blob:", "data:")) for url in opened.requested)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.close()


def ready(page):
    """Scroll to the piece, and let its network come."""
    page.locator("#play-photograph").scroll_into_view_if_needed()
    page.get_by_role("button", name="Load the network").click()
    page.get_by_text("Ready.").wait_for()


def shown(page):
    """Return the pixels of the picture that the piece shows, 224×224×3."""
    code = """canvas => Array.from(
        canvas.getContext("2d").getImageData(0, 0, 224, 224).data)"""
    values = page.locator(".mnlib-play-view canvas").first.evaluate(code)
    return np.array(values).reshape(224, 224, 4)[..., :3]


def give(page, file):
    page.locator("input[type=file]").first.set_input_files(file)
    page.get_by_text(f"{file.name}: ").wait_for()


def test_nothing_comes_before_it_is_asked_for(page):
    page.locator("#play-telephone").scroll_into_view_if_needed()
    page.get_by_role("button", name="Time them here").wait_for()
    assert not [url for url in page.requested if "onnx/" in url]
    ready(page)
    names = {url.rpartition("/")[2] for url in page.requested if "onnx/" in url}
    files = {"ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm", "photograph.onnx"}
    assert names == files


def turned(folder):
    """A picture that its camera held on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = rng.integers(0, 256, (20, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "turned.png", exif=exif)
    return folder / "turned.png"


def test_the_pixels_are_those_of_mnlib_classify(page, tmp_path):
    pixels = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    huge = Image.fromarray(pixels).resize((6000, 5000), Image.Resampling.NEAREST)
    huge.save(tmp_path / "huge.png", compress_level=1)
    ready(page)
    for file in (*(tmp_path / f"{n}.png" for n in ("noise", "grey", "huge")), turned(tmp_path)):
        give(page, file)
        np.testing.assert_array_equal(shown(page), classify._picture(file), err_msg=file.name)


def test_logits_maps_and_gates_are_pytorchs(page):
    pixels = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    told = json.dumps(export.photograph())
    page.locator("#play-photograph").scroll_into_view_if_needed()
    page.get_by_role("button", name="Load the network").wait_for()
    code = f"""async (pixels) => {{
        const {{ network }} = await import("/modules/ort.js");
        const {{ ask }} = await import("/modules/photograph.js");
        const found = await ask(await network("photograph.onnx"), Uint8Array.from(pixels), {told});
        return Object.fromEntries(Object.entries(found).map(([k, v]) => [k, Array.from(v)]));
    }}"""
    found = page.evaluate(code, pixels.ravel().tolist())
    opened = export.Opened(experiments.trained(export.best_small()))
    with torch.inference_mode():
        expected = opened(prepare(torch.tensor(pixels)[None], 224, "imagenet"))
    assert len(found) == len(expected) == 11
    for name, tensor in zip(found, expected, strict=True):
        np.testing.assert_allclose(found[name], tensor.flatten(), atol=1e-3, err_msg=name)


def test_what_is_no_picture_is_said_and_stops_nothing(page, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    Image.new("RGB", (9, 9), (200, 30, 90)).save(tmp_path / "red.png")
    ready(page)
    answers = page.locator("#play-photograph .mnlib-play-result")
    give(page, tmp_path / "red.png")
    assert answers.is_visible()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "notes.txt")
    page.get_by_text("“notes.txt” is no picture that this browser can read").wait_for()
    assert not answers.is_visible()
    page.locator(".mnlib-play-drop").evaluate(
        "place => place.dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }))"
    )
    page.get_by_text("What came is no file").wait_for()
    give(page, tmp_path / "red.png")
    (row,) = classify.classify([tmp_path / "red.png"])  # another network, the same five classes
    heads = page.locator("#play-photograph tbody th").all_inner_texts()
    assert heads[:5] == [*row][2:]
    assert len(heads) == 5 + 9


def test_without_its_files_it_says_so(page):
    page.route("**/photograph.onnx", lambda route: route.fulfill(status=404))
    page.locator("#play-photograph").scroll_into_view_if_needed()
    load = page.get_by_role("button", name="Load the network")
    load.click()
    page.get_by_text("It did not work: photograph.onnx is not there (404).").wait_for()
    page.unroute("**/photograph.onnx")
    ready(page)


def test_networks_take_turns_and_the_result_is_a_line(page):
    # a clock by which each look at it is 30 ms after the last, so that all take the same time
    page.evaluate("() => { let now = 0; performance.now = () => (now += 30); }")
    page.locator("#play-telephone").scroll_into_view_if_needed()
    page.get_by_role("button", name="Time them here").click()
    page.get_by_text("Done.").wait_for()
    line = page.get_by_role("textbox", name="The result as a line of text").input_value()
    same = r"V3-Large’s last stage: before the redesign ([\d.]+) \(\1 to \1\) ms, after \1 \("
    assert re.match(same, line), line
    assert "saves 0.00 (0.00 to 0.00) ms, 0.0 (0.0 to 0.0) %; Squeeze-and-excitation: " in line
    assert "onnxruntime-web 1.30.0, WebAssembly, one thread; Mozilla" in line
    assert "\n" not in line
    said = page.locator("#play-telephone").inner_text()
    assert "saves 7 milliseconds, which 11% of the training time." in said
    assert said.count("1.00") == sum(len(group) for group in export.GROUPS.values())
    page.get_by_role("button", name="Copy the line").click()
    page.get_by_text("Copied.").wait_for()
