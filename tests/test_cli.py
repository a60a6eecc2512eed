"""The command line: what it prints and how it exits."""

import json

import pytest

from mnlib.lab import cli, data


def test_data_lists_every_input_with_its_tier(capsys, monkeypatch):
    monkeypatch.setenv("MNLIB_TIER", "embedded")
    assert cli.main(["data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [row["name"] for row in data.status()]
    assert all(line.split()[1] == "embedded" for line in lines[1:])


def test_an_unknown_name_is_one_line_on_stderr(capsys):
    assert cli.main(["fetch", "imagenet"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "'imagenet'" in err
    assert "cifar10" in err


@pytest.mark.parametrize("names", [[], ["mnist"]])
def test_fetch_fails_only_when_a_named_input_was_not_reached(names, capsys, monkeypatch):
    row = {"name": "mnist", "outcome": "not reached", "source": "", "reason": "npm: not installed"}
    monkeypatch.setattr(data, "fetch", lambda asked: [row])
    assert cli.main(["fetch", *names]) == len(names)
    assert "npm: not installed" in capsys.readouterr().out


def test_runs_prints_whole_records_as_json(capsys):
    assert cli.main(["runs", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    wanted = {"experiment", "model", "dataset", "protocol", "seed", "epochs", "parameters"}
    wanted |= {"accuracy", "hardware", "seconds", "commit", "date", "command", "checkpoint"}
    assert all(wanted | {"sha256"} <= set(record) for record in records)


def test_runs_lists_one_a_line(capsys):
    assert cli.main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cli.main(["runs", "--json"])
    assert len(lines) == 1 + len(json.loads(capsys.readouterr().out)) > 10


def test_an_unknown_experiment_names_the_known_ones(capsys):
    assert cli.main(["run", "everything"]) == 1
    assert "'everything'" in capsys.readouterr().err


def test_claims_as_json_hold_what_a_program_needs(capsys, monkeypatch):
    monkeypatch.setenv("MNLIB_TIER", "embedded")
    assert cli.main(["claims", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    wanted = {"id", "slide", "quote", "claim", "slides", "live", "recorded", "tier", "verdict"}
    assert rows
    assert all(wanted | {"test", "place"} <= set(row) for row in rows)
    assert cli.main(["claims"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1


def test_what_is_no_picture_is_refused_in_one_line(capsys, tmp_path):
    file = tmp_path / "notes.jpg"
    file.write_text("no picture")
    assert cli.main(["classify", str(file)]) == 1
    assert str(file) in capsys.readouterr().err


def test_a_picture_is_classified(capsys, tmp_path):
    from PIL import Image

    Image.fromarray(data.drawn_flowers(1, size=32)[0][0]).save(tmp_path / "flower.png")
    assert cli.main(["classify", str(tmp_path / "flower.png")]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "class", *data.CLASSES["tf_flowers"]]
    assert row.split()[1] in data.CLASSES["tf_flowers"]
