"""Data sets: shipped values to the digit, round trips of every format, and every fault told in one line."""

import decimal
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bayesgmm.datasets import SHIPPED, DataError, load_dataset, read_table
from bayesgmm.datasets.columns import combined_columns
from bayesgmm.datasets.tables import _exact_numbers

FRAME = pd.DataFrame({"a": [0.1, 1 / 3, 1e-300], "b": [3, 2, 1], "word": ["x", "y", "z"]})


def write(folder: Path, content: object, suffix: str = ".csv") -> Path:
    path = folder / f"mine{suffix}"
    if isinstance(content, pd.DataFrame):
        content.to_csv(path, index=False) if suffix == ".csv" else content.to_parquet(path)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(str(content))
    return path


def refusal(path: Path, columns=None) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path, columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "num_rows", "feature_names", "units", "first", "last"),
    [
        ("faithful", 272, ("eruptions", "waiting"), "minutes", [3.6, 79.0], [4.467, 74.0]),
        ("galaxies", 82, ("velocity",), "1000 km/s", [9.172], [34.279]),
        (
            "iris",
            150,
            ("sepal_length", "sepal_width", "petal_length", "petal_width"),
            "cm",
            [5.1, 3.5, 1.4, 0.2],
            [5.9, 3.0, 5.1, 1.8],
        ),
    ],
)
def test_shipped(name, num_rows, feature_names, units, first, last):
    dataset = load_dataset(name)
    assert (dataset.name, dataset.feature_names, dataset.units) == (name, feature_names, units)
    assert dataset.x.shape == (num_rows, len(feature_names))
    assert dataset.x.dtype == np.float64
    assert dataset.x[0].tolist() == first
    assert dataset.x[-1].tolist() == last
    assert dataset.source == SHIPPED[name][1]
    assert (dataset.labels is None) == (name != "iris")


def test_galaxies_without_the_misprint():
    velocities = load_dataset("galaxies").x[:, 0]
    assert velocities[77] == 26.960
    assert 26.690 not in velocities


def test_iris_labels():
    names, counts = np.unique(load_dataset("iris").labels, return_counts=True)
    assert names.tolist() == ["setosa", "versicolor", "virginica"]
    assert counts.tolist() == [50, 50, 50]


def test_unknown_data_set():
    with pytest.raises(ValueError, match=r"^name='irish' .* faithful, galaxies, iris.*read_table\(path\)$"):
        load_dataset("irish")


def test_import_is_light():
    code = (
        "import sys, bayesgmm.datasets; print([name for name in ('jax', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV"])
def test_round_trip(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    FRAME.to_parquet(path) if suffix == ".parquet" else FRAME.to_csv(path, index=False)
    dataset = read_table(path)
    assert (dataset.name, dataset.source) == ("mine", str(path))
    assert dataset.feature_names == ("a", "b")
    assert dataset.labels is None
    np.testing.assert_array_equal(dataset.x, FRAME[["a", "b"]].to_numpy(np.float64))
    named = read_table(str(path), ["b", "a"], name="yours")
    assert (named.name, named.feature_names) == ("yours", ("b", "a"))
    np.testing.assert_array_equal(named.x, dataset.x[:, ::-1])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int32, np.uint8, np.longdouble])
def test_round_trip_npy(tmp_path, dtype):
    x = np.arange(6).reshape(3, 2).astype(dtype)
    dataset = read_table(write(tmp_path, x, ".npy"))
    assert dataset.feature_names == ("x0", "x1")
    assert dataset.x.dtype == np.float64
    np.testing.assert_array_equal(dataset.x, x)


def test_npy_columns_by_index_or_name(tmp_path):
    path = write(tmp_path, np.arange(6.0).reshape(2, 3), ".npy")
    dataset = read_table(path, ["2", "x0"])
    assert dataset.feature_names == ("x2", "x0")
    assert dataset.x.tolist() == [[2.0, 0.0], [5.0, 3.0]]
    assert read_table(write(tmp_path, np.arange(3.0), ".npy")).x.tolist() == [[0.0], [1.0], [2.0]]


values = hnp.arrays(np.float64, (4, 2), elements=st.floats(allow_nan=False, allow_infinity=False))


@given(values)
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
def test_every_float_survives(suffix, x):
    x[0], x[1] = 1.0, -1.0  # no column is constant
    content = x if suffix == ".npy" else pd.DataFrame(x, columns=["a", "b"])
    with tempfile.TemporaryDirectory() as folder:
        np.testing.assert_array_equal(read_table(write(Path(folder), content, suffix)).x, x)


def test_option_for_exact_numbers():
    assert _exact_numbers("2.2.3") == {"float_precision": "round_trip"}
    assert _exact_numbers("3.0.0rc1") == {"float_precision": "round_trip"}
    assert _exact_numbers("3.1.1") == _exact_numbers("4.0.0.dev0+1") == {}


def test_labels(tmp_path):
    path = write(tmp_path, "a,label,b\n1,7,2\n3,,5\n")
    dataset = read_table(path)
    assert dataset.feature_names == ("a", "b")
    assert dataset.labels is not None
    assert dataset.labels[1] == ""
    path = write(tmp_path, "a,label\n1,7\n3,8\n")
    labels = read_table(path, ["a"]).labels
    assert labels is not None
    assert labels.tolist() == ["7", "8"]
    chosen = read_table(path, ["label"])
    assert (chosen.x.tolist(), chosen.labels) == ([[7.0], [8.0]], None)


def test_columns_of_other_types(tmp_path):
    frame = pd.DataFrame(
        {
            "nullable": pd.array([1, 2], dtype="Int64"),
            "decimal": [decimal.Decimal("1.5"), decimal.Decimal("2.5")],
            "text": ["1", "2"],
            "huge": [10.0**30, 2.0],
            "yes": [True, False],
            "day": pd.to_datetime(["2020-01-01", "2020-01-02"]),
            "list": [[1], [2]],
        }
    )
    path = write(tmp_path, frame, ".parquet")
    dataset = read_table(path)
    assert dataset.feature_names == ("nullable", "decimal", "text", "huge")
    assert dataset.x.tolist() == [[1.0, 1.5, 1.0, 1e30], [2.0, 2.5, 2.0, 2.0]]
    for column, shown in {"yes": "'True'", "day": "'2020-01-01 00:00:00'", "list": "'[1]'"}.items():
        assert f"column {column!r} of path={str(path)!r} is not numeric: {shown} in data row 1" in refusal(
            path, [column]
        )


def test_blank_lines_and_marks_are_skipped(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbfa,b\r\n\r\n1,2\r\n\r\n3,4\r\n\r\n")
    dataset = read_table(path)
    assert (dataset.feature_names, dataset.x.tolist()) == (("a", "b"), [[1.0, 2.0], [3.0, 4.0]])


def test_numbered_header_is_a_header(tmp_path):
    assert read_table(write(tmp_path, "0,1\n5,6\n7,8\n")).x.tolist() == [[5.0, 6.0], [7.0, 8.0]]


@pytest.mark.parametrize(
    ("content", "columns", "parts"),
    [
        ("", None, ["is empty (0 bytes)", "give a file"]),
        ("\n\n", None, ["is empty (blank lines only)", "give a file"]),
        ("a,b\n", None, ["has no data rows", "at least two rows"]),
        ("a,b\n1,2\n", None, ["has only one data row", "at least two rows"]),
        ("a,b\n1,2\n3,4,5\n", None, ["not a well-formed CSV", "line 3, saw 3", "correct that line"]),
        ("a,b\n0,1,2\n1,4,5\n", None, ["not a well-formed CSV", "more fields than its header", "name every column"]),
        ('a,b\n1,"2\n3,4\n', None, ["not a well-formed CSV", "EOF inside string"]),
        (b"a,b\n1,\xff\n", None, ["not UTF-8", "save it as UTF-8"]),
        ('a,b\n"1,234",2\n"2,345",3\n', None, ["column 'a'", "numbers with commas, such as '1,234'", "points"]),
        ("a;b\n1.234,5;2\n2.345,6;3\n", None, ["column 'a'", "numbers with commas, such as '1.234,5'"]),
        ("a\tb\n1,234\t2\n2,345\t3\n", None, ["column 'a'", "numbers with commas, such as '1,234'"]),
        ("1.5,2\n3,4\n5,6\n", None, ["has no header", "'1.5', '2'", "add a line with column names"]),
        ("a,a\n1,2\n3,4\n", None, ["more than one column named 'a'", "rename"]),
        (",a\n0,2\n1,4\n", None, ["numeric column without a name", "remove it"]),
        ("a,b\n1,2\n3,4\n", ["z"], ["columns has 'z'", "choose from 'a', 'b'"]),
        ("a,b\n1,2\n3,4\n", ["0"], ["columns has '0'", "choose from 'a', 'b'"]),
        ("a,b\n1,2\n3,4\n", ["a", "a"], ["columns=['a', 'a'] has 'a' twice", "every column once"]),
        ("a,b\n1,2\n3,4\n", [], ["columns=[]", "non-empty list"]),
        ("a,b\n1,2\n3,4\n", "ab", ["columns='ab'", "non-empty list"]),
        ("a,b\nx,2\ny,4\n", ["a"], ["column 'a'", "not numeric: 'x' in data row 1", "leave that column out"]),
        ("a,b\n1,2\n3,oops\n", None, ["column 'b'", "not numeric: 'oops' in data row 2", "give columns without it"]),
        ("a,b\n1,2\n1_0,4\n", None, ["column 'a'", "not numeric: '1_0' in data row 2"]),
        ("a,b\n1,2\n2,1+2j\n", ["b"], ["column 'b'", "not numeric: '1+2j' in data row 2"]),
        ("a,b\nx,u\ny,v\n", None, ["no numeric column among 'a', 'b'", "at least one"]),
        ("a,b\n1,2\n3,\n4,inf\n", None, ["in 2 of 3 data rows", "data row 2 (counted from 1", "column 'b'", "drop"]),
        ("a,b\n1,2\n3\n4,5\n", None, ["in 1 of 3 data rows", "data row 2", "column 'b'"]),
        ("a,b\n1,2\nNaN,3\n4,-inf\n", None, ["in 2 of 3 data rows", "data row 2", "column 'a'", "impute"]),
        ("a,b\n1,2\n1,3\n", None, ["column 'a'", "is constant (1 in every row)", "remove it"]),
        (f"a\n{'y' * 99}\nz\n", ["a"], ["yyy...'", "in data row 1"]),
    ],
)
def test_csv_faults(tmp_path, content, columns, parts):
    path = write(tmp_path, content)
    message = refusal(path, columns)
    for part in parts:
        assert part in message
    assert str(path) in message or "columns=" in message


MEASURED = pd.DataFrame({"length": [0.5, 1.25, -3.0] * 20, "width": np.arange(60) / 8})
WORDS = [f"of {index}" for index in range(60)]
CLASSES = ["x", "y", "z"] * 20


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".tsv", {"sep": "\t"}),
        (".csv", {"sep": ";", "decimal": ","}),
        (".csv", {"sep": ";", "encoding": "utf-16"}),
        (".txt", {"sep": "|"}),
        (".txt", {"sep": " ", "decimal": ","}),
        (".csv.gz", {}),
        (".csv.bz2", {"encoding": "utf-8-sig"}),
        (".tsv.xz", {"sep": "\t", "decimal": ","}),
    ],
)
def test_text_as_people_have_it(tmp_path, suffix, options):
    path = tmp_path / f"my.own{suffix}"
    MEASURED.to_csv(path, index=False, **options)
    dataset = read_table(path)
    assert (dataset.name, dataset.feature_names) == ("my.own", ("length", "width"))
    np.testing.assert_array_equal(dataset.x, MEASURED)


def test_excel(tmp_path, monkeypatch):
    path = write(tmp_path, "a", ".xlsx")

    def read(path, header=0, nrows=None, **options):
        frame = MEASURED if header == 0 else pd.DataFrame([list(MEASURED)])
        return frame.head(nrows)

    monkeypatch.setattr(pd, "read_excel", read)
    np.testing.assert_array_equal(read_table(path).x, MEASURED)

    def is_missing(*args, **options):
        raise ImportError("Missing optional dependency 'openpyxl'.")

    monkeypatch.setattr(pd, "read_excel", is_missing)
    assert "is an Excel file; install what reads it (Missing optional dependency 'openpyxl'.), or save" in refusal(path)


def test_columns_that_are_hardly_measurements_are_left_out(tmp_path):
    others = {"row": np.arange(5, 65), "patient_id": np.arange(60)[::-1] * 7, "class": [1, 2, 3] * 20, "words": WORDS}
    path = write(tmp_path, MEASURED.assign(**others, rooms=[1, 4, 2, 3, 5, 6] * 10))
    dataset = read_table(path)
    assert dataset.feature_names == ("length", "width")
    assert dataset.labels is None  # either of two might be meant
    row, patient, classes, words, rooms = dataset.notes
    assert row == "column 'row' was left out: its whole numbers count the rows; name it in columns to fit it"
    assert "'patient_id' was left out: its name and its distinct whole numbers are those of an identifier" in patient
    assert "'class' was left out: it has 3 distinct whole numbers only, like classes; name it in labels" in classes
    assert words == "column 'words' was left out: it holds no numbers; where it has classes, name it in labels"
    assert "'rooms' was left out: it has 6 distinct whole numbers only" in rooms
    assert dataset.columns == "60 rows of length, width"
    chosen = read_table(path, ["width", "row"], labels="class")
    assert (chosen.feature_names, chosen.label_name, chosen.notes) == (("width", "row"), "class", ())
    assert chosen.labels.tolist() == [str(label) for label in others["class"]]
    assert chosen.columns == "60 rows of width, row; classes from class"
    assert "labels='rows' is no column of" in labels_refused(path, "rows")
    assert "labels='width' is also in columns" in labels_refused(path, "width", ["width"])


def labels_refused(path, labels, columns=None):
    with pytest.raises(DataError) as caught:
        read_table(path, columns, labels=labels)
    return str(caught.value)


def test_the_only_column_of_classes_has_the_labels(tmp_path):
    dataset = read_table(write(tmp_path, MEASURED.assign(words=WORDS, kind=CLASSES)))
    assert (dataset.label_name, dataset.labels.tolist()) == ("kind", CLASSES)
    assert dataset.notes == (
        "column 'words' was left out: it holds no numbers; where it has classes, name it in labels",
    )


def test_measurements_that_are_whole_and_in_order_are_kept(tmp_path):
    """R's galaxies: velocities in whole km/s, sorted and distinct; years; and arrays, whose maker chose the columns."""
    velocity = np.cumsum(np.arange(60) % 7 + 1)
    path = write(tmp_path, pd.DataFrame({"velocity": velocity, "age": np.arange(60) % 30}))
    assert read_table(path).feature_names == ("velocity", "age")
    path = write(tmp_path, np.column_stack([np.arange(60), velocity % 3]), ".npy")
    assert read_table(path).feature_names == ("x0", "x1")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_linear_combinations_of_columns_are_found(rng, dtype):
    x = rng.normal(size=(200, 3)) * [1e-3, 1.0, 1e4] + [0.0, 5.0, 1e5]
    x = np.column_stack([x, 2 * x[:, 0] - x[:, 1] + 7]).astype(dtype)
    (sentence,) = combined_columns(x, ["a", "b", "c", "d"])
    assert {"a", "b", "d"} == set(re.findall(r"'(\w)'", sentence))
    assert "is a linear combination of" in sentence
    assert combined_columns(x[:, :3], ["a", "b", "c"]) == []
    assert combined_columns(np.column_stack([x[:, :2], x[:, 0] + 1e-3 * x[:, 1] ** 2]), ["a", "b", "c"]) == []


def test_header_of_many_columns_is_not_listed_in_full(tmp_path):
    names = [f"c{index}" for index in range(500)]
    path = write(tmp_path, pd.DataFrame(np.eye(500)[:3] + np.arange(3)[:, None], columns=names))
    message = refusal(path, ["z"])
    assert "'c0', 'c1'" in message
    assert message.endswith("... (500 in all)")
    assert len(message) < 500


def test_names_with_line_breaks_stay_on_one_line(tmp_path):
    path = write(tmp_path, '"a\nb",c\n1,2\n1,3\n')
    assert r"column 'a\nb'" in refusal(path)
    assert r"'a\nb'" in refusal(path, ["z\nz"])


def test_file_faults(tmp_path):
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    for path, parts in {
        tmp_path / "none.csv": ["does not exist", "correct the spelling"],
        folder: ["is a folder", "name a .csv, .tsv, .txt, .xlsx, .xls, .parquet, .npy file"],
        write(tmp_path, "a", ".sav"): ["unsupported suffix '.sav'", ".csv, .tsv, .txt, .xlsx, .xls, .parquet, .npy"],
        write(tmp_path, "a", ".npy.gz"): ["unsupported suffix '.npy.gz'"],
        write(tmp_path, "a", ".csv.gz"): ["cannot be read (Not a gzipped file"],
        write(tmp_path, "a", ".xlsx"): ["not a readable Excel file", "save it as CSV"],
        write(tmp_path, "a", ""): ["unsupported suffix ''"],
        write(tmp_path, "", ".npy"): ["is empty (0 bytes)"],
        write(tmp_path, "PAR1 is not all of it", ".parquet"): ["not a readable Parquet file", "write it again"],
    }.items():
        message = refusal(path)
        for part in (f"path={str(path)!r}", *parts):
            assert part in message


def test_parquet_faults(tmp_path):
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table([pa.array([1, 2]), pa.array([3, 4])], names=["a", "a"]), path)
    assert "more than one column named 'a'" in refusal(path)
    pd.DataFrame(index=[0, 1]).to_parquet(path)
    assert "has no columns" in refusal(path)
    pd.DataFrame({"a": [1.0, None, 2.0]}).to_parquet(path)
    assert "in 1 of 3 data rows, the first in data row 2" in refusal(path)
    pd.DataFrame({"a": pd.array([1, 2, None], dtype="Int64")}).to_parquet(path)
    assert "in 1 of 3 data rows, the first in data row 3" in refusal(path)
    pd.DataFrame({"a": []}, dtype=float).to_parquet(path)
    assert "has no data rows" in refusal(path)


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.array([1.0, None], dtype=object), ["Python objects (dtype object)", "x.astype(float)"]),
        (np.array([1 + 2j, 3]), ["complex numbers (dtype complex128)", "x.real"]),
        (np.array(["a", "b"]), ["no real numbers (dtype <U1)"]),
        (np.array([True, False]), ["no real numbers (dtype bool)"]),
        (np.zeros((2, 3, 4)), ["3 dimensions, shape (2, 3, 4)", "(rows, features)"]),
        (np.array(1.0), ["0 dimensions"]),
        (np.zeros((2, 0)), ["no columns, shape (2, 0)"]),
        (np.zeros((0, 2)), ["no data rows"]),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), ["in 1 of 2 data rows", "data row 2", "column 'x1'"]),
        (np.array([[1.0, 2.0], [3.0, 2.0]]), ["column 'x1'", "is constant (2 in every row)"]),
    ],
)
def test_npy_faults(tmp_path, array, parts):
    path = write(tmp_path, array, ".npy")
    message = refusal(path)
    for part in (str(path), *parts):
        assert part in message


def test_npy_columns_that_are_not_there(tmp_path):
    path = write(tmp_path, np.eye(2), ".npy")
    for column in ("2", "a", "-1", "x2"):
        assert f"columns has {column!r}" in refusal(path, [column])
    assert "has '0' twice" in refusal(path, ["x0", "0"])


def test_npy_that_is_none(tmp_path):
    whole = write(tmp_path, np.arange(10.0), ".npy").read_bytes()
    for content in (b"not an array", whole[:-8], whole[:7]):
        assert "not a readable NPY file" in refusal(write(tmp_path, content, ".npy"))
