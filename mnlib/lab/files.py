"""Files that are there whole or not at all."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["written_whole"]


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` to write to; at the end put it in ``target``'s place at once.

    The path is this process's own, and is on the disk before it takes the place.

    Raises:
        OSError: it cannot be written (a full disk, a folder that is read-only); ``target`` is then
            as it was before.

    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{target.name}.*.part"):  # by a killed writer
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink(missing_ok=True)
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        if error.strerror is None:  # a sentence already
            raise
        raise OSError(
            f"{target} cannot be written ({error.strerror}): free some space or make its folder "
            "writable, and run the same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
