"""The network that the chapter on slice PCA looks into, and changes made to it.

VGG-19's convolutions where their weights are there, else the project's own small network; either
is an ``nn.Sequential`` of convolutions, ReLUs and pools.
"""

import copy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnlib import pca
from mnlib.lab import data, runs
from mnlib.lab.images import STATISTICS, prepare
from mnlib.lab.runs import Which
from mnlib.lab.tasks import Outcome, restored
from mnlib.separable import DecoupledConv2d, Order, rank_bound

__all__ = [
    "OXFORD_MEAN",
    "LastBlock",
    "SmallConvNet",
    "Subject",
    "decoupled",
    "measure_slices",
    "normalising_scales",
    "parameters",
    "pretrained",
    "rescaled",
    "subject",
    "vgg19_features",
]

#: The mean that the Oxford VGG-19 subtracts from its input: blue, green and red from 0 to 255.
OXFORD_MEAN = (103.939, 116.779, 123.68)


def vgg19_features() -> nn.Sequential:
    """Return VGG-19's convolutions, ReLUs and max-pools with random weights: N×512×H/32×W/32.

    Configuration E of Simonyan and Zisserman (2015), without the three dense layers: torchvision's
    ``features``, and its parameter names.
    """
    from torchvision.models.vgg import cfgs, make_layers  # here, for torchvision imports slowly

    return make_layers(cfgs["E"], batch_norm=False)


class LastBlock(nn.Module):
    """VGG-19 whose last block of four convolutions is trained, with a new linear layer.

    Maps images normalised by ImageNet's statistics, float RGB N×3×H×W, to N×``classes``: the means
    over positions of the last feature maps, classified. The twelve convolutions before are frozen.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = vgg19_features().to(memory_format=torch.channels_last)
        self.features[:28].requires_grad_(False)  # up to the fourth pool
        self.classifier = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return N×``classes`` outputs."""
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in STATISTICS["imagenet"])
        oxford = torch.tensor(OXFORD_MEAN, device=x.device).view(3, 1, 1)
        bgr = (255 * (x * std + mean)).flip(1) - oxford
        return self.classifier(self.features(bgr).mean((2, 3)))


class SmallConvNet(nn.Sequential):
    """Seven 3×3 convolutions with ReLU and no batch norm, after VGG (Simonyan and Zisserman, 2015).

    Maps float N×3×H×W (H and W at least 8) to N×``classes``. Three max-pools divide the resolution
    by 8, a global mean follows. ``convolutions`` lists the layers as slice PCA takes them.
    0.24 M parameters with the default width of 24 channels in the first stage.

    As in VGG every ReLU is preceded by a plain convolution, so that the network keeps VGG's
    symmetry: a channel's scale can be moved from one layer to the next.
    """

    def __init__(self, classes: int = 5, width: int = 24) -> None:
        layers: list[nn.Module] = []
        before = 3
        for stage, depth in enumerate((2, 2, 3)):
            after = width * 2**stage
            for _ in range(depth):
                convolution = nn.Conv2d(before, after, 3, padding=1)
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
                nn.init.zeros_(convolution.bias)
                layers += [convolution, nn.ReLU()]
                before = after
            layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

    @property
    def convolutions(self) -> list[Tensor]:
        """The weights of the 3×3 convolutions, n_o×n_i×3×3 each, in order."""
        return [m.weight.detach() for m in self if isinstance(m, nn.Conv2d)]


def measure_slices(_which: Which) -> Outcome:
    """Measure the first component's share of the variance in every slice of VGG-19.

    ``percent``, ``layers`` and ``histogram`` are by the slides' definition; ``atlas`` has the
    percentage by every definition that :func:`mnlib.pca.first_component` knows.
    """
    weights = [w for w in data.load("vgg19").values() if w.ndim == 4]
    results: dict = {}
    for slices in ("vertical", "horizontal"):
        layers = [pca.explained_variance_ratio(w, slices=slices)[:, 0] for w in weights]
        shares = torch.cat(layers)
        results[slices] = {
            "slices": len(shares),
            "percent": 100 * shares.mean().item(),
            "layers": [100 * layer.mean().item() for layer in layers],
            # of the shares in 50 equal bins between 0 and 1
            "histogram": shares.histc(50, 0, 1).int().tolist(),
            "atlas": pca.atlas(weights, slices=slices),
        }
    return Outcome(parameters=sum(w.numel() for w in weights), accuracy=None, results=results)


class Subject(NamedTuple):
    """A network to look into: its name, its layers, and images as it takes them (N×3×S×S)."""

    name: str
    network: nn.Sequential
    images: Tensor


def subject(count: int = 8, size: int = 64) -> Subject:
    """Return VGG-19 on the real-data tier, the trained small network on the embedded one.

    The images are photographs, or drawn flowers where those are not there: ``count`` of them,
    spread over the classes, size×size. Weights are not differentiated.

    Raises:
        FileNotFoundError: the small network's recorded run is not there.

    """
    images = _images(count, size)
    if data.tier("vgg19") == "real data":
        name, network = "VGG-19", pretrained()
        images = images.flip(1) - torch.tensor(OXFORD_MEAN)[:, None, None]
    else:
        name, network = "the small network", _small()
        images = prepare(images.permute(0, 2, 3, 1), size, "imagenet")
    for layer in network:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return Subject(name, network.requires_grad_(False).eval(), images)


def _images(count: int, size: int) -> Tensor:
    """Return pictures of flowers, float N×3×S×S from 0 to 255."""
    if data.tier("tf_flowers") == "embedded":
        return torch.tensor(data.drawn_flowers(count, size)[0]).permute(0, 3, 1, 2).float()
    photographs = data.load("tf_flowers").images
    chosen = [photographs[i * len(photographs) // count] for i in range(count)]
    resize = partial(F.interpolate, size=(size, size), mode="bilinear", antialias=True)
    return torch.cat([resize(torch.tensor(p).permute(2, 0, 1)[None].float()) for p in chosen])


def pretrained() -> nn.Sequential:
    """Return VGG-19's convolutions with the weights of the book.

    Raises:
        FileNotFoundError: they are not there; the message names the remedy.

    """
    with torch.device("meta"):
        network = vgg19_features()
    weights = {key.removeprefix("features."): w for key, w in data.load("vgg19").items()}
    network.load_state_dict(weights, assign=True)
    return network


def _small() -> nn.Sequential:
    network = restored(SmallConvNet, runs.recorded("drawn_flowers", "plain", "small"))
    kept = (nn.Conv2d, nn.ReLU, nn.MaxPool2d)
    return nn.Sequential(*[layer for layer in network if isinstance(layer, kept)])


def parameters(network: nn.Sequential) -> tuple[list[Tensor], list[Tensor]]:
    """Return weights and biases of the convolutions, in order."""
    convolutions = _convolutions(network)
    return [m.weight for m in convolutions], [m.bias for m in convolutions]


def _convolutions(network: nn.Sequential) -> list[nn.Conv2d]:
    return [m for m in network if isinstance(m, nn.Conv2d)]


def rescaled(network: nn.Sequential, scales: list[Tensor]) -> nn.Sequential:
    """Return a copy with the hidden channels rescaled as :func:`mnlib.pca.rescale` does.

    Raises:
        ValueError: as there.

    """
    network = copy.deepcopy(network)
    new = zip(*pca.rescale(*parameters(network), scales), strict=True)
    for layer, (weight, bias) in zip(_convolutions(network), new, strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return network


def normalising_scales(network: nn.Sequential, images: Tensor) -> list[Tensor]:
    """Return the scales at which every hidden channel's mean activation is 1 (Gatys et al., 2016).

    The mean is over images and positions, after the ReLU; a channel that never fires keeps its
    scale. The images are N×3×S×S as the network takes them.
    """
    scales, x = [], images
    for layer in network:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            mean = x.mean((0, 2, 3)).double()
            scales.append(torch.where(mean > 0, 1 / mean, 1))
    return scales[:-1]


def decoupled(network: nn.Sequential, order: Order, rank: int) -> nn.Sequential:
    """Return the network with every convolution a sum of at most ``rank`` separable blocks.

    A layer whose bound is lower gets as many as its bound.

    Raises:
        ValueError: as :func:`mnlib.separable.decouple`.

    """
    layers = []
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            bound = rank_bound(order, layer.in_channels, layer.out_channels, layer.kernel_size)
            layer = DecoupledConv2d(layer, order, min(rank, bound))
        layers.append(layer)
    return nn.Sequential(*layers)
