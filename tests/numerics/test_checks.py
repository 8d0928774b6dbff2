"""Arguments refused before anything is compiled: one line with the argument, the value and the cure."""

import functools
import inspect

import fits
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import DATA, assert_close
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import ndtr

import bayesgmm
from bayesgmm import plots
from bayesgmm.diagnostics import diagnosis, leave_one_out
from bayesgmm.errors import InputError
from bayesgmm.likelihood.expectation import in_one_precision
from bayesgmm.likelihood.rows import Rows, as_row_weights, as_rows, enough_rows
from bayesgmm.likelihood.scores import row_log_prob, row_summaries
from bayesgmm.mixtures import univariate
from bayesgmm.mixtures.families import FAMILIES, get_family
from bayesgmm.numerics.validation import as_key, as_matrix, check_bool, nonnegative, real_array, whole_number
from bayesgmm.plots import shapes
from bayesgmm.posterior import allocations, chain_agreement, matching
from bayesgmm.priors.conjugate import maximise_posterior

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
    "text": (lambda: as_matrix(np.array([["a", "b"]])), ("x", "<U1", "drop")),
    "complex": (lambda: as_matrix(np.ones((3, 2), complex)), ("x", "complex128", "drop")),
    "three axes": (lambda: as_matrix(np.ones((2, 3, 4))), ("x", "(2, 3, 4)", "(rows, features)")),
    "a scalar": (lambda: as_matrix(3.0), ("x", "()", "(rows, features)")),
    "no rows": (lambda: as_matrix(np.ones((0, 2))), ("x", "(0, 2)", "at least one row")),
    "no columns": (lambda: as_matrix(np.ones((4, 0))), ("x", "(4, 0)", "one column")),
    "NaN": (
        lambda: as_matrix(with_entry(X, (3, 1), np.nan)),
        ("x", "1 of 10 rows", "row 3, column 1", "drop or impute"),
    ),
    "infinity": (lambda: as_matrix(with_entry(X, (4, 0), -np.inf), "y"), ("y", "row 4, column 0", "drop or impute")),
    "no components": (lambda: enough_rows(as_rows(X), 0, FULL), ("num_components=0", "at least 1")),
    "half a component": (
        lambda: inspect.unwrap(enough_rows)(as_rows(X), 2.5, FULL),
        ("num_components=2.5", "whole number"),
    ),
    "a truth value": (lambda: enough_rows(as_rows(X), True, FULL), ("num_components=True", "whole number")),
    "too few rows": (
        lambda: enough_rows(as_rows(X[:2]), 1, FULL),
        ("num_components=1", "'full'", "at least 3 rows", "got 2", "diagonal family"),
    ),
    "a single row": (lambda: enough_rows(as_rows(X[:1]), 1, DIAG), ("'diag'", "at least 2 rows", "got 1", "more rows")),
    "more components than rows": (
        lambda: enough_rows(as_rows(X), 11, DIAG),
        ("num_components=11", "at least 11 rows", "got 10", "fewer components"),
    ),
    "a constant column": (
        lambda: enough_rows(as_rows(with_entry(X, (slice(None), 1), 7.5)), 2, FULL),
        ("column 1 of x", "7.5", "drop that column"),
    ),
    "a column whose squares underflow": (
        lambda: enough_rows(as_rows(X * [1.0, 1e-163]), 2, FULL),
        ("column 1 of x varies by", "e-162 only, whose square is below float64; rescale the column"),
    ),
    "a row whose square overflows": (
        lambda: enough_rows(as_rows(with_entry(X, (3, 1), -1e160)), 2, FULL),
        ("column 1 of x has -1e+160 in row 3", "beyond float64; drop that row, or rescale the column"),
    ),
    "a row whose square overflows, under a ridge": (
        lambda: enough_rows(as_rows(with_entry(X, (3, 1), -1e160)), 2, FULL, ridged=True),
        ("column 1 of x has -1e+160 in row 3",),
    ),
    "a row whose square overflows in float32": (
        lambda: enough_rows(as_rows(with_entry(X, (3, 1), 1e20).astype(np.float32)), 2, FULL),
        ("column 1 of x has 1e+20 in row 3", "beyond float32", "or give float64"),
    ),
    "repeated rows": (
        lambda: enough_rows(as_rows(np.repeat(X[:3], 4, axis=0)), 5, DIAG),
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
    "several keys": (lambda: as_key(jax.random.split(jax.random.key(0), 3)), ("key has shape (3,)", "key[0]")),
    "several old keys": (lambda: as_key(jax.random.split(jax.random.PRNGKey(0), 3)), ("key has shape (3,)", "key[0]")),
    "rows of different lengths": (lambda: as_matrix([[1, 2], [3]]), ("x (list)", "same length")),
    "masked rows": (lambda: as_matrix(np.ma.masked_greater(X, 50)), ("x is a masked array with 6", "drop", ".filled(")),
    "masked weights": (lambda: as_row_weights(np.ma.masked_less(np.ones(10), 2), X), ("row_weights", "10 masked")),
    "masked rows in a list": (
        lambda: as_matrix([np.ma.masked_greater(row, 50) for row in X]),
        ("x is a list of masked arrays with 6", "drop those rows"),
    ),
    "nothing": (lambda: as_matrix(None), ("x must hold real numbers", "None")),
    "a table with text": (
        lambda: as_matrix(pd.DataFrame({"a": [1.0, 2.0], "b": ["u", "v"]})),
        ("x must hold real numbers", "column 'b'", "drop it"),
    ),
    "a table with a missing value": (
        lambda: as_matrix(pd.DataFrame({"a": [1, 2], "b": pd.array([3, None], "Int64")})),
        ("row 1, column 1 'b'", "drop or impute"),
    ),
    "whole numbers beyond float64": (
        lambda: as_matrix(X.astype(np.int64) + 2**60),
        ("x has whole numbers up to 1152921504606847", "beyond 2**53", "subtract their mean"),
    ),
    "negative whole numbers beyond float64": (lambda: TWO.log_prob(np.array([[-(2**62), 0]])), ("beyond 2**53",)),
    "a mixture of big-endian arrays": (
        lambda: bayesgmm.entropy(jax.tree.map(lambda leaf: np.asarray(leaf).astype(">f8"), TWO), key=KEY),
        (
            "mixture.log_weights",
            "must be an array of floating-point numbers, float32 or float64, not >f8",
            "from_covariances",
        ),
    ),
    "weights of text": (lambda: as_row_weights(["a"] * 10, X), ("row_weights must hold real numbers", "<U1")),
    "complex weights": (lambda: as_row_weights(np.ones(10) + 1j, X), ("row_weights must hold real", "complex128")),
    "weights beyond float32": (
        lambda: as_row_weights(np.full(10, 1e60), X.astype(np.float32)),
        ("row_weights add up to 1e+61", "float32", "multiply them by a constant"),
    ),
    "weights below float32": (lambda: as_row_weights(np.full(10, 1e-40), X.astype(np.float32)), ("1e-39", "float32")),
    "weights without a sum": (lambda: as_row_weights(np.full(10, 1e308), X), ("row_weights add up to inf", "float64")),
    "few rows that count": (
        lambda: enough_rows(as_rows(X, np.arange(10) < 3), 5, FULL),
        ("num_components=5", "at least 5 rows of positive weight", "got 3"),
    ),
    "few distinct rows that count": (
        lambda: enough_rows(as_rows(np.repeat(X[:5], 2, axis=0), np.arange(10) < 8), 5, DIAG),
        ("num_components=5 needs at least 5 distinct rows of positive weight; got 4",),
    ),
    "a column constant where it counts": (
        lambda: enough_rows(as_rows(with_entry(X, (slice(4), 1), 7.5), np.arange(10) < 4), 2, FULL),
        ("column 1 of x", "7.5"),
    ),
    "fewer rows than components, with a prior": (
        lambda: enough_rows(as_rows(X[:2]), 3, FULL, bounded=True),
        ("num_components=3", "at least 3 rows"),
    ),
    "an unknown family": (lambda: get_family("fll"), ("family='fll'", "full, tied, diag, spherical")),
    "a list for a family": (lambda: inspect.unwrap(get_family)(["full"]), ("family=['full']", "full, tied, diag")),
    "no weight at all": (lambda: as_row_weights(np.zeros(10), X), ("row_weights", "all zero", "positive")),
}


WHOLE = (2.5, "3", None, True, 0, [2])
NOT_NEGATIVE = (-1.0, np.nan, np.inf, True, "a", 1j, [1e-3] * 3)
REFUSALS |= {f"a count of {value!r}": (lambda value=value: whole_number("num", value), ("num=",)) for value in WHOLE}
REFUSALS |= {
    f"a number of {value!r}": (lambda value=value: nonnegative("tol", value), ("tol",))
    for value in (*NOT_NEGATIVE, None, [1e-3])
}

TWO = bayesgmm.Mixture.from_covariances(np.full(2, 0.5), np.array([[0.0, 0.0], [1.0, 1.0]]), np.stack([np.eye(2)] * 2))
KEY = jax.random.key(0)
PRIOR_OF_THREE = bayesgmm.conjugate_prior(X, 3)
NO_MIXTURE = {
    "entropy": lambda value: inspect.unwrap(bayesgmm.entropy)(value, key=KEY),
    "hdr_level": lambda value: inspect.unwrap(bayesgmm.hdr_level)(value, 0.5, key=KEY),
    "kl_divergence": lambda value: inspect.unwrap(bayesgmm.kl_divergence)(value, TWO, key=KEY),
    "cdf": lambda value: inspect.unwrap(univariate.check_univariate)(value),
    "match_labels": lambda value: inspect.unwrap(matching.check_reference)(TWO, value),
    "relabel_draws": lambda value: inspect.unwrap(allocations.flat_draws)(value),
    "invariants": lambda value: inspect.unwrap(chain_agreement._check_draws)(value),
    "log_likelihood": lambda value: inspect.unwrap(in_one_precision)(value, X),
    "log_prior": lambda value: inspect.unwrap(bayesgmm.log_prior)(value, "full", PRIOR_OF_THREE),
}
REFUSALS |= {
    f"{value} for the mixture of {name}": (lambda use=use, value=value: use(value), ("is not a Mixture", "mixture"))
    for name, use in NO_MIXTURE.items()
    for value in ("text", fits.em("galaxies", 2))
}
REFUSALS |= {
    "rows for a fit": (lambda: inspect.unwrap(bayesgmm.information_criteria)(X, X), ("fit=", "is not a Fit")),
    "rows for a fit to diagnose": (lambda: inspect.unwrap(diagnosis._check)(X, X, None), ("fit=", "is not a Fit")),
    "a number for a tree": (
        lambda: inspect.unwrap(leave_one_out.num_draws)(3),
        ("tree", "DataTree of to_datatree", "int"),
    ),
    "rows less than none": (lambda: TWO.sample(-1, key=KEY), ("num_rows=-1", "at least 0")),
    "half a row": (lambda: inspect.unwrap(bayesgmm.Mixture.sample)(TWO, 1.5, key=KEY), ("num_rows=1.5", "whole")),
    "a seed for the key of a sample": (lambda: TWO.sample(3, key=0), ("key=0", "jax.random.key(0)")),
    "an order of more components": (lambda: TWO.permute([0, 1, 2]), ("order=[0, 1, 2]", "0 to 1 once")),
    "an order with a component twice": (lambda: TWO.permute([0, 0]), ("order=[0, 0]", "0 to 1 once")),
    "covariances of other features": (
        lambda: bayesgmm.Mixture.from_covariances(np.full(2, 0.5), np.eye(2), np.stack([np.eye(3)] * 2)),
        ("covariances", "(2,), (2, 2) and (2, 3, 3)"),
    ),
    "weights of other components": (
        lambda: bayesgmm.Mixture.from_covariances(np.full(3, 1 / 3), np.eye(2), np.stack([np.eye(2)] * 2)),
        ("weights", "(3,), (2, 2)"),
    ),
    "a prior of another k": (
        lambda: bayesgmm.log_prior(TWO, "full", PRIOR_OF_THREE),
        ("prior is for k=3", "num_components=2"),
    ),
    "a prior of another k in an M-step": (
        lambda: maximise_posterior(bayesgmm.expected_moments(TWO, X), "full", PRIOR_OF_THREE),
        ("prior is for k=3", "num_components=2"),
    ),
    "draws of one mixture": (
        lambda: chain_agreement.invariants(TWO, X),
        ("draws have leading axes ()", "(chain, draw)"),
    ),
    "a word for draws in a plot": (
        lambda: inspect.unwrap(plots.plot_posterior_ellipses)(
            jax.tree.map(lambda leaf: np.stack([leaf] * 3), TWO), X, point=TWO, num_draws="a"
        ),
        ("num_draws='a'", "whole number"),
    ),
    "half a draw in a plot": (
        lambda: inspect.unwrap(plots.plot_prior_predictive)(PRIOR_OF_THREE, X, key=KEY, num_draws=2.5),
        ("num_draws=2.5", "whole number"),
    ),
    "words for levels": (lambda: inspect.unwrap(shapes.check_levels)(("a",)), ("levels=('a',)", "between 0 and 1")),
    "one number for levels": (lambda: inspect.unwrap(shapes.check_levels)(0.5), ("levels=0.5", "(0.5, 0.9)")),
    "a number for a table": (lambda: inspect.unwrap(plots.plot_criteria)(3), ("table=3", "DataFrame")),
}
REFUSALS["a word for a truth value"] = (lambda: check_bool("accelerate", "yes"), ("accelerate='yes'", "True or False"))


def masked(values):
    """The values with the first one masked."""
    values = np.asarray(values)
    return np.ma.array(values, mask=np.arange(values.size).reshape(values.shape) == 0)


ONE = bayesgmm.Mixture.from_covariances([1.0], [[0.0]], [[1.0]])
COLUMN = np.arange(10.0)[:, None]
LABELS = np.arange(10) % 2
MASKED = {
    "rows of an estimator": lambda: bayesgmm.GaussianMixture(1).fit(masked(X)),
    "listed rows of an estimator": lambda: bayesgmm.BayesianGaussianMixture().fit([masked(X[0]), *X[1:]]),
    "sample_weight": lambda: bayesgmm.GaussianMixture(1).fit(X, sample_weight=masked(np.ones(10))),
    "weights_init": lambda: bayesgmm.GaussianMixture(1, weights_init=masked([1.0])).fit(X),
    "means_init": lambda: bayesgmm.GaussianMixture(1, means_init=[masked([1.0, 2.0])]).fit(X),
    "precisions_init": lambda: bayesgmm.GaussianMixture(1, precisions_init=masked([np.eye(2)])).fit(X),
    "mean_prior": lambda: bayesgmm.BayesianGaussianMixture(mean_prior=masked([0.0, 0.0])).fit(X),
    "covariance_prior": lambda: bayesgmm.BayesianGaussianMixture(covariance_prior=masked(np.eye(2))).fit(X),
    "labels of a start": lambda: bayesgmm.fit_em(COLUMN, 2, start=masked(LABELS)),
    "responsibilities of a start": lambda: bayesgmm.fit_em(COLUMN, 2, start=masked(np.eye(2)[LABELS])),
    "means of a start": lambda: bayesgmm.fit_em(COLUMN, 2, start={"means": masked([[1.0], [2.0]])}),
    "rows of a density": lambda: ONE.log_prob([masked([0.0])]),
    "rows of a likelihood": lambda: bayesgmm.log_likelihood(ONE, [masked([0.0])]),
    "fields of a mixture": lambda: bayesgmm.Mixture(masked([0.0]), ONE.means, ONE.precision_factor).log_prob(COLUMN),
    "scale of a prior": lambda: bayesgmm.conjugate_prior(X, 1, scale=masked(np.eye(2))),
    "partitions": lambda: bayesgmm.binder_loss(masked(LABELS), LABELS),
    "other partitions": lambda: bayesgmm.variation_of_information(LABELS, masked(LABELS)),
}


@pytest.mark.parametrize("call", MASKED.values(), ids=list(MASKED))
def test_masks_are_not_dropped(call):
    with pytest.raises(InputError, match=r"masked arrays? with 1 masked value and would count without its mask; drop"):
        call()


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
    rows = as_matrix(np.array([[0, 1], [1, 0]], given_dtype))
    assert rows.dtype == kept_dtype
    np.testing.assert_array_equal(rows, [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    "x",
    [X, X.tolist(), pd.DataFrame(X), jnp.asarray(X, jnp.float32)],
    ids=["numpy", "list", "pandas", "jax"],
)
def test_rows_of_any_kind(x):
    assert as_matrix(x).shape == X.shape
    np.testing.assert_allclose(as_matrix(x), X, rtol=1e-6)


def test_one_dimension_is_one_column():
    assert as_matrix(np.arange(4.0)).shape == (4, 1)
    assert as_matrix(pd.Series(np.arange(4.0))).shape == (4, 1)


@given(arrays.arrays(np.float64, (3, 2)))
def test_what_passes_is_finite(x):
    """Any floating-point numbers: they come back as they are, or they are refused."""
    if np.isfinite(x).all():
        np.testing.assert_array_equal(as_matrix(x), x)
    else:
        with pytest.raises(InputError, match="NaN or infinite"):
            as_matrix(x)


@given(weights=arrays.arrays(np.float64, 10, elements=st.floats(0.0, 1e30)))
def test_weights_that_pass_are_usable(weights):
    if weights.sum() > 2e-154:
        np.testing.assert_array_equal(as_row_weights(weights, X), weights)
    elif not weights.sum() > 0:
        with pytest.raises(InputError, match="all zero"):
            as_row_weights(weights, X)


def test_weights_have_the_precision_of_the_rows():
    assert as_row_weights(None, X).dtype == np.float64
    assert as_row_weights(None, X.astype(np.float32)).dtype == np.float32
    assert as_row_weights([1] * 10, X.astype(np.float32)).dtype == np.float32


def test_as_many_components_as_distinct_rows_pass():
    enough_rows(as_rows(X), 10, DIAG)
    inspect.unwrap(enough_rows)(as_rows(X), np.int64(3), FULL)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_keys_of_both_kinds_pass(make):
    key = make(0)
    assert as_key(key) is key


def test_values_being_traced_pass():
    @jax.jit
    def checked(x, row_weights):
        enough_rows(as_rows(x), 2, FULL)
        return as_matrix(x), as_row_weights(row_weights, x), as_matrix(x[:, 0])

    rows, weights, column = checked(jnp.full((3, 2), jnp.nan), -jnp.ones(3))
    assert (rows.shape, weights.shape, column.shape) == ((3, 2), (3,), (3, 1))


def test_shapes_and_types_being_traced_are_checked():
    """A shape is known under the caller's own `jit`; only values are not."""
    rows, ones = jax.ShapeDtypeStruct((8, 2), np.float32), jax.ShapeDtypeStruct((3,), np.float32)
    refused = {
        r"\(8, 2, 2\)": (as_matrix, jax.ShapeDtypeStruct((8, 2, 2), np.float32)),
        "complex64": (as_matrix, jax.ShapeDtypeStruct((8, 2), np.complex64)),
        r"\(0, 2\)": (as_matrix, jax.ShapeDtypeStruct((0, 2), np.float32)),
        "at least 9 rows": (lambda x: enough_rows(as_rows(x), 9, DIAG), rows),
        r"\(8,\).*\(3,\)": (as_row_weights, ones, rows),
        r"reg_covar has shape \(3,\)": (lambda value: nonnegative("reg_covar", value, (2,)), ones),
    }
    for message, (check, *arguments) in refused.items():
        with pytest.raises(InputError, match=message):
            jax.eval_shape(check, *arguments)
    assert jax.eval_shape(as_matrix, jax.ShapeDtypeStruct((8,), np.int32)).dtype == np.float32


def test_numbers_that_pass_have_the_precision_asked_for():
    assert nonnegative("tol", 0).dtype == np.float64
    assert nonnegative("tol", jnp.float32(0.1), (), np.float32).dtype == np.float32
    np.testing.assert_array_equal(nonnegative("reg_covar", [1, 0], (2,)), [1.0, 0.0])
    assert [type(whole_number("num", value)) for value in (3, np.int64(3))] == [int, int]
    assert check_bool("accelerate", np.True_) is True


def test_tables_with_nullable_columns_are_rows():
    table = pd.DataFrame({"a": pd.array([1, 2], "Int64"), "b": [True, False], "c": pd.array([0.5, 1.5], "Float64")})
    np.testing.assert_array_equal(as_matrix(table), [[1.0, 1.0, 0.5], [2.0, 0.0, 1.5]])
    np.testing.assert_array_equal(as_row_weights(table["a"], X[:2]), [1.0, 2.0])


def test_rows_of_no_weight_are_replaced_by_one_that_counts():
    used = np.array([False] * 3 + [True] * 7)
    rows = Rows(with_entry(X, 1, 1e200), used.astype(float)).of_positive_weight()
    np.testing.assert_array_equal(jax.tree.leaves(rows)[0], np.concatenate([X[[3, 3, 3]], X[3:]]))
    whole = Rows(X, np.ones(10))
    assert whole.of_positive_weight() is whole


def test_few_rows_pass_where_a_prior_bounds_the_likelihood():
    enough_rows(as_rows(np.random.default_rng(0).normal(size=(8, 10))), 1, FULL, bounded=True)


# What is called with rows of too few features.
MIXTURE = bayesgmm.Mixture.from_covariances(np.full(2, 0.5), X[[1, 7]], np.stack([np.diag([9.0, 9.0])] * 2))
ONE_FEATURE = X[:, :1]
OF_ROWS = {
    "log_likelihood": bayesgmm.log_likelihood,
    "expected_moments": bayesgmm.expected_moments,
    "row_log_prob": row_log_prob,
    "row_summaries": row_summaries,
    "log_prob": bayesgmm.Mixture.log_prob,
    "bic": lambda mixture, x: bayesgmm.bic(fit_of(mixture), x),
    "pointwise_log_likelihood": lambda mixture, x: bayesgmm.pointwise_log_likelihood(
        jax.tree.map(lambda leaf: leaf[None], mixture), x
    ),
}


def fit_of(mixture):
    return bayesgmm.Fit("em", "full", mixture, np.float64(0), np.int32(0), np.int32(0), np.zeros(1))


@pytest.mark.parametrize("score", OF_ROWS.values(), ids=list(OF_ROWS))
def test_rows_of_other_features_than_the_mixtures_are_refused(score):
    message = r"x must have shape \(rows, 2\) like the means; got \(10, 1\)"
    with pytest.raises(InputError, match=message):
        score(MIXTURE, ONE_FEATURE)


@pytest.mark.parametrize("score", [bayesgmm.log_likelihood, bayesgmm.expected_moments, row_log_prob, row_summaries])
def test_shapes_that_do_not_match_are_refused_under_tracing_too(score):
    with pytest.raises(InputError, match=r"got \(10, 1\)"):
        jax.eval_shape(functools.partial(score, MIXTURE), jax.ShapeDtypeStruct((10, 1), np.float32))
    with pytest.raises(InputError, match=r"mixture has leading axes \(1,\)"):
        score(jax.tree.map(lambda leaf: leaf[None], MIXTURE), X)
    if score in (bayesgmm.log_likelihood, bayesgmm.expected_moments):
        with pytest.raises(InputError, match=r"row_weights must have shape \(10,\).*got \(3,\)"):
            score(MIXTURE, X, np.ones(3))


def test_whole_rows_keep_fractions_of_their_weights():
    whole = X.round().astype(int)
    half = bayesgmm.log_likelihood(MIXTURE, whole, np.full(10, 0.5))
    assert half.dtype == np.float64
    assert half == pytest.approx(0.5 * MIXTURE.log_prob(whole).sum(), rel=1e-12)
    inside = jax.jit(lambda x: bayesgmm.log_likelihood(MIXTURE, x, 0.5 * jnp.ones(10)))(whole)
    assert inside == pytest.approx(half, rel=1e-5)


def test_rows_and_mixture_are_computed_in_the_wider_precision():
    narrow = jax.tree.map(lambda leaf: leaf.astype(np.float32), MIXTURE)
    wide = bayesgmm.log_likelihood(MIXTURE, X)
    assert bayesgmm.log_likelihood(narrow, X) == pytest.approx(wide, rel=1e-6)
    assert bayesgmm.log_likelihood(narrow, X).dtype == np.float64
    assert bayesgmm.log_likelihood(MIXTURE, X.astype(np.float32)).dtype == np.float64
    widened = jax.tree.map(lambda leaf: leaf.astype(np.float64), narrow)
    draws, of_draws = (jax.tree.map(lambda leaf: leaf[None], one) for one in (narrow, widened))
    for name in ("log_prob", "joint_log_prob", "responsibilities", "predict"):
        method = getattr(bayesgmm.Mixture, name)
        np.testing.assert_array_equal(method(narrow, X), method(widened, X))
        np.testing.assert_array_equal(method(draws, X), method(of_draws, X))
        assert name == "predict" or method(narrow, X).dtype == method(draws, X).dtype == np.float64


def test_a_row_of_no_weight_does_not_spoil_the_criteria():
    weights = np.array([0.0] + [1.0] * 9)
    found = bayesgmm.information_criteria(fit_of(MIXTURE), with_entry(X, 0, 1e200), weights)
    assert found == bayesgmm.information_criteria(fit_of(MIXTURE), X, weights)


@pytest.mark.parametrize("name", ["full", "VVV"])
def test_a_family_may_be_given_by_name(name):
    moments = bayesgmm.expected_moments(TWO, X, family=name)
    assert_close(moments, bayesgmm.expected_moments(TWO, X, family=FULL), 0.0)
    prior = bayesgmm.conjugate_prior(X, 2, concentration=2.0)
    assert_close(maximise_posterior(moments, name, prior), maximise_posterior(moments, FULL, prior), 0.0)
    assert bayesgmm.log_prior(TWO, name, prior) == bayesgmm.log_prior(TWO, FULL, prior)


def test_weighted_rows_are_refused_where_every_row_counts_once(key):
    x = DATA["galaxies"]
    rows = Rows(x, np.full(len(x), 2.0))
    engines = (bayesgmm.fit_map, bayesgmm.fit_vi, bayesgmm.fit_gibbs, bayesgmm.fit_nuts)
    fit = fits.em("galaxies", 2)
    uses = [functools.partial(use, num_components=2, key=key) for use in engines]
    for use in (*uses, functools.partial(bayesgmm.diagnose, fit)):
        with pytest.raises(bayesgmm.InputError, match="x has rows of weights other than 1"):
            use(rows)


@pytest.mark.parametrize("dtype", [">f8", np.longdouble, ">f4", ">i4"])
def test_foreign_byte_orders_and_wide_floats_are_taken_as_what_they_say(dtype):
    """FITS files are big-endian: their bytes read in another order are other numbers, and JAX takes neither."""
    foreign = np.arange(12).reshape(6, 2).astype(dtype)
    native = np.arange(12.0).reshape(6, 2)
    for found in (real_array(foreign, "x"), as_matrix(foreign)):
        assert found.dtype.isnative
        assert found.dtype.itemsize <= 8
        np.testing.assert_array_equal(found, native)
    one = bayesgmm.Mixture.from_covariances(*(np.asarray(part).astype(dtype) for part in ([1], [[3]], [[4]])))
    assert one.means.dtype == (np.float32 if dtype == ">f4" else np.float64)
    np.testing.assert_allclose(bayesgmm.cdf(one, foreign[:, 0]), ndtr((native[:, 0] - 3) / 2), rtol=1e-6)
    moved = TWO.condition([0], foreign[:1, 0])
    np.testing.assert_allclose(moved.means, TWO.condition([0], native[:1, 0]).means)
