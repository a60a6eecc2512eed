"""Chapter 8's fair comparison: networks that stay as ImageNet left them, under one kind of head.

The head is a logistic regression on the features before the last layer, each standardised with the
photographs that it is fitted to. It is the same for a MobileNet and for VGG-19.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from mnlib.cost import count_parameters
from mnlib.lab import evaluations, fingerprint, flowers, training
from mnlib.lab.runs import Which
from mnlib.lab.tasks import Outcome, digits, start_from
from mnlib.lab.vgg import OXFORD_MEAN, pretrained, vgg19_features

__all__ = ["features", "logistic_regression", "measure", "vgg_features"]


def vgg_features(images: np.ndarray) -> Tensor:
    """Return the means over positions of VGG-19's last feature maps, N×512.

    Args:
        images: uint8 N×H×W×3, RGB.

    Raises:
        FileNotFoundError: VGG-19's weights are not there; the message names the remedy.

    """
    network = pretrained().to(memory_format=torch.channels_last)
    mean = torch.tensor(OXFORD_MEAN)
    found = []
    with torch.inference_mode():
        for start in trange(0, len(images), 16, desc="VGG-19", disable=None):
            bgr = torch.tensor(images[start : start + 16]).flip(-1) - mean
            found.append(network(bgr.permute(0, 3, 1, 2)).mean((2, 3)))
    return torch.cat(found).clone()  # an inference tensor cannot be trained on


def _mobilenet_features(network: nn.Module, images: np.ndarray) -> Tensor:
    images = np.array(images)  # PyTorch wants memory that it may write to
    return training.logits(network, images, size=224, statistics="imagenet", batch=16).clone()


def features(model: str) -> tuple[Tensor, int]:
    """Return the features of all photographs, float32 N×d, and the frozen part's parameters.

    Args:
        model: ``"vgg19"`` (d = 512), or a MobileNet whose ImageNet weights are there.

    They are kept while photographs, weights and code are the same.

    Raises:
        FileNotFoundError: photographs or weights are not there; the message names the remedy.

    """
    images = flowers.load("train").images
    if model == "vgg19":
        with torch.device("meta"):
            network: nn.Module = vgg19_features()
        make = partial(vgg_features, images)
    else:
        network = flowers.build(model)
        start_from(network, model)
        network.classifier[-1] = nn.Identity()
        make = partial(_mobilenet_features, network, images)
    known = [fingerprint.inputs(name)["sha256"] for name in ("tf_flowers", model)]
    return evaluations.kept(make, known, fingerprint.code(features)), count_parameters(network)


def logistic_regression(features: Tensor, labels: Tensor, decay: float = 0.01) -> nn.Linear:
    """Return the linear classifier of least cross-entropy plus ``decay``/2·‖W‖², by L-BFGS.

    It is fitted to standardised features and takes them as they are: their mean and standard
    deviation are moved into its weight and bias.

    Args:
        features: float N×d.
        labels: int64 N.
        decay: chosen before anything was measured, and the same for every network.

    """
    mean, std = features.mean(0), features.std(0) + 1e-3
    features = (features - mean) / std
    head = nn.Linear(features.shape[1], len(flowers.CLASSES))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = F.cross_entropy(head(features), labels) + decay / 2 * head.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    head.requires_grad_(False)
    head.weight /= std
    head.bias -= head.weight @ mean
    return head


def measure(
    which: Which,
    sizes: Iterable[int] = (1, 2, 5, 10, 20, 50, 100, 200, 500),
    draws: int = 5,
) -> Outcome:
    """Fit a head to the 2,936 photographs to learn from, and to some of each class.

    ``accuracy``, the kept weights and the probabilities are those of the first; ``curve`` has the
    accuracies with so many photographs a class, drawn ``draws`` times.
    """
    found, parameters = features(which.model)
    labels = torch.as_tensor(flowers.load("train").labels)
    kept, out = map(torch.as_tensor, training.split(labels.numpy(), flowers.HELD_OUT))
    shuffled = torch.Generator().manual_seed(which.seed)
    curve = []
    for size in sizes:
        for _ in range(draws):
            order = kept[torch.randperm(len(kept), generator=shuffled)]
            each = [order[labels[order] == c][:size] for c in range(len(flowers.CLASSES))]
            chosen = torch.cat(each)
            head = logistic_regression(found[chosen], labels[chosen])
            right = training.accuracy(head(found[out]), labels[out])
            curve.append({"a_class": size, "accuracy": right})
    head = logistic_regression(found[kept], labels[kept]).half().float()  # as it is kept
    outputs = head(found[out])
    return Outcome(
        parameters=parameters + count_parameters(head),
        accuracy=training.accuracy(outputs, labels[out]),
        results={
            "curve": curve,
            "trained_on": len(kept),
            **flowers.probabilities(head, outputs),
            "answers": digits(outputs),
        },
        state=head.state_dict(),
    )
