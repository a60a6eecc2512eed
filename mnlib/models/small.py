"""A small VGG-like network, the stand-in for VGG-19 where its weights are not there."""

from torch import Tensor, nn


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
