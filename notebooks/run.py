"""Run the notebooks and keep their outputs: `python notebooks/run.py [NAME ...]`.

The same code gives the same file again, but for timings that it prints.
"""

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tradeoff.studies import write_atomically

HERE = Path(__file__).parent
LIMIT = 300
"""Seconds for one cell."""
AT_HOME = {"metadata": {"path": str(HERE)}}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def executed(path: Path) -> Any:
    """A notebook run from top to bottom in a fresh kernel, in the folder of the notebooks.

    Raises:
        nbclient.exceptions.CellExecutionError: when a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    # Messages of one cell come in as many pieces as the kernel happened to send.
    return NotebookClient(
        notebook, timeout=LIMIT, kernel_name="python3", coalesce_streams=True, resources=AT_HOME
    ).execute()


def stable(notebook: Any) -> Any:
    """The notebook without what differs from run to run or from machine to machine."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def main(names: list[str]) -> None:
    """Run the notebooks of these names, or all."""
    for path in sorted(HERE.glob("*.ipynb")):
        if not names or path.stem in names:
            text = nbformat.writes(stable(executed(path)))
            write_atomically(path, lambda beside, text=text: beside.write_text(text + "\n"))
            print(path.name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
