"""From uint8 images to what a network is fed: normalised, resized, shifted, cut out, flipped."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["STATISTICS", "prepare", "resized_crop", "shift"]

#: Mean and standard deviation of each channel in [0, 1]: of CIFAR-10's and of MNIST's training
#: images, and torchvision's for ImageNet, which the pre-trained MobileNets expect.
STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def prepare(images: Tensor, size: int, statistics: str) -> Tensor:
    """Turn uint8 N×H×W×C images into normalised float32 N×C×size×size, channels last in memory.

    Raises:
        ValueError: the images have other channels than the ``statistics``.

    """
    mean, std = (torch.tensor(v, device=images.device) for v in STATISTICS[statistics])
    if images.ndim != 4 or images.shape[3] != len(mean):
        raise ValueError(
            f"images of shape {tuple(images.shape)} do not have the {len(mean)} channels of the "
            f"statistics {statistics!r}; give N×H×W×{len(mean)} or other statistics"
        )
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
