"""How much memory a computation holds at most, counted and not sampled."""

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


def _storages(tree: object) -> list:
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor)]
