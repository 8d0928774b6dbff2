"""Arguments refused before anything is compiled: one line with the argument, the value and the cure."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bayesgmm.checks import as_key, as_row_weights, as_rows, enough_rows
from bayesgmm.errors import InputError
from bayesgmm.families import FAMILIES

pytestmark = pytest.mark.usefixtures("strict")

FULL, DIAG = FAMILIES["full"], FAMILIES["diag"]
X = np.arange(20.0).reshape(10, 2) ** 1.5


def with_entry(array, index, value):
    array = array.copy()
    array[index] = value
    return array


# `inspect.unwrap` gets past the checked annotations, which users do not have.
# What is called, then what the message must hold: the argument, the value, the cure.
REFUSALS = {
    "text": (lambda: as_rows(np.array([["a", "b"]])), ("x", "<U1", "drop")),
    "complex": (lambda: as_rows(np.ones((3, 2), complex)), ("x", "complex128", "drop")),
    "three axes": (lambda: as_rows(np.ones((2, 3, 4))), ("x", "(2, 3, 4)", "(rows, features)")),
    "a scalar": (lambda: as_rows(3.0), ("x", "()", "(rows, features)")),
    "no rows": (lambda: as_rows(np.ones((0, 2))), ("x", "(0, 2)", "at least one row")),
    "no columns": (lambda: as_rows(np.ones((4, 0))), ("x", "(4, 0)", "one column")),
    "NaN": (lambda: as_rows(with_entry(X, (3, 1), np.nan)), ("x", "1 of 10 rows", "row 3, column 1", "drop or impute")),
    "infinity": (lambda: as_rows(with_entry(X, (4, 0), -np.inf), "y"), ("y", "row 4, column 0", "drop or impute")),
    "no components": (lambda: enough_rows(X, 0, FULL), ("num_components=0", "at least 1")),
    "half a component": (lambda: inspect.unwrap(enough_rows)(X, 2.5, FULL), ("num_components=2.5", "whole number")),
    "a truth value": (lambda: enough_rows(X, True, FULL), ("num_components=True", "whole number")),
    "too few rows": (
        lambda: enough_rows(X[:2], 1, FULL),
        ("num_components=1", "'full'", "at least 3 rows", "got 2", "diagonal family"),
    ),
    "a single row": (lambda: enough_rows(X[:1], 1, DIAG), ("'diag'", "at least 2 rows", "got 1", "more rows")),
    "more components than rows": (
        lambda: enough_rows(X, 11, DIAG),
        ("num_components=11", "at least 11 rows", "got 10", "fewer components"),
    ),
    "a constant column": (
        lambda: enough_rows(with_entry(X, (slice(None), 1), 7.5), 2, FULL),
        ("column 1 of x", "7.5", "drop that column"),
    ),
    "repeated rows": (
        lambda: enough_rows(np.repeat(X[:3], 4, axis=0), 5, DIAG),
        ("num_components=5 needs at least 5 distinct rows; got 3",),
    ),
    "weights of another length": (lambda: as_row_weights(np.ones(9), X), ("row_weights", "(10,)", "(9,)")),
    "weights as a column": (lambda: as_row_weights(np.ones((10, 1)), X), ("row_weights", "(10,)", "(10, 1)")),
    "a negative weight": (
        lambda: as_row_weights(with_entry(np.ones(10), 3, -2.0), X),
        ("row_weights[3]=-2.0", "not negative"),
    ),
    "a weight that is NaN": (
        lambda: as_row_weights(with_entry(np.ones(10), 4, np.nan), X),
        ("row_weights[4]=nan", "finite"),
    ),
    "a seed for a key": (lambda: as_key(3), ("key=3", "jax.random.key(3)")),
    "no key": (lambda: as_key(None), ("key=None", "jax.random.key(0)")),
    "no weight at all": (lambda: as_row_weights(np.zeros(10), X), ("row_weights", "all zero", "positive")),
}


@pytest.mark.parametrize(("call", "parts"), REFUSALS.values(), ids=list(REFUSALS))
def test_a_refusal_is_one_line_with_argument_value_and_cure(call, parts):
    with pytest.raises(InputError) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("given_dtype", "kept_dtype"),
    [("float32", "float32"), ("float64", "float64"), ("float16", "float32"), ("int32", "float64"), ("bool", "float64")],
)
def test_rows_keep_their_precision_and_whole_numbers_become_float64(given_dtype, kept_dtype):
    rows = as_rows(np.array([[0, 1], [1, 0]], given_dtype))
    assert rows.dtype == kept_dtype
    np.testing.assert_array_equal(rows, [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    "x",
    [X, X.tolist(), pd.DataFrame(X), jnp.asarray(X, jnp.float32)],
    ids=["numpy", "list", "pandas", "jax"],
)
def test_rows_of_any_kind(x):
    assert as_rows(x).shape == X.shape
    np.testing.assert_allclose(as_rows(x), X, rtol=1e-6)


def test_one_dimension_is_one_column():
    assert as_rows(np.arange(4.0)).shape == (4, 1)
    assert as_rows(pd.Series(np.arange(4.0))).shape == (4, 1)


@given(arrays.arrays(np.float64, (3, 2)))
def test_what_passes_is_finite(x):
    """Any floating-point numbers: they come back as they are, or they are refused."""
    if np.isfinite(x).all():
        np.testing.assert_array_equal(as_rows(x), x)
    else:
        with pytest.raises(InputError, match="NaN or infinite"):
            as_rows(x)


@given(weights=arrays.arrays(np.float64, 10, elements=st.floats(0.0, 1e30)))
def test_weights_that_pass_are_usable(weights):
    if weights.any():
        np.testing.assert_array_equal(as_row_weights(weights, X), weights)
    else:
        with pytest.raises(InputError, match="all zero"):
            as_row_weights(weights, X)


def test_weights_have_the_precision_of_the_rows():
    assert as_row_weights(None, X).dtype == np.float64
    assert as_row_weights(None, X.astype(np.float32)).dtype == np.float32
    assert as_row_weights([1] * 10, X.astype(np.float32)).dtype == np.float32


def test_as_many_components_as_distinct_rows_pass():
    enough_rows(X, 10, DIAG)
    inspect.unwrap(enough_rows)(X, np.int64(3), FULL)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_keys_of_both_kinds_pass(make):
    key = make(0)
    assert as_key(key) is key


def test_values_being_traced_pass():
    @jax.jit
    def checked(x, row_weights):
        enough_rows(x, 2, FULL)
        return as_rows(x), as_row_weights(row_weights, x), as_rows(x[:, 0])

    rows, weights, column = checked(jnp.full((3, 2), jnp.nan), -jnp.ones(3))
    assert (rows.shape, weights.shape, column.shape) == ((3, 2), (3,), (3, 1))
