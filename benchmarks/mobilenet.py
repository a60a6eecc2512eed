"""MobileNets beside torchvision's (and timm's in evaluation): also training, V3's last stage.

Run: python benchmarks/mobilenet.py [--quick]
Goals: evaluation 1.4 times torchvision in channels-last inference mode on V2 and V3-Small with
equal outputs, a training step 1.7 times torchvision's default. Ours is channels last, with a fused
optimiser and in a process that keeps its memory, as ``mnlib run`` has it; compiled, it is the same
after ``torch.compile``, which takes 10 to 40 s and wants a C++ compiler.
"""

import argparse
import copy
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

import timm
import torch
import torchvision
from _timing import Times, compare, report
from torch import nn

from mnlib import mobilenet
from mnlib.cost import count_macs, count_parameters, fold_batch_norm
from mnlib.lab.kernels import faster
from mnlib.lab.training import keep_freed
from mnlib.mobilenet import last_stage_after, last_stage_before

TIMM = {
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
}


def settled(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Give the batch norms statistics of ``x``: those of a new network shrink it to denormals."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def optimize_for_inference(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a compiled copy of ``model`` for evaluation, with frozen weights and folded norms.

    It computes the same function up to float rounding, without gradients. The first call with a
    new shape compiles for 10 to 20 s and needs a C++ compiler: where either is too much, use
    :func:`fold_batch_norm`.
    """
    from torch._inductor import config  # takes a second to import

    compiled = torch.compile(copy.deepcopy(model).eval().to(memory_format=torch.channels_last))

    def run(x: torch.Tensor) -> torch.Tensor:
        # set as torch.compile's option, freezing leaves the weights in their slower layout
        with torch.no_grad(), config.patch(freezing=True):
            return compiled(x)

    return run


def evaluation(name: str, x: torch.Tensor, repeats: int) -> None:
    reference = settled(getattr(torchvision.models, name)(), x)
    ours = getattr(mobilenet, name)()
    ours.load_state_dict(reference.state_dict())
    theirs = settled(timm.create_model(TIMM[name]), x)
    default = reference(x)
    reference = reference.to(memory_format=torch.channels_last)
    theirs = theirs.to(memory_format=torch.channels_last)
    folded, compiled = fold_batch_norm(ours), optimize_for_inference(ours)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for fast in (folded, compiled):
            error = (fast(x) - default).abs().max() / default.abs().max()
            assert error < 1e-5, f"{name}: outputs differ by {error:.1e} of the largest logit"
        times = compare(
            {
                "torchvision": lambda: reference(x),
                "timm": lambda: theirs(x),
                "ours, folded": lambda: folded(x),
                "ours, compiled": lambda: compiled(x),
            },
            repeats,
        )
    report(times, title=f"{name}: evaluation of {tuple(x.shape)}, channels last")


def train(connection: Connection, name: str, variant: str, shape: tuple[int, ...]) -> None:
    """Take a training step whenever asked to, on one thread, and send its seconds on the core."""
    ours = variant.startswith("ours")
    if ours or "memory kept" in variant:
        keep_freed()
    torch.set_num_threads(1)
    x, labels = torch.randn(shape), torch.arange(shape[0])
    model = getattr(mobilenet if ours else torchvision.models, name)().train()
    if ours:
        model = faster(model.to(memory_format=torch.channels_last))
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=ours or None)
    if "compiled" in variant:
        model = torch.compile(model)
    while connection.recv():
        start = time.thread_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        connection.send(time.thread_time() - start)


def training(name: str, shape: tuple[int, ...], repeats: int) -> None:
    """Time steps in processes that take turns: how memory is kept is a process's own affair."""
    spawn, ends = get_context("spawn"), {}
    for variant in (
        "torchvision",
        "torchvision, memory kept",
        "ours, as mnlib run",
        "ours, compiled",
    ):
        ends[variant], other = spawn.Pipe()
        spawn.Process(target=train, args=(other, name, variant, shape), daemon=True).start()
    rounds: dict[str, list[float]] = {label: [] for label in ends}
    for turn in range(repeats + 1):
        for label, end in ends.items():
            end.send(True)
            seconds = end.recv()
            if turn:
                rounds[label].append(seconds)
    report(Times(rounds), title=f"{name}: training step of {shape}, Adam")
    for end in ends.values():
        end.send(False)


def last_stage(batch: int, repeats: int) -> None:
    before, after = last_stage_before(), last_stage_after()
    for label, stage in (("before", before), ("after", after)):
        macs, parameters = count_macs(stage, (160, 7, 7)), count_parameters(stage)
        print(f"{label}: {macs / 1e6:.1f}M multiply-adds, {parameters / 1e6:.2f}M parameters")
    x = torch.randn(batch, 160, 7, 7).contiguous(memory_format=torch.channels_last)
    before, after = fold_batch_norm(settled(before, x)), fold_batch_norm(settled(after, x))
    with torch.inference_mode():
        times = compare({"before": lambda: before(x), "after": lambda: after(x)}, repeats)
    report(times, title=f"V3-Large's last stage, {batch} images, folded")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smoke run: small, one network")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    x = torch.randn(*((2, 3, 32, 32) if quick else (16, 3, 224, 224)))
    repeats = 1 if quick else 9
    for name in ["mobilenet_v3_small"] if quick else TIMM:
        evaluation(name, x, repeats)
        training(name, tuple(x.shape), repeats)
    for batch in (1,) if quick else (1, 16):
        last_stage(batch, repeats)
