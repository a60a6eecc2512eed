"""What `mnlib run` records, on tasks of a second."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from mnlib import pca
from mnlib.cifar import NeuralODE
from mnlib.lab import experiments, runs, training
from mnlib.lab.data import Dataset
from mnlib.lab.training import Recipe


def _load(split):
    """Bright or dark images: two classes."""
    rng = np.random.default_rng(len(split))
    labels = np.arange(80, dtype=np.int64) % 2
    images = rng.integers(0, 120, (80, 8, 8, 3)) + 130 * labels[:, None, None, None]
    return Dataset(images.astype(np.uint8), labels)


def _tiny():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


_task = partial(
    experiments._train,
    dataset="stripes",
    load=_load,
    held_out=20,
    recipe=Recipe(sizes=(8, 8), batch=10, rate=0.05),
)
TABLE = {
    "toy": {
        "short": {
            "conv": partial(_task, build=_tiny),
            "ode": partial(
                _task, build=partial(NeuralODE, 2, widths=(4, 8, 8)), more=experiments._refine
            ),
        }
    }
}


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "EXPERIMENTS", TABLE)
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path / "data"))
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
    monkeypatch.setitem(TABLE["toy"], "all", {"conv": partial(_task, build=_tiny, held_out=0)})
    (run,) = experiments.run("toy", protocol="all", folder=toy)
    assert run.results["trained_on"] == len(_load("train").labels)
    assert "accuracy" not in run.results["curves"]


def test_a_killed_run_leaves_its_progress_and_goes_on(toy, monkeypatch):
    whole = experiments.run("toy", models=["conv"], folder=toy / "whole")[0]

    def dies(*args, original=training.logits, calls=iter(range(9)), **kwargs):  # noqa: B008
        if next(calls) == 1:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training, "logits", dies)
        with pytest.raises(KeyboardInterrupt):
            experiments.run("toy", models=["conv"], folder=toy)
    assert runs.load_runs(folder=toy) == []
    assert [p.name for p in (toy / "data" / "runs").iterdir()] == ["toy-short-conv-0.pt"]
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
    monkeypatch.setattr(experiments.data, "load", lambda name: weights)
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
    assert [p.name for p in (toy / "data" / "runs").iterdir()] == ["toy-short-conv-0.pt"]


def test_a_recorded_network_is_evaluated_as_it_was(toy, monkeypatch):
    monkeypatch.setattr(runs, "load_checkpoint", partial(runs.load_checkpoint, folder=toy))
    monkeypatch.setattr(experiments, "NETWORKS", {("stripes", "conv"): _tiny})
    monkeypatch.setattr(experiments.data, "load", lambda name, split: _load(split))
    (run,) = experiments.run("toy", models=["conv"], folder=toy)
    monkeypatch.setattr(experiments.data, "tier", lambda name: "real data")
    seen = []
    logits = training.logits
    monkeypatch.setattr(
        training, "logits", lambda *args, **how: seen.append(how) or logits(*args, **how)
    )
    assert experiments.evaluate(run) == run.accuracy
    assert seen == [{"size": 8, "statistics": "cifar10", "batch": 10, "mirrored": False}]
    assert not experiments.trained(run).training
    monkeypatch.setattr(experiments.data, "tier", lambda name: "embedded")
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
    trained = partial(_state, folder=toy)
    task = partial(experiments._mirrored, of="short", load=_load, trained=trained)
    monkeypatch.setitem(TABLE["toy"], "mirrored", {"conv": task})
    monkeypatch.setattr(runs, "load_runs", partial(runs.load_runs, folder=toy))
    with pytest.raises(FileNotFoundError, match="run toy --protocol short --model conv --seed 1"):
        experiments.run("toy", protocol="mirrored", seeds=[1], folder=toy)
    (plain,) = experiments.run("toy", models=["conv"], protocol="short", seeds=[1], folder=toy)
    (run,) = experiments.run("toy", protocol="mirrored", seeds=[1], folder=toy)
    assert (run.checkpoint, run.sha256) == (plain.checkpoint, plain.sha256)
    assert run.results == {"of": plain.name, "recipe": plain.results["recipe"]}
    assert (run.epochs, plain.epochs) == (0, 2)

    test, model = _load("test"), _state(plain, toy)
    x = training.prepare(torch.tensor(test.images), 8, "cifar10")
    with torch.no_grad():
        both = (model(x) + model(x.flip(3))) / 2
    assert run.accuracy == training.accuracy(both, test.labels)
    torch.testing.assert_close(training.outputs(model, run, test.images), both)
    with torch.no_grad():
        torch.testing.assert_close(training.outputs(model, plain, test.images), model(x))


def _state(run, folder):
    model = _tiny()
    model.load_state_dict(runs.load_checkpoint(run, folder=folder))
    return model.eval()
