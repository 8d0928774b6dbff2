"""Execute the notebooks in a copy, in the interpreter that runs this script; `--write` keeps the outputs.

What a cell writes to stderr, warnings above all, is a failure, unless the cell has the tag `warns`.
"""

import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: int) -> None:
    """Run all cells in place, with the working directory `folder`."""
    # Without folders to search, "python3" is ipykernel's own: this interpreter, whatever kernels are installed.
    specs = KernelSpecManager(kernel_dirs=[])
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=specs)
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=timeout,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute()
    finally:  # nbclient leaves a kernel that it did not start itself
        manager.shutdown_kernel(now=True)


def noise(notebook: nbformat.NotebookNode) -> list[str]:
    """What cells wrote to stderr without being tagged as ones that are meant to."""
    return [
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code" and "warns" not in cell.metadata.get("tags", [])
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]


def strip(notebook: nbformat.NotebookNode) -> None:
    """Take out what changes from one machine to the next: timings, the version of Python, and bars that have gone."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if any(output.get("data", {"text": output}).values())]


def check(path: Path, target: Path | None, timeout: int) -> bool:
    """Run one notebook, say how it went, and keep its outputs in `target`; whether all is well."""
    began = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    try:
        execute(notebook, path.parent, timeout)
    except Exception as error:  # of a cell, with its source; or a dead kernel, or a timeout
        print(f"{path.name}: FAILED\n{type(error).__name__}: {error}", file=sys.stderr)
        return False
    print(f"{path.name}: ran in {time.perf_counter() - began:.0f} s", flush=True)
    if target is not None:
        strip(notebook)
        nbformat.write(notebook, target)
    if found := noise(notebook):
        print(f"{path.name}: FAILED, as it wrote to stderr:\n{''.join(found)}", file=sys.stderr)
    return not found


def main() -> int:
    """Execute the notebooks; the exit status is 1 when any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="which notebooks, by the beginning of their names; by default all")
    parser.add_argument("--write", action="store_true", help="save the outputs in the notebooks themselves")
    parser.add_argument("--timeout", type=int, default=600, help="limit of every cell, in seconds")
    parser.add_argument("--jobs", type=int, default=2, help="how many run side by side; compiling takes one core")
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as pool:
        copy = shutil.copytree(NOTEBOOKS, Path(scratch) / "notebooks")
        paths = [path for path in sorted(copy.rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
        chosen = [path for path in paths if path.name.startswith(tuple(options.names) or "")]
        if not chosen:
            parser.error(f"no notebook begins with {' or '.join(options.names)}")
        targets = [NOTEBOOKS / path.relative_to(copy) if options.write else None for path in chosen]
        well = list(pool.map(check, chosen, targets, [options.timeout] * len(chosen)))
    print(f"{sum(well)} of {len(well)} notebooks are well, in {time.perf_counter() - began:.0f} s")
    return int(not all(well))


if __name__ == "__main__":
    sys.exit(main())
