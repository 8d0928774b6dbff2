"""The output folder: written beside its place and moved there whole, so that a reader never finds half of it."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from pydantic_core import to_json

from bayesgmm.cli.report import render_report
from bayesgmm.comparison.compare import Comparison
from bayesgmm.diagnostics.datatree import save_datatree
from bayesgmm.engines.fit import Fit
from bayesgmm.engines.kmeans import KMeansFit
from bayesgmm.errors import InputError

_PACKAGES = ("bayesgmm", "jax", "numpyro", "arviz", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib")


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, before any work is done.

    Raises:
        InputError: for a folder that exists and is not empty, unless `overwrite`, for a path that is a file, and for a
            place that cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output folder {str(folder)!r} is a file; choose another with --out")
    standing = next(parent for parent in folder.absolute().parents if parent.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise InputError(
            f"output folder {str(folder)!r} cannot be made in {str(standing)!r}; choose another with --out"
        )
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError(f"output folder {str(folder)!r} is not empty; pass --overwrite, or choose another with --out")


def write_outputs(
    comparison: Comparison,
    folder: Path,
    *,
    title: str,
    seed: int,
    settings: Mapping[str, Any],
    data_source: Mapping[str, Any],
    overwrite: bool = False,
) -> list[Path]:
    """Write `comparison.csv`, `comparison.json`, `parameters.csv`, `report.html`, and a NetCDF file for each posterior.

    Where there is something to compare partitions with, k-means or known classes, `assignments.csv` too: the cluster
    of every row (counted from 0) by every engine, and its class.

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
        parameter_lines(comparison).to_csv(staging / "parameters.csv", index=False)
        record = _record(comparison, seed, settings, data_source)
        # JSON has no NaN or infinity: they become null, and arrays lists.
        text = to_json(record, indent=2, inf_nan_mode="null", fallback=lambda array: np.asarray(array).tolist())
        (staging / "comparison.json").write_bytes(text + b"\n")
        if comparison.has_agreement:
            _assignments(comparison).to_csv(staging / "assignments.csv", index_label="row")
        for name, tree in comparison.trees.items():
            save_datatree(tree, staging / f"{file_stem(name)}.nc")
        report = render_report(comparison, title=title, seed=seed, data_source=data_source, provenance=provenance())
        (staging / "report.html").write_text(report, encoding="utf-8")
        staging.chmod(0o755)
        _move_into_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return sorted(folder.iterdir())


def file_stem(name: str) -> str:
    """A fit's name as a file name: "vi (full rank)" becomes "vi_full_rank"."""
    return name.replace(" ", "_").replace("(", "").replace(")", "")


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


def _assignments(comparison: Comparison) -> pd.DataFrame:
    frame = pd.DataFrame(comparison.assignments)
    return frame if comparison.labels is None else frame.assign(label=comparison.labels)


def parameter_lines(comparison: Comparison) -> pd.DataFrame:
    """The table of parameters as a file: fits that a note is about as one text."""
    frame = comparison.parameters.frame
    return frame.assign(flagged=[", ".join(names) for names in frame["flagged"]])


def _record(
    comparison: Comparison, seed: int, settings: Mapping[str, Any], data_source: Mapping[str, Any]
) -> dict[str, Any]:
    fits = {}
    for row in comparison.table.to_dict("records"):
        fit = comparison.of_row(row["engine"])
        fits[row["engine"]] = {**row, "result_code": int(fit.code), "parameters": parameters(fit)}
    return {
        **provenance(),
        "seed": seed,
        "dtype": str(np.asarray(comparison.x).dtype),
        "settings": dict(settings),
        "data": {**data_source, "num_rows": comparison.x.shape[0], "feature_names": comparison.feature_names},
        "selected_by": comparison.selected_by,
        "candidates": comparison.candidates.to_dict("records"),
        "prior": dataclasses.asdict(comparison.prior),
        "fits": fits,
        "parameter_remarks": comparison.parameters.remarks,
    }


def provenance() -> dict[str, Any]:
    """Versions, device and time: what a reader needs to run the same comparison again."""
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _PACKAGES},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "machine": platform.machine(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def parameters(fit: Fit | KMeansFit) -> dict[str, Any]:
    """Weights, means and covariances of a fit's point, with posterior standard deviations where it has draws.

    Of k-means, the shares of the rows and the centres.
    """
    if isinstance(fit, KMeansFit):
        return {"shares": fit.shares.tolist(), "centres": fit.centres.tolist()}
    names = ("weights", "means", "covariances")
    found = {name: np.asarray(getattr(fit.mixture, name)).tolist() for name in names}
    if fit.draws is not None:
        for name in names[:2]:
            found[f"{name}_sd"] = np.asarray(getattr(fit.draws, name)).std((0, 1), ddof=1).tolist()
    return found
