"""Where the inputs lie: data folders, tiers, loading, and the store that ``mnlib fetch`` writes."""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from mnlib.lab.data.contract import check_dataset, check_weights
from mnlib.lab.data.readers import (
    CLASSES,
    Photographs,
    need_array_record,
    onnxruntime_web,
    reason,
    tfds_store,
)
from mnlib.lab.data.sources import INPUTS, RECOGNISED, Layout

__all__ = [
    "STORE_VERSION",
    "Dataset",
    "check_name",
    "find",
    "folders",
    "install",
    "load",
    "packed_flowers",
    "read",
    "says_full",
    "status",
    "tier",
    "workspace",
    "write_store",
]


class Dataset(NamedTuple):
    """Images and their labels."""

    images: np.ndarray | Photographs
    """uint8, N×H×W×C; for photographs a sequence that decodes image i, H×W×3, when indexed"""
    labels: np.ndarray
    """int64, N; indices into ``CLASSES[name]``"""


def folders() -> list[Path]:
    """Return the data folders in the order of search; only the first is ever written to.

    They are those of the environment variable ``MNLIB_DATA`` (separated as in ``PATH``), else the
    platform's cache folder for mnlib.
    """
    named = [part for part in os.environ.get("MNLIB_DATA", "").split(os.pathsep) if part]
    try:
        return [Path(part).expanduser() for part in named] or [
            platformdirs.user_cache_path("mnlib")
        ]
    except RuntimeError as error:  # pathlib's for ~ of nobody
        raise ValueError(
            f"MNLIB_DATA={os.environ['MNLIB_DATA']} names the home of a user who is not known "
            "here: write the folder out"
        ) from error


def check_name(name: str) -> None:
    """Raise the ValueError for a name that is no input."""
    if name not in INPUTS:
        raise ValueError(f"unknown input {name!r}: the inputs are {', '.join(INPUTS)}")


def find(name: str, within: list[Path] | None = None) -> tuple[Path, Layout] | None:
    """Return where input ``name`` lies and in which layout, None where it is not there.

    Looks at file names only, so that a tier costs nothing to tell. Links that lead nowhere and
    what other programs have not finished downloading are passed over.
    """
    check_name(name)
    for folder in folders() if within is None else within:
        for layout in INPUTS[name].layouts:
            for path in sorted(folder.glob(layout.pattern)):
                # not path.exists(), which raises where a folder may not be entered
                if os.path.exists(path) and path.suffix not in (".part", ".crdownload", ".tmp"):
                    return path, layout
    return None


def _embedded_forced() -> bool:
    return os.environ.get("MNLIB_TIER") == "embedded"


def tier(name: str) -> str:
    """Return ``"real data"`` where input ``name`` is there, else ``"embedded"``.

    ``MNLIB_TIER=embedded`` in the environment makes every input ``"embedded"``.

    Raises:
        ValueError: unknown name.

    """
    found = find(name)
    return "embedded" if found is None or _embedded_forced() else "real data"


def status() -> list[dict[str, str]]:
    """Return a row an input: name, tier, folder or file (where), source and licence.

    Where a store does not say where it comes from, ``source`` is why, and what to do.
    """
    rows = []
    for name, item in INPUTS.items():
        path, layout = find(name) or ("", None)
        source = f"mnlib fetch {name}"
        if layout is not None:
            source = layout.source or _stored_source(name, path)
            if path.is_file() and path.suffix == ".pth":
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                source = RECOGNISED.get(sha256, source)
        rows.append(
            {
                "name": name,
                "tier": tier(name),
                "where": str(path.parent if layout and layout.read is tfds_store else path),
                "source": source,
                "licence": item.licence,
            }
        )
    return rows


def read(name: str, path: Path, layout: Layout, split: str) -> Any:
    """Read input ``name`` from ``path``, with one sentence for whatever makes it unreadable.

    Raises:
        ValueError: truncated, damaged, incomplete, or not what :func:`load` promises.

    """
    if layout.read is tfds_store:
        need_array_record()
    try:
        if not (path.is_file() or path.is_dir()):
            raise ValueError("it is neither file nor folder")
        if INPUTS[name].splits:
            images, labels = layout.read(path, split)
            check_dataset(name, split, images, labels)
            return Dataset(images, labels)
        content = layout.read(path)
        if layout.read is not onnxruntime_web:
            check_weights(name, content)
        return content
    except MemoryError:
        raise
    except Exception as error:  # other people's parsers raise exceptions of every kind
        raise ValueError(
            f"{path} cannot be read as {name} ({reason(error)}): replace it, or move it out of "
            f"the data folder and run: mnlib fetch {name}"
        ) from error


def load(name: str, split: str = "train") -> Any:
    """Load an input, whichever layout and source it came from.

    Args:
        name: ``"cifar10"``, ``"mnist"``, ``"tf_flowers"``, ``"vgg19"``, ``"mobilenet_v2"``,
            ``"mobilenet_v3_small"``, ``"mobilenet_v3_large"`` or ``"onnxruntime_web"``.
        split: ``"train"`` or ``"test"``; tf_flowers has ``"train"`` only; nothing to the others.

    Returns:
        A :class:`Dataset` (uint8 images N×H×W×C and int64 labels, in the official order; the
        photographs of tf_flowers by class, then file name, and decoded when indexed), or weights
        as a dict of float32 tensors by torchvision's key names (``vgg19``: the 16 convolutions
        only, for BGR input in 0..255 minus 103.939, 116.779, 123.68), or of ``onnxruntime_web``
        the bytes of the files that a page needs, by name.

    Raises:
        FileNotFoundError: it is not there, or ``MNLIB_TIER=embedded`` forbids its use.
        ValueError: unknown name or split, or what is there cannot be read.

    """
    check_name(name)
    splits = INPUTS[name].splits
    if splits and split not in splits:
        raise ValueError(f"{name} has no split {split!r}: it has {', '.join(splits)}")
    if _embedded_forced():
        raise FileNotFoundError(
            f"{name} is not read while MNLIB_TIER=embedded is set: unset it to use real data"
        )
    found = find(name)
    if found is None:
        looked = ", ".join(f"{f}{'' if os.path.isdir(f) else ' (no folder)'}" for f in folders())
        raise FileNotFoundError(
            f"{name} is in none of the data folders {looked}: run: mnlib fetch {name}"
        )
    return read(name, *found, split)


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder in the data folder ``folder``, for one writer at a time.

    What is finished is moved from there to its place at once, so that nothing half-written is
    ever seen; what a killed writer left is removed by the next. A data folder that is not there is
    made and said so: it may be a slip of the pen. What only reads makes none.

    Raises:
        OSError: the data folder cannot be written to or is full.

    """
    try:
        if not folder.exists():
            print(f"making the data folder {folder.absolute()}", file=sys.stderr)
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".mnlib.lock"):
            for left_by_a_killed_writer in folder.glob(".mnlib-tmp-*"):
                shutil.rmtree(left_by_a_killed_writer, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".mnlib-tmp-", dir=folder) as temporary:
                yield Path(temporary)
    except Exception as error:  # array_record's for a full disk is no OSError
        sentence = _unwritable(error, folder)
        if sentence is None:
            raise
        raise sentence from error


def install(made: Path, target: Path) -> None:
    """Move a finished file or folder to its place at once, when it has reached the disk.

    Raises:
        FileExistsError: a folder is in its place, perhaps somebody's own.

    """
    if target.is_dir():
        raise FileExistsError(f"{target} is in the way: move it out of the data folder")
    for path in [made, *made.rglob("*")]:
        _sync(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    made.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    # Windows flushes only what was opened for writing
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(error: Exception, folder: Path) -> OSError | None:
    """Return the sentence for a data folder that cannot be written to, None for other errors."""
    if says_full(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        what = "is full: free some space"
    elif isinstance(error, OSError) and error.errno:
        what = f"cannot be written to ({error.strerror}): make it a writable folder"
    else:
        return None
    return OSError(f"the data folder {folder} {what}, or let MNLIB_DATA name another one first")


def says_full(message: object) -> bool:
    """Tell whether a message, such as another program's, is that of a full disk."""
    said = str(message).lower()
    return "no space left on device" in said or "disk quota exceeded" in said


STORE_VERSION = "1.0.0"
"""The version in the path of the stores that ``mnlib fetch`` writes, ``name/version``."""


def write_store(name: str, splits: dict[str, Dataset], folder: Path, source: str) -> Path:
    """Write a dataset as tensorflow-datasets does, in ``array_record``, below ``folder``.

    Arrays are stored as their bytes, photographs as the original JPEG bytes with their names;
    the original order is kept. Returns ``folder/name/version``.
    """
    need_array_record()
    import tensorflow_datasets as tfds

    photographs = isinstance(splits["train"].images, Photographs)
    if photographs:
        features = {"image": tfds.features.Image(), "file": tfds.features.Text()}
    else:
        features = {
            "image": tfds.features.Tensor(
                shape=splits["train"].images.shape[1:],
                dtype=np.uint8,
                encoding=tfds.features.Encoding.BYTES,
            )
        }
    features["label"] = tfds.features.ClassLabel(names=CLASSES[name])

    class Store(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(STORE_VERSION)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=source,
                license=INPUTS[name].licence,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            images, labels = splits[split]
            for i in tqdm(range(len(labels)), desc=f"{name} {split}", disable=None):
                record = {"image": images[i], "label": labels[i]}
                if photographs:
                    images[i]  # raises where the photograph cannot be decoded
                    record |= {"image": images.encoded(i), "file": images.files[i]}
                yield i, record

    Store.name = name
    tfds.disable_progress_bar()
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):
        Store(data_dir=folder, file_format="array_record").download_and_prepare(
            download_config=offline
        )
    return folder / name / STORE_VERSION


def _stored_source(name: str, path: Path) -> str:
    try:
        info = json.loads(path.with_name("dataset_info.json").read_text(encoding="utf-8"))
        source = info.get("description", "tensorflow-datasets")
        if not isinstance(source, str):
            raise TypeError(f"its description is {json.dumps(source)[:40]}")
        return source
    except MemoryError:
        raise
    except Exception as error:  # whatever is wrong with it, the other inputs are listed
        return (
            f"dataset_info.json cannot be read ({reason(error)}): move the folder out of the data "
            f"folder and run: mnlib fetch {name}"
        )


def packed_flowers(size: int = 224) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return all photographs of tf_flowers decoded and resized, from a cache packed once.

    Each is resized to ``size``×``size`` without regard to its aspect ratio, as TensorFlow's
    tutorials on this dataset do (Pillow's bilinear filter, which antialiases). The cache lies in
    the first data folder and is tied to the photographs' bytes.

    Returns:
        images uint8 N×size×size×3 (a read-only memory map), labels int64 N, names
        ``"class/file.jpg"``.

    Raises:
        FileNotFoundError: tf_flowers is not there.
        ValueError: a photograph cannot be decoded.
        OSError: the first data folder cannot be written to.

    """
    photographs, labels = load("tf_flowers")
    digest = hashlib.sha256()
    for i, file in enumerate(photographs.files):
        digest.update(os.fsencode(file) + hashlib.sha256(photographs.encoded(i)).digest())
    target = folders()[0] / "packed" / f"tf_flowers-{size}-{digest.hexdigest()[:16]}.npy"
    shape = (len(photographs), size, size, 3)
    if (images := _packed(target, shape)) is None:
        _pack(photographs, shape, target)
        images = _packed(target, shape)
    return images, labels, photographs.files


def _packed(target: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a cache of packed photographs, None if it is not there, or damaged."""
    try:
        images = np.load(target, mmap_mode="r")
    except MemoryError:
        raise
    except Exception:  # NumPy's parser raises of every kind; the photographs are still there
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _pack(photographs: Photographs, shape: tuple[int, ...], target: Path) -> None:
    with workspace(folders()[0]) as temporary, ThreadPoolExecutor() as pool:
        if _packed(target, shape) is not None:  # another process packed them meanwhile
            return
        n, *size, _ = shape

        def pack(i: int) -> bytes:
            return photographs.image(i).resize(size, Image.Resampling.BILINEAR).tobytes()

        # written through a file, not a memory map: a full disk is then an error, not a crash
        with open(temporary / target.name, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for content in tqdm(pool.map(pack, range(n)), "packing", n, disable=None):
                file.write(content)
        install(temporary / target.name, target)
