"""What a network costs: parameters, multiply-adds, seconds and bytes, measured in turns."""

import copy
import time
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    "Layer",
    "PeakMemory",
    "count_macs",
    "count_parameters",
    "fold_batch_norm",
    "layers",
    "time_in_turns",
]


class Layer(NamedTuple):
    """A module of a network: dotted name, class, shapes for one input, and what it costs.

    ``parameters`` and ``macs`` (multiply-adds) include those of the modules inside it.

    >>> layers(nn.Linear(3, 2), (3,))
    [Layer(name='', kind='Linear', input=(3,), output=(2,), parameters=8, macs=6)]
    """

    name: str
    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int
    macs: int


def layers(model: nn.Module, shape: tuple[int, ...] = (3, 224, 224)) -> list[Layer]:
    """Return every module of ``model`` that one input of ``shape`` passes, in order of execution.

    The network itself, named ``""``, stands last. Multiply-adds are those of convolutions and
    matrix products, counted by ``torch.utils.flop_counter`` on meta tensors: nothing is computed.
    Batch norm (which folds into a convolution), nonlinearities, pooling and the scaling by gates
    do not count.

    >>> [row.macs for row in layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (3, 6, 6))]
    [3456, 0, 3456]
    """
    model = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    passed = []
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda module, args, out, name=name: passed.append(
                (name, module, tuple(args[0].shape[1:]), tuple(out.shape[1:]))
            )
        )
    with counter, torch.no_grad():
        model(torch.empty(1, *shape, device="meta"))
    flops = counter.get_flop_counts()
    rows = []
    for name, module, before, after in passed:
        path = f"{type(model).__name__}.{name}".rstrip(".")
        macs = sum(flops.get(path, {}).values()) // 2
        size = count_parameters(module)
        rows.append(Layer(name, type(module).__name__, before, after, size, macs))
    return rows


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters; running statistics do not count.

    >>> count_parameters(nn.BatchNorm2d(8))
    16
    """
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, shape: tuple[int, ...] = (3, 224, 224)) -> int:
    """Return the multiply-adds of ``model`` for one input of ``shape``, as :func:`layers` does.

    >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 6, 6))
    7776
    """
    return layers(model, shape)[-1].macs


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, channels last, with batch norms folded into convolutions.

    A norm is folded that follows its convolution in an ``nn.Sequential``. The copy computes the
    same function up to float rounding and is not meant to be trained.

    >>> fold_batch_norm(nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)))[1]
    Identity()
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for i, (conv, norm) in enumerate(pairwise(module)):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[i], module[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return model.to(memory_format=torch.channels_last)


def time_in_turns(
    variants: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Return the seconds on one core of each call, ``repeats`` a variant, after one to warm up.

    PyTorch is held to one thread and that thread's own time is taken, so that other work on the
    machine counts little (MobileNets' papers measure on a single core, too). The variants take
    turns, so that what does count meets all of them: compare them by ratio, turn by turn.

    >>> {name: len(s) for name, s in time_in_turns({"a": list, "b": dict}, repeats=3).items()}
    {'a': 3, 'b': 3}
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(repeats + 1):
            for name, variant in variants.items():
                start = time.thread_time()
                variant()
                if turn:
                    seconds[name].append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return seconds


class PeakMemory(TorchDispatchMode):
    """Within the context, count the bytes of the living tensors that were made there.

    ``peak`` is their largest sum so far, forward and backward, on the CPU. The output of every
    operation counts until nothing refers to its storage any more; what a kernel uses inside does
    not. The count is the same in every run, unlike the size of a process.

    >>> with PeakMemory() as memory:
    ...     y = torch.ones(256).exp()
    >>> memory.peak
    2048
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
