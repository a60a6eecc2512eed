"""What a result depends on, as hashes."""

import dataclasses
import importlib
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from mnlib.lab import experiments, fingerprint
from mnlib.lab.data import Dataset
from mnlib.lab.training import Recipe

SOURCE = '''"""A module."""
from mnlib.lab import other_of_a_test

def f(x):
    """Return it."""
    # why
    return x + 1
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write modules of mnlib.lab that are there for this test alone."""
    import mnlib.lab

    monkeypatch.setattr(mnlib.lab, "__path__", [*mnlib.lab.__path__, str(tmp_path)])

    def write(text, name="made_for_a_test"):
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        for function in (fingerprint._origin, fingerprint._imports, fingerprint._bare):
            function.cache_clear()
        return fingerprint.code(_Function(f"mnlib.lab.{name}"))

    yield write
    for function in (fingerprint._origin, fingerprint._imports, fingerprint._bare):
        function.cache_clear()


class _Function:
    """A stand-in for a function of a module."""

    def __init__(self, module):
        self.__module__, self.__qualname__ = module, "f"


def test_comments_docstrings_and_empty_lines_are_no_code_and_all_else_is(module):
    module("y = 1\n", "other_of_a_test")
    before = module(SOURCE)
    assert before == module(SOURCE.replace("Return it.", "Give it\n    back.\n    "))
    assert before == module(SOURCE.replace("# why", "# for reasons"))
    assert before == module(SOURCE.replace("\ndef", "\n\n\ndef"))
    assert before != module(SOURCE.replace("x + 1", "x + 2"))
    assert before == module(SOURCE)
    module("y = 2\n", "other_of_a_test")  # which it imports
    assert before != module(SOURCE)


def test_a_module_that_cannot_be_reached_does_not_count():
    reached = fingerprint.reached(["mnlib.lab.tasks"])
    assert {"mnlib.lab.training", "mnlib.lab.kernels", "mnlib.gates"} <= reached
    assert not reached & {"mnlib.lab.claims", "mnlib.lab.book", "mnlib.lab.runs", "mnlib.pca"}


def test_every_field_of_an_experiment_counts():
    task = experiments.EXPERIMENTS["table1"]["good"]["resnet20"]
    hashes = {
        fingerprint.code(other)
        for other in (
            task,
            dataclasses.replace(task, held_out=4999),
            dataclasses.replace(task, recipe=Recipe(sizes=(32,))),
            dataclasses.replace(task, network=partial(task.network, 11)),
            dataclasses.replace(task, start="mobilenet_v2"),
            experiments.EXPERIMENTS["table1"]["good"]["neural_ode"],
            experiments.EXPERIMENTS["table1"]["mirrored"]["resnet20"],
        )
    }
    assert len(hashes) == 7


def test_the_hash_of_code_is_the_same_in_every_process():
    name = "experiments.EXPERIMENTS['flowers']['mirrored']['mobilenet_v2']"
    script = f"from mnlib.lab import experiments, fingerprint; print(fingerprint.code({name}))"
    said = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    task = experiments.EXPERIMENTS["flowers"]["mirrored"]["mobilenet_v2"]
    assert said == {fingerprint.code(task) + "\n"}


def test_the_hash_of_an_input_is_that_of_every_byte_of_its_content(monkeypatch):
    images = np.zeros((3, 2, 2, 1), np.uint8)
    labels = np.arange(3)

    def hashed(**changes):
        found = {"train": Dataset(images, labels), "test": Dataset(images, labels), **changes}
        monkeypatch.setattr(fingerprint.data, "load", lambda name, split: found[split])
        fingerprint.inputs.cache_clear()
        return fingerprint.inputs("mnist")["sha256"]

    before = hashed()
    assert before == hashed(test=Dataset(images.copy(), labels.copy()))
    other = images.copy()
    other[2, 1, 1, 0] = 1
    assert before != hashed(test=Dataset(other, labels))
    assert before != hashed(train=Dataset(images, labels[::-1]))
    assert before != hashed(train=Dataset(images.reshape(3, 4, 1, 1), labels))

    def weights(content):
        monkeypatch.setattr(fingerprint.data, "load", lambda name, split: content)
        fingerprint.inputs.cache_clear()
        return fingerprint.inputs("vgg19")["sha256"]

    content = {"a": torch.ones(2), "b": torch.zeros(1)}
    before = weights(content)
    assert before == weights(dict(reversed(content.items())))
    assert before != weights({"a": torch.ones(2), "c": torch.zeros(1)})
    assert before != weights({"a": torch.tensor([1.0, 1 + 2**-23]), "b": torch.zeros(1)})
    fingerprint.inputs.cache_clear()


def test_versions_name_what_results_depend_on():
    found = fingerprint.versions()
    assert found["torch"] == torch.__version__
    assert found["python"] == sys.version.partition(" ")[0]
