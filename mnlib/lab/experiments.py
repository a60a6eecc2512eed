"""What ``mnlib run`` does: train or measure in full, and record the result with its provenance.

``EXPERIMENTS[experiment][protocol][model]`` is a :data:`mnlib.lab.tasks.Task`.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from mnlib.cifar import NeuralODE, ResNet20
from mnlib.lab import (
    architecture,
    data,
    decoupling,
    evaluations,
    fingerprint,
    flowers,
    frozen,
    places,
    runs,
    second_look,
    substeps,
    tasks,
    training,
    vgg,
)
from mnlib.lab.data import Dataset
from mnlib.lab.runs import Run, Which
from mnlib.lab.tasks import Images, Measurement, Mirrored, Task, Training
from mnlib.lab.training import Recipe
from mnlib.mobilenet import mobilenet_v3_small

__all__ = [
    "EXPERIMENTS",
    "GOOD",
    "GOOD_ODE",
    "MNIST",
    "SHORT",
    "SHORT_ODE",
    "SOLVERS",
    "answers",
    "asker",
    "evaluate",
    "outputs",
    "run",
    "task",
    "trained",
]

#: Short: six epochs, the first four at three quarters of the resolution, where they cost half.
SHORT = Recipe(sizes=(24,) * 4 + (32,) * 2, smoothing=0.1)

#: The Neural ODE needs an epoch more: at ResNet's rate one of two seeds sent a flow to 10⁵ in
#: the third epoch. Its flows are straightened once they have formed.
SHORT_ODE = Recipe(
    sizes=(24,) * 5 + (32,) * 2,
    rate=0.1,
    smoothing=0.1,
    penalties=(0.0,) * 2 + (4.0,) * 5,
    precision="bf16-mixed",
)

#: Good: hours on two cores, minutes on a GPU. Half precision in the forward pass nearly halves the
#: time, and the smaller images of most epochs do no harm: a hundred epochs at 32 were no better,
#: nor were a hundred and fifty with 105 at 24, in which the Neural ODE overfits.
GOOD = Recipe(sizes=(24,) * 44 + (32,) * 24, precision="bf16-mixed")
GOOD_ODE = Recipe(
    sizes=(24,) * 60 + (32,) * 26,
    penalties=(0.0,) * 4 + (0.5,) * 70 + (3.0,) * 12,
    precision="bf16-mixed",
)
MNIST = Recipe(
    sizes=(20,) * 6 + (28,) * 4,
    mirror=False,
    statistics="mnist",
    penalties=(0.0,) * 2 + (1.0,) * 8,
    precision="bf16-mixed",
)

#: The solvers that a trained Neural ODE must give the same accuracy with: its own, the same with
#: twice and four times as many steps, and an adaptive one.
SOLVERS = (
    {"method": "midpoint", "steps": 1},
    {"method": "midpoint", "steps": 2},
    {"method": "midpoint", "steps": 4},
    {"method": "dopri5", "tolerance": 1e-3},
)


def run(
    experiment: str,
    *,
    models: Iterable[str] | None = None,
    protocol: str | None = None,
    seeds: Iterable[int] | None = None,
    folder: Path = places.WRITTEN,
) -> list[Run]:
    """Run an experiment in full and record it below ``folder``, a file a model, protocol and seed.

    A training that was killed goes on from its last whole epoch. Under ``fabric run`` every
    process trains its share, and one records; measurements without a training want one process.

    Args:
        experiment: a key of ``EXPERIMENTS``.
        models: only these, in each protocol that has them; by default all.
        protocol: only this one; by default all.
        seeds: by default 0 alone.
        folder: holds ``runs`` and ``checkpoints``.

    Raises:
        ValueError: unknown experiment, protocol or model.
        FileNotFoundError: the data is not there; the message names the remedy.

    """
    protocols = _choose("experiment", experiment, EXPERIMENTS)
    if protocol is not None:
        protocols = {protocol: _choose("protocol", protocol, protocols)}
    known = {model: model for table in protocols.values() for model in table}
    wanted = [_choose(f"model of {experiment}", model, known) for model in models or known]
    chosen = list(seeds or [0])
    recorded = []
    for name, table in protocols.items():
        for model in [model for model in table if model in wanted]:
            for seed in chosen:
                done = _carried_out(table[model], Which(experiment, model, name, seed), folder)
                if done is not None:
                    recorded.append(done)
                    print(runs.provenance(done))
    return recorded


def _carried_out(task: Task, which: Which, folder: Path) -> Run | None:
    """Carry a task out and record it; of processes that train together the first alone does."""
    now, start = runs.environment(), time.perf_counter()
    outcome = task.carry_out(which)
    if outcome is None:
        return None
    done = Run(
        **which._asdict(),
        dataset=task.dataset,
        epochs=task.epochs,
        parameters=outcome.parameters,
        accuracy=outcome.accuracy,
        seconds=time.perf_counter() - start if outcome.seconds is None else outcome.seconds,
        inputs={name: fingerprint.inputs(name) for name in task.inputs},
        code=fingerprint.code(task),
        checkpoint=outcome.checkpoint,
        sha256=outcome.sha256,
        results=outcome.results,
        **now,
    )
    recorded = runs.save_run(done, outcome.state, folder=folder)
    which.progress.unlink(missing_ok=True)
    return recorded


def _choose(kind: str, name: str, table: Mapping):
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}: use one of {', '.join(table)}")
    return table[name]


def task(run: Run) -> Task:
    """Return the task that ``run`` is a record of.

    Raises:
        ValueError: the table has none of its names.

    """
    protocols = _choose("experiment", run.experiment, EXPERIMENTS)
    return _choose("model", run.model, _choose("protocol", run.protocol, protocols))


def _of_a_network(run: Run) -> Training | Mirrored:
    what = task(run)
    if isinstance(what, Measurement):
        raise ValueError(f"run {run.name} trained no network as a whole; name a training")
    return what


def trained(run: Run) -> nn.Module:
    """Return the network that ``run`` recorded, in evaluation mode.

    Raises:
        FileNotFoundError: the run kept no weights.
        ValueError: the weights are not those recorded, or nothing was trained.

    """
    return tasks.restored(_of_a_network(run).network, run)


def asker(run: Run) -> Callable[[Tensor | np.ndarray], Tensor]:
    """Return what gives the outputs of :func:`trained`'s network for images, N×classes.

    The network is loaded once, and asked as ``run`` was tested.

    Raises:
        FileNotFoundError: as :func:`trained`.
        ValueError: as :func:`trained`.

    """
    mirrored = isinstance(_of_a_network(run), Mirrored)
    return partial(tasks.outputs, trained(run), run.results["recipe"], mirrored=mirrored)


def outputs(run: Run, images: Tensor | np.ndarray) -> Tensor:
    """Return the outputs of :func:`asker` for ``images``.

    Raises:
        FileNotFoundError: as there.
        ValueError: as there.

    """
    return asker(run)(images)


def answers(run: Run) -> Tensor | None:
    """Return :func:`outputs` for all test images, None where these are not there.

    They are computed once while weights, images and code are the same (:mod:`evaluations`).

    Raises:
        FileNotFoundError: as :func:`trained`.
        ValueError: as :func:`trained`.

    """
    what = _of_a_network(run)
    if any(data.tier(name) != "real data" for name in what.images.inputs):
        return None
    ask = asker(run)  # even where its answers are kept: the weights are compared
    return evaluations.kept(
        lambda: ask(what.images.load("test").images),
        run.sha256,
        run.results["recipe"],
        fingerprint.code(what),
        [fingerprint.inputs(name)["sha256"] for name in what.images.inputs],
    )


def evaluate(run: Run) -> float | None:
    """Return the accuracy of :func:`trained`'s network on the test images, taken now.

    None where the images are not there.
    """
    found = answers(run)
    if found is None:
        return None
    return training.accuracy(found, _of_a_network(run).images.load("test").labels)


def _drawn(split: str) -> Dataset:
    """Drawn flowers, 64×64: 5,000 to learn from, 1,000 others to be tested on."""
    return Dataset(*data.drawn_flowers(*{"train": (5000, 64, 0), "test": (1000, 64, 1)}[split]))


DRAWN = Images("drawn flowers", _drawn)
CIFAR10 = Images("cifar10", partial(data.load, "cifar10"), ("cifar10",))
DIGITS = Images("mnist", partial(data.load, "mnist"), ("mnist",))
PHOTOGRAPHS = Images("tf_flowers", flowers.load, ("tf_flowers",))


def _photographs(model: str, recipe: Recipe, start: str = "") -> Training:
    return Training(
        images=PHOTOGRAPHS,
        network=partial(flowers.build, model),
        recipe=recipe,
        held_out=flowers.HELD_OUT,
        start=start,
        also=flowers.probabilities,
    )


def _slides(start: bool, **epochs: int) -> dict[str, Training]:
    """Return the slides' training of each named model, for so many epochs."""
    return {
        name: _photographs(name, flowers.recipe(epochs=n), name if start else "")
        for name, n in epochs.items()
    }


def _last_block(rate: float) -> Training:
    """Return the training of VGG-19's last block: the slides' but for rate and precision."""
    return Training(
        PHOTOGRAPHS,
        partial(vgg.LastBlock, classes=len(flowers.CLASSES)),
        dataclasses.replace(flowers.recipe(epochs=5), rate=rate, precision="bf16-mixed"),
        held_out=flowers.HELD_OUT,
        start="vgg19",
        also=flowers.probabilities,
    )


def _table1(resnet: Recipe, ode: Recipe, held_out: int = 5000) -> dict[str, Training]:
    """Return the trainings of the two networks of Table 1."""
    return {
        "resnet20": Training(CIFAR10, ResNet20, resnet, held_out),
        "neural_ode": Training(CIFAR10, NeuralODE, ode, held_out, solvers=SOLVERS),
    }


def _images(trained: Training | Mirrored) -> Measurement:
    """Return the second look at a network of Table 1, by other solvers if it has one."""
    solvers = second_look.SOLVERS if isinstance(trained, Training) and trained.solvers else ()
    look = partial(second_look.which_are_right, "table1", trained, solvers)
    return Measurement(trained.dataset, look, trained.inputs)


GOOD_TRAININGS = _table1(GOOD, GOOD_ODE)
AUGMENTED_TRAININGS = {
    name: _photographs(name, flowers.AUGMENTED, name)
    for name in ("mobilenet_v2", "mobilenet_v3_small")
}
#: V3-Large last: without its weights the run ends there, with the command to get them
IMAGENET_TRAININGS = _slides(True, mobilenet_v3_small=10, mobilenet_v2=5, mobilenet_v3_large=5)

TABLE1: dict[str, dict[str, Training] | dict[str, Mirrored]] = {
    # a short training, which lands near the slides' 85.14 % and 84.61 %
    "slides": _table1(SHORT, SHORT_ODE),
    # the control: what do its straightened flows owe to the penalty?
    "unpenalised": {
        "neural_ode": _table1(SHORT, dataclasses.replace(SHORT_ODE, penalties=()))["neural_ode"]
    },
    # another field: a trial, for which nothing was chosen
    "inverted": {
        "neural_ode": dataclasses.replace(
            _table1(SHORT, SHORT_ODE)["neural_ode"], network=architecture.inverted_neural_ode
        )
    },
    "good": GOOD_TRAININGS,
    # the good recipe has been chosen: now the images it was chosen with are learnt from, too
    "trainval": _table1(GOOD, GOOD_ODE, held_out=0),
    "mirrored": {name: Mirrored("good", trained) for name, trained in GOOD_TRAININGS.items()},
}

EXPERIMENTS: dict[str, dict[str, Mapping[str, Task]]] = {
    "vgg19_slices": {
        "slides": {"vgg19": Measurement("VGG-19's 16 convolutions", vgg.measure_slices, ("vgg19",))}
    },
    # what the networks still know when their convolutions are R separable blocks
    "decoupling": {
        "photographs": {
            model: Measurement("tf_flowers", decoupling.measure, ("tf_flowers", *weights))
            for model, weights in {
                "vgg19": ["vgg19"],
                "mobilenet_v2": [],
                "mobilenet_v3_small": [],
            }.items()
        }
    },
    "gates": {
        "imagenet": {
            "mobilenet_v3_small": Measurement(
                "tf_flowers",
                partial(flowers.study_gates, IMAGENET_TRAININGS["mobilenet_v3_small"].network),
                ("tf_flowers",),
            )
        }
    },
    "residual_flow": {
        protocol: {
            model: Measurement(
                "tf_flowers", partial(substeps.study_recorded, trainings[model]), ("tf_flowers",)
            )
            for model in ("mobilenet_v3_small", "mobilenet_v2")
        }
        for protocol, trainings in (
            ("imagenet", IMAGENET_TRAININGS),
            ("augmented", AUGMENTED_TRAININGS),
        )
    },
    "drawn_flowers": {
        "plain": {
            "small": Training(
                DRAWN,
                vgg.SmallConvNet,
                Recipe(
                    sizes=(32,) * 20,
                    batch=32,
                    optimiser="adam",
                    rate=1e-3,
                    decay=0.0,
                    statistics="imagenet",
                ),
                held_out=500,
            ),
            **{
                name: Training(
                    DRAWN,
                    partial(build, classes=5, width=0.35),
                    Recipe(sizes=(64,) * 30, rate=0.1, batch=64, statistics="imagenet"),
                    held_out=500,
                )
                for name, build in {
                    "mobilenet_v3_small_tiny": mobilenet_v3_small,
                    "mobilenet_v3_small_ungated": architecture.small_without_gates,
                }.items()
            },
        }
    },
    # scratch and imagenet have the slides' hyper-parameters
    "flowers": {
        "scratch": _slides(False, mobilenet_v3_small=30, mobilenet_v3_large=30, mobilenet_v2=30),
        "frozen": {
            model: Measurement("tf_flowers", frozen.measure, ("tf_flowers", model))
            for model in ("mobilenet_v2", "mobilenet_v3_small", "vgg19")
        },
        "pixels": {
            "near_duplicates": Measurement(
                "tf_flowers", flowers.measure_near_duplicates, ("tf_flowers",)
            )
        },
        "augmented": AUGMENTED_TRAININGS,
        "mirrored": {
            name: Mirrored("augmented", trained, flowers.probabilities)
            for name, trained in AUGMENTED_TRAININGS.items()
        },
        "imagenet": IMAGENET_TRAININGS,
        # the fairer opponent: as much of VGG-19 as can be trained on two cores
        "last_block": {"vgg19": _last_block(rate=1e-4)},
        "last_block_slow": {"vgg19": _last_block(rate=1e-5)},
    },
    "table1": TABLE1,
    # which test images the networks of table1 with weights are right on, and by which solvers
    "table1_images": {
        protocol: {name: _images(trained) for name, trained in table.items()}
        for protocol, table in TABLE1.items()
    },
    "mnist": {
        "good": {
            "neural_ode": Training(
                DIGITS, partial(NeuralODE, channels=1), MNIST, held_out=5000, solvers=SOLVERS
            )
        }
    },
}
