"""Settings of both test runs: `pytest` (the unit tests) and `pytest --nbval book/` (the book)."""

import os
from pathlib import Path

ROOT = Path(__file__).parent


def pytest_configure(config):
    """Force the embedded tier for nbval, so that the outputs are the same on every machine."""
    if config.getoption("--nbval", default=False):
        os.environ["MNLIB_TIER"] = "embedded"
        config.option.nbval_sanitize_with = str(ROOT / "tests" / "nbval_sanitize.cfg")
