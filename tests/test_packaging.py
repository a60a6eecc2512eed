"""The sdist and the wheel: what they carry, and that the command works with no checkout near."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

import mnlib
from mnlib.lab.claims import load_claims

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of this checkout, and the wheel that the unpacked sdist builds."""
    folder = tmp_path_factory.mktemp("built")
    checkout = folder / "checkout"
    left_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in (".ci", "benchmarks", "book", "data", "mnlib", "scripts", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=left_out)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, checkout)
    build = "from setuptools import build_meta as made; made.{}({!r})"
    python("-c", build.format("build_sdist", str(folder)), cwd=checkout)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    python("-c", build.format("build_wheel", str(folder)), cwd=unpacked)
    (wheel,) = folder.glob("*.whl")
    return unpacked, wheel


@pytest.fixture(scope="module")
def site(built, tmp_path_factory):
    """A folder in which the wheel is installed."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(site)
    return site


RUN = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
from mnlib.lab import cli
assert cli.__file__.startswith(sys.argv[1]), cli.__file__
found = []
for command in json.loads(sys.argv[2]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(command)
        except SystemExit as ended:
            status = ended.code
    found.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


def outcomes(site: Path, *commands: list[str], home: Path) -> list[tuple[int, str, str]]:
    """Return status, output and errors of commands in a process that has no checkout near."""
    own = {"HOME": str(home), "XDG_DATA_HOME": str(home / "data"), "MNLIB_DATA": str(home)}
    done = python("-I", "-c", RUN, str(site), json.dumps(commands), cwd=home, **own)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_wheel_is_small_and_has_every_module(built):
    _, path = built
    assert path.stat().st_size < 15e6
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "mnlib").rglob("*.py")} <= names
    assert {name.split("/")[0] for name in names} == {
        "mnlib",
        path.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }
    for record in (ROOT / "data/runs").glob("*.json"):
        assert f"mnlib/lab/recorded/runs/{record.name}" in names


def test_the_sdist_has_every_file_of_the_checkout(built):
    try:
        listed = ["git", "-C", ROOT, "ls-files", "-z"]
        tracked = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    missing = [name for name in tracked.split("\0") if name and not (built[0] / name).exists()]
    assert not [name for name in missing if (ROOT / name).exists()]


def test_the_version_stands_in_one_place(built):
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert built[1].name.split("-")[1] == mnlib.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mnlib.__version__


def test_the_command_works_with_no_checkout_near(site, tmp_path):
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "red.png")
    (version, records, claims, data, helped, flower) = outcomes(
        site,
        ["--version"],
        ["runs"],
        ["claims"],
        ["data"],
        ["fetch", "--help"],
        ["classify", str(tmp_path / "red.png")],
        home=tmp_path,
    )
    for status, out, err in (version, records, claims, data, helped, flower):
        assert (status, err) == (0, "")
        assert out
    assert version[1] == f"mnlib {mnlib.__version__}\n"
    assert len(records[1].splitlines()) == 1 + len([*(ROOT / "data/runs").glob("*.json")])
    for claim, line in zip(load_claims(), claims[1].splitlines()[1:], strict=True):
        assert line.startswith(claim.id)
        assert line.endswith(claim.expected)  # many of them by the records
    assert "red.png" in flower[1]


def test_what_a_wheel_without_its_records_lacks_is_one_sentence_with_the_remedy(site, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(site, bare, ignore=shutil.ignore_patterns("recorded"))
    Image.new("RGB", (40, 30)).save(tmp_path / "x.png")
    commands = (["runs"], ["claims"], ["classify", str(tmp_path / "x.png")])
    for status, out, err in outcomes(bare, *commands, home=tmp_path):
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert "install mnlib again" in err or "mnlib run" in err
        assert "Errno" not in err


def test_new_records_go_to_the_users_folder_and_are_read_before_the_packages(site, tmp_path):
    code = """
import dataclasses, sys
sys.path.insert(0, sys.argv[1])
from mnlib.lab import places, runs
shipped = runs.load_runs("mnist")
runs.save_run(dataclasses.replace(shipped[0], seconds=1.0))
again = runs.load_runs("mnist")
assert [run.name for run in again] == [run.name for run in shipped]
assert [run.seconds for run in again if run.name == shipped[0].name] == [1.0]
assert runs.load_checkpoint(again[0])
assert len(runs.load_runs()) > len(again)
assert places.CHECKOUT is None
assert runs.environment()["commit"] == "unknown"
print(places.WRITTEN)
"""
    own = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]  # somebody else's repository
    for arguments in (["init"], ["commit", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], cwd=site, capture_output=True, check=True)
    before = sorted(site.rglob("*.json"))
    done = python("-I", "-c", code, str(site), cwd=tmp_path, **own)
    written = Path(done.stdout.strip())
    assert tmp_path in written.parents
    assert len([*written.rglob("*.json")]) == 1
    assert sorted(site.rglob("*.json")) == before


SYSTEMS = {
    "Linux": "x86_64-unknown-linux-gnu",
    "Linux on ARM": "aarch64-unknown-linux-gnu",
    "Windows": "x86_64-pc-windows-msvc",
    "macOS 14": "aarch64-apple-darwin",
}
PYTHONS = ("3.11.0", "3.12", "3.13", "3.14")


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize("system", [*SYSTEMS, "Linux, lowest versions"])
def test_the_requirements_resolve_on_every_python_and_system_promised(system, version, tmp_path):
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv, which resolves for other systems, is not installed")
    how = {"Linux, lowest versions": ["--resolution", "lowest-direct"]}
    command = [uv, "pip", "compile", ROOT / "pyproject.toml", "--extra", "test", "--quiet"]
    command += how.get(system, ["--constraints", ROOT / "constraints.txt"])
    command += ["--python-version", version, "--python-platform"]
    command += [SYSTEMS.get(system, SYSTEMS["Linux"]), "--output-file", tmp_path / "found.txt"]
    command += ["--only-binary", ":all:", "--no-binary", "promise"]  # which has no wheels anywhere
    own = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    try:
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip("the registry did not answer within five minutes")
    if done.returncode and "No solution found" not in done.stderr:
        pytest.skip(f"the registry was not reached: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr


def test_every_python_promised_is_tried():
    from packaging.specifiers import SpecifierSet

    promised = SpecifierSet(PROJECT["project"]["requires-python"])
    assert all(version in promised for version in PYTHONS)
    assert "3.10" not in promised
    assert "3.15" not in promised
