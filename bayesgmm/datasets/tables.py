"""Tables in files: CSV, Parquet and NPY to rows of finite float64 numbers, or one line that says what to mend."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Shaped

from bayesgmm.datasets.files import DataError, is_number, listed, read_columns

if TYPE_CHECKING:
    import pandas as pd

_LABEL = "label"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to fit, with what is known about them.

    Attributes:
        name: what to call the data in titles and tables.
        x: rows (n, d) of finite numbers.
        feature_names: one name for each column of x.
        labels: true class of every row as text, empty where it is missing; None without classes. No engine sees them.
        units: units of the columns, empty when unknown.
        source: where the data come from: a reference or a path.
    """

    name: str
    x: Float64[np.ndarray, "n d"]
    feature_names: tuple[str, ...]
    labels: Shaped[np.ndarray, " n"] | None = None
    units: str = ""
    source: str = ""


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None, name: str | None = None) -> Dataset:
    """Read rows from a CSV, Parquet or NPY file.

    A CSV file has commas and one header line; blank lines are skipped. A column named exactly `label` becomes the
    labels unless it is chosen as a feature.

    Args:
        path: the file; its suffix (.csv, .parquet, .npy) says what it is.
        columns: features by name, in the order wanted; of an NPY array by index ("0", "1", ...) or as "x0", "x1", ....
            By default all numeric columns; columns of words are left out, columns of words and numbers refused.
        name: name of the data set, by default the file's name without its suffix.

    Raises:
        DataError: in one line, for a file that cannot be read, a column that is missing, given twice, not numeric or
            constant, and for rows with NaN or infinite values. Data rows are counted from 1, below the header.
    """
    path = Path(path)
    where = f"path={str(path)!r}"
    if isinstance(columns, str) or (columns is not None and not columns):
        raise DataError(f'columns={columns!r} must be a non-empty list of column names, such as ["a", "b"]')
    table = read_columns(path)
    num_rows = len(next(iter(table.values())))
    if num_rows < 2:
        found = "no data rows" if num_rows == 0 else "only one data row"
        raise DataError(f"{where} has {found}; give a file with at least two rows of numbers")
    features = _choose(table, columns, where)
    _check_values(features, where)
    labels = None if _LABEL in features or _LABEL not in table else _as_text(table[_LABEL])
    return Dataset(
        name=path.stem if name is None else name,
        x=np.stack(list(features.values()), axis=1),
        feature_names=tuple(features),
        labels=labels,
        source=str(path),
    )


def _choose(table: Mapping[str, Any], columns: Sequence[str] | None, where: str) -> dict[str, np.ndarray]:
    """The features as float64, by name: those asked for, or all that are numeric."""
    if columns is None:
        found = {name: _default_feature(table[name], name, where) for name in table if name != _LABEL}
        features = {name: values for name, values in found.items() if values is not None}
        if not features:
            raise DataError(f"{where} has no numeric column among {listed(table)}; give a file with at least one")
        return features
    is_array = isinstance(next(iter(table.values())), np.ndarray)
    chosen: dict[str, np.ndarray] = {}
    for column in columns:
        key = f"x{int(column)}" if is_array and column.isascii() and column.isdigit() else column
        if key not in table:
            raise DataError(f"columns has {column!r}, which {where} does not; choose from {listed(table)}")
        if key in chosen:
            raise DataError(f"columns={list(columns)!r} has {column!r} twice; name every column once")
        values, bad, _ = _as_numbers(table[key])
        if bad is not None:
            raise _not_numeric(key, bad, where, "correct it, or leave that column out of columns")
        chosen[key] = values
    return chosen


def _default_feature(column: Any, name: str, where: str) -> np.ndarray | None:
    values, bad, any_number = _as_numbers(column)
    if bad is not None:
        # Leaving out a column of measurements because of one stray word would go unnoticed.
        if any_number:
            raise _not_numeric(name, bad, where, "correct it, or give columns without it")
        return None
    if not name.strip():
        raise DataError(
            f"{where} has a numeric column without a name (row numbers, saved as an index?); name it, remove it, or "
            "give columns without it"
        )
    return values


def _as_numbers(column: Any) -> tuple[np.ndarray, tuple[int, Any] | None, bool]:
    """A column as float64 with NaN for missing values, its first value that is no number with its position, and
    whether any is. Text that reads as a number is one, since a CSV file cannot tell the two apart.
    """
    # A long double beyond the range of float64 becomes infinite, and is refused with its row number.
    with np.errstate(over="ignore"):
        if isinstance(column, np.ndarray):
            return column.astype(np.float64), None, True
        if column.dtype.kind in "iuf":
            return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan)), None, True
    values = np.full(len(column), np.nan)
    bad, any_number = None, False
    for position, (value, missing) in enumerate(zip(column, column.isna(), strict=True)):
        if missing:
            continue
        if is_number(value):
            values[position], any_number = float(value), True
        elif bad is None:
            bad = (position, value)
    return values, bad, any_number


def _not_numeric(name: str, bad: tuple[int, Any], where: str, cure: str) -> DataError:
    position, value = bad
    shown = repr(str(value))
    shown = shown if len(shown) <= 40 else f"{shown[:36]}...'"
    return DataError(f"column {name!r} of {where} is not numeric: {shown} in data row {position + 1}; {cure}")


def _check_values(features: Mapping[str, np.ndarray], where: str) -> None:
    bad = {name: ~np.isfinite(values) for name, values in features.items()}
    bad_rows = np.logical_or.reduce(list(bad.values()))
    if bad_rows.any():
        first = int(np.flatnonzero(bad_rows)[0])
        name = next(name for name in bad if bad[name][first])
        raise DataError(
            f"{where} has missing, NaN or infinite values in {int(bad_rows.sum())} of {len(bad_rows)} data rows, the "
            f"first in data row {first + 1} (counted from 1, below the header), column {name!r}; drop or impute them"
        )
    for name, values in features.items():
        if (values == values[0]).all():
            raise DataError(
                f"column {name!r} of {where} is constant ({values[0]:g} in every row), so its variance is zero; remove "
                "it, or give columns without it"
            )


def _as_text(column: "pd.Series") -> np.ndarray:
    return np.array(["" if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)])
