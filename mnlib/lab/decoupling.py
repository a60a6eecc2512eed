"""Chapter 3's answer: what does a network still know when its convolutions are R separable blocks?

The error of the weights says little of that, so the network is asked: its answers and its last
feature maps, against R, in both orders.
"""

import copy
import dataclasses
from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnlib import pca
from mnlib.lab import flowers, runs, training, vgg
from mnlib.lab.images import prepare
from mnlib.lab.runs import Run, Which
from mnlib.lab.tasks import Outcome, digits, restored
from mnlib.separable import ORDERS, Decoupling, decouple

__all__ = ["Asked", "against_blocks", "measure", "regular"]

#: Photographs that are asked about, a share of each class, and the side to which they are shrunk
#: for VGG-19: what a quarter of an hour of one core allows.
COUNT = 100
SIDE = 160


def regular(body: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions that can be decoupled: neither of groups nor pointwise."""
    found = (module for module in body.modules() if isinstance(module, nn.Conv2d))
    return [conv for conv in found if conv.groups == 1 and conv.kernel_size != (1, 1)]


@dataclasses.dataclass
class Asked:
    """A network that is asked: feature maps of ``body``, their means, and what ``head`` says.

    ``images`` are float batches as the body takes them; ``dtype`` is that of its arithmetic.
    """

    head: nn.Module
    images: list[Tensor]
    dtype: torch.dtype = torch.float32

    def __call__(self, body: nn.Module) -> tuple[Tensor, Tensor]:
        """Return outputs, N×classes, and flat feature maps of norm one, both float32."""
        body = copy.deepcopy(body).to(self.dtype, memory_format=torch.channels_last)
        outputs, maps = [], []
        with torch.inference_mode():
            for x in self.images:
                found = body(x.to(self.dtype, memory_format=torch.channels_last)).float()
                outputs.append(self.head(found.mean((2, 3))))
                maps.append(F.normalize(found.flatten(1)))
        return torch.cat(outputs), torch.cat(maps)


def against_blocks(
    ask: Asked,
    bodies: dict[str, nn.Module],
    ranks: Iterable[int] = range(1, 9),
    exact_first: Iterable[bool] = (False, True),
) -> tuple[str, list[dict]]:
    """Return the answers of the first body as it is, and a row for each way to decouple.

    Every regular convolution becomes the sum of ``blocks`` separable ones, or of as many as are
    exact if these are fewer, with ``first_exact`` all but the first. A row has ``scale``, a key of
    ``bodies``, which compute the same function; ``order``; the ``answers``, a digit an image;
    and ``cosine``, the mean over images of that between the feature maps and the original ones.

    The sum is taken of the weights: what R blocks compute, at the price of one convolution.
    """
    outputs, original = ask(next(iter(bodies.values())))
    rows = []
    for scale, body in bodies.items():
        for order in ORDERS:
            parts = [decouple(conv.weight, order) for conv in regular(body)]
            found: dict[tuple[int, ...], dict] = {}
            for rank in ranks:
                for exact in exact_first:
                    blocks = [min(rank, whole.rank) for whole in parts]
                    if exact:
                        blocks[0] = parts[0].rank
                    key = tuple(blocks)
                    if key not in found:
                        answers, maps = ask(_of_blocks(body, parts, blocks))
                        cosine = (maps * original).sum(1).mean().item()
                        found[key] = {"answers": digits(answers), "cosine": round(cosine, 4)}
                    how = {"scale": scale, "order": order, "first_exact": exact, "blocks": rank}
                    rows.append(how | found[key])
    return digits(outputs), rows


def _of_blocks(body: nn.Module, parts: list[Decoupling], blocks: list[int]) -> nn.Module:
    """Return a copy of ``body`` whose regular convolutions have the weights of so many blocks."""
    body = copy.deepcopy(body)
    for conv, whole, rank in zip(regular(body), parts, blocks, strict=True):
        kernels, mixed = whole.depthwise[:, :rank], whole.pointwise[..., :rank]
        best = dataclasses.replace(whole, depthwise=kernels, pointwise=mixed)
        conv.weight.data.copy_(best.weight())
    return body


def _vgg19(images: np.ndarray) -> tuple[Run, Asked, dict[str, nn.Module]]:
    run = runs.recorded("flowers", "frozen", "vgg19")
    state = runs.load_checkpoint(run)
    head = nn.Linear(*reversed(state["weight"].shape))
    head.load_state_dict(state)
    mean = torch.tensor(vgg.OXFORD_MEAN)

    def prepared(part: np.ndarray) -> Tensor:
        x = (torch.tensor(part).flip(-1) - mean).permute(0, 3, 1, 2)
        return F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)

    network = vgg.pretrained().requires_grad_(False).eval()
    some = flowers.load("train").images[46::92]  # 40 of 3,670, without their labels
    weights, _ = vgg.parameters(network)
    bodies: dict[str, nn.Module] = {
        "balanced": vgg.rescaled(network, pca.balanced_scales(weights)),
        "normalised": vgg.rescaled(network, vgg.normalising_scales(network, prepared(some))),
    }
    # in bfloat16 a processor that has it takes a quarter of the time
    return run, Asked(head, [prepared(part) for part in _batches(images)], torch.bfloat16), bodies


def _mobilenet(model: str, images: np.ndarray) -> tuple[Run, Asked, dict[str, nn.Module]]:
    run = runs.recorded("flowers", "imagenet", model)
    network = restored(partial(flowers.build, model), run).requires_grad_(False)
    x = [prepare(torch.tensor(part), 224, "imagenet") for part in _batches(images)]
    return run, Asked(network.classifier, x), {"as it is": network.features}


def _batches(images: np.ndarray, size: int = 25) -> list[np.ndarray]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def measure(which: Which) -> Outcome:
    """Decouple VGG-19 under its recorded head, or a fine-tuned MobileNet's first convolution.

    They are asked about ``COUNT`` photographs of the validation set, a share of each class.

    Raises:
        FileNotFoundError: photographs, weights or the record of the head or network are not there;
            the message names the remedy.

    """
    test = flowers.load("test")
    _, chosen = training.split(test.labels, COUNT)
    images, labels = test.images[chosen], torch.as_tensor(test.labels[chosen])
    if which.model == "vgg19":
        run, ask, bodies = _vgg19(images)
        exactly, rows = against_blocks(ask, bodies)
    else:
        run, ask, bodies = _mobilenet(which.model, images)
        exactly, rows = against_blocks(ask, bodies, exact_first=[False])
    in_full, _ = dataclasses.replace(ask, dtype=torch.float32)(next(iter(bodies.values())))
    return Outcome(
        parameters=run.parameters,
        accuracy=training.accuracy(in_full, labels),
        results={
            "of": run.name,
            "precision": str(ask.dtype).removeprefix("torch."),
            "photographs": chosen.tolist(),
            "labels": "".join(map(str, labels.tolist())),
            "answers": digits(in_full),
            "exactly": exactly,
            "rows": rows,
        },
    )
