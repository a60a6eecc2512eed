"""One training loop, on Lightning Fabric: device, precision and number of processes are its affair.

Images lie on the device as uint8 and are augmented and normalised a batch at a time.
Every random choice of an epoch follows from (seed, epoch) alone, and a checkpoint is put in place
after each epoch: a run killed at any moment resumes to the losses of one that was not.
"""

import contextlib
import ctypes
import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mnlib.lab import kernels
from mnlib.lab.images import STATISTICS, prepare, resized_crop, shift
from mnlib.lab.resume import CapturedStep, Progress

__all__ = [
    "LOSSES_AN_EPOCH",
    "WARMUP",
    "Recipe",
    "accuracy",
    "fit",
    "keep_freed",
    "logits",
    "split",
]

#: The points an epoch that a training's loss curve has.
LOSSES_AN_EPOCH = 20

#: The part of its steps over which SGD's learning rate rises.
WARMUP = 0.2

Images = Tensor | np.ndarray


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

    Raises:
        ValueError: a field is not among its values; the message names it.

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
        if min(*self.sizes, self.batch) < 1:
            raise ValueError(
                f"sizes {self.sizes} and batch {self.batch} must be at least 1; give larger ones"
            )
        if self.optimiser not in ("sgd", "adam"):
            raise ValueError(f"optimiser {self.optimiser!r} is unknown; use 'sgd' or 'adam'")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate {self.rate} trains nothing; give a positive, finite one")
        if not all(0 <= value < math.inf for value in (self.decay, *self.penalties)):
            raise ValueError(
                f"decay {self.decay} and penalties {self.penalties} must be finite and not "
                "negative; give such"
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(
                f"smoothing {self.smoothing} is no share of a label; give one from 0 to below 1"
            )
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


def logits(
    model: nn.Module,
    images: Images,
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
    images: Images,
    labels: Images,
    recipe: Recipe,
    *,
    seed: int = 0,
    validation: tuple[Images, Images] | None = None,
    progress: Path | None = None,
    fabric: Fabric | None = None,
    replay: bool = False,
) -> dict[str, list[float]]:
    """Train ``model`` in place, and return its curves: one value an epoch.

    Args:
        model: maps float N×C×H×W to N×classes. Batch norm in several processes becomes
            ``nn.SyncBatchNorm``, which PyTorch has for GPUs only.
        images: uint8 N×H×W×C, which must fit on the device.
        labels: int64 N, below the number of classes.
        recipe: how to train.
        seed: of the order of images, their augmentation and what is random within the model.
        validation: images and labels whose accuracy is taken after each epoch.
        progress: file that holds the state after the last whole epoch: training resumes from it,
            and refuses a state of another recipe, seed, shape of model or other images.
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
        ValueError: images and labels do not match each other, the model or the recipe, or a batch
            does not divide among the processes, or ``progress`` is damaged or another training's.
        FloatingPointError: the loss is no longer finite.

    """
    fabric = fabric or Fabric(devices=1, precision=recipe.precision)
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    batch = _checked_batch(model, images, labels, recipe, fabric)
    kept = Progress(progress, images, labels, validation, recipe, seed)
    images, labels = images.to(fabric.device), labels.to(fabric.device)
    mine = slice(fabric.global_rank, None, fabric.world_size)
    steps = len(images) // batch  # the images left over change from epoch to epoch
    bare = model.to(memory_format=torch.channels_last)  # as the images are
    if fabric.world_size > 1:
        bare = nn.SyncBatchNorm.convert_sync_batchnorm(bare)
    optimiser = _optimiser(bare, recipe)
    model, optimiser = fabric.setup(model, optimiser)
    history = kept.resume(bare, optimiser)
    learn = partial(_learn, model, bare, optimiser, fabric, recipe.smoothing)
    replay = replay and fabric.world_size == 1 and fabric.device.type == "cuda"

    kernels.faster(bare)
    try:
        for epoch in range(len(history["loss"]), recipe.epochs):
            start = time.perf_counter()
            # for what is random within the model, in each process otherwise
            torch.manual_seed(epoch * 1_000_003 + seed + 7919 * fabric.global_rank)
            draw = torch.Generator().manual_seed(epoch * 1_000_003 + seed)
            order = torch.randperm(len(images), generator=draw)[: steps * batch].split(batch)
            losses = torch.zeros(steps, device=fabric.device)
            penalty = recipe.penalties[epoch] if recipe.penalties else 0
            step = CapturedStep(learn, bare) if replay else learn
            model.train()
            for i, chosen in enumerate(_bar(order, epoch, recipe, fabric)):
                draws = torch.rand(batch, 5 if recipe.crop else 3, generator=draw)[mine]
                chosen = chosen[mine].to(fabric.device)
                x = _augmented(images[chosen], draws.to(fabric.device), recipe, epoch)
                for group in optimiser.param_groups:
                    group["lr"] = recipe.rate_at(epoch + (i + 0.5) / steps)
                losses[i] = step(x, labels[chosen], penalty)
                optimiser.step()
            losses = fabric.all_reduce(losses)
            mean = losses.mean().item()
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"loss {mean} in epoch {epoch + 1}; lower rate {recipe.rate}"
                )
            history["loss"].append(mean)
            parts = losses.tensor_split(min(steps, LOSSES_AN_EPOCH))
            history["losses"] += [part.mean().item() for part in parts]
            if validation is not None:
                how = {"statistics": recipe.statistics, "batch": recipe.batch}
                outputs = logits(bare, validation[0], size=recipe.sizes[-1], **how)
                history["accuracy"].append(accuracy(outputs, validation[1]))
            history["seconds"].append(time.perf_counter() - start)
            if fabric.global_rank == 0:
                kept.keep(bare, optimiser, history)
            fabric.barrier()
    finally:
        kernels.plain(bare)
    return history


def _checked_batch(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, fabric: Fabric
) -> int:
    """Return the number of images of a step, once the training's inputs have been checked."""
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
        raise ValueError(
            f"got images {tuple(images.shape)} {images.dtype} and {len(labels)} labels; "
            "give uint8 N×H×W×C and N labels"
        )
    if not len(images):
        raise ValueError("there are 0 images to learn from; give at least one")
    if labels.dtype != torch.int64 or labels.min() < 0:
        raise ValueError(
            f"labels {labels.dtype} from {labels.min()} are no classes; give int64 from 0 on"
        )
    if fabric.world_size > 1 and fabric.device.type != "cuda":
        for name, layer in model.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"in {fabric.world_size} processes on the CPU the batch norm {name!r} would "
                    "see a part of each batch; train in one process, or on GPUs"
                )
    batch = min(recipe.batch, len(images))
    if batch % fabric.world_size:
        raise ValueError(f"a batch of {batch} does not divide among {fabric.world_size} processes")
    model.to(fabric.device)
    how = {"size": recipe.sizes[-1], "statistics": recipe.statistics}
    classes = logits(model, images[:1], **how).shape[1]
    if labels.max() >= classes:
        raise ValueError(
            f"label {labels.max()} is none of {classes} classes; give labels below {classes}"
        )
    return batch


def _learn(
    model: nn.Module,
    bare: nn.Module,
    optimiser: torch.optim.Optimizer,
    fabric: Fabric,
    smoothing: float,
    x: Tensor,
    y: Tensor,
    penalty: float,
) -> Tensor:
    """Set the gradients for a batch and return its loss."""
    optimiser.zero_grad()
    loss = F.cross_entropy(model(x), y, label_smoothing=smoothing)
    fabric.backward(loss + penalty * bare.penalty() if penalty else loss)
    return loss.detach()


def _augmented(images: Tensor, draws: Tensor, recipe: Recipe, epoch: int) -> Tensor:
    """Return the images of a step as the model is fed them in this epoch."""
    size = recipe.sizes[epoch]
    if not recipe.augment:
        return prepare(images, size, recipe.statistics)
    if not recipe.mirror:
        draws[:, 0] = 1  # no flip
    if recipe.crop:
        x = prepare(images, max(recipe.sizes), recipe.statistics)
        return resized_crop(x, draws, size, recipe.crop)
    return shift(prepare(images, size, recipe.statistics), draws)


def _bar(batches: Iterable[Tensor], epoch: int, recipe: Recipe, fabric: Fabric) -> Iterable[Tensor]:
    quiet = not sys.stderr.isatty() or fabric.global_rank > 0
    return tqdm(batches, f"epoch {epoch + 1}/{recipe.epochs}", leave=False, disable=quiet)


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimiser == "adam":
        return torch.optim.Adam(groups, lr=recipe.rate, fused=True)
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=True, fused=True)


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
