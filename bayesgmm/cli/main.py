"""The command line: `bayesgmm compare`, `fit`, `predict` and `init`.

What takes long to import is imported by the command that needs it.
"""

import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bayesgmm.cli.config import CommonConfig
    from bayesgmm.comparison.comparing import Comparison
    from bayesgmm.comparison.summary import Summary
    from bayesgmm.datasets import Dataset

app = typer.Typer(name="bayesgmm", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
EXIT_BAD_INPUT = 2
EXIT_SERIOUS = 3  # a run that ended, but whose fit to read has serious problems


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Gaussian mixtures by EM, MAP, variational inference and MCMC, on one shared likelihood."""
    if version:
        typer.echo(f"bayesgmm {version_of('bayesgmm')}")
        raise typer.Exit


_Out = Annotated[Path | None, typer.Option(help="Output folder; overrides the settings.")]
_Seed = Annotated[
    int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of all randomness; overrides the settings.")
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, of comparison.json, and nothing else.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="Settings, a TOML file such as configs/old_faithful.toml.")],
    out: _Out = None,
    seed: _Seed = None,
    overwrite: _Overwrite = False,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Fit one data set by several engines, print them side by side, and write tables, posteriors and a report."""
    began = time.perf_counter()
    with _one_line_errors():
        from bayesgmm.cli.config import load_config
        from bayesgmm.cli.outputs import check_folder

        settings = load_config(config)
        if seed is not None:
            settings = settings.model_copy(update={"seed": seed})
        folder = settings.output.directory if out is None else out
        check_folder(folder, overwrite)
        _run(settings, folder, _Manner(overwrite, as_json, quiet), began)


@app.command()
def fit(
    table: Annotated[Path, typer.Argument(help="A .csv, .tsv, .xlsx, .parquet or .npy file.")],
    components: Annotated[str, typer.Option(help="Numbers of components: 3, or 1,2,4, or 1:6.")] = "1:6",
    family: Annotated[str, typer.Option(help="Covariance structure, by its name or mclust's.")] = "full",
    columns: Annotated[str | None, typer.Option(help="Columns to fit, by name, with commas between.")] = None,
    labels: Annotated[str | None, typer.Option(help="Column of known classes, which the fit does not see.")] = None,
    select_by: Annotated[str, typer.Option(help="Criterion that picks the number: bic, aic or icl.")] = "bic",
    out: Annotated[
        Path | None, typer.Option(help="Folder for tables and a report; by default none is written.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all randomness.")] = 0,
    overwrite: _Overwrite = False,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Fit mixtures to a table by maximum likelihood and print the summary: `compare` by EM alone, without settings."""
    began = time.perf_counter()
    with _one_line_errors():
        from bayesgmm.cli.config import make_config, parse_counts
        from bayesgmm.cli.outputs import check_folder

        settings = make_config(
            {
                "title": table.stem,
                "seed": seed,
                "engines": ["em"],
                "data": {
                    "path": str(table),
                    **({} if columns is None else {"columns": [name.strip() for name in columns.split(",")]}),
                    **({} if labels is None else {"labels": labels}),
                },
                "mixture": {"num_components": parse_counts(components), "family": family, "select_by": select_by},
            },
            "options",
        )
        if out is not None:
            check_folder(out, overwrite)
        _run(settings, out, _Manner(overwrite, as_json, quiet, tables=False), began)


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="Output folder of an earlier run.")],
    table: Annotated[Path, typer.Argument(help="New rows: a file with the columns that were fitted.")],
    engine: Annotated[str | None, typer.Option(help="Which fit of the run; by default the one to read.")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write; by default the table is printed.")] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Assign new rows to the clusters of a run: cluster, responsibilities with their spread, and log-density by row."""
    with _one_line_errors():
        from bayesgmm.cli.predict import predict_table

        _remember_programs()
        predict_table(folder, table, engine, out, overwrite=overwrite)


@app.command()
def init(
    table: Annotated[Path, typer.Argument(help="The table that is to be fitted.")],
    out: Annotated[
        Path | None, typer.Option(help="Settings file to write; by default the table's name with .toml.")
    ] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Write commented settings for a table, ready for `bayesgmm compare`."""
    with _one_line_errors():
        from bayesgmm.cli.init import write_config

        path = write_config(table, table.with_suffix(".toml") if out is None else out, overwrite=overwrite)
        typer.echo(f"wrote {path}; run: bayesgmm compare {path}")


def main() -> None:
    """Entry point of the `bayesgmm` command."""
    app()


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Bad input ends in its message and exit code 2; anything else is a fault of ours, with its traceback."""
    from bayesgmm.errors import InputError

    try:
        yield
    except InputError as error:
        from bayesgmm.cli.words import in_settings_words

        for line in in_settings_words(str(error)).splitlines():
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None


def _num_devices(settings: "CommonConfig") -> int:
    """One host device for each core, which is fastest; one for each chain where cores cannot share chains evenly."""
    num_cores = _num_cores()
    chains = [options["num_chains"] for options in settings.settings.values() if "num_chains" in options]
    uneven = [number for number in chains if all(number % share for share in range(2, num_cores + 1))]
    return max(num_cores, *uneven) if uneven and num_cores > 1 else num_cores


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _use_host_devices(num_devices: int) -> None:
    """Host devices, over which EM shares out many rows and chains run side by side.

    Must be asked for before JAX starts, and costs nothing where they are not used.
    """
    import jax

    with contextlib.suppress(RuntimeError):  # JAX has started already: a program calls us, and the setting is its own
        jax.config.update("jax_num_cpu_devices", num_devices)


def _remember_programs() -> None:
    """Keep compiled programs for the next run of the command, unless JAX has a cache already."""
    import jax

    from bayesgmm.runtime.programs import cache

    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        cache()


@dataclass(frozen=True)
class _Manner:
    """How a run is shown, and whether it replaces what is there."""

    overwrite: bool
    as_json: bool
    quiet: bool
    tables: bool = True


def _run(settings: "CommonConfig", folder: Path | None, manner: _Manner, began: float) -> None:
    """Compare, write and print; ends with exit code 3 where the fit to read has serious problems."""
    import jax
    import numpy as np

    from bayesgmm.cli.display import Display
    from bayesgmm.comparison.comparing import compare as run_comparison
    from bayesgmm.diagnostics.findings import Severity

    data = settings.data.load()
    _use_host_devices(_num_devices(settings))
    _remember_programs()
    if len(settings.engines) > 1:  # ArviZ takes seconds to import; XLA compiles the first fits meanwhile.
        threading.Thread(target=importlib.import_module, args=("arviz",), daemon=True).start()
    x, files = np.asarray(data.x, settings.dtype), list[Path]()
    with Display(began, quiet=manner.quiet) as display:
        comparison = run_comparison(
            x,
            settings.mixture.num_components,
            family=settings.mixture.family,
            engines=settings.engines,
            key=jax.random.key(settings.seed),
            feature_names=data.feature_names,
            select_by=settings.mixture.select_by,
            loo_over_k=settings.mixture.loo_over_k,
            prior=settings.prior.kind,
            prior_settings=settings.prior.keywords(x.std(0)),
            settings=settings.settings,
            labels=data.labels,
            checkpoint=True,
            on_progress=display.stage,
            on_step=display.step,
        )
        if folder is not None:
            from bayesgmm.cli.outputs import write_outputs

            display.stage("figures and files")
            files = write_outputs(comparison, folder, settings, data, overwrite=manner.overwrite)
    summary = comparison.summary()
    if manner.as_json:
        from bayesgmm.cli.outputs import json_record

        typer.echo(json_record(comparison, settings, data))
    elif not manner.quiet:
        _show(comparison, summary, data, manner, folder, files, began)
    worst = comparison.diagnoses[summary.read].worst if summary.read in comparison.diagnoses else None
    if worst is Severity.serious:
        raise typer.Exit(EXIT_SERIOUS)


def _show(
    comparison: "Comparison",
    summary: "Summary",
    data: "Dataset",
    manner: _Manner,
    folder: Path | None,
    files: list[Path],
    began: float,
) -> None:
    from rich.console import Console

    from bayesgmm.cli.terminal import rich_tables

    console = Console(width=None if sys.stdout.isatty() else 140)
    for part in (f"{data.columns}.", "", str(summary), ""):
        console.print(part, markup=False, highlight=False)
    for table in rich_tables(comparison, console.width) if manner.tables else ():
        console.print(table, "")
    for name, caution in (*(("data", note) for note in data.notes), *comparison.cautions):
        console.print(f"{name}: {caution}.", markup=False, highlight=False)
    seconds = time.perf_counter() - began
    if folder is not None:
        console.print(f"{len(files)} files in {folder} after {seconds:.0f} s:", highlight=False)
        for file in files:
            console.print(f"  {file.name}", highlight=False)
