"""Tables in files: CSV, Parquet and NPY to rows of finite float64 numbers, or one line that says what to correct.

pandas reads the files; what is checked here is that a table can be fitted.
"""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from bayesgmm.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_LABEL = "label"


class DataError(InputError):
    """A table that cannot be used; the message is one line with the argument, the value and the cure."""


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
        columns: features by name, in this order; of an NPY array by index ("0", "1", ...) or as "x0", "x1", .... By
            default all numeric columns; columns of words are left out, columns of words and numbers refused.
        name: name of the data set, by default the file's name without its suffix.

    Raises:
        DataError: in one line, for a file that cannot be read, a column that is missing, given twice, not numeric or
            constant, and for rows with NaN or infinite values. Data rows are counted from 1, below the header.
    """
    path = Path(path)
    where = f"path={str(path)!r}"
    if isinstance(columns, str) or (columns is not None and not columns):
        raise DataError(f'columns={columns!r} must be a non-empty list of column names, such as ["a", "b"]')
    table = _read(path, where)
    num_rows = len(next(iter(table.values())))
    if num_rows < 2:
        found = "no data rows" if num_rows == 0 else "only one data row"
        raise DataError(f"{where} has {found}; give a file with at least two rows of numbers")
    features = _features(table, None if columns is None else _chosen(table, columns, path, where), where)
    x = np.stack(list(features.values()), axis=1)
    _check_values(x, tuple(features), where)
    labels = None
    if _LABEL in table and _LABEL not in features:
        labels = table[_LABEL].astype(str).where(table[_LABEL].notna(), "").to_numpy(str)
    return Dataset(path.stem if name is None else name, x, tuple(features), labels, source=str(path))


def _read(path: Path, where: str) -> Mapping[str, "pd.Series"]:
    """The columns of a file by name."""
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".npy": _read_npy}
    if path.is_dir():
        raise DataError(f"{where} is a folder; name a {', '.join(readers)} file inside it")
    if not path.exists():
        raise DataError(f"{where} does not exist; correct the spelling, or give the full path")
    if path.suffix.lower() not in readers:
        raise DataError(
            f"{where} has the unsupported suffix {path.suffix!r}; convert the file to one of {', '.join(readers)}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{where} is empty (0 bytes); give a file with a header and rows of numbers")
    frame, names = readers[path.suffix.lower()](path, where)
    if not names:
        raise DataError(f"{where} has no columns; give a file with at least one column of numbers")
    if (repeated := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise DataError(f"{where} has more than one column named {repeated!r}; rename or remove all but one of them")
    return {name: frame.iloc[:, index] for index, name in enumerate(names)}


def _read_csv(path: Path, where: str) -> tuple["pd.DataFrame", list[str]]:
    import pandas as pd

    try:
        # The header as text and alone: pandas would rename columns given twice and hide the fault.
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
        with warnings.catch_warnings():
            # Rows longer than the header: pandas would take their first field for row names, or drop their last.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, index_col=False, low_memory=False, **_exact_numbers(pd.__version__))
    except pd.errors.EmptyDataError:
        raise DataError(f"{where} is empty (blank lines only); give a file with a header and rows of numbers") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text ({_one_line(error)}); save it as UTF-8 CSV") from None
    except pd.errors.ParserWarning:
        raise DataError(
            f"{where} is not a well-formed CSV file: its rows have more fields than its header; name every column there"
        ) from None
    except (OSError, ValueError) as error:  # ParserError is a ValueError
        raise DataError(
            f"{where} is not a well-formed CSV file: {_one_line(error)}; correct that line (commas between fields, as "
            "many as in the header)"
        ) from None
    names = [str(value) for value in header.iloc[0]]
    if len(names) == 1 and (separator := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise DataError(f"{where} has fields separated by {separator!r}; save it with commas between fields")
    if not _as_numbers(header.iloc[0])[1].any() and names != [str(index) for index in range(len(names))]:
        raise DataError(
            f"{where} has no header: its first line holds numbers ({_listed(names)}); add a line with column names"
        )
    return frame, names


def _exact_numbers(pandas_version: str) -> dict[str, Any]:
    """The option for exact numbers, which pandas before 3.1 needs and later ones deprecate, being exact without it."""
    exact = tuple(int(part) for part in pandas_version.split(".")[:2]) >= (3, 1)
    return {} if exact else {"float_precision": "round_trip"}


def _read_parquet(path: Path, where: str) -> tuple["pd.DataFrame", list[str]]:
    import pandas as pd
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        if len(set(names)) < len(names):  # which pandas does not read
            return pd.DataFrame(), names
        frame = pd.read_parquet(path)
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own errors are subclasses of these
        raise DataError(f"{where} is not a readable Parquet file: {_one_line(error)}; write it again") from None
    return frame, [str(name) for name in frame.columns]


def _read_npy(path: Path, where: str) -> tuple["pd.DataFrame", list[str]]:
    import pandas as pd

    try:
        with path.open("rb") as file:
            # Never pickles: an object array can run any code when it is opened.
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        if "Object arrays" in str(error):
            raise DataError(
                f"{where} holds Python objects (dtype object), which are never unpickled; save x.astype(float)"
            ) from None
        raise DataError(f"{where} is not a readable NPY file: {_one_line(error)}; write it with numpy.save") from None
    if array.dtype.kind not in "iuf":
        kind = "complex numbers" if array.dtype.kind == "c" else "no real numbers"
        raise DataError(
            f"{where} holds {kind} (dtype {array.dtype}); save real numbers, such as x.real or x.astype(float)"
        )
    if array.ndim not in (1, 2):
        raise DataError(
            f"{where} has {array.ndim} dimensions, shape {array.shape}; save an array of shape (rows, features)"
        )
    array = array[:, None] if array.ndim == 1 else array
    if array.shape[1] == 0:
        raise DataError(f"{where} has no columns, shape {array.shape}; save an array of shape (rows, features)")
    # A long double beyond the range of float64 becomes infinite, and is refused with its row number.
    with np.errstate(over="ignore"):
        frame = pd.DataFrame(array.astype(np.float64))
    return frame, [f"x{index}" for index in range(array.shape[1])]


def _chosen(table: Mapping[str, "pd.Series"], columns: Sequence[str], path: Path, where: str) -> list[str]:
    """The names of the features that were asked for."""
    is_array = path.suffix.lower() == ".npy"
    names = [f"x{int(name)}" if is_array and name.isascii() and name.isdigit() else name for name in columns]
    for index, (name, column) in enumerate(zip(names, columns, strict=True)):
        if name not in table:
            raise DataError(f"columns has {column!r}, which {where} does not; choose from {_listed(table)}")
        if name in names[:index]:
            raise DataError(f"columns={list(columns)!r} has {column!r} twice; name every column once")
    return names


def _features(
    table: Mapping[str, "pd.Series"], chosen: Sequence[str] | None, where: str
) -> dict[str, Float64[np.ndarray, " n"]]:
    """The features that are chosen, by name; by default all columns of numbers, those of words left out."""
    features = {}
    for name in table if chosen is None else chosen:
        column = table[name]
        numbers, bad = _as_numbers(column)
        if chosen is None and (name == _LABEL or (bad.any() and (bad == column.notna().to_numpy()).all())):
            continue
        # Leaving out a column of measurements because of one stray word would go unnoticed.
        if bad.any():
            first = int(bad.argmax())
            text = repr(str(column.iloc[first]))
            text = text if len(text) <= 40 else f"{text[:36]}...'"
            cure = "give columns without it" if chosen is None else "leave that column out of columns"
            raise DataError(
                f"column {name!r} of {where} is not numeric: {text} in data row {first + 1}; correct it, or {cure}"
            )
        if not name.strip() and chosen is None:
            raise DataError(
                f"{where} has a numeric column without a name (row numbers, saved as an index?); name it, remove it, "
                "or give columns without it"
            )
        features[name] = numbers
    if not features:
        raise DataError(f"{where} has no numeric column among {_listed(table)}; give a file with at least one")
    return features


def _as_numbers(column: "pd.Series") -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """A column in float64 with NaN for missing values, and where it holds what is no number.

    Text that reads as a number is one: a CSV file cannot tell the two apart.
    """
    import pandas as pd

    if column.dtype.kind in "iuf":
        return column.to_numpy(dtype=np.float64, na_value=np.nan), np.zeros(len(column), bool)
    text, given = column.astype(str).to_numpy(object), column.notna().to_numpy()
    bad = given & np.isnan(np.asarray(pd.to_numeric(text, errors="coerce"), np.float64))
    return np.where(given & ~bad, text, "nan").astype(np.float64), bad


def _check_values(x: Float64[np.ndarray, "n d"], names: Sequence[str], where: str) -> None:
    rows, columns = np.nonzero(~np.isfinite(x))
    if rows.size:
        raise DataError(
            f"{where} has missing, NaN or infinite values in {len(np.unique(rows))} of {len(x)} data rows, "
            f"the first in data row {rows[0] + 1} (counted from 1, below the header), column {names[columns[0]]!r}; "
            "drop or impute them"
        )
    for name, values in zip(names, x.T, strict=True):
        if (values == values[0]).all():
            raise DataError(
                f"column {name!r} of {where} is constant ({values[0]:g} in every row), so its variance is zero; remove "
                "it, or give columns without it"
            )


def _listed(names: Iterable[str], most: int = 20) -> str:
    """Names in quotes, the first few of very many."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
