"""Build the book for its authors: pages whose cells have not changed are not run again.

Usage: python scripts/draft.py

The outcomes lie in a cache whose folder is named by a hash of all else that can change one: the
code of mnlib, the records, the inputs, the tier, the versions. A reader's build runs every cell.
"""

import hashlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from mnlib.lab import data

ROOT = Path(__file__).resolve().parents[1]


def state() -> str:
    """Return the hash of all that can change an outcome but the cells themselves."""
    installed = sorted(f"{found.name} {found.version}" for found in metadata.distributions())
    digest = hashlib.sha256(repr((sys.version, installed)).encode())
    digest.update(os.environ.get("MNLIB_TIER", "").encode())
    for path in sorted([*(ROOT / "mnlib").rglob("*.py"), ROOT / "data" / "sha256sums"]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    for folder in data.folders():  # by size and time: their contents take long to read
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                about = path.stat()
                digest.update(f"{path} {about.st_size} {about.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def main() -> int:
    """Build into ``_build`` as the book does; return the builder's status."""
    cache = ROOT / "_build" / "draft" / state()
    cache.mkdir(parents=True, exist_ok=True)
    found = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "MNLIB_DRAFT": str(cache), "PATH": found}
    command = ["jupyter-book", "build", "book/"]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
