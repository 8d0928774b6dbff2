"""Run the benchmarks: tables for people on the terminal, every row in a JSON file."""

import argparse
import datetime
import importlib
import json
import sys
import time
from pathlib import Path

import jax

# Before JAX starts: fits deal large data out to the local devices, so one for each of two cores.
jax.config.update("jax_num_cpu_devices", 2)
# Compilation is timed, so none of it may come from an earlier run.
jax.config.update("jax_enable_compilation_cache", False)

from rich.console import Console  # noqa: E402

from tests.benchmarks import rows as reporting  # noqa: E402
from tests.benchmarks.timing import machine  # noqa: E402

SECTIONS = (
    *("iterations", "products", "memory", "fits", "batches", "gradients", "startup", "grid", "scaling"),
    *("leapfrogs", "sampling", "cold", "variational", "gibbs", "errors"),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION", help=str(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small problems: whether everything runs, not how fast")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks.json"), help="the JSON file")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    about = machine()
    console.print(header(about, arguments.quick), highlight=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[reporting.Row] = []
    seconds: dict[str, float] = {}
    for section in arguments.only:
        began = time.perf_counter()
        found = run_section(section, arguments.quick)
        seconds[section] = time.perf_counter() - began
        rows += found
        console.print(reporting.table(f"{section} ({seconds[section]:.0f} s)", found))
        write(arguments.out, about, rows, seconds, arguments.quick)
    console.print(reporting.summary(rows))
    console.print(f"{len(rows)} rows in {arguments.out}", highlight=False)
    return int(any(row.agrees is False for row in rows))


def header(about: dict, quick: bool) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['cpu']}, {about['cores']} cores; {versions}",
        f"JAX has {about['jax_devices']} CPU devices, and large fits share their rows out to them; scikit-learn runs on"
        " 1 or 2 threads, whichever is faster for it; gmmx in the same process.",
        "Times are medians after a warm-up, subjects in turns; compilation is shown apart.",
    ]
    return "\n".join(lines + ["Small problems: these are no measurements."] * quick)


def run_section(section: str, quick: bool) -> list[reporting.Row]:
    """Rows of a section; one that fails leaves a row that says so, and the others still run."""
    found: list[reporting.Row] = []
    jax.clear_caches()  # or a section would find compiled what an earlier one has compiled
    try:
        found.extend(importlib.import_module(f"tests.benchmarks.{section}").run(quick))
    except Exception as error:
        found.append(reporting.failed(section, error))
    return found


def write(path: Path, about: dict, rows: list[reporting.Row], seconds: dict[str, float], quick: bool) -> None:
    contents = {
        "machine": about,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "section_seconds": seconds,
        "rows": [row.to_dict() for row in rows],
    }
    path.write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
