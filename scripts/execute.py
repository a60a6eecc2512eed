"""Execute notebooks in place on the embedded tier, so that the committed outputs are reproducible.

Pictures are left out: the build of the book draws them, and they would fill the repository.

Usage: python scripts/execute.py book/vgg_pca.ipynb [...]      (no argument: every chapter)

Cell timings are left out of the metadata: running twice gives byte-identical files.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


def execute(path: Path) -> None:
    """Run one notebook from ``book/`` and replace it once every cell has passed."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(ROOT / "book")}},
    ).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            for kind in [kind for kind in output.get("data", ()) if kind.startswith("image/")]:
                del output["data"][kind]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    temporary = path.with_suffix(".part")
    nbformat.write(notebook, temporary)
    temporary.replace(path)
    print(path)


if __name__ == "__main__":
    os.environ["MNLIB_TIER"] = "embedded"
    for argument in sys.argv[1:] or sorted((ROOT / "book").glob("*.ipynb")):
        execute(Path(argument))
