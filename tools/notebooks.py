"""Execute the notebooks: docs/notebooks/*.py into an .ipynb beside each.

    python -m tools.notebooks [NAMES]     # needs the extras docs and all; minutes

A source is Python with cells in the percent form of jupytext. It is executed by the running Python
in a new folder, so that nothing of an earlier run is read; what it writes there is removed.
"""

import sys
import tempfile
import time
from pathlib import Path

import jupytext
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets import default

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
CELL_S, START_S = 900, 300  # longest time of a cell and of a kernel's start, on a busy machine


class RunningPython(AsyncKernelManager):
    """A kernel of the running Python."""

    @default("kernel_spec_manager")
    def _without_folders(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])  # what is left is the running Python


def sources() -> list[Path]:
    """Sources of all notebooks."""
    return sorted(FOLDER.glob("*.py"))


def read(source: Path) -> NotebookNode:
    """A notebook without outputs."""
    return jupytext.read(source, fmt="py:percent")


def execute(source: Path, folder: Path) -> NotebookNode:
    """Execute a notebook in a folder by the running Python, and return it with its outputs.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    notebook = read(source)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        kernel_manager_class=RunningPython,
        timeout=CELL_S,
        startup_timeout=START_S,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return notebook


def main(names: list[str]) -> None:
    """Execute the named notebooks, or all."""
    known = {source.stem: source for source in sources()}
    for name in names or known:
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(known[name], Path(folder))
        out = known[name].with_suffix(".ipynb")
        jupytext.write(notebook, out)
        print(f"{out.relative_to(FOLDER.parents[1])}: {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
