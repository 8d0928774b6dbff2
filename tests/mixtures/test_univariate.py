"""Distribution function, quantiles and exact levels of mixtures of one feature, held to SciPy and mpmath."""

import jax
import jax.numpy as jnp
import mpmath
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
from scipy import integrate, optimize, special, stats

from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.functionals import hdr_level
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.mixtures.univariate import cdf, quantile

pytestmark = pytest.mark.usefixtures("strict")

K = 4
PROBABILITIES = np.array([1e-280, 1e-12, 0.001, 0.3, 0.5, 0.75, 0.999, 1 - 1e-12])


def of_one_feature(family, rng):
    case = random_case(family, K, 1, rng)
    sds = np.sqrt(case.covariances[:, 0, 0])
    return case, stats.Mixture(
        [stats.Normal(mu=mean, sigma=sd) for mean, sd in zip(case.means[:, 0], sds, strict=True)], weights=case.weights
    )


@each_factor_shape
def test_distribution_function_agrees_with_scipy(family, rng):
    case, oracle = of_one_feature(family, rng)
    x = np.linspace(-12, 12, 97)
    np.testing.assert_allclose(cdf(case.mixture, x), oracle.cdf(x), rtol=1e-12)
    np.testing.assert_allclose(cdf(case.mixture, x[:, None]), oracle.cdf(x), rtol=1e-12)
    assert cdf(case.mixture, 0.3).shape == ()
    np.testing.assert_allclose(cdf(case.mixture, [-np.inf, np.inf]), [0, 1], rtol=1e-14)


@each_representation
def test_quantiles_invert_the_distribution_function(family, rng):
    case, _ = of_one_feature(family, rng)
    mixture = case.mixture
    found = quantile(mixture, PROBABILITIES)
    np.testing.assert_allclose(cdf(mixture, found), PROBABILITIES, rtol=1e-10)
    sds = np.sqrt(case.covariances[:, 0, 0])

    parts = list(zip(case.weights, case.means[:, 0], sds, strict=True))

    def excess(x, probability):
        return mpmath.log(sum(w * mpmath.ncdf((x - m) / s) for w, m, s in parts) / mpmath.mpf(probability))

    with mpmath.workdps(30):
        for probability, x in zip(PROBABILITIES[:7], found, strict=False):
            root = mpmath.findroot(lambda x, p=probability: excess(x, p), float(x))
            np.testing.assert_allclose(x, float(root), rtol=1e-12)


def test_quantiles_of_one_normal_and_of_far_components():
    one = Mixture(np.zeros(1), np.array([[3.0]]), np.array([[0.5]]))
    np.testing.assert_allclose(quantile(one, PROBABILITIES), stats.norm(3, 2).ppf(PROBABILITIES), rtol=1e-13)
    np.testing.assert_array_equal(quantile(one, [0.0, 1.0]), [-np.inf, np.inf])
    # 1e6 standard deviations apart; between them F is flat.
    far = Mixture.from_covariances([0.25, 0.75], [[0.0], [1e6]], [[[1.0]], [[4.0]]])
    found = quantile(far, [0.125, 0.25 + 0.375, 0.2])
    np.testing.assert_allclose(found, [0.0, 1e6, stats.norm.ppf(0.8)], atol=1e-9)
    # A component of weight zero is none.
    none = Mixture(np.array([0.0, -np.inf]), np.array([[3.0], [-50.0]]), np.array([[0.5], [2.0]]))
    np.testing.assert_allclose(quantile(none, PROBABILITIES), quantile(one, PROBABILITIES), rtol=1e-13)


@pytest.mark.parametrize("family", [FAMILIES["tied"], FAMILIES["diag"]], ids=["tied", "diag"])
def test_quantiles_have_derivatives(family, rng, x64):
    mixture = to_jax(random_case(family, 3, 1, rng).mixture)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), mixture)
    for probability in (0.01, 0.6, 0.99):

        def along(step, probability=probability):
            moved = jax.tree.map(lambda leaf, change: leaf + step * change, mixture, direction)
            return quantile(moved, probability)

        slope = jax.grad(along)(0.0)
        assert np.isclose(slope, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-6)
        bend = jax.grad(jax.grad(along))(0.0)
        assert np.isclose(bend, (jax.grad(along)(1e-5) - jax.grad(along)(-1e-5)) / 2e-5, rtol=1e-5, atol=1e-7)
    by_probability = jax.grad(quantile, 1)(mixture, 0.6)
    x = quantile(mixture, 0.6)
    assert np.isclose(by_probability, np.exp(-mixture.log_prob(x[None, None])[0]), rtol=1e-10)


def _mass_above(mixture, log_level):
    """The probability of the region, from sign changes on a fine grid refined by SciPy: the oracle."""

    def height(x):
        return mixture.log_prob(np.array([[x]]))[0] - log_level

    reach, step = 9 * mixture.scales.max(), mixture.scales.min() / 20
    grid = np.arange(mixture.means.min() - reach, mixture.means.max() + reach, step)
    heights = mixture.log_prob(grid[:, None]) - log_level
    cuts = [optimize.brentq(height, grid[i], grid[i + 1], xtol=1e-13) for i in np.flatnonzero(np.diff(heights > 0))]
    assert len(cuts) % 2 == 0

    def density(x):
        return np.exp(mixture.log_prob(np.array([[x]]))[0])

    # Narrow components are pointed out to the quadrature.
    points = np.sort((mixture.means + mixture.scales * np.array([-6, 0, 6])).ravel())
    total = 0.0
    for low, high in zip(cuts[::2], cuts[1::2], strict=True):
        inside = points[(points > low) & (points < high)]
        total += integrate.quad(density, low, high, points=inside, epsabs=1e-12, limit=200)[0]
    return total


@each_representation
def test_exact_levels_hold_their_probability(family, rng):
    mixture = random_case(family, K, 1, rng).mixture
    probabilities = np.array([0.1, 0.5, 0.9, 0.99])
    level = hdr_level(mixture, probabilities)
    assert np.all(np.diff(level.value) < 0)
    np.testing.assert_array_equal(level.standard_error, 0)
    for one, probability in zip(level.value, probabilities, strict=True):
        assert abs(_mass_above(mixture, one) - probability) < 1e-10


def test_exact_levels_of_separate_and_nested_components():
    probabilities = np.array([1e-3, 0.5, 0.9, 0.999999])
    one = Mixture(np.zeros(1), np.array([[3.0]]), np.array([[0.5]]))
    ends = stats.norm.ppf(0.5 * (1 - probabilities))
    np.testing.assert_allclose(hdr_level(one, probabilities).value, stats.norm.logpdf(ends) - np.log(2), rtol=1e-12)
    # Two alike, far apart, and one beside another of a thousandth of its width and hardly any weight.
    two = Mixture.from_covariances([0.5, 0.5], [[0.0], [1e4]], [[[4.0]], [[4.0]]])
    expected = stats.norm.logpdf(ends) - np.log(4)
    np.testing.assert_allclose(hdr_level(two, probabilities).value, expected, rtol=1e-10)
    nested = Mixture.from_covariances([0.999, 0.001], [[0.0], [1.5]], [[[1.0]], [[1e-6]]])
    for probability in (0.3, 0.9):
        assert abs(_mass_above(nested, hdr_level(nested, probability).value) - probability) < 1e-9


@pytest.mark.parametrize("family", [FAMILIES["tied"], FAMILIES["diag"]], ids=["tied", "diag"])
def test_draws_are_taken_one_by_one(family, rng):
    draws = random_draws(family, 3, 1, (2, 3), rng)
    for function, argument in ((cdf, np.linspace(-1, 1, 4)), (quantile, [0.1, 0.2, 0.5, 0.9])):
        assert function(draws, argument).shape == (2, 3, 4)
        assert_close(function(draws, argument)[1, 2], function(draws[1, 2], argument), 1e-12)
        assert function(draws, argument[0]).shape == (2, 3)
    level = hdr_level(draws, [0.5, 0.9])
    assert level.value.shape == level.standard_error.shape == (2, 3, 2)
    assert_close(level.value[0, 1], hdr_level(draws[0, 1], [0.5, 0.9]).value, 1e-12)


def test_precision_and_transforms(rng, x64):
    mixture = random_case(FAMILIES["full"], 3, 1, rng).mixture
    narrow = to_float32(mixture)
    for function, argument, tolerance in ((cdf, 0.2, 1e-6), (quantile, 0.2, 1e-5)):
        assert function(narrow, argument).dtype == np.float32
        assert function(mixture, argument).dtype == np.float64
        assert_close(function(narrow, argument), function(mixture, argument), tolerance)
        assert_close(jax.jit(function)(to_jax(mixture), argument), function(mixture, argument), 1e-13)
    assert hdr_level(narrow, 0.5).value.dtype == np.float32
    assert abs(float(hdr_level(narrow, 0.5).value) - float(hdr_level(mixture, 0.5).value)) < 1e-4
    mapped = jax.vmap(lambda p: hdr_level(to_jax(mixture), p).value)(jnp.array([0.5, 0.9]))
    assert_close(mapped, hdr_level(mixture, [0.5, 0.9]).value, 1e-12)


def test_what_cannot_be_is_refused(rng):
    of_two = random_case(FAMILIES["full"], 3, 2, rng).mixture
    of_one = of_two.marginal(0)
    for function in (cdf, quantile):
        with pytest.raises(InputError, match=r"has 2 features.*marginal"):
            function(of_two, 0.5)
        with pytest.raises(InputError, match=r"got \(1, 2\)"):
            function(of_one, [[0.5, 0.5]])
    for probability in (-0.1, 1.1, np.nan):
        with pytest.raises(InputError, match="must lie from 0 to 1"):
            quantile(of_one, probability)
    for probability in (0.0, [0.5, 1.0], np.nan):
        with pytest.raises(InputError, match="without these"):
            hdr_level(of_one, probability)


WIDELY_DIFFERENT = {
    "a narrow and a wide one": ((0.5, 0.5), (0.0, 0.0), (1e-8, 1e8)),
    "a narrow one far from a wide one": ((0.5, 0.5), (0.0, 1e6), (1e-10, 1.0)),
    "a narrow one of little weight": ((1e-6, 1.0 - 1e-6), (0.0, 3.0), (1e-12, 2.0)),
}


@pytest.mark.parametrize("mixture", WIDELY_DIFFERENT.values(), ids=list(WIDELY_DIFFERENT))
def test_quantiles_of_components_of_very_different_widths(mixture):
    """Neighbouring numbers have more and less than the probability, in every tail: by SciPy's normal distribution."""
    weights, means, scales = (np.array(part) for part in mixture)
    one = Mixture.from_covariances(weights, means[:, None], np.square(scales)[:, None])
    probabilities = np.array([1e-300, 1e-20, 0.01, 0.25, 0.4999, 0.51, 0.6, 0.9, 1 - 1e-10, 1 - 2**-53])
    found = np.asarray(quantile(one, probabilities))
    for probability, x in zip(probabilities, found, strict=True):
        near = np.array([np.nextafter(x, -np.inf), np.nextafter(x, np.inf)])
        whitened = (near[:, None] - means) / scales
        tail = (weights * special.ndtr(whitened if probability <= 0.5 else -whitened)).sum(1)
        goal = probability if probability <= 0.5 else 1 - probability
        assert tail.min() <= goal * (1 + 1e-12)
        assert tail.max() >= goal * (1 - 1e-12)


@pytest.mark.usefixtures("x64")
def test_derivatives_of_a_quantile_in_a_gap_are_no_nan():
    one = to_jax(Mixture.from_covariances([0.5, 0.5], [[0.0], [1e6]], [[1e-20], [1.0]]))
    slopes = jax.grad(lambda one: quantile(one, 0.5))(one)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(slopes))
