"""The output folder: written beside its place and moved there whole, so that a reader never finds half of it."""

import dataclasses
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic_core import to_json

from bayesgmm.cli.config import CommonConfig
from bayesgmm.comparison.assignments import assignment_table
from bayesgmm.comparison.comparing import Comparison
from bayesgmm.comparison.report import About, render_report
from bayesgmm.datasets import Dataset
from bayesgmm.diagnostics.datatree import lean_datatree, save_datatree
from bayesgmm.engines.fit import Fit
from bayesgmm.engines.storage import save_fit
from bayesgmm.errors import InputError
from bayesgmm.numerics.paths import as_path
from bayesgmm.runtime.provenance import provenance


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, before any work is done.

    Raises:
        InputError: for a folder that exists and is not empty, unless `overwrite`, for a path that is a file, and for a
            place that cannot be written to.
    """
    if as_path(folder, "output folder").exists() and not folder.is_dir():
        raise InputError(f"output folder {str(folder)!r} is a file; choose another with --out")
    standing = next(parent for parent in folder.absolute().parents if parent.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise InputError(
            f"output folder {str(folder)!r} cannot be made in {str(standing)!r}; choose another with --out"
        )
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError(f"output folder {str(folder)!r} is not empty; pass --overwrite, or choose another with --out")


def write_outputs(
    comparison: Comparison, folder: Path, settings: CommonConfig, data: Dataset, *, overwrite: bool = False
) -> list[Path]:
    """Write tables, the summary, the report, and a NetCDF file for each posterior.

    They are `comparison.csv`, `comparison.json`, `parameters.csv`, `summary.txt` and `report.html`, whose figures are
    files in `figures` too; every fit as a file for `load_fit`; and `assignments.csv`: of every row its cluster (counted
    from 0), responsibilities, uncertainty and log-density by the engine to read, its cluster by every engine, and its
    class. Where leave-one-out was asked for at every number of components, `loo_over_k.csv` has it.

    Everything is written into a temporary folder next to `folder` and moved into place at the end; an existing folder
    is replaced only then, and left as it was when anything fails.

    Returns:
        The files written.

    Raises:
        InputError: as `check_folder`, and for a place that cannot be written to.
    """
    check_folder(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise InputError(f"output folder {str(folder)!r} cannot be made ({error.strerror}); choose another") from None
    try:
        comparison.table.to_csv(staging / "comparison.csv", index=False)
        parameters = comparison.parameters.frame
        parameters.assign(flagged=parameters["flagged"].str.join(", ")).to_csv(staging / "parameters.csv", index=False)
        _assignments(comparison).to_csv(staging / "assignments.csv", index_label="row")
        for name, fit in comparison.fits.items():
            save_fit(fit, staging / f"{_stem(name)}.npz")
        if comparison.loo_over_k is not None:
            comparison.loo_over_k.to_csv(staging / "loo_over_k.csv", index=False)
        (staging / "comparison.json").write_text(f"{json_record(comparison, settings, data)}\n", encoding="utf-8")
        for name, tree in comparison.trees.items():
            save_datatree(lean_datatree(tree), staging / f"{_stem(name)}.nc")
        (staging / "summary.txt").write_text(f"{comparison.summary()}\n", encoding="utf-8")
        about = _about(settings, data)
        formats = settings.output.figures
        figures = staging / "figures" if formats else None
        report = render_report(comparison, about, folder=figures, formats=formats)
        (staging / "report.html").write_text(report, encoding="utf-8")
        staging.chmod(0o755)
        _move_into_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return sorted(folder.iterdir())


def _about(settings: CommonConfig, data: Dataset) -> About:
    return About(
        title=settings.title,
        columns=data.columns,
        units=data.units,
        source=f"Data: {data.name}. {data.source}".strip().rstrip(".") + ".",
        notes=data.notes,
        settings=_as_lines(settings.to_dict()),
        seed=settings.seed,
    )


def _as_lines(settings: dict[str, Any]) -> str:
    """Settings as they stand in a file, without those that keep a default which is found by itself."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items() if not isinstance(value, dict | None)]
    for table, entries in settings.items():
        if isinstance(entries, dict):
            given = [f"{name} = {json.dumps(value)}" for name, value in entries.items() if value is not None]
            lines += ["", f"[{table}]", *given]
    return "\n".join(lines)


def _assignments(comparison: Comparison) -> pd.DataFrame:
    """What the engine to read says of each row, then the cluster by every engine and the known class."""
    table = assignment_table(comparison.fits[comparison.summary().read], comparison.x)
    known = {} if comparison.labels is None else {"label": comparison.labels}
    return table.assign(**comparison.assignments, **known)


def _stem(name: str) -> str:
    """The name of a fit as that of a file: "vi (full rank)" becomes "vi_full_rank"."""
    return re.sub(r"[()]", "", name).replace(" ", "_")


def _move_into_place(staging: Path, folder: Path) -> None:
    if not folder.exists():
        staging.rename(folder)
        return
    # The old folder steps aside until the new one stands, and comes back if that fails.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    aside.rmdir()
    folder.rename(aside)
    try:
        staging.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def json_record(comparison: Comparison, settings: CommonConfig, data: Dataset) -> str:
    """Everything needed to repeat a run, and its numbers, as JSON: NaN and infinity become null, and arrays lists."""
    record = {**provenance(), **_record(comparison, settings, data)}
    return to_json(record, indent=2, inf_nan_mode="null", fallback=lambda one: np.asarray(one).tolist()).decode()


def _record(comparison: Comparison, settings: CommonConfig, data: Dataset) -> dict[str, Any]:
    points = {name: _parameters(fit) for name, fit in comparison.fits.items()}
    for name, partition in comparison.partitions.items():
        points[name] = {"shares": partition.shares, "centres": partition.centres}
    return {
        "seed": settings.seed,
        "dtype": str(comparison.x.dtype),
        "settings": settings.to_dict(),
        "data": {
            **{name: getattr(data, name) for name in ("name", "units", "source", "label_name", "notes")},
            "num_rows": len(comparison.x),
            "feature_names": comparison.feature_names,
        },
        "selected_by": comparison.selected_by,
        "read": comparison.summary().read,
        "files": {name: f"{_stem(name)}.npz" for name in comparison.fits},
        "candidates": comparison.candidates.to_dict("records"),
        "loo_over_k": None if comparison.loo_over_k is None else comparison.loo_over_k.to_dict("records"),
        "prior": dataclasses.asdict(comparison.prior),
        "fits": {
            name: {**row, "result_code": _code(comparison, name), "parameters": points.get(name)}
            for name, row in comparison.table.set_index("engine", drop=False).to_dict("index").items()
        },
        "parameter_remarks": comparison.parameters.remarks,
    }


def _code(comparison: Comparison, name: str) -> int | None:
    """The result code of a row of the table; None where the engine failed."""
    found = comparison.of_row(name)
    return None if found is None else int(found.code)


def _parameters(fit: Fit) -> dict[str, Any]:
    """Weights, means and covariances of a fit's point, with posterior standard deviations where it has draws."""
    found = {name: getattr(fit.mixture, name) for name in ("weights", "means", "covariances")}
    if fit.draws is not None:
        spreads = {"weights_sd": fit.draws.weights, "means_sd": fit.draws.means}
        found |= {name: np.asarray(draws).std((0, 1), ddof=1) for name, draws in spreads.items()}
    return found
