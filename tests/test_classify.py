"""``mnlib classify``: pictures of any kind, many of them, and bad ones among them."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image
from test_flowers import RECORDED

from mnlib.lab import classify as module
from mnlib.lab import data, experiments, runs
from mnlib.lab.classify import classify, pictures

CLASSES = data.CLASSES["tf_flowers"]


class Bright(torch.nn.Module):
    """A network that calls bright pictures tulips and dark ones daisies."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        level = x.mean((1, 2, 3))
        return torch.stack([-level, *3 * [level * 0 - 9], level], 1) * 9


@pytest.fixture
def best(monkeypatch):
    """The recorded runs, of which the best MobileNet is :class:`Bright`; a list of those asked."""
    monkeypatch.setattr(runs, "load_runs", lambda _: RECORDED)
    chosen = []
    monkeypatch.setattr(experiments, "trained", lambda run: chosen.append(run) or Bright())
    return chosen


def test_it_asks_the_best_mobilenet_and_reads_any_picture(best, tmp_path):
    Image.new("L", (50, 30), 250).save(tmp_path / "grey.png")
    Image.new("RGBA", (30, 50), (0, 0, 0, 255)).save(tmp_path / "alpha.webp")
    Image.new("P", (9, 9)).save(tmp_path / "palette.gif")
    files = [tmp_path / name for name in ("grey.png", "alpha.webp", "palette.gif")]
    rows = [*classify(files)]
    assert [row["class"] for row in rows] == ["tulips", "daisy", "daisy"]
    assert [row["file"] for row in rows] == [str(file) for file in files]
    assert all(sum(row[name] for name in CLASSES) == pytest.approx(1, abs=0.003) for row in rows)
    assert [run.model for run in best] == ["mobilenet_v3_small"]


def test_a_bad_picture_keeps_no_other_from_its_answer(best, tmp_path):
    for level in (0, 255):
        Image.new("L", (9, 9), level).save(tmp_path / f"{level}.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    files = [tmp_path / name for name in ("0.png", "bad.png", "gone.png", "255.png")]
    for batch in (1, 2, 64):
        rows = [*classify(files, batch=batch)]
        assert [row["file"] for row in rows] == [str(file) for file in files]
        assert [row.get("class") for row in rows] == ["daisy", None, None, "tulips"]
        assert "bad.png is no readable picture" in rows[1]["error"]
        assert "there is no file" in rows[2]["error"]
    assert len(best) == 3  # the network is loaded once, not once a batch


def test_no_more_than_a_batch_of_pictures_is_held(best, tmp_path, monkeypatch):
    Image.new("L", (9, 9)).save(tmp_path / "x.png")
    read = []
    true = module._picture
    monkeypatch.setattr(module, "_picture", lambda file: read.append(file) or true(file))
    rows = classify([tmp_path / "x.png"] * 10, batch=3)
    next(rows)
    assert len(read) == 3
    assert len([*rows]) == 9


def ramp(mode, dtype, top):
    """A picture twice as wide as high that goes from black to white, from left to right."""
    values = np.linspace(0, top, 64).astype(dtype)
    return Image.fromarray(np.tile(values, (32, 1))).convert(mode)


@pytest.mark.parametrize(
    ("mode", "dtype", "top", "suffix"),
    [
        ("L", np.uint8, 255, "png"),
        ("I;16", np.uint16, 65535, "png"),
        ("I;16", np.uint16, 65535, "tif"),
        ("F", np.float32, 1, "tif"),
    ],
)
def test_grey_values_of_any_width_go_from_black_to_white(mode, dtype, top, suffix, tmp_path):
    ramp(mode, dtype, top).save(tmp_path / f"x.{suffix}")
    pixels = module._picture(tmp_path / f"x.{suffix}")
    expected = module._picture(ramp_in_eight_bits(tmp_path))
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert pixels.min() <= 2
    assert pixels.max() >= 253


def ramp_in_eight_bits(folder):
    ramp("L", np.uint8, 255).save(folder / "expected.png")
    return folder / "expected.png"


def test_a_grey_map_of_sixteen_bits_is_read_too(tmp_path):
    values = np.linspace(0, 65535, 64).astype(">u2")
    content = b"P5 64 32 65535\n" + np.tile(values, (32, 1)).tobytes()
    (tmp_path / "x.pgm").write_bytes(content)
    expected = module._picture(ramp_in_eight_bits(tmp_path)).astype(int)
    assert np.abs(module._picture(tmp_path / "x.pgm") - expected).max() <= 1


def patched(path, tag, value):
    """Change a short in the tags of a little-endian TIFF file."""
    content = path.read_bytes()
    head = struct.pack("<HHI", tag, 3, 1)
    at = content.index(head) + len(head)
    path.write_bytes(content[:at] + struct.pack("<H", value) + content[at + 2 :])
    return path


def test_tiffs_own_range_and_sense_of_grey_are_minded(tmp_path):
    file = tmp_path / "x.tif"
    ramp("I;16", np.uint16, 65535).save(file)
    right = module._picture(file).astype(int)
    patched(file, 262, 0)  # white is zero
    assert np.abs(module._picture(file) - (255 - right)).max() <= 1
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(file)
    patched(file, 258, 12)  # twelve bits a pixel, all of them set
    assert module._picture(file).min() == 255


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.array([[0, 1.5]], np.float32), "not all from 0 to 1"),
        (np.array([[0, -0.1]], np.float32), "not all from 0 to 1"),
        (np.array([[0, np.nan]], np.float32), "not all from 0 to 1"),
        (np.array([[0, 70000]], np.int32), "32 bits"),
    ],
)
def test_grey_values_without_a_known_range_are_refused(values, why, tmp_path):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=rf"x\.tif is no readable picture.*{why}"):
        module._picture(tmp_path / "x.tif")


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_a_picture_is_turned_as_its_camera_says(mode, tmp_path):
    white = {"RGB": (255, 255, 255), "I;16": 65535}[mode]
    image = Image.new(mode, (40, 20))
    image.paste(white, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is on the right of the stored picture
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = module._picture(tmp_path / "turned.png")
    assert pixels[:100].min() == 255
    assert pixels[124:].max() == 0


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut short", b"II*\0\xff\xff\xff\xff"]
)
def test_what_is_no_picture_is_named(content, tmp_path):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.jpg is no readable picture.*give a JPEG"):
        module._picture(tmp_path / "x.jpg")


def test_whatever_pillow_raises_names_the_file(tmp_path, monkeypatch):
    def fail(*_):
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ValueError, match=r"x\.jpg.*buffer of 4 bytes"):
        module._picture(tmp_path / "x.jpg")


def test_heic_is_called_by_its_name(tmp_path):
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ValueError, match=r"IMG_1\.HEIC is a HEIC picture.*convert it to JPEG"):
        module._picture(tmp_path / "IMG_1.HEIC")


def test_without_a_trained_network_the_remedy_is_named(best, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "load_runs", lambda _: [])
    with pytest.raises(FileNotFoundError, match="mnlib run flowers"):
        next(classify([tmp_path / "x.png"]))


def test_a_folder_stands_for_the_pictures_in_and_below_it(tmp_path):
    for name in ("b.jpg", "a/c.PNG", "a/d.heic", "x.jpg/e.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("._b.jpg", "__MACOSX/f.jpg", ".hidden/g.jpg", "notes.txt", "b.jpg.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    found = [str(file.relative_to(tmp_path)) for file in pictures([tmp_path])]
    assert found == ["a/c.PNG", "a/d.heic", "b.jpg", "x.jpg/e.tif"]
    assert pictures([tmp_path / "b.jpg", "gone.jpg"]) == [
        tmp_path / "b.jpg",
        module.Path("gone.jpg"),
    ]


def test_a_folder_without_pictures_is_named(best, tmp_path):
    (tmp_path / "notes.txt").touch()
    (row,) = classify(pictures([tmp_path]))
    assert f"no picture lies in or below the folder {tmp_path}" in row["error"]
