"""One training loop, on Lightning Fabric: device, precision and number of processes are its affair.

Images lie on the device as uint8 and are augmented and normalised a batch at a time.
Every random choice of an epoch follows from (seed, epoch) alone, and a checkpoint is put in place
after each epoch: a run killed at any moment resumes to the losses of one that was not.
"""

import contextlib
import copy
import ctypes
import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mnlib.lab import kernels
from mnlib.lab.runs import Run, written_whole

__all__ = [
    "LOSSES_AN_EPOCH",
    "STATISTICS",
    "WARMUP",
    "Recipe",
    "accuracy",
    "fit",
    "keep_freed",
    "logits",
    "outputs",
    "prepare",
    "resized_crop",
    "shift",
    "split",
]

#: Mean and standard deviation of each channel in [0, 1]: of CIFAR-10's and of MNIST's training
#: images, and torchvision's for ImageNet, which the pre-trained MobileNets expect.
STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

#: The points an epoch that a training's loss curve has.
LOSSES_AN_EPOCH = 20

#: The part of its steps over which SGD's learning rate rises.
WARMUP = 0.2


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; every field enters the result.

    ``sizes`` holds the side in pixels that the images are resized to, epoch by epoch, so that its
    length is the number of epochs. ``optimiser`` is ``"sgd"`` (Nesterov momentum 0.9, linear
    warm-up over ``WARMUP`` of the steps to ``rate``, then linear to zero) or ``"adam"`` (constant
    ``rate``; Kingma and Ba, 2015). ``decay`` spares vectors, that is norms and biases. ``augment``
    shifts by up to ``size // 8`` pixels, reflecting at the border, and flips left-right if
    ``mirror`` allows it; with ``crop`` it cuts rectangles of at least that share of the area out
    instead of shifting. ``penalties`` weighs, epoch by epoch, a term ``model.penalty()`` of the
    loss; without it there is none. ``precision`` is Fabric's, ``"32-true"`` or ``"bf16-mixed"``:
    that of the forward pass in training. Weights stay float32, and what is evaluated is evaluated
    in float32. (In ``"32-true"`` a recent GPU's convolutions round to TF32 in training, PyTorch's
    default.)
    """

    sizes: tuple[int, ...]
    batch: int = 128
    optimiser: str = "sgd"
    rate: float = 0.2
    decay: float = 5e-4
    smoothing: float = 0.0
    augment: bool = True
    mirror: bool = True
    crop: float = 0.0
    statistics: str = "cifar10"
    penalties: tuple[float, ...] = ()
    precision: str = "32-true"

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("a recipe without epochs (sizes=()) trains nothing; give one a size")
        if self.optimiser not in ("sgd", "adam"):
            raise ValueError(f"optimiser {self.optimiser!r} is unknown; use 'sgd' or 'adam'")
        if not 0 <= self.crop <= 1:
            raise ValueError(f"crop {self.crop} is no share of an area; give one from 0 to 1")
        if self.penalties and len(self.penalties) != self.epochs:
            raise ValueError(
                f"{len(self.penalties)} penalties for {self.epochs} epochs; give as many or none"
            )
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(
                f"precision {self.precision!r} is unknown; use '32-true' or 'bf16-mixed'"
            )
        if self.statistics not in STATISTICS:
            raise ValueError(f"statistics {self.statistics!r} unknown; use one of {[*STATISTICS]}")

    @property
    def epochs(self) -> int:
        """The number of passes over the training images."""
        return len(self.sizes)

    def rate_at(self, done: float) -> float:
        """Return the learning rate when ``done`` epochs are done."""
        if self.optimiser == "adam":
            return self.rate
        progress = done / self.epochs
        return self.rate * min(progress / WARMUP, (1 - progress) / (1 - WARMUP))


def prepare(images: Tensor, size: int, statistics: str) -> Tensor:
    """Turn uint8 N×H×W×C images into normalised float32 N×C×size×size, channels last in memory."""
    mean, std = (torch.tensor(v, device=images.device) for v in STATISTICS[statistics])
    x = (images.float() / 255 - mean) / std
    x = x.permute(0, 3, 1, 2)
    if x.shape[-1] == size == x.shape[-2]:
        return x
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True)


def shift(x: Tensor, draws: Tensor) -> Tensor:
    """Flip and shift each image: a random crop of the image padded by reflection.

    Args:
        x: N×C×H×W floats.
        draws: N×3 numbers in [0, 1): flip below one half, vertical and horizontal offset.

    """
    n, _, height, width = x.shape
    reach = min(height, width) // 8
    x = F.pad(x, (reach,) * 4, mode="reflect")
    top, left = (draws[:, 1:] * (2 * reach + 1)).long().T
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(n, width)
    columns = torch.where(draws[:, :1] < 0.5, columns.flip(1), columns) + left[:, None]
    every = torch.arange(n, device=x.device)[:, None, None]
    # gathered from N×H×W×C, so that the result stays channels last
    return x.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def resized_crop(x: Tensor, draws: Tensor, size: int, smallest: float) -> Tensor:
    """Flip each image and resize a random rectangle of it (after Szegedy et al., 2015, §6).

    The rectangle's share of the area is uniform between ``smallest`` and 1, the logarithm of its
    ratio of width to height between ±log 4/3; a side that would be longer than the image is the
    image's. Sampling is bilinear, which blurs where it enlarges and skips pixels where it shrinks.

    Args:
        x: N×C×H×W floats.
        draws: N×5 numbers in [0, 1): flip below one half, area, ratio, vertical and horizontal
            position.
        size: side in pixels of the result, N×C×size×size.
        smallest: share of the area, in (0, 1].

    """
    flip = torch.where(draws[:, 0] < 0.5, -1.0, 1.0)
    side = (smallest + (1 - smallest) * draws[:, 1]).sqrt()
    stretch = (4 / 3) ** (draws[:, 2] - 0.5)  # the square root of width over height
    height, width = (side / stretch).clamp(max=1), (side * stretch).clamp(max=1)
    down, right = (1 - height) * (2 * draws[:, 3] - 1), (1 - width) * (2 * draws[:, 4] - 1)
    none = torch.zeros_like(flip)
    rows = [torch.stack(row, 1) for row in ((flip * width, none, right), (none, height, down))]
    grid = F.affine_grid(torch.stack(rows, 1), [len(x), 1, size, size], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def logits(
    model: nn.Module,
    images: Tensor | np.ndarray,
    *,
    size: int,
    statistics: str,
    batch: int = 250,
    mirrored: bool = False,
) -> Tensor:
    """Return the model's outputs in evaluation mode for uint8 N×H×W×C images, N×classes, float32.

    ``mirrored`` makes them the means of those for an image and for its mirror image. The model's
    device is used, its mode is restored, and the outputs come back on the CPU. Where a GPU would
    round float32 to TF32 it is told not to, so that it agrees with a CPU.
    """
    device, mode = next(model.parameters()).device, model.training
    model.eval()
    parts = []
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for part in torch.as_tensor(images).split(batch):
            x = prepare(part.to(device), size, statistics)
            out = (model(x) + model(x.flip(3))) / 2 if mirrored else model(x)
            parts.append(out.float().cpu())
    model.train(mode)
    return torch.cat(parts)


def outputs(model: nn.Module, run: Run, images: Tensor | np.ndarray) -> Tensor:
    """Return :func:`logits` of the model that ``run`` recorded, taken as ``run`` was tested.

    With protocol ``"mirrored"`` they are the means of those for an image and for its mirror image.
    """
    recipe = run.results["recipe"]
    return logits(
        model,
        images,
        size=recipe["sizes"][-1],
        statistics=recipe["statistics"],
        batch=recipe["batch"],
        mirrored=run.protocol == "mirrored",
    )


def accuracy(outputs: Tensor, labels: Tensor | np.ndarray) -> float:
    """Return the fraction of rows of ``outputs``, N×classes, whose largest entry is the label."""
    return (outputs.argmax(1) == torch.as_tensor(labels)).double().mean().item()


def split(labels: np.ndarray, held_out: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted indices kept and held out, ``held_out`` of them, which may be none.

    A class has the same share of its images held out as every other, to less than one image.

    Raises:
        ValueError: ``held_out`` is negative or leaves nothing to learn from.

    """
    if not 0 <= held_out < len(labels):
        raise ValueError(f"cannot hold {held_out} of {len(labels)} images out; take fewer")
    rng = np.random.default_rng(seed)
    # an image's quantile within its own class, shuffled: the smallest ones are held out
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        quantile[members] = (rng.permutation(len(members)) + rng.random()) / len(members)
    order = np.argsort(quantile, kind="stable")
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def fit(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    recipe: Recipe,
    *,
    seed: int = 0,
    validation: tuple[Tensor | np.ndarray, Tensor | np.ndarray] | None = None,
    progress: Path | None = None,
    fabric: Fabric | None = None,
    replay: bool = False,
) -> dict[str, list[float]]:
    """Train ``model`` in place, and return its curves: one value an epoch.

    Args:
        model: maps float N×C×H×W to N×classes.
        images: uint8 N×H×W×C, which must fit on the device.
        labels: int64 N.
        recipe: how to train.
        seed: of the order of images, their augmentation and what is random within the model.
        validation: images and labels whose accuracy is taken after each epoch.
        progress: file that holds the state after the last whole epoch: training resumes from it,
            and refuses a state of another recipe, seed or shape of model.
        fabric: a launched Fabric of the recipe's precision; without one, a single process on the
            device Fabric picks. Every process takes its share of each batch, and all must hold the
            same images.
        replay: on a single GPU, record the step as a CUDA graph in each epoch and replay it, which
            spares small networks most of their time. ``model`` must then not look at values on its
            way: fixed-step solvers with ``gradient="backprop"`` do not, dopri5 does. What is not
            finite is then noticed at the end of an epoch only.

    Returns:
        ``loss`` (mean over the epoch's steps), ``seconds`` and, with ``validation``, ``accuracy``;
        ``losses``, the means over equal parts of each epoch, ``LOSSES_AN_EPOCH`` of them.

    Raises:
        ValueError: images and labels do not match, or a batch does not divide among the processes,
            or ``progress`` belongs to another training.
        FloatingPointError: the loss is no longer finite.

    """
    fabric = fabric or Fabric(devices=1, precision=recipe.precision)
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
        raise ValueError(
            f"got images {tuple(images.shape)} {images.dtype} and {len(labels)} labels; "
            "give uint8 N×H×W×C and N labels"
        )
    batch = min(recipe.batch, len(images))
    if batch % fabric.world_size:
        raise ValueError(f"a batch of {batch} does not divide among {fabric.world_size} processes")
    images, labels = images.to(fabric.device), labels.to(fabric.device)
    mine = slice(fabric.global_rank, None, fabric.world_size)
    steps = len(images) // batch  # the images left over change from epoch to epoch

    bare = model.to(memory_format=torch.channels_last)  # as the images are
    optimiser = _optimiser(bare, recipe)
    model, optimiser = fabric.setup(model, optimiser)
    history: dict[str, list[float]] = {"loss": [], "losses": [], "seconds": []}
    if validation is not None:
        history["accuracy"] = []
    identity = _identity(bare, recipe, seed, len(images))
    if progress is not None and progress.is_file():
        saved = torch.load(progress, map_location=fabric.device, weights_only=True)
        if saved["identity"] != identity:
            raise ValueError(f"{progress} belongs to another training; remove it to start afresh")
        bare.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        history = saved["history"]

    kernels.faster(bare)
    try:
        for epoch in range(len(history["loss"]), recipe.epochs):
            start = time.perf_counter()
            # for what is random within the model, in each process otherwise
            torch.manual_seed(epoch * 1_000_003 + seed + 7919 * fabric.global_rank)
            draw = torch.Generator().manual_seed(epoch * 1_000_003 + seed)
            order = torch.randperm(len(images), generator=draw)[: steps * batch]
            losses = torch.zeros(steps, device=fabric.device)
            model.train()
            penalty = recipe.penalties[epoch] if recipe.penalties else 0

            def learn(x: Tensor, y: Tensor, penalty: float = penalty) -> Tensor:
                optimiser.zero_grad()
                loss = F.cross_entropy(model(x), y, label_smoothing=recipe.smoothing)
                fabric.backward(loss + penalty * bare.penalty() if penalty else loss)
                return loss.detach()

            bar = tqdm(
                order.split(batch),
                f"epoch {epoch + 1}/{recipe.epochs}",
                leave=False,
                disable=not sys.stderr.isatty() or fabric.global_rank > 0,
            )
            for step, chosen in enumerate(bar):
                draws = torch.rand(batch, 5 if recipe.crop else 3, generator=draw)[mine]
                draws = draws.to(fabric.device)
                chosen = chosen[mine].to(fabric.device)
                size = recipe.sizes[epoch]
                whole = max(recipe.sizes) if recipe.augment and recipe.crop else size
                x = prepare(images[chosen], whole, recipe.statistics)
                if not recipe.mirror:
                    draws[:, 0] = 1  # no flip
                if recipe.augment:
                    x = (
                        resized_crop(x, draws, size, recipe.crop)
                        if recipe.crop
                        else shift(x, draws)
                    )
                y = labels[chosen]
                rate = recipe.rate_at(epoch + (step + 0.5) / steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                if step == 0 and replay and fabric.world_size == 1 and fabric.device.type == "cuda":
                    learn = _recorded(learn, bare, x, y)
                losses[step] = learn(x, y)
                optimiser.step()
            losses = fabric.all_reduce(losses)
            mean = losses.mean().item()
            if not np.isfinite(mean):
                raise FloatingPointError(
                    f"loss {mean} in epoch {epoch + 1}; lower rate {recipe.rate}"
                )
            history["loss"].append(mean)
            parts = losses.tensor_split(min(steps, LOSSES_AN_EPOCH))
            history["losses"] += [part.mean().item() for part in parts]
            if validation is not None:
                outputs = logits(
                    bare,
                    validation[0],
                    size=recipe.sizes[-1],
                    statistics=recipe.statistics,
                    batch=recipe.batch,
                )
                history["accuracy"].append(accuracy(outputs, validation[1]))
            history["seconds"].append(time.perf_counter() - start)
            if progress is not None and fabric.global_rank == 0:
                state = {
                    "identity": identity,
                    "model": bare.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "history": history,
                }
                with written_whole(progress) as part:
                    torch.save(state, part)
            fabric.barrier()
    finally:
        kernels.plain(bare)
    return history


def _recorded(
    learn: Callable[[Tensor, Tensor], Tensor], model: nn.Module, x: Tensor, y: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Record ``learn``, which sets the gradients, as a CUDA graph for batches of this shape."""
    x, y, before = x.clone(), y.clone(), copy.deepcopy(model.state_dict())
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what libraries set up when first called must not be recorded
            learn(x, y)
    torch.cuda.current_stream().wait_stream(aside)
    model.load_state_dict(before)  # these batches do not count for the running statistics
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = learn(x, y)

    def again(*batch: Tensor) -> Tensor:
        x.copy_(batch[0])
        y.copy_(batch[1])
        graph.replay()
        return loss

    return again


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimiser == "adam":
        return torch.optim.Adam(groups, lr=recipe.rate, fused=True)
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=True, fused=True)


def _identity(model: nn.Module, recipe: Recipe, seed: int, n: int) -> str:
    shapes = [(key, tuple(value.shape)) for key, value in model.state_dict().items()]
    return hashlib.sha256(repr((recipe, seed, n, shapes)).encode()).hexdigest()


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
