"""Files that are there whole or not at all, and what is read from them field by field."""

import contextlib
import dataclasses
import os
import time
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["checked", "written_whole"]

T = TypeVar("T")


def checked(kind: type[T], entries: Any) -> T:
    """Return the dataclass ``kind`` made of fields that were read from JSON or TOML.

    Raises:
        ValueError: a field is missing, unknown or of another type; the message says which.

    """
    if not isinstance(entries, dict):
        raise ValueError("it is no object with fields")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    for name, wanted in typing.get_type_hints(kind).items():
        if name not in entries:
            if (fields[name].default, fields[name].default_factory) == (missing, missing):
                raise ValueError(f"it has no {name!r}")
            continue
        kinds = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
        kinds = tuple(typing.get_origin(each) or each for each in kinds)
        kinds += (int,) * (float in kinds)  # 1.0 is 1 in some hands
        if not isinstance(entries[name], kinds) or isinstance(entries[name], bool):
            raise ValueError(f"its {name!r} is {entries[name]!r:.40}")
    if strange := entries.keys() - fields.keys():
        raise ValueError(f"it has a field {min(strange)!r}, which is unknown")
    return kind(**entries)


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
