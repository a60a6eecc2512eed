"""What `mnlib run` records, on tasks of a second."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from mnlib import pca
from mnlib.cifar import NeuralODE
from mnlib.cost import count_parameters
from mnlib.lab import cli, evaluations, experiments, runs, training
from mnlib.lab.data import Dataset
from mnlib.lab.images import prepare
from mnlib.lab.tasks import Images, Mirrored, Training
from mnlib.lab.training import WARMUP, Recipe


def _load(split):
    """Bright or dark images: two classes."""
    rng = np.random.default_rng(len(split))
    labels = np.arange(80, dtype=np.int64) % 2
    images = rng.integers(0, 120, (80, 8, 8, 3)) + 130 * labels[:, None, None, None]
    return Dataset(images.astype(np.uint8), labels)


def _tiny():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


STRIPES = Images("stripes", _load)
RECIPE = Recipe(sizes=(8, 8), batch=10, rate=0.05)
CONV = Training(STRIPES, _tiny, RECIPE, held_out=20)
ODE = Training(
    STRIPES,
    partial(NeuralODE, 2, widths=(4, 8, 8)),
    RECIPE,
    held_out=20,
    solvers=experiments.SOLVERS,
)
TABLE = {"toy": {"short": {"conv": CONV, "ode": ODE}}}


@pytest.fixture
def toy(monkeypatch, tmp_path):
    table = {name: {key: dict(row) for key, row in rows.items()} for name, rows in TABLE.items()}
    monkeypatch.setattr(experiments, "EXPERIMENTS", table)
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(evaluations, "FOLDER", tmp_path / "evaluations")
    return tmp_path


def test_a_recorded_run_is_reproduced_by_its_checkpoint(toy, capsys):
    (run,) = experiments.run("toy", models=["conv"], seeds=[3], folder=toy)
    assert runs.load_runs("toy", folder=toy) == [run]
    assert (run.model, run.protocol, run.seed, run.epochs) == ("conv", "short", 3, 2)
    assert len(run.results["curves"]["accuracy"]) == 2
    assert run.results["trained_on"] == 60
    assert run.accuracy > 0.8
    assert runs.provenance(run) in capsys.readouterr().out

    model = _tiny()
    model.load_state_dict(runs.load_checkpoint(run, folder=toy))
    test = _load("test")
    outputs = training.logits(model, test.images, size=8, statistics="cifar10")
    assert training.accuracy(outputs, test.labels) == run.accuracy


def test_without_images_held_out_every_one_is_learnt_from(toy, monkeypatch):
    every = dataclasses.replace(CONV, held_out=0)
    monkeypatch.setitem(experiments.EXPERIMENTS["toy"], "all", {"conv": every})
    (run,) = experiments.run("toy", protocol="all", folder=toy)
    assert run.results["trained_on"] == len(_load("train").labels)
    assert "accuracy" not in run.results["curves"]


def test_a_killed_run_leaves_its_progress_and_goes_on(toy, monkeypatch):
    whole = experiments.run("toy", models=["conv"], folder=toy / "whole")[0]

    def dies(*args, original=training.logits, calls=iter(range(9)), **kwargs):  # noqa: B008
        if next(calls) == 2:  # after the look at one image, in the second epoch
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training, "logits", dies)
        with pytest.raises(KeyboardInterrupt):
            experiments.run("toy", models=["conv"], folder=toy)
    assert runs.load_runs(folder=toy) == []
    assert [p.name for p in (toy / "data" / "runs").iterdir()] == ["toy-conv-short-0.pt"]
    (run,) = experiments.run("toy", models=["conv"], folder=toy)
    assert run.results["curves"]["loss"] == whole.results["curves"]["loss"]
    assert run.sha256 == whole.sha256
    assert not list((toy / "data" / "runs").iterdir())


def test_a_trained_ode_is_solved_with_finer_steps_too(toy):
    (run,) = experiments.run("toy", models=["ode"], folder=toy)
    rows = run.results["refined"]
    assert rows[0]["accuracy"] == run.accuracy
    assert [row["method"] for row in rows] == ["midpoint"] * 3 + ["dopri5"]
    assert [row["evaluations"] for row in rows[:3]] == [6, 12, 24]


def test_every_model_and_seed_of_a_protocol_is_run_unless_told_otherwise(toy):
    recorded = experiments.run("toy", seeds=[0, 1], folder=toy)
    assert [(r.model, r.seed) for r in recorded] == [
        ("conv", 0),
        ("conv", 1),
        ("ode", 0),
        ("ode", 1),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experiment": "table7"}, "experiment 'table7'.*table1"),
        ({"experiment": "table1", "protocol": "best"}, "protocol 'best'.*slides"),
        (
            {"experiment": "table1", "protocol": "slides", "models": ["alexnet"]},
            "model.*'alexnet'.*neural_ode",
        ),
    ],
)
def test_unknown_names_are_told_the_known_ones(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiments.run(**arguments)


def test_missing_data_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setenv("MNLIB_TIER", "embedded")
    with pytest.raises(FileNotFoundError, match="cifar10"):
        experiments.run("table1", models=["resnet20"], protocol="slides")


def test_slices_are_counted_and_averaged_over_layers(monkeypatch, tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {
        "features.0.weight": torch.randn(6, 3, 3, 3, generator=generator),
        "features.0.bias": torch.zeros(6),
        "features.2.weight": torch.randn(4, 6, 3, 3, generator=generator),
    }
    monkeypatch.setattr(experiments.data, "load", lambda name, split="train": weights)
    (run,) = experiments.run("vgg19_slices", folder=tmp_path)
    for slices, counts in (("vertical", (3, 6)), ("horizontal", (6, 4))):
        result = run.results[slices]
        assert result["slices"] == sum(result["histogram"]) == sum(counts)
        np.testing.assert_allclose(np.average(result["layers"], weights=counts), result["percent"])
    # the first vertical slice by scikit-learn: positions are samples, kernels are features
    one = PCA().fit(weights["features.0.weight"][:, 0].flatten(1).T.numpy())
    shares = pca.explained_variance_ratio(weights["features.0.weight"], slices="vertical")
    np.testing.assert_allclose(one.explained_variance_ratio_[0], shares[0, 0], rtol=1e-5)


def test_a_training_outlives_a_record_that_cannot_be_written(toy, monkeypatch):
    def full(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_run", full)
        with pytest.raises(OSError, match="disk full"):
            experiments.run("toy", models=["conv"], folder=toy)
    assert [p.name for p in (toy / "data" / "runs").iterdir()] == ["toy-conv-short-0.pt"]


def test_a_recorded_network_is_evaluated_as_it_was(toy, monkeypatch):
    monkeypatch.setattr(runs, "load_checkpoint", partial(runs.load_checkpoint, folder=toy))
    (run,) = experiments.run("toy", models=["conv"], folder=toy)
    seen = []
    logits = training.logits
    monkeypatch.setattr(
        training, "logits", lambda *args, **how: seen.append(how) or logits(*args, **how)
    )
    assert experiments.evaluate(run) == run.accuracy
    assert seen == [{"size": 8, "statistics": "cifar10", "batch": 10, "mirrored": False}]
    assert not experiments.trained(run).training
    absent = dataclasses.replace(CONV, images=dataclasses.replace(STRIPES, inputs=("cifar10",)))
    monkeypatch.setitem(experiments.EXPERIMENTS["toy"]["short"], "conv", absent)
    monkeypatch.setenv("MNLIB_TIER", "embedded")
    assert experiments.evaluate(run) is None


def test_every_name_is_looked_up_before_anything_is_trained(toy, monkeypatch):
    two = {"toy": {"one": TABLE["toy"]["short"], "two": {"conv": TABLE["toy"]["short"]["conv"]}}}
    monkeypatch.setattr(experiments, "EXPERIMENTS", two)
    with pytest.raises(ValueError, match=r"model of toy 'cone'.*conv"):
        experiments.run("toy", models=["conv", "cone"], folder=toy)
    assert not (toy / "runs").exists()
    recorded = experiments.run("toy", models=iter(["ode", "conv"]), seeds=iter([0]), folder=toy)
    assert [(r.protocol, r.model) for r in recorded] == [
        ("one", "conv"),
        ("one", "ode"),
        ("two", "conv"),
    ]


def test_a_network_is_tested_on_mirror_images_too(toy, monkeypatch):
    monkeypatch.setitem(
        experiments.EXPERIMENTS["toy"], "mirrored", {"conv": Mirrored("short", CONV)}
    )
    monkeypatch.setattr(runs, "load_checkpoint", partial(runs.load_checkpoint, folder=toy))
    monkeypatch.setattr(runs, "load_runs", partial(runs.load_runs, folder=toy))
    with pytest.raises(FileNotFoundError, match="run toy --protocol short --model conv --seed 1"):
        experiments.run("toy", protocol="mirrored", seeds=[1], folder=toy)
    (plain,) = experiments.run("toy", models=["conv"], protocol="short", seeds=[1], folder=toy)
    (run,) = experiments.run("toy", protocol="mirrored", seeds=[1], folder=toy)
    assert (run.checkpoint, run.sha256) == (plain.checkpoint, plain.sha256)
    assert run.results.keys() == {"of", "recipe", "answers"}
    assert (run.results["of"], run.results["recipe"]) == (plain.name, plain.results["recipe"])
    assert (run.epochs, plain.epochs) == (0, 2)

    test, model = _load("test"), _state(plain, toy)
    x = prepare(torch.tensor(test.images), 8, "cifar10")
    with torch.no_grad():
        both = (model(x) + model(x.flip(3))) / 2
    assert run.accuracy == training.accuracy(both, test.labels)
    assert run.results["answers"] == "".join(str(k) for k in both.argmax(1).tolist())
    torch.testing.assert_close(experiments.outputs(run, test.images), both)
    with torch.no_grad():
        torch.testing.assert_close(experiments.outputs(plain, test.images), model(x))


def _state(run, folder):
    model = _tiny()
    model.load_state_dict(runs.load_checkpoint(run, folder=folder))
    return model.eval()


@pytest.mark.parametrize("run", runs.load_runs(), ids=lambda run: run.name)
def test_the_command_of_every_record_would_run_today_what_was_recorded(run):
    asked = cli.parser().parse_args(run.command.split()[1:])
    assert asked.experiment == run.experiment
    assert asked.protocol in (None, run.protocol)
    assert run.model in (asked.model or [run.model])
    assert run.seed in (asked.seed or [0])
    task = experiments.task(run)
    assert (task.dataset, task.epochs) == (run.dataset, run.epochs)
    assert [*task.inputs] == [*run.inputs]
    training = task.training if isinstance(task, Mirrored) else task
    if isinstance(training, Training):
        kept = json.loads(json.dumps(dataclasses.asdict(training.recipe)))
        defaults = {f.name: f.default for f in dataclasses.fields(Recipe) if f.name != "sizes"}
        recorded = {**defaults, "penalties": [], **run.results["recipe"]}
        assert recorded.pop("warmup", WARMUP) == WARMUP  # fields once
        assert recorded.pop("restarts", []) == []
        assert recorded == kept
        assert count_parameters(training.network()) == run.parameters
    if isinstance(task, Training):
        whole = run.results["trained_on"] + task.held_out
        assert whole == {"cifar10": 50_000, "mnist": 60_000, "tf_flowers": 3670}.get(
            task.dataset, 5000
        )
        refined = [row["evaluations"] for row in run.results.get("refined", [])]
        assert len(refined) == len(task.solvers)


def test_no_two_experiments_have_the_same_names():
    names = [
        runs.Which(experiment, model, protocol, 0).name
        for experiment, protocols in experiments.EXPERIMENTS.items()
        for protocol, models in protocols.items()
        for model in models
    ]
    assert len({*names}) == len(names)
