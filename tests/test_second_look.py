"""Recorded networks asked again, on tasks of a second, and the records of chapter 5."""

from functools import partial

import numpy as np
import pytest
import test_experiments as toys
from test_experiments import toy  # noqa: F401  a fixture

from mnlib.lab import experiments, runs, second_look, training
from mnlib.lab.tasks import Measurement, Mirrored


def test_marks_are_what_was_packed():
    right = np.random.default_rng(0).random(10_001) < 0.8
    text = second_look.packed(right)
    assert len(text) == 2 * 1251
    np.testing.assert_array_equal(second_look.marks(text, len(right)), right)
    with pytest.raises(ValueError, match="10008 marks for 10000 images"):
        second_look.marks(text)


@pytest.fixture
def again(toy, monkeypatch):  # noqa: F811
    """Have the toy networks asked again, among others their answers to mirror images."""
    table = experiments.EXPERIMENTS["toy"]
    table["mirrored"] = {"conv": Mirrored("short", toys.CONV)}

    def look(trained, solvers):
        found = partial(second_look.which_are_right, "toy", trained, solvers)
        return Measurement("stripes", found, ())

    images = {
        "short": {
            "conv": look(toys.CONV, ()),
            "ode": look(toys.ODE, second_look.SOLVERS),
        },
        "mirrored": {"conv": look(table["mirrored"]["conv"], ())},
    }
    monkeypatch.setitem(experiments.EXPERIMENTS, "toy_images", images)
    for name in ("load_checkpoint", "load_runs"):
        monkeypatch.setattr(runs, name, partial(getattr(runs, name), folder=toy))
    return toy


def test_a_second_look_has_the_recorded_accuracy_image_by_image(again):
    (run,) = experiments.run("toy", models=["ode"], folder=again)
    (look,) = experiments.run("toy_images", models=["ode"], folder=again)
    assert (look.results["of"], look.sha256) == (run.name, run.sha256)
    assert look.accuracy == run.accuracy
    labels = toys._load("test").labels
    model = experiments.trained(run)
    for row, solver, evaluations in zip(
        look.results["asked"], second_look.SOLVERS, [6, 3, 24], strict=True
    ):
        model.solve_with(**solver)
        answers = training.logits(model, toys._load("test").images, size=8, statistics="cifar10")
        expected = answers.argmax(1).numpy() == labels
        np.testing.assert_array_equal(second_look.marks(row["right"], len(labels)), expected)
        assert row["accuracy"] == expected.mean()
        assert (row["method"], row["evaluations"]) == (solver["method"], evaluations)


def test_a_network_without_a_solver_is_asked_as_it_was_tested(again):
    runs_of = partial(experiments.run, models=["conv"], folder=again)
    *_, plain, twice = runs_of("toy")
    looks = runs_of("toy_images")
    assert [look.accuracy for look in looks] == [plain.accuracy, twice.accuracy]
    labels = toys._load("test").labels
    for run, look in zip((plain, twice), looks, strict=True):
        (row,) = look.results["asked"]
        answers = np.array([*map(int, run.results["answers"])])
        right = second_look.marks(row["right"], len(labels))
        np.testing.assert_array_equal(right, answers == labels)


RECORDED = {run.name: run for run in runs.load_runs("table1")}


@pytest.mark.parametrize("look", runs.load_runs("table1_images"), ids=lambda run: run.name)
def test_a_recorded_look_is_at_the_weights_that_are_recorded(look):
    run = RECORDED[look.results["of"]]
    assert (run.model, run.protocol, run.seed) == (look.model, look.protocol, look.seed)
    assert (look.checkpoint, look.sha256) == (run.checkpoint, run.sha256)
    assert abs(look.accuracy - run.accuracy) <= 0.0005
    for row in look.results["asked"]:
        assert second_look.marks(row["right"]).mean() == pytest.approx(row["accuracy"], abs=1e-9)
