"""Execute every notebook in a copy, in the interpreter that runs this script; `--write` keeps the outputs."""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: int) -> None:
    """Run all cells in place, with the working directory `folder`."""
    # Without folders to search, "python3" is ipykernel's own: this interpreter, whatever kernels are installed.
    specs = KernelSpecManager(kernel_dirs=[])
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs),
        timeout=timeout,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what changes from one machine to the next: timings and the version of Python."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


def failure(notebook: nbformat.NotebookNode, error: Exception) -> str:
    """The source of the cell that failed, and its error."""
    if not isinstance(error, CellExecutionError):
        return f"{type(error).__name__}: {error}"
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                trace = "\n".join(output.traceback)
                return f"--- cell {cell.get('id', '')}\n{cell.source}\n--- error\n{trace}"
    return str(error)


def main() -> int:
    """Execute the notebooks; the exit status is 1 when any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="save the outputs in the notebooks themselves")
    parser.add_argument("--timeout", type=int, default=600, help="limit of every cell, in seconds")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(NOTEBOOKS, Path(scratch) / "notebooks")
        for path in sorted(NOTEBOOKS.rglob("*.ipynb")):
            if ".ipynb_checkpoints" in path.parts:
                continue
            began = time.perf_counter()
            notebook = nbformat.read(path, as_version=4)
            try:
                execute(notebook, (copy / path.relative_to(NOTEBOOKS)).parent, options.timeout)
            except Exception as error:  # a dead kernel or a timeout is a failure of the notebook as well
                print(f"{path.name}: FAILED\n{failure(notebook, error)}", file=sys.stderr)
                failed = True
                continue
            print(f"{path.name}: ran in {time.perf_counter() - began:.0f} s")
            if options.write:
                nbformat.write(stripped(notebook), path)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
