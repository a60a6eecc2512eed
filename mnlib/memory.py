"""How much memory a computation holds at most, counted, and how a training keeps what it has."""

import contextlib
import ctypes
import os
import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Within the context, count the bytes of the living tensors that were made there.

    ``peak`` is their largest sum so far, forward and backward, on the CPU. The output of every
    operation counts until nothing refers to its storage any more; what a kernel uses inside does
    not. The count is the same in every run, unlike the size of a process.
    """

    def __init__(self):
        super().__init__()
        self.peak = self._now = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation and count the storages that are new in its output."""
        result = func(*args, **(kwargs or {}))
        known = {storage.data_ptr() for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self._now += size
        self.peak = max(self.peak, self._now)


def keep_freed() -> None:
    """Have this process keep the memory of freed tensors for new ones, on huge pages.

    Otherwise much of a training step on a CPU is spent on pages that the system clears and takes
    back. Call it before the first tensor is made, for PyTorch asks about huge pages only then. It
    acts on Linux with glibc, where tensors of over 32 MiB are still given back.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: none


def _storages(tree: object) -> list:
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor)]
