"""The command line: `bayesgmm compare CONFIG`. What takes long to import is imported by the command that needs it."""

import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bayesgmm.cli.config import CommonConfig
    from bayesgmm.datasets import Dataset

app = typer.Typer(name="bayesgmm", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
EXIT_BAD_INPUT = 2


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Gaussian mixtures by EM, MAP, variational inference and MCMC, on one shared likelihood."""
    if version:
        typer.echo(f"bayesgmm {version_of('bayesgmm')}")
        raise typer.Exit


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="Settings, a TOML file such as configs/old_faithful.toml.")],
    out: Annotated[Path | None, typer.Option(help="Output folder; overrides the settings.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of all randomness; overrides the settings.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output folder that is not empty.")] = False,
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
        data = settings.data.load()
        _use_host_devices(_num_devices(settings))
        _remember_programs()
        _compare(settings, data, folder, overwrite, began)


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
        for line in str(error).splitlines():
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
    """Compiled programs are kept in the user's cache folder, so that the next run of the command starts at once."""
    import jax
    from platformdirs import user_cache_path

    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(user_cache_path("bayesgmm") / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _compare(settings: "CommonConfig", data: "Dataset", folder: Path, overwrite: bool, began: float) -> None:
    import jax
    import numpy as np
    from rich.console import Console

    from bayesgmm.cli.outputs import write_outputs
    from bayesgmm.cli.terminal import rich_tables
    from bayesgmm.comparison.comparing import compare as run_comparison

    # ArviZ takes seconds to import; XLA compiles the first fits meanwhile.
    threading.Thread(target=importlib.import_module, args=("arviz",), daemon=True).start()
    progress = Console(stderr=True)
    x = np.asarray(data.x, settings.dtype)
    with progress.status("starting") as status:

        def on_progress(message: str) -> None:
            status.update(message)
            if not progress.is_terminal:
                progress.print(f"[{time.perf_counter() - began:5.1f} s] {message}", markup=False, highlight=False)

        comparison = run_comparison(
            x,
            settings.mixture.num_components,
            family=settings.mixture.family,
            engines=settings.engines,
            key=jax.random.key(settings.seed),
            feature_names=data.feature_names,
            select_by=settings.mixture.select_by,
            prior=settings.prior.kind,
            prior_settings=settings.prior.keywords(x.std(0)),
            settings=settings.settings,
            labels=data.labels,
            checkpoint=True,
            on_progress=on_progress,
            on_step=status.update,
        )
        on_progress("figures and files")
        files = write_outputs(comparison, folder, settings, data, overwrite=overwrite)
    console = Console(width=None if sys.stdout.isatty() else 140)
    for part in (f"{data.columns}.", "", str(comparison.summary()), ""):
        console.print(part, markup=False, highlight=False)
    for table in rich_tables(comparison):
        console.print(table, "")
    for name, caution in (*(("data", note) for note in data.notes), *comparison.cautions):
        console.print(f"{name}: {caution}.", markup=False, highlight=False)
    console.print(f"{len(files)} files in {folder} after {time.perf_counter() - began:.0f} s:", highlight=False)
    for file in files:
        console.print(f"  {file.name}", highlight=False)
