"""Marginal and conditional mixtures, held to dense formulas, to quadrature and to the laws of probability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_close,
    each_factor_shape,
    each_representation,
    random_case,
    random_draws,
    to_float32,
    to_jax,
)
from scipy import integrate, special, stats

from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.mixture import Mixture

pytestmark = pytest.mark.usefixtures("strict")

K, D = 3, 5
each_choice = pytest.mark.parametrize("columns", [(4,), (3, 1), (4, 2, 0, 1)], ids=str)


def others(columns):
    return [column for column in range(D) if column not in columns]


def dense_condition(case, columns, value):
    """Weights, means and covariances of the other features given one value, by the textbook's formulas."""
    given, rest = list(columns), others(columns)
    log_weights, means, covariances = [], [], []
    for weight, mean, covariance in zip(case.weights, case.means, case.covariances, strict=True):
        within, across = covariance[np.ix_(given, given)], covariance[np.ix_(rest, given)]
        log_weights.append(np.log(weight) + stats.multivariate_normal(mean[given], within).logpdf(value))
        means.append(mean[rest] + across @ np.linalg.solve(within, value - mean[given]))
        covariances.append(covariance[np.ix_(rest, rest)] - across @ np.linalg.solve(within, across.T))
    weights = np.exp(log_weights - special.logsumexp(log_weights))
    return weights, np.array(means), np.array(covariances)


@each_factor_shape
@each_choice
def test_marginals_agree_with_dense_formulas(family, columns, rng):
    case = random_case(family, K, D, rng)
    found, chosen = case.mixture.marginal(columns), list(columns)
    assert_close(found.weights, case.weights, 1e-14)
    assert_close(found.means, case.means[:, chosen], 1e-15)
    assert_close(found.covariances, case.covariances[:, chosen][:, :, chosen], 1e-13)
    assert found.is_diagonal == family.diagonal
    assert found.precision_factor.shape[0] == (1 if family.shared else K)
    x = case.rows(20, rng)[:, chosen]
    joint = [
        np.log(weight) + stats.multivariate_normal(mean[chosen], covariance[np.ix_(chosen, chosen)]).logpdf(x)
        for weight, mean, covariance in zip(case.weights, case.means, case.covariances, strict=True)
    ]
    np.testing.assert_allclose(found.log_prob(x), special.logsumexp(joint, axis=0), rtol=1e-11, atol=1e-12)


@each_factor_shape
@each_choice
def test_conditionals_agree_with_dense_formulas(family, columns, rng):
    case = random_case(family, K, D, rng)
    values = case.rows(7, rng)[:, list(columns)]
    many = case.mixture.condition(columns, values)
    assert many.draw_shape == (7,)
    assert many.is_diagonal == family.diagonal
    for index, value in enumerate(values):
        weights, means, covariances = dense_condition(case, columns, value)
        one = case.mixture.condition(columns, value)
        assert one.draw_shape == ()
        for found in (one, many[index]):
            assert_close(found.weights, weights, 1e-10)
            assert_close(found.means, means, 1e-11)
            assert_close(found.covariances, covariances, 1e-11)


@each_factor_shape
@each_choice
def test_a_joint_density_is_a_marginal_one_times_a_conditional_one(family, columns, rng):
    """log p(a, b) = log p(b) + log p(a | b)."""
    mixture = random_case(family, K, D, rng).mixture
    x = np.concatenate([mixture.sample(10, key=jax.random.key(3)), 5.0 * rng.normal(size=(10, D))])
    given = x[:, list(columns)]
    conditional = mixture.condition(columns, given)
    rest = x[:, others(columns)]
    found = mixture.marginal(columns).log_prob(given) + np.array(
        [conditional[index].log_prob(rest[index : index + 1])[0] for index in range(len(x))]
    )
    np.testing.assert_allclose(found, mixture.log_prob(x), rtol=1e-10, atol=1e-10)


@each_representation
def test_a_marginal_is_the_integral_over_the_other_feature(family, rng):
    case = random_case(family, K, 2, rng)
    found = case.mixture.marginal(1)

    def density(other, here):
        return np.exp(case.mixture.log_prob(np.array([[other, here]]))[0])

    for here in (-1.0, 0.5):
        integral = integrate.quad(density, -40, 40, (here,), points=[*case.means[:, 0]], epsabs=1e-12, limit=200)[0]
        np.testing.assert_allclose(np.exp(found.log_prob([[here]])[0]), integral, rtol=1e-9)


@each_factor_shape
def test_mean_and_covariance_of_a_mixture(family, rng):
    case = random_case(family, K, D, rng)
    mean = case.weights @ case.means
    second = np.einsum("k,kab->ab", case.weights, case.covariances + case.means[:, :, None] * case.means[:, None])
    assert_close(case.mixture.mean, mean, 1e-14)
    assert_close(case.mixture.covariance, second - np.outer(mean, mean), 1e-12)


@each_representation
def test_laws_of_total_expectation_and_covariance(family, rng):
    """Averaged over what is given, predictions have the mean of what is predicted, and their spreads add up to its."""
    mixture = random_case(family, K, 3, rng).mixture
    x = mixture.sample(200_000, key=jax.random.key(7))
    predicted = mixture.condition([0, 2], x[:, [0, 2]])
    residual = x[:, 1] - predicted.mean[:, 0]
    standardised = residual**2 / predicted.covariance[:, 0, 0]
    for sample, expected in ((residual, 0.0), (residual * x[:, 0], 0.0), (standardised, 1.0)):
        assert abs(sample.mean() - expected) < 5 * sample.std() / np.sqrt(len(sample))


def test_regression_by_a_mixture_of_one_is_least_squares(rng):
    """With a single Gaussian of the rows' own moments the prediction is that of linear regression."""
    x = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 3.0
    mixture = Mixture.from_covariances([1.0], x.mean(0)[None], np.cov(x.T, bias=True)[None])
    predicted = mixture.condition([0, 1], x[:, :2])
    design = np.column_stack([np.ones(50), x[:, :2]])
    coefficients, *_ = np.linalg.lstsq(design, x[:, 2:], rcond=None)
    assert_close(predicted.mean, design @ coefficients, 1e-11)
    residual = x[:, 2:] - design @ coefficients
    assert_close(predicted.covariance[0], residual.T @ residual / 50, 1e-11)


def test_nearly_collinear_features_keep_their_digits():
    """Two features that differ by 1e-7 of their spread: products of factors would leave nothing of that.

    x1 = x0 + 1e-7 e and x2 independent: given x0 = v, x1 has the mean v and the standard deviation 1e-7.
    """
    small = 1e-7
    factor = np.array([[[1.0, 0.0, 0.0], [-1 / small, 1 / small, 0.0], [0.0, 0.0, 0.5]]])
    mixture = Mixture(np.zeros(1), np.zeros((1, 3)), factor)
    given = mixture.condition([0], [0.25])
    np.testing.assert_allclose(given.scales[0], [small, 2.0], rtol=1e-12)
    np.testing.assert_allclose(given.means[0], [0.25, 0.0], rtol=1e-12)
    # Given x1 = v, x0 has the precision 1 + 1e14 and the mean v 1e14 / (1 + 1e14).
    back = mixture.condition([1], [0.25])
    np.testing.assert_allclose(back.scales[0, 0], (1 + small**-2) ** -0.5, rtol=1e-9)
    np.testing.assert_allclose(back.means[0, 0], 0.25 / (1 + small**2), rtol=1e-9)
    np.testing.assert_allclose(mixture.marginal([2, 1]).scales[0], [2.0, np.sqrt(1 + small**2)], rtol=1e-12)


@each_representation
def test_conditioning_in_two_steps_is_conditioning_at_once(family, rng):
    mixture = random_case(family, K, D, rng).mixture
    at_once = mixture.condition([1, 3], [0.3, -0.2])
    in_steps = mixture.condition([3], [-0.2]).condition([1], [0.3])
    for name in ("weights", "means", "covariances"):
        assert_close(getattr(in_steps, name), getattr(at_once, name), 1e-10)
    of_marginal = mixture.marginal([0, 1, 3]).condition([1, 2], [0.3, -0.2])
    assert_close(of_marginal.covariances, at_once.marginal([0]).covariances, 1e-10)
    assert_close(of_marginal.weights, at_once.weights, 1e-10)


@each_factor_shape
def test_draws_are_taken_one_by_one(family, rng):
    draws = random_draws(family, K, D, (2, 3), rng)
    values = rng.normal(size=(4, 2))
    marginal, conditional = draws.marginal([2, 0]), draws.condition([0, 2], values)
    assert marginal.draw_shape == (2, 3)
    assert conditional.draw_shape == (2, 3, 4)
    assert conditional.mean.shape == (2, 3, 4, 3)
    assert conditional.covariance.shape == (2, 3, 4, 3, 3)
    assert_close(marginal[1, 2], draws[1, 2].marginal([2, 0]), 1e-12)
    assert_close(conditional[1, 2], draws[1, 2].condition([0, 2], values), 1e-12)
    assert_close(conditional[0, 1, 3], draws[0, 1].condition([0, 2], values[3]), 1e-12)


@each_representation
def test_composes_under_jit_vmap_and_grad(family, rng, x64):
    mixture = to_jax(random_case(family, K, D, rng).mixture)
    values = jnp.asarray(rng.normal(size=(4, 2)))

    def predicted(mixture, values):
        return mixture.condition([0, 2], values).mean

    plain = predicted(mixture, values)
    assert_close(jax.jit(predicted)(mixture, values), plain, 1e-12)
    assert_close(jax.vmap(predicted, (None, 0))(mixture, values), plain, 1e-12)
    draws = to_jax(random_draws(family, K, D, (3,), rng))
    assert_close(
        jax.vmap(lambda one: one.marginal([3, 1]).covariances)(draws), draws.marginal([3, 1]).covariances, 1e-12
    )

    def score(mixture, values):
        given = mixture.condition([0, 2], values)
        return mixture.marginal([0, 2]).log_prob(values).sum() + jnp.sin(given.mean).sum() + given.covariance.sum()

    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), (mixture, values))
    gradient = jax.grad(score, (0, 1))(mixture, values)
    slope = sum(
        jnp.vdot(one, other) for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    if not family.diagonal:  # the upper triangle is not read
        assert np.all(np.triu(np.asarray(gradient[0].precision_factor), 1) == 0)

    def along(step):
        moved = jax.tree.map(lambda leaf, change: leaf + step * change, (mixture, values), direction)
        return float(score(*moved))

    assert np.isclose(slope, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-6)


@each_representation
def test_precision_of_the_input_is_kept(family, rng):
    mixture, values = random_case(family, K, D, rng).mixture, rng.normal(size=(4, 2))
    exact = mixture.condition([0, 2], values)
    narrow = to_float32(mixture).condition([0, 2], values.astype(np.float32))
    for of_narrow, of_exact in zip(jax.tree.leaves(narrow), jax.tree.leaves(exact), strict=True):
        assert of_narrow.dtype == np.float32
        assert of_exact.dtype == np.float64
    assert_close(narrow.mean, exact.mean, 1e-4)
    assert to_float32(mixture).marginal([1]).precision_factor.dtype == np.float32
    assert mixture.mean.dtype == mixture.covariance.dtype == np.float64
    assert mixture.condition([0, 2], [0, 1]).means.dtype == np.float64  # whole numbers are values too


def test_far_values_leave_weights_and_a_density():
    """At 1e8 standard deviations all densities underflow, and their ratios do not."""
    mixture = Mixture.from_covariances([0.5, 0.5], [[0.0, 0.0], [1.0, 5.0]], [np.eye(2), np.eye(2)])
    given = mixture.condition([0], [1e8])
    np.testing.assert_array_equal(given.weights, [0.0, 1.0])
    np.testing.assert_allclose(given.mean, [5.0])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "columns is empty"),
        ([0, 0], "more than once"),
        ([5], "has 5, and the mixture has 5 features"),
        ([-1], "columns=-1 must be a whole number"),
        ([0.0], "columns=0.0 must be a whole number"),
        ([True], "columns=True must be a whole number"),
        (["a"], "columns='a' must be a whole number"),
        (None, "columns=None must be numbers"),
        (1.5, "columns=1.5 must be numbers"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns, message, rng):
    mixture = random_case(FAMILIES["full"], K, D, rng).mixture
    for call in (mixture.marginal, lambda columns: mixture.condition(columns, [0.0])):
        with pytest.raises(InputError, match=message):
            call(columns)


@pytest.mark.parametrize(
    ("columns", "values", "message"),
    [
        (range(5), np.zeros(5), "are all 5 features"),
        ([0, 1], 0.0, r"shape \(2,\) or \(rows, 2\).*got \(\)"),
        ([0, 1], [0.0], r"got \(1,\)"),
        ([0], [[[0.0]]], r"got \(1, 1, 1\)"),
        ([0], [np.nan], "NaN or infinite"),
        ([0], ["high"], "must hold real numbers"),
    ],
)
def test_values_that_cannot_be_are_refused(columns, values, message, rng):
    mixture = random_case(FAMILIES["diag"], K, D, rng).mixture
    with pytest.raises(InputError, match=message):
        mixture.condition(columns, values)


def test_one_column_may_be_a_number(rng):
    mixture = random_case(FAMILIES["full"], K, D, rng).mixture
    assert_close(mixture.marginal(np.int64(2)), mixture.marginal([2]), 0)
    assert_close(mixture.condition(2, [0.5]), mixture.condition(np.array([2]), [0.5]), 0)
