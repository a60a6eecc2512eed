"""What an experiment may be: a training, a second look at a trained network, or a measurement.

Each is a frozen dataclass whose ``carry_out`` returns an :class:`Outcome`; the table of them is
``EXPERIMENTS`` in :mod:`mnlib.lab.experiments`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mnlib.cost import count_parameters
from mnlib.lab import data, runs, training
from mnlib.lab.data import Dataset
from mnlib.lab.runs import Run, Which
from mnlib.lab.training import Recipe

__all__ = [
    "Images",
    "Measurement",
    "Mirrored",
    "Outcome",
    "Task",
    "Training",
    "digits",
    "outputs",
    "restored",
    "start_from",
]


@dataclass(frozen=True)
class Outcome:
    """What came out: the fields of a :class:`mnlib.lab.runs.Run` of these names, and weights."""

    parameters: int
    accuracy: float | None
    results: dict[str, Any]
    epochs: int = 0
    #: of a training: its epochs'; else the whole time is taken
    seconds: float | None = None
    state: Mapping[str, Tensor] | None = None
    #: the kept weights of another run, where those are what was measured
    checkpoint: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Images:
    """Images by name: ``load`` returns those of a split, ``"train"`` or ``"test"``."""

    name: str
    load: Callable[[str], Dataset]
    #: what :func:`mnlib.lab.data.load` must have; none where the images are drawn
    inputs: tuple[str, ...] = ()


def _nothing(_model: nn.Module, _outputs: Tensor) -> dict:
    return {}


@dataclass(frozen=True)
class Training:
    """A network trained by a recipe, validated on the way and tested at the end.

    With ``held_out`` 0 it learns from every training image, and there is no validation accuracy.
    ``start`` names the input whose weights it starts from, but for its last layer. ``also`` is
    given the trained model and its outputs for the test images and returns further results.
    ``solvers`` are those of ``NeuralODE.solve_with`` that the trained model is tested with, too.
    """

    images: Images
    network: Callable[[], nn.Module]
    recipe: Recipe
    held_out: int = 0
    start: str = ""
    also: Callable[[nn.Module, Tensor], dict] = _nothing
    solvers: tuple[dict, ...] = ()

    @property
    def dataset(self) -> str:
        """The name of the images."""
        return self.images.name

    @property
    def epochs(self) -> int:
        """The recipe's."""
        return self.recipe.epochs

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the book that it needs."""
        return (*self.images.inputs, *([self.start] if self.start else []))

    def build(self) -> nn.Module:
        """Return the network as its training starts.

        Raises:
            FileNotFoundError: the weights to start from are not there; the message names the
                remedy.

        """
        model = self.network()
        if self.start:
            start_from(model, self.start)
        return model

    def carry_out(self, which: Which) -> Outcome | None:
        """Train; of processes that train together, all but the first return None."""
        recipe = self.recipe
        fabric = Fabric(precision=recipe.precision)
        fabric.launch()
        images, labels = self.images.load("train")
        kept, out = training.split(labels, self.held_out)
        torch.manual_seed(which.seed)
        model = self.build()
        curves = training.fit(
            model,
            images[kept],
            labels[kept],
            recipe,
            seed=which.seed,
            validation=(images[out], labels[out]) if self.held_out else None,
            progress=which.progress,
            fabric=fabric,
            replay=True,
        )
        if fabric.global_rank > 0:
            return None
        model.half().float()  # what the checkpoint keeps is what is evaluated
        test = self.images.load("test")

        def ask() -> Tensor:
            return outputs(model, asdict(recipe), test.images)

        answers = ask()
        refined = []
        for solver in self.solvers:
            model.solve_with(**solver)
            right = training.accuracy(ask(), test.labels)
            refined.append({**solver, "accuracy": right, "evaluations": model.nfe})
        return Outcome(
            parameters=count_parameters(model),
            accuracy=training.accuracy(answers, test.labels),
            results={
                "curves": curves,
                "recipe": asdict(recipe),
                "trained_on": len(kept),
                **({"refined": refined} if refined else {}),
                **self.also(model, answers),
                "answers": digits(answers),
            },
            epochs=recipe.epochs,
            seconds=sum(curves["seconds"]),
            state=model.state_dict(),
        )


@dataclass(frozen=True)
class Mirrored:
    """The network that protocol ``of`` trained, asked about test images and their mirror images.

    The mirror image of a flower, a ship or a cat is one too, and training has shown both: the mean
    of the two answers has less of what is accidental in either. Nothing is trained, and the
    weights are those of the run named ``results["of"]``.
    """

    of: str
    training: Training
    also: Callable[[nn.Module, Tensor], dict] = _nothing

    epochs = 0

    @property
    def dataset(self) -> str:
        """The name of the images."""
        return self.images.name

    @property
    def images(self) -> Images:
        """The images that the training was tested on."""
        return self.training.images

    @property
    def network(self) -> Callable[[], nn.Module]:
        """What builds the network."""
        return self.training.network

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the book that it needs."""
        return self.images.inputs

    def carry_out(self, which: Which) -> Outcome:
        """Ask the network that has been trained with the same seed."""
        source = runs.recorded(which.experiment, self.of, which.model, which.seed)
        model, test = restored(self.network, source), self.images.load("test")
        recipe = source.results["recipe"]
        answers = outputs(model, recipe, test.images, mirrored=True)
        return Outcome(
            parameters=source.parameters,
            accuracy=training.accuracy(answers, test.labels),
            results={
                "of": source.name,
                "recipe": recipe,
                **self.also(model, answers),
                "answers": digits(answers),
            },
            checkpoint=source.checkpoint,
            sha256=source.sha256,
        )


@dataclass(frozen=True)
class Measurement:
    """Whatever else is measured, on which ``dataset``, from which inputs of the book."""

    dataset: str
    measure: Callable[[Which], Outcome]
    inputs: tuple[str, ...]
    epochs: int = 0

    def carry_out(self, which: Which) -> Outcome:
        """Measure."""
        return self.measure(which)


Task = Training | Mirrored | Measurement


def restored(network: Callable[[], nn.Module], run: Run) -> nn.Module:
    """Return the network with the weights that ``run`` recorded, in evaluation mode.

    Raises:
        FileNotFoundError: the run kept no weights.
        ValueError: the weights are not those recorded.

    """
    model = network()
    model.load_state_dict(runs.load_checkpoint(run))
    return model.eval()


def start_from(model: nn.Module, name: str) -> None:
    """Give ``model`` the weights of an input of the book, but for its last layer.

    Raises:
        FileNotFoundError: the weights are not there; the message names the remedy.

    """
    state = model.state_dict()
    *_, weight, bias = state
    model.load_state_dict(data.load(name) | {weight: state[weight], bias: state[bias]})


def outputs(
    model: nn.Module, recipe: dict, images: Tensor | np.ndarray, *, mirrored: bool = False
) -> Tensor:
    """Return the model's outputs, N×classes, taken as the training by ``recipe`` was tested.

    ``mirrored`` makes them the means of those for an image and for its mirror image.
    """
    return training.logits(
        model,
        images,
        size=recipe["sizes"][-1],
        statistics=recipe["statistics"],
        batch=recipe["batch"],
        mirrored=mirrored,
    )


def digits(outputs: Tensor) -> str:
    """Return the answers, the largest of at most ten outputs, as a digit an image."""
    return "".join(map(str, outputs.argmax(1).tolist()))
