"""Change one operator or number of a module at a time, and see whether its tests notice.

Usage: python scripts/mutants.py MODULE COUNT, with cosmic-ray installed (pip install cosmic-ray);
MODULE is a file of mnlib, for example mnlib/pca.py. By hand and out of CI: a mutant takes as long
as the module's tests. It works on a copy of the checkout, and prints the survivors and a count.
"""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]

#: The tests of each module, those that find most first.
TESTS = {
    "mnlib/separable.py": "tests/test_separable.py tests/test_slices.py tests/test_pca.py",
    "mnlib/pca.py": "tests/test_pca.py tests/test_slices.py",
    "mnlib/gates.py": "tests/test_gates.py tests/test_blocks.py",
    "mnlib/cost.py": "tests/test_blocks.py tests/test_mobilenet.py tests/test_memory.py",
    "mnlib/mobilenet.py": "tests/test_mobilenet.py tests/test_architecture.py",
    "mnlib/cifar.py": "tests/test_cifar_models.py",
    "mnlib/residual.py": "tests/test_residual.py",
    "mnlib/ode/": "tests/test_ode_equations.py tests/test_ode.py tests/test_ode_errors.py "
    "tests/test_ode_traps.py tests/test_ode_gradients.py",
}

CONFIG = """[cosmic-ray]
module-path = "{module}"
timeout = 300.0
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider {tests}"

[cosmic-ray.distributor]
name = "local"
"""


def main() -> None:
    """Mutate in a copy, and print what survived."""
    module, count = sys.argv[1], int(sys.argv[2])
    tests = next(tests for name, tests in TESTS.items() if module.startswith(name))
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        left_out = shutil.ignore_patterns("_build", ".*", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=left_out)
        config = copy / "mutants.toml"
        python = f"env PYTHONPATH={copy} {sys.executable}"
        config.write_text(CONFIG.format(module=module, tests=tests, python=python))
        cosmic_ray = [Path(sys.executable).with_name("cosmic-ray")]
        run = {"cwd": copy, "check": True}
        subprocess.run([*cosmic_ray, "init", config, "session.sqlite"], **run)
        with sqlite3.connect(copy / "session.sqlite") as session:
            # every so many-th, so that each part of the module has its share
            jobs = [row[0] for row in session.execute("SELECT job_id FROM work_items")]
            spared = [(job,) for i, job in enumerate(jobs) if i * count % len(jobs) >= count]
            session.executemany("DELETE FROM mutation_specs WHERE job_id = ?", spared)
            session.executemany("DELETE FROM work_items WHERE job_id = ?", spared)
        subprocess.run([*cosmic_ray, "exec", config, "session.sqlite"], **run)
        with sqlite3.connect(copy / "session.sqlite") as session:
            outcomes = session.execute("SELECT test_outcome, diff FROM work_results").fetchall()
    survivors = [diff for outcome, diff in outcomes if str(outcome).lower().endswith("survived")]
    print(*survivors, sep="\n")
    print(f"{module}: {len(outcomes) - len(survivors)} of {len(outcomes)} mutants killed")


if __name__ == "__main__":
    main()
