"""VGG-19, which the MobileNets are compared with, as far as the book needs it."""

from torch import nn


def vgg19_features() -> nn.Sequential:
    """Return VGG-19's convolutions, ReLUs and max-pools with random weights: N×512×H/32×W/32.

    Configuration E of Simonyan and Zisserman (2015), without the three dense layers: torchvision's
    ``features``, and its parameter names.
    """
    from torchvision.models.vgg import cfgs, make_layers  # here, for torchvision imports slowly

    return make_layers(cfgs["E"], batch_norm=False)
