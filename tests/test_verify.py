"""What still holds is told from what does not, byte by byte and run by run."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from torch import nn

from mnlib.lab import certificate, claims, cli, evaluations, experiments, fingerprint, runs, verify
from mnlib.lab.data import Dataset
from mnlib.lab.tasks import Images, Measurement, Outcome, Training
from mnlib.lab.training import Recipe


def _load(split):
    """Bright or dark images: two classes."""
    rng = np.random.default_rng(len(split))
    labels = np.arange(40, dtype=np.int64) % 2
    images = rng.integers(0, 120, (40, 8, 8, 3)) + 130 * labels[:, None, None, None]
    return Dataset(images.astype(np.uint8), labels)


def _net(width):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 2))


def _measure(which):
    return Outcome(parameters=0, accuracy=None, results={"seen": [1.5, which.seed]})


RECIPE = Recipe(sizes=(8, 8), batch=10, rate=0.05)
TRAINING = Training(Images("stripes", _load, ("mnist",)), partial(_net, 4), RECIPE, held_out=10)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with five networks and a measurement, and all that verify looks into."""
    table = {
        "a": TRAINING,
        "b": dataclasses.replace(TRAINING, network=partial(_net, 6)),
        "c": dataclasses.replace(TRAINING, held_out=0),
        "d": dataclasses.replace(TRAINING, recipe=dataclasses.replace(RECIPE, optimiser="adam")),
        "e": dataclasses.replace(TRAINING, recipe=dataclasses.replace(RECIPE, crop=0.5)),
        "m": Measurement("stripes", _measure, ("mnist",)),
    }
    folder = tmp_path / "data"
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"toy": {"short": table}})
    monkeypatch.setenv("MNLIB_DATA", str(tmp_path / "inputs"))
    monkeypatch.setattr(verify.data, "tier", lambda name: "real data")
    inputs = {"source": "here", "sha256": "0" * 64}
    monkeypatch.setattr(fingerprint, "inputs", lambda name: inputs)
    monkeypatch.setattr(evaluations, "FOLDER", tmp_path / "store")
    monkeypatch.setattr(runs, "FOLDER", folder)
    for name in ("load_runs", "load_checkpoint"):
        monkeypatch.setattr(runs, name, partial(getattr(runs, name), folder=folder))
    monkeypatch.setattr(claims, "load_claims", lambda: [])
    experiments.run("toy", folder=folder)
    (folder / "claims.toml").write_text("[[claim]]\n")
    (folder / verify.SUMS).write_text(verify.sums(folder))
    return folder


def outcomes(*names, **how):
    return {found.name: found for found in verify.verify([*names], **how)}


def record(folder, name, **changes):
    """Change a record, and the list of hashes with it."""
    path = folder / "runs" / f"toy-{name}-short-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folder / verify.SUMS).write_text(verify.sums(folder))


def test_what_has_not_changed_is_valid(project):
    found = outcomes()
    assert len(found) == 6 + 5 + 1 + 6  # records, weights, a ledger, runs
    assert {f.outcome for f in found.values()} == {verify.VALID}


@pytest.mark.parametrize(
    "name", ["runs/toy-a-short-0.json", "checkpoints/toy-b-short-0.pt", "claims.toml"]
)
def test_one_flipped_byte_in_a_committed_file_is_found(project, name):
    path = project / name
    content = bytearray(path.read_bytes())
    for where in np.random.default_rng(0).integers(0, len(content), 25):
        changed = content.copy()
        changed[where] ^= 1
        path.write_bytes(changed)
        found = {f.name: f for f in verify._files(project)}
        assert found[name].outcome == verify.FAILS
        assert [f.outcome for f in found.values()].count(verify.FAILS) == 1
    path.unlink()
    assert {f.name: f for f in verify._files(project)}[name].outcome == verify.FAILS


def test_a_flipped_byte_in_weights_is_found_by_their_run_too(project):
    path = project / "checkpoints" / "toy-b-short-0.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert outcomes("toy-b-short-0")["toy-b-short-0"].outcome == verify.FAILS


@pytest.mark.parametrize("recorded", ["0" * 64, runs.NOT_RECORDED])
def test_a_changed_input_is_found(project, monkeypatch, recorded):
    """By an old record, too, whose input's hash a later one names."""
    record(project, "a", inputs={"mnist": {"source": "here", "sha256": recorded}})
    monkeypatch.setattr(fingerprint, "inputs", lambda name: {"source": "", "sha256": "1" * 64})
    found = outcomes()["toy-a-short-0"]
    assert (found.outcome, found.why) == (
        verify.FAILS,
        "mnist has another content than recorded",
    )


def test_another_version_of_photographs_or_weights_says_nothing_of_a_record(project, monkeypatch):
    """As the photographs in full size, or weights that another project has published."""
    versions = {"tf_flowers": "2" * 64, "mnist": "0" * 64}
    inputs = {name: {"source": "here", "sha256": sha} for name, sha in versions.items()}
    record(project, "a", inputs=inputs)
    here = dict.fromkeys(versions, "0" * 64)
    monkeypatch.setattr(fingerprint, "inputs", lambda name: {"source": "", "sha256": here[name]})
    found = outcomes()["toy-a-short-0"]
    assert (found.outcome, found.why) == (
        verify.NOT_HERE,
        "another version of tf_flowers is here than was recorded",
    )
    here["mnist"] = "1" * 64
    assert outcomes()["toy-a-short-0"].outcome == verify.FAILS


def test_changed_code_is_evaluated_again_and_may_fail(project, monkeypatch):
    record(project, "a", code="another")
    assert outcomes()["toy-a-short-0"].outcome == verify.AGAIN
    record(project, "a", accuracy=0.5)
    found = outcomes()["toy-a-short-0"]
    assert found.outcome == verify.FAILS
    assert "recorded 0.5" in found.why
    record(project, "m", code="another")
    assert outcomes()["toy-m-short-0"].outcome == verify.AGAIN
    record(project, "m", results={"seen": [1.6, 0]})
    assert outcomes()["toy-m-short-0"].outcome == verify.FAILS
    row = {"accuracy": 0.9, "probabilities": [[0.0001, 0.9999]]}
    record(project, "m", results={"seen": [1.5, 0], "row": row})
    (run,) = (r for r in runs.load_runs() if r.model == "m")

    def compared(**now):
        return verify._compared(run, {"accuracy": None, "results": {"seen": [1.5, 0], **now}})[0]

    assert compared(row=row | {"accuracy": 0.9027}) == verify.AGAIN  # two photographs of 734
    assert compared(row=row | {"accuracy": 0.904}) == verify.FAILS
    # the last digit that is kept of a small probability is much of its size
    assert compared(row=row | {"probabilities": [[0.0002, 0.9998]]}) == verify.AGAIN
    assert compared(row=row | {"probabilities": [[0.01, 0.99]]}) == verify.FAILS
    record(project, "m", results={"seen": [1.5, 0], "more": 1})
    assert outcomes()["toy-m-short-0"].why == "the measurement no longer gives results.more"


def test_what_is_absent_is_not_verifiable_and_says_why(project, monkeypatch):
    monkeypatch.setattr(verify.data, "tier", lambda name: "embedded")
    found = outcomes()["toy-a-short-0"]
    assert found.outcome == verify.NOT_HERE
    assert found.why == "without mnist; its code is the recorded one: mnlib fetch mnist"
    monkeypatch.setattr(verify.data, "tier", lambda name: "real data")
    record(project, "c", code="another", checkpoint=None, sha256=None, seconds=1000)
    found = outcomes()["toy-c-short-0"]
    assert found.outcome == verify.NOT_HERE
    assert "17 min" in found.why
    assert "mnlib verify --rerun toy-c-short-0" in found.why
    record(project, "m", code="another", seconds=61)
    assert outcomes()["toy-m-short-0"].outcome == verify.NOT_HERE


def test_five_short_runs_repeat_bit_for_bit(project):
    names = [f"toy-{name}-short-0" for name in "abcde"]
    found = outcomes(*names, rerun=True)
    assert {f.outcome for f in found.values()} == {verify.IDENTICAL}
    assert [*found] == names
    record(project, "a", sha256="0" * 64)
    (changed,) = verify.verify(names[:1], rerun=True)
    assert changed.outcome == verify.CLOSE
    record(project, "a", accuracy=0.5)
    (changed,) = verify.verify(names[:1], rerun=True)
    assert changed.outcome == verify.FAILS


def test_an_evaluation_is_made_once_while_nothing_has_changed(project, monkeypatch):
    (run,) = (r for r in runs.load_runs() if r.model == "a")
    first = experiments.answers(run)
    made = []
    outputs = experiments.tasks.outputs
    monkeypatch.setattr(
        experiments.tasks, "outputs", lambda *a, **how: made.append(1) or outputs(*a, **how)
    )
    assert (experiments.answers(run) == first).all()
    assert made == []
    code = fingerprint.code
    monkeypatch.setattr(fingerprint, "code", lambda task: code(task) + "changed")
    experiments.answers(run)
    assert made == [1]
    for path in evaluations.FOLDER.iterdir():  # a damaged one is computed again
        path.write_bytes(path.read_bytes()[:-40])
    assert (experiments.answers(run) == first).all()
    assert made == [1, 1]


def test_a_claim_whose_verdict_changed_fails(monkeypatch):
    claim = claims.load_claims()[1]
    assert verify._claim(claim)[0] == verify.VALID
    assert verify._claim(dataclasses.replace(claim, expected="not reproduced"))[0] == verify.FAILS


def test_unknown_names_are_told(project):
    with pytest.raises(ValueError, match="no run and no claim is named 'toy-z'"):
        [*verify.verify(["toy-z"])]


def test_the_list_of_hashes_is_that_of_the_committed_files():
    folder = Path(runs.ROOT) / "data"
    assert (folder / verify.SUMS).read_text() == verify.sums(folder), "run: make sums"


def test_the_certificates_are_what_others_tools_read(project, capsys):
    root = project.parent
    assert cli.main(["verify", "--write", str(root)]) == 0
    said = capsys.readouterr().out
    assert "18 valid" in said
    text = (root / "codecheck.yml").read_text()
    assert text.startswith("%YAML 1.1\n---\n")
    check = yaml.safe_load(text)
    assert [entry["file"] for entry in check["manifest"]] == [
        f"data/runs/toy-{name}-short-0.json" for name in "abcdem"
    ]
    assert all((root / entry["file"]).is_file() for entry in check["manifest"])
    assert check["paper"]["authors"][0]["name"]
    crate = json.loads((root / "ro-crate-metadata.json").read_text())
    by_id = {entity["@id"]: entity for entity in crate["@graph"]}
    parts = [part["@id"] for part in by_id["./"]["hasPart"]]
    assert len(parts) == 12
    assert all((root / part).is_file() for part in parts)
    with pytest.raises(ValueError, match="name the checkout's root"):
        certificate.write([], root / "elsewhere")


def test_the_crate_is_read_by_the_library_of_ro_crate(project):
    library = pytest.importorskip("rocrate.rocrate", reason="rocrate is not installed")
    certificate.write(verify.verify(), project.parent)
    crate = library.ROCrate(str(project.parent))
    assert len(crate.data_entities) == 12
    assert {entity.type for entity in crate.data_entities} == {"File"}
    run = crate.dereference("data/runs/toy-a-short-0.json")
    assert run["description"] == "valid: code and inputs are those recorded"
