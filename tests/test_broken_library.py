"""A broken function of mnlib is noticed by the book: its build fails, and so does nbval."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "build": ["jupyter-book", "build", "book/"],
    "nbval": ["pytest", "-q", "-p", "no:cacheprovider", "--nbval", "book/introduction.ipynb"],
}


@pytest.fixture
def copy(tmp_path):
    """A copy of what chapter 1 needs, so that breaking it harms nobody."""
    shutil.copytree(ROOT / "mnlib", tmp_path / "mnlib")
    (tmp_path / "book").mkdir()
    for name in ("_config.yml", "data", "book/_ext", "book/references.bib"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "book" / "introduction.ipynb", tmp_path / "book")
    (tmp_path / "book" / "_toc.yml").write_text("format: jb-book\nroot: introduction\n")
    return tmp_path


def outcome(command: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "MNLIB_TIER": "embedded",
    }
    return subprocess.run(
        COMMANDS[command], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_factor_in_mnlib_fails_the_book(command, copy):
    file = copy / "mnlib" / "cost.py"
    right = ".values()) // 2"
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, ".values()) // 3"))
    broken = outcome(command, copy)
    assert broken.returncode != 0  # the sound one's status is what every build and nbval run tests
    assert "AssertionError" in broken.stdout + broken.stderr
