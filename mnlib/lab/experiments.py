"""What ``mnlib run`` does: train or measure in full, and record the result with its provenance.

``EXPERIMENTS[experiment][protocol][model]`` is a function of the seed that returns a
:class:`mnlib.lab.runs.Run` and the weights to keep with it.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mnlib import gates, pca
from mnlib.cifar import NeuralODE, ResNet20
from mnlib.cost import count_parameters
from mnlib.lab import data, flowers, runs, training
from mnlib.lab.data import Dataset
from mnlib.lab.runs import Outcome, Run
from mnlib.lab.training import Recipe
from mnlib.lab.vgg import SmallConvNet
from mnlib.mobilenet import mobilenet_v3_small

__all__ = [
    "EXPERIMENTS",
    "GOOD",
    "GOOD_ODE",
    "MNIST",
    "NETWORKS",
    "SHORT",
    "SHORT_ODE",
    "SOLVERS",
    "evaluate",
    "run",
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
    folder: Path = runs.FOLDER,
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
                names = {"experiment": experiment, "protocol": name, "model": model}
                done, state = table[model](seed, names)
                if done is not None:
                    recorded.append(runs.save_run(done, state, folder=folder))
                    _progress(seed, names).unlink(missing_ok=True)
                    print(runs.provenance(recorded[-1]))
    return recorded


def _progress(seed: int, names: dict[str, str]) -> Path:
    return data.folders()[0] / "runs" / f"{'-'.join(names.values())}-{seed}.pt"


def _choose(kind: str, name: str, table: Mapping):
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}: use one of {', '.join(table)}")
    return table[name]


def _train(
    seed: int,
    names: dict[str, str],
    *,
    dataset: str,
    load: Callable[[str], Dataset],
    held_out: int,
    build: Callable[[], nn.Module],
    recipe: Recipe,
    more: Callable[[nn.Module, Tensor, Callable[[], float]], dict] = lambda *_: {},
) -> Outcome:
    """Train a model, take its validation accuracy on the way and its test accuracy at the end.

    With ``held_out=0`` it learns from every training image, and there is no validation accuracy.
    ``more`` is given the trained model, its outputs for the test images, and a function that takes
    its test accuracy anew.
    """
    fabric = Fabric(precision=recipe.precision)
    fabric.launch()
    now = runs.environment()
    images, labels = load("train")
    kept, out = training.split(labels, held_out)
    torch.manual_seed(seed)
    model = build()
    curves = training.fit(
        model,
        images[kept],
        labels[kept],
        recipe,
        seed=seed,
        validation=(images[out], labels[out]) if held_out else None,
        progress=_progress(seed, names),
        fabric=fabric,
        replay=True,
    )
    if fabric.global_rank > 0:
        return None, None
    model.half().float()  # what the checkpoint keeps is what is evaluated
    test = load("test")

    def test_outputs() -> Tensor:
        return training.logits(
            model,
            test.images,
            size=recipe.sizes[-1],
            statistics=recipe.statistics,
            batch=recipe.batch,
        )

    outputs = test_outputs()
    run = Run(
        **names,
        dataset=dataset,
        seed=seed,
        epochs=recipe.epochs,
        parameters=count_parameters(model),
        accuracy=training.accuracy(outputs, test.labels),
        seconds=sum(curves["seconds"]),
        results={
            "curves": curves,
            "recipe": dataclasses.asdict(recipe),
            "trained_on": len(kept),
            **more(model, outputs, lambda: training.accuracy(test_outputs(), test.labels)),
        },
        **now,
    )
    return run, model.state_dict()


def _drawn(split: str) -> Dataset:
    """Drawn flowers, 64×64: 5,000 to learn from, 1,000 others to be tested on."""
    return Dataset(*data.drawn_flowers(*{"train": (5000, 64, 0), "test": (1000, 64, 1)}[split]))


def _refine(model: NeuralODE, _outputs: Tensor, evaluate: Callable[[], float]) -> dict:
    """Solve a trained Neural ODE otherwise, with the same weights: is it an ODE?"""
    rows = []
    for solver in SOLVERS:
        model.solve_with(**solver)
        rows.append({**solver, "accuracy": evaluate(), "evaluations": model.nfe})
    return {"refined": rows}


def _slices(seed: int, names: dict[str, str]) -> Outcome:
    """Measure the first component's share of the variance in every slice of VGG-19.

    ``percent``, ``layers`` and ``histogram`` are by the slides' definition; ``atlas`` has the
    percentage by every definition that :func:`mnlib.pca.first_component` knows.
    """
    now, start = runs.environment(), time.perf_counter()
    weights = [w for w in data.load("vgg19").values() if w.ndim == 4]
    source = next(row["source"] for row in data.status() if row["name"] == "vgg19")
    results: dict = {"source": source}
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
    run = Run(
        **names,
        dataset="VGG-19's 16 convolutions",
        seed=seed,
        epochs=0,
        parameters=sum(w.numel() for w in weights),
        accuracy=None,
        seconds=time.perf_counter() - start,
        results=results,
        **now,
    )
    return run, None


def _gates(seed: int, names: dict[str, str]) -> Outcome:
    """Study the gates of a network that chapter 8 has fine-tuned, on the photographs held out."""
    now, start = runs.environment(), time.perf_counter()
    trained = flowers.trainings().get(("imagenet", names["model"]))
    if trained is None:
        raise FileNotFoundError(
            "no network to study is recorded: run: mnlib run flowers --protocol imagenet "
            f"--model {names['model']}"
        )
    model = flowers.trained(trained)
    test = flowers.load("test")

    def evaluate() -> Tensor:
        return training.logits(model, test.images, size=224, statistics="imagenet")

    results = gates.study(model, evaluate, torch.as_tensor(test.labels))
    run = Run(
        **names,
        dataset="tf_flowers",
        seed=seed,
        epochs=0,
        parameters=trained.parameters,
        accuracy=results["accuracy"]["learned"],
        seconds=time.perf_counter() - start,
        results=results,
        **now,
    )
    return run, None


#: The networks of Table 1, by dataset and model.
NETWORKS: dict[tuple[str, str], Callable[[], nn.Module]] = {
    ("cifar10", "resnet20"): ResNet20,
    ("cifar10", "neural_ode"): NeuralODE,
    ("mnist", "neural_ode"): partial(NeuralODE, channels=1),
}


def trained(run: Run) -> nn.Module:
    """Return the network of :data:`NETWORKS` that ``run`` recorded, in evaluation mode.

    Raises:
        FileNotFoundError: the run kept no weights.
        ValueError: the weights are not those recorded.

    """
    model = NETWORKS[run.dataset, run.model]()
    model.load_state_dict(runs.load_checkpoint(run))
    return model.eval()


def evaluate(run: Run) -> float | None:
    """Return the accuracy of :func:`trained`'s network on the test images, taken now.

    None where the dataset is not there.
    """
    if data.tier(run.dataset) != "real data":
        return None
    test = data.load(run.dataset, "test")
    return training.accuracy(training.outputs(trained(run), run, test.images), test.labels)


def _mirrored(
    seed: int,
    names: dict[str, str],
    *,
    of: str,
    load: Callable[[str], Dataset],
    trained: Callable[[Run], nn.Module],
    more: Callable[[Tensor], dict] = lambda _: {},
) -> Outcome:
    """Ask the network that protocol ``of`` has trained about test images and their mirror images.

    The mirror image of a flower, a ship or a cat is one too, and training has shown both: the mean
    of the two answers has less of what is accidental in either. Nothing is trained: ``epochs`` is
    0, and the weights are those of the run named ``results["of"]``.
    """
    now, start = runs.environment(), time.perf_counter()
    experiment, model = names["experiment"], names["model"]
    wanted = (model, of, seed)
    found = [r for r in runs.load_runs(experiment) if (r.model, r.protocol, r.seed) == wanted]
    if not found:
        raise FileNotFoundError(
            f"no network to test is recorded: run: mnlib run {experiment} --protocol {of} "
            f"--model {model} --seed {seed}"
        )
    (source,) = found
    test = load("test")
    run = dataclasses.replace(source, **names, **now, epochs=0)
    answers = training.outputs(trained(source), run, test.images)
    run = dataclasses.replace(
        run,
        accuracy=training.accuracy(answers, test.labels),
        seconds=time.perf_counter() - start,
        results={"of": source.name, "recipe": source.results["recipe"], **more(answers)},
    )
    return run, None


_flowers = partial(_train, dataset="drawn flowers", load=_drawn, held_out=500)
_photographs = partial(
    _train,
    dataset="tf_flowers",
    load=flowers.load,
    held_out=flowers.HELD_OUT,
    more=lambda _model, outputs, _evaluate: flowers.probabilities(outputs),
)
_cifar = partial(_train, dataset="cifar10", load=partial(data.load, "cifar10"), held_out=5000)
_ode = partial(_cifar, more=_refine)


def _flowers_runs(build: Callable[[str], nn.Module], **epochs: int) -> dict[str, Callable]:
    """Return the slides' training of each named model, for so many epochs, from ``build(name)``."""
    return {
        name: partial(_photographs, build=partial(build, name), recipe=flowers.recipe(epochs=n))
        for name, n in epochs.items()
    }


EXPERIMENTS: dict[str, dict[str, dict[str, Callable[[int, dict[str, str]], Outcome]]]] = {
    "vgg19_slices": {"slides": {"vgg19": _slices}},
    "gates": {"imagenet": {"mobilenet_v3_small": _gates}},
    "drawn_flowers": {
        "plain": {
            "small": partial(
                _flowers,
                build=SmallConvNet,
                recipe=Recipe(
                    sizes=(32,) * 20,
                    batch=32,
                    optimiser="adam",
                    rate=1e-3,
                    decay=0.0,
                    statistics="imagenet",
                ),
            ),
            "mobilenet_v3_small_tiny": partial(
                _flowers,
                build=partial(mobilenet_v3_small, classes=5, width=0.35),
                recipe=Recipe(sizes=(64,) * 30, rate=0.1, batch=64, statistics="imagenet"),
            ),
        }
    },
    # scratch, imagenet and frozen have the slides' hyper-parameters
    "flowers": {
        "scratch": _flowers_runs(
            flowers.build, mobilenet_v3_small=30, mobilenet_v3_large=30, mobilenet_v2=30
        ),
        "frozen": {
            "vgg19": flowers.train_vgg_head,
            "mobilenet_v3_small": flowers.record_learning_curve,
        },
        "pixels": {"near_duplicates": flowers.record_near_duplicates},
        "augmented": {
            model: partial(
                _photographs, build=partial(flowers.pretrained, model), recipe=flowers.AUGMENTED
            )
            for model in ("mobilenet_v2", "mobilenet_v3_small")
        },
        "mirrored": {
            model: partial(
                _mirrored,
                of="augmented",
                load=flowers.load,
                trained=flowers.trained,
                more=flowers.probabilities,
            )
            for model in ("mobilenet_v2", "mobilenet_v3_small")
        },
        # V3-Large last: without its weights the run ends there, with the command to get them
        "imagenet": _flowers_runs(
            flowers.pretrained, mobilenet_v3_small=10, mobilenet_v2=5, mobilenet_v3_large=5
        ),
    },
    "table1": {
        # a short training, which lands near the slides' 85.14 % and 84.61 %
        "slides": {
            "resnet20": partial(_cifar, build=ResNet20, recipe=SHORT),
            "neural_ode": partial(_ode, build=NeuralODE, recipe=SHORT_ODE),
        },
        "good": {
            "resnet20": partial(_cifar, build=ResNet20, recipe=GOOD),
            "neural_ode": partial(_ode, build=NeuralODE, recipe=GOOD_ODE),
        },
        # the good recipe has been chosen: now the images it was chosen with are learnt from, too
        "trainval": {
            "resnet20": partial(_cifar, build=ResNet20, recipe=GOOD, held_out=0),
            "neural_ode": partial(_ode, build=NeuralODE, recipe=GOOD_ODE, held_out=0),
        },
        "mirrored": {
            model: partial(
                _mirrored, of="good", load=partial(data.load, "cifar10"), trained=trained
            )
            for model in ("resnet20", "neural_ode")
        },
    },
    "mnist": {
        "good": {
            "neural_ode": partial(
                _ode,
                dataset="mnist",
                load=partial(data.load, "mnist"),
                build=partial(NeuralODE, channels=1),
                recipe=MNIST,
            )
        }
    },
}
