"""Files to named columns: CSV, Parquet and NPY, every fault of a file told in one line."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_SUFFIXES = (".csv", ".parquet", ".npy")


class DataError(InputError):
    """A table that cannot be used; the message is one line with the argument, the value and the cure."""


def read_columns(path: Path) -> Mapping[str, Any]:
    """The columns of a file by name: pandas series, or NumPy arrays named x0, x1, ... for NPY.

    Raises:
        DataError: in one line, for a file that is missing, empty, malformed, of another kind or without columns.
    """
    where = f"path={str(path)!r}"
    _check_file(path, where)
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".npy": _read_npy}
    return readers[path.suffix.lower()](path, where)


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names in quotes, the first few of very many."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def is_number(value: Any) -> bool:
    """Whether a value, or text, reads as a real number; truth values do not, nor do Python's underscored digits."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, str) and "_" in value):
        return False
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _check_file(path: Path, where: str) -> None:
    if path.is_dir():
        raise DataError(f"{where} is a folder; name a {', '.join(_SUFFIXES)} file inside it")
    if not path.exists():
        raise DataError(f"{where} does not exist; correct the spelling, or give the full path")
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"{where} has the unsupported suffix {path.suffix!r}; convert the file to one of {', '.join(_SUFFIXES)}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{where} is empty (0 bytes); give a file with a header and rows of numbers")


def _read_csv(path: Path, where: str) -> Mapping[str, "pd.Series"]:
    import pandas as pd

    try:
        # The header as text and by itself: pandas would rename columns given twice and hide the fault.
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
        with warnings.catch_warnings():
            # Rows longer than the header: pandas would take their first field for row names, or drop their last.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, index_col=False, low_memory=False, **_to_the_last_digit(pd.__version__))
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
    if all(is_number(value) for value in names) and names != [str(index) for index in range(len(names))]:
        raise DataError(
            f"{where} has no header: its first line holds numbers ({listed(names)}); add a line with column names"
        )
    return _by_name(frame, names, where)


def _to_the_last_digit(pandas_version: str) -> dict[str, Any]:
    """The option for exact numbers, which pandas before 3.1 needs and later ones deprecate, being exact without it."""
    exact = tuple(int(part) for part in pandas_version.split(".")[:2]) >= (3, 1)
    return {} if exact else {"float_precision": "round_trip"}


def _read_parquet(path: Path, where: str) -> Mapping[str, "pd.Series"]:
    import pandas as pd
    import pyarrow.parquet

    try:
        _refuse_repeated(pyarrow.parquet.read_schema(path).names, where)
        frame = pd.read_parquet(path)
    except DataError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own errors are subclasses of these
        raise DataError(f"{where} is not a readable Parquet file: {_one_line(error)}; write it again") from None
    return _by_name(frame, [str(column) for column in frame.columns], where)


def _by_name(frame: "pd.DataFrame", names: list[str], where: str) -> Mapping[str, "pd.Series"]:
    if not names:
        raise DataError(f"{where} has no columns; give a file with at least one column of numbers")
    _refuse_repeated(names, where)
    return {name: frame.iloc[:, index] for index, name in enumerate(names)}


def _refuse_repeated(names: list[str], where: str) -> None:
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{where} has more than one column named {repeated!r}; rename or remove all but one of them")


def _read_npy(path: Path, where: str) -> Mapping[str, np.ndarray]:
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
    return {f"x{index}": array[:, index] for index in range(array.shape[1])}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
