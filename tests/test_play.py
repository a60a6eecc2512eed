"""The pieces that play in the page give Python's values, refuse what cannot be meant, and wait."""

import functools
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import types
from itertools import product
from pathlib import Path

import pytest
import torch
from docutils import nodes

from mnlib.lab import play
from mnlib.ode import odeint
from mnlib.separable import ORDERS, decouple

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
TIGHT = {"rtol": 1e-13, "atol": 1e-14}

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")


def node(code, name, given):
    """Return what the body ``code`` returns of ``given`` and the module's exports, ``m``."""
    module = (ROOT / "book" / "play" / f"{name}.js").as_uri()
    script = f"""
        import * as m from {json.dumps(module)};
        import fs from "node:fs";
        const caught = (f) => {{
            try {{ return f(); }} catch (e) {{ return `${{e.name}}: ${{e.message}}`; }}
        }};
        const given = JSON.parse(fs.readFileSync(0, "utf8"));
        const answer = (() => {{ {code} }})();
        process.stdout.write(JSON.stringify(answer));
    """
    command = ["node", "--input-type=module", "-e", script]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def near(found, expected, tolerance=1e-9):
    """Whether numbers are within ``tolerance`` of the expected ones, relative to their size."""
    found = torch.as_tensor(found, dtype=torch.float64).flatten()
    expected = torch.as_tensor(expected, dtype=torch.float64).flatten()
    return float((found - expected).norm()) <= tolerance * max(1.0, float(expected.norm()))


COSTS = [
    {**play.COST, "n_i": n_i, "n_o": n_o, "k": k, "stride": stride, "alpha": alpha,
     "resolution": size, "expansion": times}
    for (n_i, n_o), k, stride, alpha, (size, times) in product(
        [(3, 32), (64, 64), (320, 1280)], [1, 3, 5, 7], [1, 2], [1, 0.35, 1.4], [(1, 1), (15, 6)]
    )
]  # fmt: skip


@needs_node
def test_the_calculator_counts_as_mnlib_does():
    found = node("return given.map((s) => m.counts(s).rows);", "cost", COSTS)
    for settings, rows in zip(COSTS, found, strict=True):
        expected = play.cost_counts(**settings)
        assert {form: tuple(counts) for form, counts in rows.items()} == expected, settings


@needs_node
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_i": 0}, "n_i = 0 is no whole number from 1 on"),
        ({"stride": 1.5}, "stride = 1.5"),
        ({"stride": 3}, "stride = 3 is not that of an inverted residual: give 1 or 2"),
        ({"k": None}, "k = null"),
        ({"k": 2}, "k = 2 is even, so that no padding keeps the size: give an odd k"),
        ({"alpha": -1}, "α = -1 is no positive number"),
    ],
)
def test_the_calculator_refuses_what_no_convolution_has(change, message):
    found = node("return caught(() => m.counts(given));", "cost", {**play.COST, **change})
    assert found.startswith("RangeError: ")
    assert message in found


FLOWS = [
    {"start": start, "tau": tau, "method": method, "steps": steps}
    for (start, tau, steps), method in product(
        [
            ([1.0, 0.0], 4.0, 16),
            ([-2.4, 2.4], 8.0, 40),
            ([0.3, -1.7], 0.1, 1),
            ([0.0, 0.5], 1.0, 7),
        ],
        ["euler", "midpoint", "rk4"],
    )
]


def flow(theta, start, span):
    """The flow of the example, solved to the last digits by dopri5."""
    start = torch.tensor(start, dtype=torch.float64)
    return odeint(lambda _t, h: torch.tanh(theta @ h), start, span, **TIGHT)


@needs_node
def test_the_bench_computes_what_odeint_does():
    """The steps and both their gradients to rounding, the flow and its own gradient to 1e-9."""
    given = [play.flow_data(), FLOWS]
    found = node("return given[1].map((s) => m.bench(given[0], s));", "flow", given)
    theta = torch.tensor(play.THETA, dtype=torch.float64)
    for settings, bench in zip(FLOWS, found, strict=True):
        start, tau = settings["start"], settings["tau"]
        steps = {"method": settings["method"], "step_size": tau / settings["steps"]}
        times = torch.linspace(0, tau, settings["steps"] + 1, dtype=torch.float64)
        h = torch.tensor(start, dtype=torch.float64)
        path = odeint(lambda _t, h: torch.tanh(theta @ h), h, times, method=settings["method"])
        assert near(bench["path"], path, 1e-12)
        for gradient, name in (("backprop", "backprop"), ("adjoint", "continuous")):
            expected = play.flow_gradient(start, tau, gradient, **steps)
            assert near(bench[name]["start"], expected[0], 1e-11), settings
            assert near(bench[name]["theta"], expected[1], 1e-11), settings
        end = flow(theta, start, torch.tensor([0, tau], dtype=torch.float64))[-1]
        assert near(bench["end"], end), settings
        assert bench["error"] == pytest.approx(float((path[-1] - end).norm()), abs=1e-9)
        truth = play.flow_gradient(start, tau, "backprop", **TIGHT)
        assert near(bench["truth"]["start"], truth[0]), settings
        assert near(bench["truth"]["theta"], truth[1]), settings


@needs_node
def test_at_rest_the_gradient_is_that_of_the_linear_flow():
    """Where the flow stands still an adaptive solver would step over its derivative."""
    settings = {"start": [0, 0], "tau": 2, "method": "euler", "steps": 3}
    bench = node("return m.bench(...given);", "flow", [play.flow_data(), settings])
    theta, goal = (torch.tensor(x, dtype=torch.float64) for x in (play.THETA, play.GOAL))
    assert bench["error"] == 0
    assert near(bench["truth"]["start"], torch.linalg.matrix_exp(2 * theta.T) @ -goal)


@needs_node
def test_the_printed_equations_fail_by_as_much_as_in_python():
    """Each reading of the errata, by dopri5 instead of the bench's own solver and quadrature."""
    given = [play.flow_data(), FLOWS]
    found = node("return given[1].map((s) => m.bench(given[0], s));", "flow", given)
    theta, goal = (torch.tensor(x, dtype=torch.float64) for x in (play.THETA, play.GOAL))
    for settings, bench in zip(FLOWS, found, strict=True):
        start, span = settings["start"], torch.tensor([0, settings["tau"]], dtype=torch.float64)
        printed, h = bench["printed"], torch.tensor(start, dtype=torch.float64)
        assert near(printed["literal"], h + settings["tau"] * torch.tanh(theta @ h), 1e-12)
        for _ in range(settings["steps"]):  # (1): full branches
            h = h + torch.tanh(theta @ h)
        assert near(printed["full"], h, 1e-12)
        end = flow(theta, start, span)[-1]
        terminal = end - goal

        def untransposed(_t, state):
            h, a = state
            return torch.tanh(theta @ h), -(1 - torch.tanh(theta @ h) ** 2) * (theta @ a)

        back = odeint(untransposed, (end, terminal), span.flip(0), **TIGHT)[1][-1]
        assert near(printed["untransposed"], back), settings
        a, g = play.flow_gradient(start, settings["tau"], "backprop", **TIGHT)
        assert near(printed["six"]["left"], terminal)
        assert near(printed["six"]["right"], terminal - a), settings  # what is missing is a
        assert near(printed["seven"]["gradient"], -g), settings
        for name, sign in (("printed", 1), ("right", -1)):
            moved = flow(theta + sign * 0.1 * g, start, span)[-1]
            loss = float((moved - goal).square().sum() / 2)
            assert printed["seven"][name] == pytest.approx(loss, rel=1e-9), settings


@needs_node
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "N = 0 steps is out of range: give 1 to 256"),
        ({"steps": 10**9}, "N = 1000000000 steps"),
        ({"steps": 2.5}, "N = 2.5 steps"),
        ({"tau": None}, "τ = null is out of range"),
        ({"tau": 1e9}, "give 0.1 to 8"),
        ({"start": [None, 0]}, "is no point of the plane"),
        ({"method": "rk5"}, "“rk5” is no method"),
    ],
)
def test_the_bench_refuses_what_cannot_be_meant(change, message):
    given = [play.flow_data(), {**play.FLOW, **change}]
    found = node("return caught(() => m.bench(...given));", "flow", given)
    assert found.startswith("RangeError: ")
    assert message in found


@needs_node
def test_blocks_sum_to_pythons_kernels_in_both_orders(monkeypatch):
    monkeypatch.setenv("MNLIB_TIER", "embedded")
    data = play.rank_data()
    code = """
        const ranks = (s) => [...Array(s.kernels.length + 1).keys()];
        return Object.fromEntries(Object.entries(given.orders).map(([name, { slices }]) => [name,
            slices.map((s) => ranks(s).map((r) => [m.sum(s, r), m.error(s, r)]))]));
    """
    found = node(code, "rank", data)
    _, weight = play._layer()
    for order in ORDERS:
        first = order == "depthwise_first"
        for rank in range(1, len(data["orders"][order]["errors"])):
            parts = decouple(weight, order, rank)
            assert data["orders"][order]["errors"][rank] == pytest.approx(parts.error, abs=1e-12)
            for n, slices in enumerate(found[order]):
                sums, error = slices[rank]
                pick = (slice(None), n) if first else (n,)
                exact, best = weight[pick].flatten(1), parts.weight()[pick].flatten(1)
                assert near(sums, best)
                miss = float((exact - best).norm() / exact.norm())
                assert error == pytest.approx(miss, abs=1e-8)
    refused = "return caught(() => m.sum(given.orders.depthwise_first.slices[0], 10));"
    assert node(refused, "rank", data) == "RangeError: R = 10 is out of range: give 0 to 9"


@needs_node
def test_what_is_typed_is_a_number_in_its_range_or_an_error():
    texts = ["3", " 2.5 ", "", "NaN", "1e99", "-1", "abc", "Infinity", "0x3"]
    limits = {"min": 1, "max": 9, "whole": True}
    code = "return given[0].map((text) => caught(() => m.parsed(text, given[1])));"
    right, broken, *others, hexadecimal = node(code, "ui", [texts, limits])
    assert right == hexadecimal == 3
    assert broken == "RangeError:  2.5  is not whole: give 1 to 9"
    assert all("give 1 to 9" in found for found in others)


@pytest.fixture
def extension(monkeypatch):
    """The extension as a module."""
    spec = importlib.util.spec_from_file_location("play_ext", ROOT / "book/_ext/play.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "play_ext", module)
    spec.loader.exec_module(module)
    return module


def test_a_form_that_the_bundle_does_not_read_is_refused(extension, tmp_path, monkeypatch):
    monkeypatch.setattr(extension, "SOURCES", tmp_path)
    (tmp_path / "a.js").write_text('import { b } from "./b.js";\nexport const mount = b;\n')
    (tmp_path / "b.js").write_text("export default 3;\n")
    with pytest.raises(ValueError, match=r"b\.js: 'export default 3;' is not understood"):
        extension.bundle("a", {})
    (tmp_path / "b.js").write_text("export const b = 3;\n")
    script = extension.bundle("a", {"x": 1})
    assert script.index("modules.b =") < script.index("modules.a =")
    assert 'mnlibPlay.ready("a", modules.a.mount, {"x":1})' in script


def test_a_draft_makes_a_piece_once_and_a_build_each_time(extension, tmp_path, monkeypatch):
    made, written = [], []

    def piece():
        made.append(1)
        rows = [{"a": "b"}]
        return extension.Piece("A", "B.", lambda: rows, lambda: {"x": 1}, write=written.append)

    (tmp_path / "play").mkdir()
    (tmp_path / "a.js").write_text("export const mount = 3;\n")
    monkeypatch.setattr(extension, "SOURCES", tmp_path)
    monkeypatch.setattr(extension, "PIECES", {"a": piece})
    builder = types.SimpleNamespace(name="html")
    app = types.SimpleNamespace(builder=builder, outdir=tmp_path, add_js_file=lambda *a, **k: None)

    def build(draft=None):
        """Return how often this build has made the piece, and written its files."""
        if draft:
            draft.mkdir(exist_ok=True)
            monkeypatch.setenv("MNLIB_DRAFT", str(draft))
        else:
            monkeypatch.delenv("MNLIB_DRAFT", raising=False)
        made.clear()
        written.clear()
        about = extension.shown("a")
        assert (about["rows"], about["plays"]) == ([{"a": "b"}], True)
        place = nodes.container("", classes=["mnlib-play"], ids=["play-a"], data=about["data"])
        extension.add_loader(app, "page", "", {}, place)
        assert 'mount, {"x":1})' in (tmp_path / "play" / "a.js").read_text()
        return len(made), len(written)

    one, other = tmp_path / "one", tmp_path / "other"
    assert build()[1] == 1
    assert build(one)[1] == 1
    assert build(one) == (0, 0)
    assert build(other)[1] == 1  # of another state, over what the first has written
    assert build(one)[1] == 1
    assert build()[1] == 1
    assert build(one)[1] == 1


# --- in a browser -----------------------------------------------------------------------------

PAGE = """# Pieces

{prose}

## Cost

```{{play}} cost
```

## Flow

```{{play}} flow
```

## Rank

```{{play}} rank
```

```{{toctree}}
other
```
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A small site with the pieces, far below the top of its page, in a folder of a server."""
    if not CHROMIUM:
        (pytest.fail if os.environ.get("MNLIB_BROWSER") else pytest.skip)("chromium is not there")
    folder = tmp_path_factory.mktemp("site")
    source, out = folder / "source", folder / "deep" / "er"
    source.mkdir()
    (source / "conf.py").write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT / 'book/_ext')!r}, {str(ROOT)!r}]\n"
        'extensions = ["myst_parser", "play"]\nhtml_theme = "sphinx_book_theme"\n'
    )
    (source / "index.md").write_text(PAGE.format(prose="Some prose.\n\n" * 60))
    (source / "other.md").write_text("# Other\n\nNothing plays here.\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", str(source), str(out)]
    environment = {**os.environ, "MNLIB_TIER": "embedded"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def address(site):
    """The address of the site, below the path /deep/er/."""
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=site.parents[1])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/deep/er/index.html"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        arguments = ["--no-sandbox", "--disable-gpu", rules]
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def open_tab(browser):
    """Open tabs whose scripts must not fail; ``tab.asked`` lists what was asked for."""
    contexts = []

    def opened(url, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.asked, tab.faults = [], []
        tab.set_default_timeout(60_000)
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.on("pageerror", lambda error: tab.faults.append(str(error)))
        tab.goto(url)
        return tab

    yield opened
    for context in contexts:
        assert not [fault for tab in context.pages for fault in tab.faults]
        context.close()


def come_to(tab, name):
    """Scroll to a piece and wait until it plays; return it."""
    tab.locator(f"#play-{name}").scroll_into_view_if_needed()
    tab.locator(f"#play-{name}[data-state=on]").wait_for()
    return tab.locator(f"#play-{name}")


def cells(piece, which=0):
    """Return the texts of a table's body, row by row."""
    rows = piece.locator(".mnlib-play-table").nth(which).locator("tbody tr")
    return [row.locator("th, td").all_inner_texts() for row in rows.all()]


def dial(piece, label):
    """Return the field beside a dial's range, and the range."""
    return piece.get_by_label(f"{label}, typed"), piece.get_by_label(label, exact=True)


@pytest.mark.slow
def test_a_piece_costs_nothing_until_it_is_come_to(open_tab, address, site):
    tab = open_tab(address)
    tab.wait_for_load_state("networkidle")
    mine = [url for url in tab.asked if "/play/" in url]
    assert [url.partition("?")[0].rpartition("/")[2] for url in mine] == ["loader.js"]
    assert (site / "play" / "loader.js").stat().st_size < 4000
    assert "loader.js" not in (site / "other.html").read_text()
    come_to(tab, "rank")  # the page's last
    tab.wait_for_load_state("networkidle")
    assert all(url.startswith((address.rpartition("/")[0], "data:")) for url in tab.asked)
    assert any(url.endswith("/play/rank.js") for url in tab.asked)


@pytest.mark.slow
def test_the_calculator_shows_pythons_counts(open_tab, address):
    piece = come_to(open_tab(address), "cost")
    expected = [list(row.values()) for row in play.cost_rows()]
    assert [[cell.replace("\xa0", " ") for cell in row] for row in cells(piece)] == expected
    for label, value in (("n_o, channels out", "128"), ("α, width", "0.5")):
        dial(piece, label)[0].fill(value)
    piece.get_by_label("stride").select_option("2")
    counts = play.cost_counts(**play.COST | {"n_o": 128, "stride": 2, "alpha": 0.5})
    shown = [(row[1], row[3]) for row in cells(piece)]
    assert shown == [(f"{weights:,}", f"{macs:,}") for weights, macs in counts.values()]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "NaN", "0", "-4", "1e30", "2.5", "many"])
def test_what_cannot_be_meant_is_refused_and_changes_nothing(open_tab, address, text):
    tab = open_tab(address)
    for name, label in (("cost", "n_i, channels in"), ("flow", "N, steps")):
        piece = come_to(tab, name)
        before, (field, turned) = cells(piece), dial(piece, label)
        value = field.input_value()
        field.fill(text)
        assert "give 1 to" in field.locator("xpath=../*[@role='alert']").inner_text()
        assert field.get_attribute("aria-invalid") == "true"
        assert cells(piece) == before
        turned.focus()  # leaving the field shows the value that holds
        assert field.input_value() == value
        assert field.get_attribute("aria-invalid") is None


@pytest.mark.slow
def test_the_bench_shows_pythons_gradients_and_follows_keys_and_drags(open_tab, address):
    tab = open_tab(address)
    piece = come_to(tab, "flow")
    expected = [row["∂L/∂h(0)"] for row in play.flow_rows()]
    assert [row[1] for row in cells(piece)] == [expected[0], expected[1], expected[3]]
    piece.get_by_label("method").select_option("rk4")
    rows = cells(piece)
    assert float(rows[1][2].replace("−", "-")) < 0.1
    # by keyboard: one press is one step of the range
    field, turned = dial(piece, "τ, length")
    turned.press("ArrowRight")
    assert field.input_value() == "4.1"
    assert cells(piece) != rows
    # by pointer: the start follows
    handle, plane = piece.locator(".mnlib-play-handle"), piece.locator(".mnlib-play-plane")
    plane.scroll_into_view_if_needed()
    box, place = plane.bounding_box(), handle.bounding_box()
    tab.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4, steps=4)
    tab.mouse.up()
    assert float(dial(piece, "start, feature 1")[0].input_value()) == pytest.approx(0, abs=0.03)
    assert float(dial(piece, "start, feature 2")[0].input_value()) == pytest.approx(1.3, abs=0.03)
    # and it says so, to those who do not see it
    said = piece.get_by_role("status")
    tab.wait_for_function("e => e.textContent.includes(', 1.3')", arg=said.element_handle())


@pytest.mark.slow
def test_the_slider_shows_pythons_errors(open_tab, address):
    piece = come_to(open_tab(address), "rank")
    expected = [list(row.values()) for row in play.rank_rows()]
    assert [[cell.strip("▸ ") for cell in row] for row in cells(piece)] == expected
    dial(piece, "R, blocks")[1].press("ArrowRight")
    assert cells(piece)[2][0] == "▸ 2"
    piece.get_by_label("order").select_option("pointwise_first")
    dial(piece, "R, blocks")[0].fill("0")
    assert "No block" in piece.inner_text()


@pytest.mark.slow
def test_the_button_starts_a_piece_by_keyboard(open_tab, address):
    """Where the browser cannot tell what is in view, the reader asks."""
    tab = open_tab("about:blank")
    tab.add_init_script("delete window.IntersectionObserver")
    tab.goto(address)
    button = tab.locator("#play-cost").get_by_role("button", name="Play")
    button.focus()
    tab.keyboard.press("Enter")
    tab.locator("#play-cost[data-state=on]").wait_for()
    assert tab.evaluate("document.activeElement.closest('#play-cost') !== null")
    assert not tab.locator("#play-flow[data-state]").count()
    # the theme's own script takes an observer for granted
    tab.faults[:] = [fault for fault in tab.faults if "IntersectionObserver" not in fault]


@pytest.mark.slow
def test_a_piece_that_does_not_come_says_so_and_can_be_asked_again(open_tab, address):
    tab = open_tab("about:blank")
    tab.route("**/play/cost.js", lambda route: route.abort())
    tab.goto(address)
    tab.locator("#play-cost").scroll_into_view_if_needed()
    tab.get_by_text("did not start: its files could not be loaded").wait_for()
    assert tab.locator(
        "#play-cost > table, #play-cost .pst-scrollable-table-container"
    ).is_visible()
    tab.unroute("**/play/cost.js")
    tab.locator("#play-cost").get_by_role("button", name="Play").click()
    tab.locator("#play-cost[data-state=on]").wait_for()


@pytest.mark.slow
def test_pieces_play_from_a_file(open_tab, site):
    tab = open_tab((site / "index.html").as_uri())
    for name in ("cost", "flow", "rank"):
        assert cells(come_to(tab, name))


@pytest.mark.slow
def test_on_paper_and_without_scripts_there_is_the_table(open_tab, address):
    still = open_tab(address, java_script_enabled=False).locator("#play-flow")
    assert "continuous adjoint" in still.locator("table").inner_text()
    assert "With scripts" in still.inner_text()
    tab = open_tab(address)
    piece = come_to(tab, "flow")
    tables = piece.locator("table")
    assert not tables.last.is_visible()  # the page's own, which comes after the stage
    tab.emulate_media(media="print")
    assert tables.last.is_visible()
    assert not piece.locator(".mnlib-play-stage").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pieces_are_legible_on_a_phone(open_tab, address, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    size = {"width": 390, "height": 844}
    tab = open_tab(address, viewport=size, color_scheme=theme, has_touch=True)
    tab.evaluate(
        f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
    )
    tab.reload()
    for name in ("cost", "flow", "rank"):
        come_to(tab, name)
    assert tab.locator("html").get_attribute("data-theme") == theme
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    found = axe.Axe().run(tab, context=".mnlib-play-stage").response["violations"]
    assert not [(fault["id"], fault["nodes"][0]["html"]) for fault in found]
    for name in ("cost", "flow", "rank"):
        for thing in tab.locator(f"#play-{name} :is(input, select)").all():
            assert thing.bounding_box()["height"] >= 28
