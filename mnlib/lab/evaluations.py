"""What has been computed, kept while nothing that it depends on has changed.

The store lies below the checkout's ``_build``: a fresh clone, or ``make clean``, computes anew.
Without a checkout nothing is kept.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch

from mnlib.lab import fingerprint, places
from mnlib.lab.files import written_whole

__all__ = ["FOLDER", "kept"]

FOLDER = places.CHECKOUT and places.CHECKOUT / "_build" / "evaluations"


def kept(make: Callable[[], Any], *depends: Any) -> Any:
    """Return ``make()``, computed once for what it ``depends`` on, versions and threads included.

    Args:
        make: returns a tensor, or numbers, texts, lists and dicts of them.
        depends: all else that can change the result, as JSON types: hashes of code and inputs.

    """
    if FOLDER is None:
        return make()
    everything = [*depends, fingerprint.versions(), torch.get_num_threads()]
    key = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    path = FOLDER / f"{key[:32]}.pt"
    with contextlib.suppress(Exception):  # not there, or damaged: it is computed
        return torch.load(path, weights_only=True)
    value = make()
    with contextlib.suppress(OSError), written_whole(path) as part:  # a full disk loses time only
        torch.save(value, part)
    return value
