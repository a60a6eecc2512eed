"""Recorded runs: round trip, provenance, checksums, atomic files."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from mnlib.lab import files, runs

RUN = runs.Run(
    experiment="table1",
    model="resnet20",
    dataset="cifar10",
    protocol="slides",
    seed=3,
    epochs=8,
    parameters=269722,
    accuracy=0.8514,
    hardware="abacus × 2",
    seconds=900.4,
    commit="0123456789abcdef",
    date="2026-11-23T02:00:00Z",
    command="mnlib run table1",
    versions={"torch": "2.6.0"},
    inputs={"cifar10": {"source": "npm", "sha256": "00"}},
    code="abc",
    results={"loss": [2.3, 1.9]},
)
STATE = {"weight": torch.linspace(-1, 1, 7).reshape(7, 1), "count": torch.tensor(4)}


def test_run_and_weights_come_back_as_they_were_saved(tmp_path):
    saved = runs.save_run(RUN, STATE, folder=tmp_path)
    assert saved.checkpoint == "table1-resnet20-slides-3.pt"
    assert runs.load_runs("table1", folder=tmp_path) == [saved]
    assert runs.load_runs("flowers", folder=tmp_path) == []
    state = runs.load_checkpoint(saved, folder=tmp_path)
    assert state.keys() == STATE.keys()
    assert torch.equal(state["weight"], STATE["weight"].half().float())
    assert torch.equal(state["count"], STATE["count"])


def test_json_is_the_object_that_the_listing_prints(tmp_path):
    saved = runs.save_run(RUN, STATE, folder=tmp_path)
    (listed,) = runs.as_dicts(folder=tmp_path)
    assert listed == dataclasses.asdict(saved) == json.loads(json.dumps(listed))
    assert {"experiment", "accuracy", "commit", "command", "checkpoint", "sha256"} <= set(listed)


def test_checkpoint_that_changed_or_went_missing_is_refused(tmp_path):
    saved = runs.save_run(RUN, STATE, folder=tmp_path)
    path = tmp_path / "checkpoints" / saved.checkpoint
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="sha256"):
        runs.load_checkpoint(saved, folder=tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="missing"):
        runs.load_checkpoint(saved, folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        runs.load_checkpoint(RUN, folder=tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "value.txt"
    target.write_text("old")

    def fill_half_of_the_disk():
        with files.written_whole(target) as part:
            part.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill_half_of_the_disk()
    assert [p.name for p in tmp_path.iterdir()] == ["value.txt"]
    assert target.read_text() == "old"


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    for bad in (float("nan"), torch.ones(1)):
        with pytest.raises(ValueError, match="JSON"):
            runs.save_run(dataclasses.replace(RUN, results={"loss": bad}), STATE, folder=tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_a_broken_run_file_is_named_with_its_fault(tmp_path):
    saved = runs.save_run(RUN, folder=tmp_path)
    path = tmp_path / "runs" / f"{saved.name}.json"
    good = json.loads(path.read_text())
    lacking = {key: value for key, value in good.items() if key != "commit"}
    for bad, why in [
        ([], "no object"),
        ({"experiment": "x"}, "schema is None"),
        (good | {"schema": 1}, "schema is 1"),
        (lacking, "no 'commit'"),
        (good | {"accuracy": "0.85"}, "'accuracy' is '0.85'"),
        (good | {"seed": None}, "'seed' is None"),
        (good | {"epochs": True}, "'epochs' is True"),
        (good | {"colour": "red"}, "field 'colour'"),
        (good | {"seed": 4}, "record of table1-resnet20-slides-4"),
    ]:
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=f"{path.name}.*{why}.*restore it from git"):
            runs.load_runs(folder=tmp_path)
    path.write_text(json.dumps(good)[:-9])
    with pytest.raises(ValueError, match=path.name):
        runs.load_runs(folder=tmp_path)
    path.write_text(json.dumps(good | {"accuracy": 1}))
    assert runs.load_runs(folder=tmp_path)[0].accuracy == 1


def test_what_a_killed_writer_left_is_removed_an_hour_later(tmp_path):
    old, young = (tmp_path / f".value.txt.{n}.part" for n in (1, 2))
    for left in (old, young):
        left.write_text("half")
    os.utime(old, (0, 0))
    with files.written_whole(tmp_path / "value.txt") as part:
        part.write_text("whole")
        assert part not in (old, young)  # another process may be writing there now
    assert sorted(p.name for p in tmp_path.iterdir()) == [young.name, "value.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_with_file_reason_and_remedy(tmp_path, monkeypatch):
    target = tmp_path / "value.txt"
    with (
        pytest.raises(OSError, match=r"value\.txt cannot be written \(No space left.*free some"),
        files.written_whole(target),
        open("/dev/full", "w") as full,
    ):
        full.write("half")
    assert not list(tmp_path.iterdir())


def test_environment_names_machine_commit_and_time():
    now = runs.environment()
    assert set(now) == {"hardware", "commit", "date", "command", "versions"}
    assert all(now.values())
    assert now["commit"] == "unknown" or len(now["commit"].removesuffix("-dirty")) == 40


def test_changed_code_makes_a_commit_dirty_and_changed_records_do_not(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            check=True,
            capture_output=True,
        )

    monkeypatch.setattr(runs, "ROOT", tmp_path)
    commit = runs._commit.__wrapped__  # not cached
    assert commit() == "unknown"
    (tmp_path / "data").mkdir()
    for name in ("code.py", "data/run.json"):
        (tmp_path / name).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = commit()
    assert len(clean) == 40
    (tmp_path / "data/run.json").write_text("2")
    assert commit() == clean
    (tmp_path / "code.py").write_text("2")
    assert commit() == clean + "-dirty"


def test_provenance_is_one_line_that_tells_a_dirty_tree():
    line = runs.provenance(RUN)
    assert "\n" not in line
    assert "15 min on abacus × 2" in line
    assert line.endswith(RUN.command)
    assert "local changes" not in line
    assert "local changes" in runs.provenance(dataclasses.replace(RUN, commit="0123-dirty"))


def test_every_recorded_run_of_the_project_is_whole():
    for run in runs.load_runs():
        assert run.date
        if run.checkpoint:
            assert runs.load_checkpoint(run)
