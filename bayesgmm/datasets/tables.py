"""Tables in files to rows of finite float64 numbers, or one line that says what to correct.

pandas reads the files; what is checked here is that a table can be fitted.
"""

import bz2
import contextlib
import csv
import gzip
import lzma
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from bayesgmm.datasets.columns import classes_in, doubt_about
from bayesgmm.errors import InputError
from bayesgmm.numerics.paths import as_path
from bayesgmm.numerics.words import few_of

if TYPE_CHECKING:
    import pandas as pd

_LABEL = "label"
_TEXT = (".csv", ".tsv", ".txt")
_PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_MARKS = "\t;|,"  # between fields
_DECIMAL_COMMA = re.compile(r"\s*[+-]?(\d+|\d*,\d+)([eE][+-]?\d+)?\s*")
_MARKED = re.compile(r"\s*[+-]?[\d.' ]*,[\d.,' ]*\s*")
_THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2}(,\d{3})+\s*")


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
        label_name: the column that the labels come from.
        notes: sentences on columns of the file that are no features.
    """

    name: str
    x: Float64[np.ndarray, "n d"]
    feature_names: tuple[str, ...]
    labels: Shaped[np.ndarray, " n"] | None = None
    units: str = ""
    source: str = ""
    label_name: str = ""
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> str:
        """Which columns are used, and for what, in words."""
        classes = f"; classes from {self.label_name}" if self.label_name else ""
        return f"{len(self.x)} rows of {few_of(self.feature_names)}{classes}"


def read_table(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    name: str | None = None,
    *,
    labels: str | None = None,
) -> Dataset:
    """Read rows from a text, Excel, Parquet or NPY file.

    Text (.csv, .tsv, .txt, also with .gz, .bz2 or .xz after it) has one header line, and between fields commas,
    semicolons, tabs, bars or spaces; where these are no commas, numbers may have decimal commas. Blank lines are
    skipped. Of Excel files the first sheet is read.

    Args:
        path: the file; its suffix says what it is.
        columns: features by name, in this order; of an NPY array by index ("0", "1", ...) or as "x0", "x1", .... By
            default all numeric columns, without those that look like numbers of the rows or like classes; columns of
            words are left out, columns of words and numbers refused. `Dataset.notes` says which were left out.
        name: name of the data set, by default the file's name without its suffixes.
        labels: the column of known classes; by default one named `label`, or else the only one that looks like classes.

    Raises:
        DataError: in one line, for a file that cannot be read, a column that is missing, given twice, not numeric or
            constant, and for rows with NaN or infinite values. Data rows are counted from 1, below the header.
    """
    try:
        path = as_path(path)
    except InputError as error:
        raise DataError(str(error)) from None
    where = f"path={str(path)!r}"
    if isinstance(columns, str) or (columns is not None and not columns):
        raise DataError(f'columns={columns!r} must be a non-empty list of column names, such as ["a", "b"]')
    table = _read(path, where)
    num_rows = len(next(iter(table.values())))
    if num_rows < 2:
        found = "no data rows" if num_rows == 0 else "only one data row"
        raise DataError(f"{where} has {found}; give a file with at least two rows of numbers")
    if labels is not None and labels not in table:
        raise DataError(f"labels={labels!r} is no column of {where}; choose from {_listed(table)}")
    is_array = _kind(path) == ".npy"
    chosen = None if columns is None else _chosen(table, columns, where, is_array=is_array)
    if labels is not None and chosen is not None and labels in chosen:
        raise DataError(f"labels={labels!r} is also in columns; name it once, for classes are no features")
    features, doubts = _features(table, chosen, labels, where, guess=not is_array)
    x = np.stack(list(features.values()), axis=1)
    _check_values(x, tuple(features), where)
    label_name = labels or _label_name({other: table[other] for other in table if other not in features})
    classes = _classes(table[label_name], where) if label_name else None
    left_out = [f"column {other!r} {doubt}" for other, doubt in doubts.items() if other != label_name]
    name = path.name[: -len("".join(_suffixes(path)))] if name is None else name
    return Dataset(name, x, tuple(features), classes, source=str(path), label_name=label_name, notes=tuple(left_out))


def read_parts(
    path: str | os.PathLike[str], columns: Sequence[str], size: int = 2**16
) -> Iterator[Float64[np.ndarray, "n d"]]:
    """Read these columns of a file so many rows at a time, in the formats of `read_table`; of text, never all at once.

    Raises:
        DataError: as `read_table`, but constant columns and single rows may be.
    """
    path = Path(path)
    where, start = f"path={str(path)!r}", 0
    for table in _read_parts(path, where, size):
        if missing := [name for name in columns if name not in table]:
            raise DataError(f"{where} has no column {missing[0]!r}, which the fit needs; it has {_listed(table)}")
        features, _ = _features(table, columns, None, where, guess=False)
        x = np.stack(list(features.values()), axis=1)
        _check_finite(x, columns, where, start)
        yield x
        start += len(x)


def _read_parts(path: Path, where: str, size: int) -> Iterator[Mapping[str, "pd.Series"]]:
    """The columns by name, so many rows at a time."""
    import pandas as pd

    if _kind(path) not in _TEXT or not path.is_file() or not path.stat().st_size:
        table = _read(path, where)
        for start in range(0, len(next(iter(table.values()))), size):
            yield {name: column.iloc[start : start + size] for name, column in table.items()}
        return
    with _faults_of_text(where):
        options, names = _options_of_text(path, where)
        if options["sep"] != "," and _has_decimal_commas(pd.read_csv(path, nrows=size, **options)):
            options["decimal"] = ","
        with pd.read_csv(path, chunksize=size, **options) as parts:  # pyright: ignore[reportGeneralTypeIssues]
            for frame in parts:
                yield {name: frame.iloc[:, index] for index, name in enumerate(names)}


def _suffixes(path: Path) -> list[str]:
    """The suffix that says what a file is, and that of its packing."""
    return path.suffixes[-2:] if path.suffix.lower() in _PACKED else path.suffixes[-1:]


def _kind(path: Path) -> str:
    return "".join(_suffixes(path)[:1]).lower()


def _label_name(others: Mapping[str, "pd.Series"]) -> str:
    """The column of classes among those that are no features, if there is one alone."""
    if _LABEL in others:
        return _LABEL
    found = [name for name, column in others.items() if classes_in(name, column)]
    return found[0] if len(found) == 1 else ""


def _classes(column: "pd.Series", where: str) -> Shaped[np.ndarray, " n"]:
    if column.isna().all():
        raise DataError(f"column {column.name!r} of {where} has no labels; name another, or remove it")
    return column.astype(str).where(column.notna(), "").to_numpy(str)


def _read(path: Path, where: str) -> Mapping[str, "pd.Series"]:
    """The columns of a file by name."""
    readers = {**dict.fromkeys(_TEXT, _read_text), **dict.fromkeys((".xlsx", ".xls"), _read_excel)}
    readers |= {".parquet": _read_parquet, ".npy": _read_npy}
    kind = _kind(path)
    if path.is_dir():
        raise DataError(f"{where} is a folder; name a {', '.join(readers)} file inside it")
    if not path.exists():
        raise DataError(f"{where} does not exist; correct the spelling, or give the full path")
    if kind not in readers or (len(_suffixes(path)) > 1 and readers[kind] is not _read_text):
        raise DataError(
            f"{where} has the unsupported suffix {''.join(_suffixes(path))!r}; convert the file to one of "
            f"{', '.join(readers)}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{where} is empty (0 bytes); give a file with a header and rows of numbers")
    frame, names = readers[kind](path, where)
    if not names:
        raise DataError(f"{where} has no columns; give a file with at least one column of numbers")
    if (repeated := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise DataError(f"{where} has more than one column named {repeated!r}; rename or remove all but one of them")
    return {name: frame.iloc[:, index] for index, name in enumerate(names)}


def _read_text(path: Path, where: str) -> tuple["pd.DataFrame", list[str]]:
    import pandas as pd

    with _faults_of_text(where):
        options, names = _options_of_text(path, where)
        frame = pd.read_csv(path, **options)
        if options["sep"] != "," and _has_decimal_commas(frame):
            frame = pd.read_csv(path, decimal=",", **options)
    return frame, names


def _options_of_text(path: Path, where: str) -> tuple[dict[str, Any], list[str]]:
    """How pandas reads a file of text, and the names in its header."""
    import pandas as pd

    try:
        with _PACKED.get(path.suffix.lower(), open)(path, "rb") as file:
            begun = file.read(2**16)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{where} cannot be read ({_one_line(error)}); give another, or write it again") from None
    encoding = "utf-16" if begun[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    options: dict[str, Any] = {"sep": _mark_between_fields(begun.decode(encoding, errors="replace"))}
    options["encoding"] = encoding
    # The header as text and alone: pandas would rename columns given twice and hide the fault.
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **options)
    names = [str(value) for value in header.iloc[0]]
    if not _as_numbers(header.iloc[0])[1].any() and names != [str(index) for index in range(len(names))]:
        raise DataError(
            f"{where} has no header: its first line holds numbers ({_listed(names)}); add a line with column names"
        )
    return options | {"index_col": False, "low_memory": False, **_exact_numbers(pd.__version__)}, names


@contextlib.contextmanager
def _faults_of_text(where: str) -> Iterator[None]:
    """What pandas raises for a file of text, in one line."""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            # Rows longer than the header: pandas would take their first field for row names, or drop their last.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield
    except DataError:
        raise
    except pd.errors.EmptyDataError:
        raise DataError(f"{where} is empty (blank lines only); give a file with a header and rows of numbers") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text ({_one_line(error)}); save it as UTF-8 CSV") from None
    except pd.errors.ParserWarning:
        raise DataError(
            f"{where} is not a well-formed CSV file: its rows have more fields than its header; name every column there"
        ) from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError) as error:  # ParserError is a ValueError
        raise DataError(
            f"{where} is not a well-formed CSV file: {_one_line(error)}; correct that line (commas between fields, as "
            "many as in the header)"
        ) from None


def _mark_between_fields(text: str) -> str:
    """What stands between fields: it parts the first two lines into equally many; spaces, or a comma, else."""
    lines = [line for line in text.splitlines() if line.strip()][:2]
    for mark in _MARKS:
        counts = {len(next(csv.reader([line], delimiter=mark))) for line in lines}
        if len(counts) == 1 and counts.pop() > 1:
            return mark
    counts = {len(line.split()) for line in lines}
    return r"\s+" if len(counts) == 1 and counts.pop() > 1 else ","


def _has_decimal_commas(frame: "pd.DataFrame") -> bool:
    """Whether a column has numbers with commas that are not all those of thousands."""
    for index in range(frame.shape[1]):
        column = frame.iloc[:, index].dropna()
        texts = [] if column.dtype.kind in "biuf" else column.astype(str).tolist()
        commas = [text for text in texts if "," in text]
        if not all(map(_THOUSANDS.fullmatch, commas)) and all(map(_DECIMAL_COMMA.fullmatch, texts)):
            return True
    return False


def _exact_numbers(pandas_version: str) -> dict[str, Any]:
    """The option for exact numbers, which pandas before 3.1 needs and later ones deprecate, being exact without it."""
    exact = tuple(int(part) for part in pandas_version.split(".")[:2]) >= (3, 1)
    return {} if exact else {"float_precision": "round_trip"}


def _read_excel(path: Path, where: str) -> tuple["pd.DataFrame", list[str]]:
    import pandas as pd

    try:
        header = pd.read_excel(path, header=None, nrows=1, dtype=str, keep_default_na=False)
        frame = pd.read_excel(path)
    except ImportError as error:
        raise DataError(
            f"{where} is an Excel file; install what reads it ({_one_line(error)}), or save a CSV"
        ) from None
    except Exception as error:  # what openpyxl raises of a damaged file is not documented
        raise DataError(f"{where} is not a readable Excel file: {_one_line(error)}; save it as CSV") from None
    return frame, [str(value) for value in header.iloc[0]] if len(header) else []


def _read_parquet(path: Path, where: str) -> tuple["pd.DataFrame", list[str]]:
    import pandas as pd
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        if len(set(names)) < len(names):  # which pandas does not read
            return pd.DataFrame(), names
        frame = pd.read_parquet(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{where} is not a readable Parquet file: {_one_line(error)}; write it again") from None
    return frame, [str(name) for name in frame.columns]


def _read_npy(path: Path, where: str) -> tuple["pd.DataFrame", list[str]]:
    import pandas as pd

    try:
        with path.open("rb") as file:
            # Never pickles: an object array can run any code when it is opened.
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
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


def _chosen(table: Mapping[str, "pd.Series"], columns: Sequence[str], where: str, *, is_array: bool) -> list[str]:
    """The names of the features that were asked for."""
    names = [f"x{int(name)}" if is_array and name.isascii() and name.isdigit() else name for name in columns]
    for index, (name, column) in enumerate(zip(names, columns, strict=True)):
        if name not in table:
            raise DataError(f"columns has {column!r}, which {where} does not; choose from {_listed(table)}")
        if name in names[:index]:
            raise DataError(f"columns={list(columns)!r} has {column!r} twice; name every column once")
    return names


def _features(
    table: Mapping[str, "pd.Series"], chosen: Sequence[str] | None, labels: str | None, where: str, *, guess: bool
) -> tuple[dict[str, Float64[np.ndarray, " n"]], dict[str, str]]:
    """The features that are chosen, by name, by default all that look like measurements; and why others are none."""
    features, doubts = {}, {}
    for name in table if chosen is None else chosen:
        column = table[name]
        numbers, bad = _as_numbers(column)
        if chosen is None and name in (_LABEL, labels):
            continue
        if chosen is None and bad.any() and (bad == column.notna().to_numpy()).all():
            texts = column.dropna().astype(str).tolist()
            if all(map(_MARKED.fullmatch, texts)):
                raise DataError(
                    f"column {name!r} of {where} has numbers with commas, such as {texts[0]!r}; write them with "
                    "decimal points and without marks of thousands"
                )
            doubts[name] = "was left out: it holds no numbers; where it has classes, name it in labels"
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
        if chosen is None and guess and (doubt := doubt_about(name, numbers)):
            compared = "in labels to compare partitions with it, or " if "classes" in doubt else ""
            doubts[name] = f"was left out: {doubt}; name it {compared}in columns to fit it"
            continue
        features[name] = numbers
    if not features:
        why = f" ({next(iter(doubts))!r} {next(iter(doubts.values()))})" if doubts else ""
        raise DataError(f"{where} has no numeric column among {_listed(table)}{why}; give a file with at least one")
    return features, doubts


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


def _check_finite(x: Float64[np.ndarray, "n d"], names: Sequence[str], where: str, start: int = 0) -> None:
    rows, columns = np.nonzero(~np.isfinite(x))
    if rows.size:
        raise DataError(
            f"{where} has missing, NaN or infinite values in {len(np.unique(rows))} of {len(x)} data rows, "
            f"the first in data row {start + rows[0] + 1} (counted from 1, below the header), column "
            f"{names[columns[0]]!r}; drop or impute them"
        )


def _check_values(x: Float64[np.ndarray, "n d"], names: Sequence[str], where: str) -> None:
    _check_finite(x, names, where)
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
