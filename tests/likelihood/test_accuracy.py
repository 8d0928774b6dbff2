r"""Digits: the density and one EM step held to 50-digit references, in both precisions, for few rows and for many.

The tolerances are promises to users. A log-density is within 1e-9 (float64) or 1e-4 (float32) of the exact value at
the stored parameters, times max(1, |value|). After one EM step covariances are within 1e-7 or 1e-3, an entry $S_{ab}$
being measured in units of $\sqrt{S_{aa} S_{bb}}$, so that narrow columns count as much as wide ones.

Data far from the origin ask for no exception. Rows and means are stored there with a coarse rounding, but the stored
numbers are the truth, and their differences are exact or nearly so. Of what comes out only the means pay: a mean
cannot be stored better than half a unit in its last place, which at 1e8 spreads from the origin is 1e-8 of the spread.
So means are allowed that rounding beside the tolerance. Covariances are not: they come from differences formed
before the new mean is rounded, and even about the rounded mean they would move only by the square of 1e-8.
"""

import contextlib
import warnings
import zlib

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hard_cases import CASES, Reference, exact, hard_case, make, random_recipe, reference_em_step, reference_log_prob
from scipy import special
from sklearn.mixture import GaussianMixture

from bayesgmm.engines.em import fit_em
from bayesgmm.likelihood import expectation as moments
from bayesgmm.likelihood import scores as likelihood
from bayesgmm.likelihood.moments import maximise
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.mixture import Mixture

LOG_PROB = {"float64": 1e-9, "float32": 1e-4}
PARAMETERS = {"float64": 1e-7, "float32": 1e-3}
LARGE = 2_000_000  # rows x components x features: more than any formulation needs to pay

each_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])
each_size = pytest.mark.parametrize("size", ["few", "many"])
each_problem = pytest.mark.parametrize(
    ("name", "family", "dtype"),
    [
        pytest.param(name, family, dtype, id=f"{name}-{family}-{dtype}".replace(" ", "_"))
        for name, recipes in CASES.items()
        for dtype, recipe in zip(LOG_PROB, recipes, strict=True)
        for family in recipe.families
    ],
)


def many(num_rows, num_components, num_features):
    """Indices that repeat every row equally often, in random order, until the problem is a large one."""
    times = -(-LARGE // (num_rows * num_components * num_features))
    return np.random.default_rng(0).permutation(np.tile(np.arange(num_rows), times))


def rows_of(problem, size):
    num_rows = len(problem.x)
    return np.arange(num_rows) if size == "few" else many(num_rows, *problem.mixture.means.shape)


def assert_log_prob(actual, reference, tolerance):
    """Rows against rows, or a total against the total of its rows with the sum of their tolerances."""
    reference = reference.astype(np.float64)
    allowed = tolerance * np.maximum(1.0, np.abs(reference))
    if np.ndim(actual) == 0:
        reference, allowed = reference.sum(), allowed.sum()
    assert_within(actual, reference, allowed, "log-density")


def assert_parameters(mixture: Mixture, reference: Reference, dtype):
    tolerance = PARAMETERS[dtype]
    variances = np.diagonal(reference.covariances, axis1=1, axis2=2).astype(np.float64)
    scales = np.sqrt(variances)
    rounding = np.finfo(dtype).eps * np.abs(reference.means.astype(np.float64))
    units = scales[:, :, None] * scales[:, None, :]
    assert mixture.means.dtype == dtype
    assert_within(mixture.weights, reference.weights, tolerance * reference.weights.astype(np.float64), "weights")
    assert_within(mixture.means, reference.means, tolerance * scales + rounding, "means")
    assert_within(mixture.covariances, reference.covariances, tolerance * units, "covariances")


def assert_within(actual, reference, allowed, what):
    """Differences are taken exactly: far from the origin their rounding would be all there is to see."""
    with mpmath.workdps(50):
        error = np.abs(np.asarray(exact(actual) - reference, dtype=np.float64))
    worst = np.nanmax(np.where(np.isfinite(error), error / allowed, np.inf))
    assert worst <= 1.0, f"{what}: the largest error is {worst:.3g} times what is allowed"


def em_step(mixture, x, family, row_weights=None):
    """One EM iteration without a ridge."""
    with jax.enable_x64(True) if x.dtype == np.float64 else contextlib.nullcontext():
        weights = np.ones(len(x), x.dtype) if row_weights is None else np.asarray(row_weights, x.dtype)
        prepared = moments.prepare(mixture, Rows(jnp.asarray(x), jnp.asarray(weights)), family)
    sums = moments.expected_moments(mixture, x, row_weights, family=family, prepared=prepared)
    with jax.enable_x64(True) if x.dtype == np.float64 else contextlib.nullcontext():
        mixture = maximise(sums, family, jnp.zeros(x.shape[1], x.dtype))
        return jax.tree.map(np.asarray, mixture)


@each_size
@each_problem
def test_log_density(name, family, dtype, size):
    problem = hard_case(name, family, dtype)
    index = rows_of(problem, size)
    x, reference = problem.x[index], problem.reference.log_prob
    tolerance = LOG_PROB[dtype]
    for log_prob in (Mixture.log_prob, likelihood.row_log_prob):
        actual = log_prob(problem.mixture, x)
        assert actual.dtype == dtype
        # Of equal rows the one that came out worst.
        order = np.argsort(index, kind="stable")
        equal = np.asarray(actual)[order].reshape(len(reference), -1)
        for extreme in (equal.min(1), equal.max(1)):
            assert_log_prob(extreme, reference, tolerance)
    total = likelihood.log_likelihood(problem.mixture, x)
    assert_log_prob(np.asarray(total, np.float64) / (len(x) / len(reference)), reference, tolerance)


@each_size
@each_problem
def test_one_em_step(name, family, dtype, size):
    problem = hard_case(name, family, dtype)
    x = problem.x[rows_of(problem, size)]
    assert_parameters(em_step(problem.mixture, x, problem.family), problem.reference, dtype)


@pytest.mark.parametrize("family", ["tied", "diag"])
@each_dtype
def test_one_step_of_a_fit(family, dtype):
    """The same digits by way of the public function."""
    problem = hard_case("far from the origin", family, dtype)
    options = {"start": problem.mixture, "reg_covar": 0.0, "max_steps": 1, "on_failure": "ignore"}
    fit = fit_em(problem.x, problem.mixture.num_components, family=family, **options)
    assert fit.num_steps == 1
    assert_parameters(fit.mixture, problem.reference, dtype)


@pytest.mark.parametrize("family", ["full", "tied", "diag"])
@each_dtype
def test_rows_in_an_unlucky_order(family, dtype):
    """Rows with a period: every 240th, and so any even sample of a thousand of these, is the same row."""
    problem = hard_case("one narrow component", family, dtype)
    x = np.tile(problem.x, (4096, 1))
    assert len({tuple(row) for row in x[:: len(x) // 1024]}) == 1
    assert_parameters(em_step(problem.mixture, x, problem.family), problem.reference, dtype)
    total = likelihood.log_likelihood(problem.mixture, x)
    assert_log_prob(np.asarray(total, np.float64) / 4096, problem.reference.log_prob, LOG_PROB[dtype])


def check_random_problems(num_problems, family, dtype, size):
    rng = np.random.default_rng(zlib.crc32(f"{family} {dtype}".encode()))
    for number in range(num_problems):
        recipe = random_recipe(dtype, rng)
        problem = make(recipe, FAMILIES[family], dtype, rng)
        num_rows = len(problem.x)
        # Eighths, whose sums over the repeated rows are exact in both precisions.
        row_weights = rng.integers(1, 9, size=num_rows) / 8
        reference = reference_em_step(problem.mixture, problem.x, row_weights, problem.family)
        index = rows_of(problem, size)
        x, weights = problem.x[index], row_weights[index].astype(dtype)
        times = len(x) / num_rows
        allowed = LOG_PROB[dtype] * np.maximum(1.0, np.abs(reference.log_prob.astype(np.float64)))
        try:
            if size == "few":
                assert_log_prob(likelihood.row_log_prob(problem.mixture, x), reference.log_prob, LOG_PROB[dtype])
            total = np.asarray(likelihood.log_likelihood(problem.mixture, x, weights), np.float64) / times
            assert_within(total, row_weights @ reference.log_prob, row_weights @ allowed, "log-likelihood")
            if well_posed(problem, reference):
                assert_parameters(em_step(problem.mixture, x, problem.family, weights), reference, dtype)
        except AssertionError as error:
            error.add_note(f"problem {number}: {recipe}")
            raise


def well_posed(problem, reference):
    """Whether the M-step has an answer in this dtype: covariances that rounding leaves positive definite.

    A component that has hardly a row to itself can have a covariance of lower rank than d, whose Cholesky factor is
    made of rounding with any algorithm; one that has next to no part in any row has sums that underflow.
    """
    covariances = reference.covariances.astype(np.float64)
    scales = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    correlations = covariances / (scales[:, :, None] * scales[:, None, :])
    largest = {np.dtype("float64"): 1e12, np.dtype("float32"): 1e5}[problem.x.dtype]
    smallest = np.finfo(problem.x.dtype).tiny ** 0.5
    return (np.linalg.cond(correlations) < largest).all() and (reference.weights > float(smallest)).all()


# Those that `hard_cases` makes; each has a formulation of its own.
each_family_name = pytest.mark.parametrize("family", ["full", "tied", "diag", "spherical"])


@each_size
@each_dtype
@each_family_name
def test_random_problems(family, dtype, size):
    check_random_problems(6, family, dtype, size)


@pytest.mark.slow
@each_size
@each_dtype
@each_family_name
def test_many_random_problems(family, dtype, size):
    check_random_problems(60, family, dtype, size)


@pytest.mark.parametrize("family", ["tied", "diag"])
def test_float32_covariances_stay_positive_definite_where_raw_moments_do_not(family, rng):
    """Uncentred float32 data: the mean of squares less the square of the mean has no digits left; ours does."""
    num_rows, d, width = 600, 6, 0.05
    centres = 1e3 + np.array([[-1.0], [0.0], [1.0]]) * np.ones(d)
    labels = np.arange(num_rows) % 3
    x = (centres[labels] + width * rng.normal(size=(num_rows, d))).astype(np.float32)
    start = Mixture.from_covariances(
        np.full(3, 1 / 3),
        centres,
        np.full((3, d), 0.01) if family == "diag" else 0.01 * np.eye(d)[None],
    )
    options = {"family": family, "reg_covar": 0.0, "tol": 1e-5, "on_failure": "raise"}
    exact_fit = fit_em(x.astype(np.float64), 3, start=start, **options)
    fit = fit_em(x, 3, start=jax.tree.map(lambda field: field.astype(np.float32), start), **options)
    assert fit.mixture.covariances.dtype == np.float32
    assert (np.linalg.eigvalsh(np.asarray(fit.mixture.covariances, np.float64)) > 0).all()
    np.testing.assert_allclose(
        fit.mixture.covariances, exact_fit.mixture.covariances, rtol=0, atol=1e-2 * exact_fit.mixture.covariances.max()
    )

    assert smallest_eigenvalue_of_raw_moments(x, np.eye(3, dtype=np.float32)[labels], family) < 0
    sklearn = GaussianMixture(
        3, covariance_type=family, reg_covar=0.0, means_init=centres.astype(np.float32), random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="ill-defined"):
            sklearn.fit(x)


def smallest_eigenvalue_of_raw_moments(x, responsibilities, family):
    """Of the covariances that E[x^2] - E[x]^2 gives in the dtype of x."""
    count = responsibilities.sum(0)
    means = responsibilities.T @ x / count[:, None]
    if family == "diag":
        return (responsibilities.T @ (x * x) / count[:, None] - means**2).min()
    covariance = (x.T @ x - (count * means.T) @ means) / count.sum()
    return np.linalg.eigvalsh(covariance.astype(np.float64)).min()


def test_the_cases_are_as_hard_as_they_say():
    for dtype, offset, narrow, condition in (("float64", 1e8, 1e-4, 1e10), ("float32", 1e3, 1e-2, 1e4)):
        far = hard_case("far from the origin", "full", dtype)
        assert (np.abs(far.x.mean(0)) > 0.5 * offset * far.x.std(0)).all()
        thin = hard_case("one narrow component", "full", dtype)
        assert (thin.mixture.scales[0] < narrow * thin.x.std(0)).all()
        ill = hard_case("ill-conditioned", "full", dtype)
        np.testing.assert_allclose(np.linalg.cond(ill.mixture.precision_factor.astype(np.float64)) ** 2, condition, 0.1)
        units = hard_case("mixed units", "full", dtype).x.std(0)
        assert units.max() / units.min() > 1e15
        tail = hard_case("far in the tail", "full", dtype)
        assert tail.reference.log_prob.min() < -1e6
        light = hard_case("weight near zero", "full", dtype)
        assert light.mixture.weights.min() == pytest.approx(1e-12, rel=1e-5)
        assert hard_case("64 features", "full", dtype).mixture.num_features == 64


@each_family_name
def test_the_reference_agrees_with_numpy_where_nothing_is_hard(family):
    """So that the oracle itself is held to something: on the ordinary case float64 has digits to spare."""
    problem = hard_case("ordinary", family, "float64")
    mixture, x = problem.mixture, problem.x
    factor = mixture.precision_factor
    factor = factor[:, :, None] * np.eye(4) if mixture.is_diagonal else factor
    whitened = np.einsum("jab,jnb->jna", np.broadcast_to(factor, (3, 4, 4)), x - mixture.means[:, None])
    constant = mixture.log_weights + np.log(np.linalg.det(factor)) - 2 * np.log(2 * np.pi)
    joint = constant[:, None] - 0.5 * np.square(whitened).sum(2)
    log_prob = special.logsumexp(joint, axis=0)
    np.testing.assert_allclose(problem.reference.log_prob.astype(np.float64), log_prob, rtol=1e-13)
    np.testing.assert_array_equal(problem.reference.log_prob, reference_log_prob(mixture, x))

    row_weights = np.arange(1.0, len(x) + 1.0)
    reference = reference_em_step(mixture, x, row_weights, problem.family)
    shares = np.exp(joint - log_prob) * row_weights
    covariances = np.stack([np.cov(x.T, aweights=share, ddof=0) for share in shares])
    np.testing.assert_allclose(reference.means.astype(np.float64), shares @ x / shares.sum(1)[:, None], rtol=1e-12)
    np.testing.assert_allclose(reference.weights.astype(np.float64), shares.sum(1) / row_weights.sum(), rtol=1e-12)
    if problem.family.shared:
        covariances = np.tile(np.average(covariances, axis=0, weights=shares.sum(1)), (3, 1, 1))
    if problem.family.diagonal:
        variances = np.diagonal(covariances, axis1=1, axis2=2)
        variances = variances.mean(1, keepdims=True) if family == "spherical" else variances
        covariances = variances[:, :, None] * np.eye(4)
    np.testing.assert_allclose(reference.covariances.astype(np.float64), covariances, rtol=1e-11, atol=1e-13)
