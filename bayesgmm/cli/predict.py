"""`bayesgmm predict`: new rows under a fit of an earlier run, a part of the table at a time."""

import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from bayesgmm.comparison.assignments import assignment_table
from bayesgmm.datasets.tables import read_parts
from bayesgmm.engines.fit import Fit
from bayesgmm.engines.storage import load_fit
from bayesgmm.errors import InputError
from bayesgmm.numerics.paths import as_path
from bayesgmm.numerics.validation import one_of


def predict_table(folder: Path, table: Path, engine: str | None, out: Path | None, *, overwrite: bool) -> None:
    """Write a line for each row of the table, as `assignments.csv` has them, to a file or to the terminal.

    Raises:
        InputError: for a folder that is not a run's, an engine that was not run, a table without the columns that were
            fitted, and a file that exists, unless `overwrite`.
    """
    fit, names = fit_of_run(folder, engine)
    if out is not None and as_path(out, "out").exists() and not overwrite:
        raise InputError(f"out={str(out)!r} exists; pass --overwrite, or choose another with --out")
    parts = _parts(fit, read_parts(table, names))
    first = next(parts)  # so that nothing is written where the table cannot be read
    if out is None:
        for part in itertools.chain([first], parts):
            part.to_csv(sys.stdout, header=part is first, index_label="row")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as staging:
            written = Path(staging) / "table.csv"
            first.to_csv(written, index_label="row")
            for part in parts:
                part.to_csv(written, mode="a", header=False, index_label="row")
            written.replace(out)
    except OSError as error:
        raise InputError(f"out={str(out)!r} cannot be written ({error.strerror}); choose another with --out") from None


def fit_of_run(folder: Path, engine: str | None) -> tuple[Fit, list[str]]:
    """A fit of an earlier run, by default the one to read, and the names of the columns that it was fitted to.

    Raises:
        InputError: for a folder that is not a run's, and an engine that was not run.
    """
    path = as_path(folder, "folder") / "comparison.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        files, read, names = record["files"], record["read"], record["data"]["feature_names"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"folder={str(folder)!r} has no comparison.json of a run; give the output folder of compare or fit"
        ) from None
    return load_fit(folder / files[one_of("engine", read if engine is None else engine, files)]), names


def _parts(fit: Fit, parts: Iterator[Float[np.ndarray, "n d"]]) -> Iterator[pd.DataFrame]:
    start = 0
    for x in parts:
        found = assignment_table(fit, x.astype(fit.mixture.means.dtype))
        yield found.set_index(np.arange(start, start + len(found)))
        start += len(found)
