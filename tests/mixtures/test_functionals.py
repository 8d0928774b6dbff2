"""Entropy, divergence and density levels, held to closed forms and quadrature, within their own standard errors."""

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
from scipy import integrate, stats

from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.functionals import entropy, hdr_level, kl_divergence
from bayesgmm.mixtures.mixture import Mixture

pytestmark = pytest.mark.usefixtures("strict")

K = 3


def within(estimate, expected, multiple=5.0):
    assert np.all(np.abs(estimate.value - expected) <= multiple * estimate.standard_error + 1e-12)


@pytest.mark.parametrize("num_features", [1, 3])
@each_representation
def test_entropy_of_one_component_is_exact(family, num_features, rng, key):
    case = random_case(family, 1, num_features, rng)
    found = entropy(case.mixture, key=key, num_draws=10)
    expected = stats.multivariate_normal(case.means[0], case.covariances[0]).entropy()
    np.testing.assert_allclose(found.value, expected, rtol=1e-12)
    assert found.standard_error == 0


@each_representation
def test_entropy_of_separate_components_is_exact(family, rng, key):
    """H(w) plus the components' own entropies."""
    case = random_case(family, K, 2, rng)
    means = case.mixture.means + 1e4 * np.arange(K)[:, None]
    mixture = Mixture(case.mixture.log_weights, means, case.mixture.precision_factor)
    own = [stats.multivariate_normal(np.zeros(2), covariance).entropy() for covariance in case.covariances]
    found = entropy(mixture, key=key, num_draws=100)
    np.testing.assert_allclose(found.value, case.weights @ own + stats.entropy(case.weights), rtol=1e-12)


@each_representation
def test_entropy_agrees_with_quadrature(family, rng, key):
    case = random_case(family, K, 1, rng)

    def integrand(x):
        log_density = case.mixture.log_prob(np.array([[x]]))[0]
        return -np.exp(log_density) * log_density

    expected = integrate.quad(integrand, -30, 30, points=case.means[:, 0], epsabs=1e-10, limit=300)[0]
    found = entropy(case.mixture, key=key)
    within(found, expected)
    assert found.standard_error < 0.01


@each_factor_shape
def test_divergence_agrees_with_the_closed_form_of_normals(family, rng, key):
    one, other = random_case(family, 1, 3, rng), random_case(family, 1, 3, rng)
    precision = np.linalg.inv(other.covariances[0])
    shift = other.means[0] - one.means[0]
    expected = 0.5 * (
        np.trace(precision @ one.covariances[0])
        + shift @ precision @ shift
        - 3
        + np.linalg.slogdet(other.covariances[0])[1]
        - np.linalg.slogdet(one.covariances[0])[1]
    )
    found = kl_divergence(one.mixture, other.mixture, key=key)
    within(found, expected)
    assert 0 < found.standard_error < 0.1 * expected


def test_divergence_agrees_with_quadrature(rng, key):
    one, other = (random_case(FAMILIES[name], K, 1, rng) for name in ("full", "tied"))

    def integrand(x):
        x = np.array([[x]])
        log_density = one.mixture.log_prob(x)[0]
        return np.exp(log_density) * (log_density - other.mixture.log_prob(x)[0])

    expected = integrate.quad(integrand, -15, 15, points=one.means[:, 0], epsabs=1e-10, limit=300)[0]
    found = kl_divergence(one.mixture, other.mixture, key=key, num_draws=50_000)
    within(found, expected)
    same = kl_divergence(one.mixture, one.mixture, key=key, num_draws=50)
    assert same.value == same.standard_error == 0


@pytest.mark.parametrize("num_features", [2, 7])
@each_representation
def test_levels_of_one_component_are_those_of_chi_square(family, num_features, rng, key):
    case = random_case(family, 1, num_features, rng)
    probabilities = np.array([0.1, 0.5, 0.95])
    found = hdr_level(case.mixture, probabilities, key=key)
    peak = stats.multivariate_normal(case.means[0], case.covariances[0]).logpdf(case.means[0])
    within(found, peak - 0.5 * stats.chi2(num_features).ppf(probabilities))
    assert np.all(found.standard_error < 0.05)


@each_representation
def test_levels_hold_their_probability(family, rng, key):
    """Of rows that NumPy draws, the share above the level."""
    case = random_case(family, K, 2, rng)
    level = hdr_level(case.mixture, 0.8, key=key)
    share = (case.mixture.log_prob(case.rows(100_000, rng)) > level.value).mean()
    assert abs(share - 0.8) < 5 * np.sqrt(2 * 0.8 * 0.2 / 100_000)


@pytest.mark.parametrize("name", ["entropy", "kl_divergence", "hdr_level"])
def test_standard_errors_are_the_spread_of_repeated_estimates(name, rng, key):
    one, other = (random_case(FAMILIES["full"], K, 2, rng).mixture for _ in range(2))
    # Nearer than they were drawn, so that the divergence has a variance that 500 draws know.
    near = Mixture(one.log_weights, one.means + 0.1 * other.means, one.precision_factor)
    run = {
        "entropy": lambda key: entropy(one, key=key, num_draws=500),
        "kl_divergence": lambda key: kl_divergence(one, near, key=key, num_draws=500),
        "hdr_level": lambda key: hdr_level(one, 0.7, key=key, num_draws=500),
    }[name]
    found = jax.vmap(run)(jax.random.split(key, 400))
    spread = np.std(found.value, ddof=1)
    # The spread of 400 is known to 1 / sqrt(800) = 3.5 %.
    assert abs(np.mean(found.standard_error) / spread - 1) < 0.18


def test_derivatives_are_those_of_the_number_and_not_of_the_draws(key, x64):
    """Of two overlapping components: the average gradient agrees with that of the integral on a grid."""
    mixture = Mixture(jnp.log(jnp.array([0.3, 0.7])), jnp.array([[0.0], [1.5]]), jnp.array([[1.0], [0.8]]))
    other = Mixture(jnp.zeros(1), jnp.array([[0.5]]), jnp.array([[0.7]]))
    grid = jnp.linspace(-12, 14, 4001)[:, None]

    def by_grid(mixture, of_other):
        log_density = mixture.log_prob(grid)
        against = other.log_prob(grid) if of_other else jnp.zeros_like(log_density)
        return (jnp.exp(log_density) * (log_density - against)).sum() * (26 / 4000)

    def by_draws(mixture, key, of_other):
        # Weights that need not add up to one would have other derivatives; these do.
        if of_other:
            return kl_divergence(mixture, other, key=key, num_draws=2000).value
        return -entropy(mixture, key=key, num_draws=2000).value

    def free(logit, means, factor):
        return Mixture(jax.nn.log_softmax(jnp.stack([logit, jnp.zeros_like(logit)])), means, factor)

    parameters = (jnp.log(0.3 / 0.7), mixture.means, mixture.precision_factor)
    for of_other in (True, False):
        exact = jax.grad(lambda parameters, o=of_other: by_grid(free(*parameters), o))(parameters)
        gradient = jax.vmap(
            jax.grad(lambda parameters, key, o=of_other: by_draws(free(*parameters), key, o)), (None, 0)
        )(parameters, jax.random.split(key, 200))
        for found, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
            error = np.std(found, 0, ddof=1) / np.sqrt(200)
            assert np.all(np.abs(np.mean(found, 0) - expected) < 5 * error)
            assert np.all(error < 0.1)


def test_levels_refuse_to_be_differentiated(rng, key, x64):
    for num_features in (1, 2):
        mixture = to_jax(random_case(FAMILIES["diag"], K, num_features, rng).mixture)
        with pytest.raises(InputError, match="no derivatives"):
            jax.grad(lambda mixture: hdr_level(mixture, 0.5, key=key, num_draws=10).value)(mixture)

        def with_mixture_held(scale, mixture=mixture):
            return scale * hdr_level(jax.tree.map(jax.lax.stop_gradient, mixture), 0.5, key=key, num_draws=10).value

        assert jax.grad(with_mixture_held)(1.0) != 0


@pytest.mark.parametrize("family", [FAMILIES["full"], FAMILIES["diag"]], ids=["full", "diag"])
def test_draws_are_taken_one_by_one(family, rng, key):
    draws, one = random_draws(family, K, 2, (2, 3), rng), random_case(family, 2, 2, rng).mixture
    for found in (
        entropy(draws, key=key, num_draws=50),
        kl_divergence(draws, draws[::-1], key=key, num_draws=50),
        kl_divergence(draws, one, key=key, num_draws=50),
        kl_divergence(one, draws, key=key, num_draws=50),
        hdr_level(draws, 0.5, key=key, num_draws=50),
    ):
        assert found.value.shape == found.standard_error.shape == (2, 3)
        assert np.all(np.isfinite(found.value))
    assert hdr_level(draws, [0.5, 0.6], key=key, num_draws=50).value.shape == (2, 3, 2)
    own = jax.random.split(key, (2, 3))[1, 2]
    assert_close(
        entropy(draws, key=key, num_draws=50).value[1, 2], entropy(draws[1, 2], key=own, num_draws=50).value, 1e-12
    )


def test_precision_and_jit(rng, key, x64):
    mixture = random_case(FAMILIES["full"], K, 2, rng).mixture
    for run in (
        lambda mixture: entropy(mixture, key=key, num_draws=100),
        lambda mixture: kl_divergence(mixture, mixture.permute([1, 2, 0]), key=key, num_draws=100),
        lambda mixture: hdr_level(mixture, 0.5, key=key, num_draws=100),
    ):
        assert run(mixture).value.dtype == run(mixture).standard_error.dtype == np.float64
        assert run(to_float32(mixture)).value.dtype == run(to_float32(mixture)).standard_error.dtype == np.float32
        assert_close(jax.jit(run)(to_jax(mixture)), run(mixture), 1e-12)


def test_what_cannot_be_is_refused(rng, key):
    mixture, other = random_case(FAMILIES["full"], K, 2, rng).mixture, random_case(FAMILIES["full"], K, 3, rng).mixture
    draws = random_draws(FAMILIES["full"], K, 2, (4,), rng)
    with pytest.raises(InputError, match=r"num_draws=1 must be a whole number of at least 2"):
        entropy(mixture, key=key, num_draws=1)
    with pytest.raises(InputError, match="key=3 is not a random key"):
        entropy(mixture, key=3)
    with pytest.raises(InputError, match="key=None is not a random key"):
        hdr_level(mixture, 0.5)
    with pytest.raises(InputError, match="other has 3 features and mixture 2"):
        kl_divergence(mixture, other, key=key)
    with pytest.raises(InputError, match=r"other has leading axes \(3,\) and mixture \(4,\)"):
        kl_divergence(draws, draws[:3], key=key)


@pytest.mark.parametrize(("weights", "apart"), [((0.5, 0.5), 10.0), ((1.0, 0.0), 3.0)])
def test_the_slope_of_an_entropy_without_overlap_is_finite(weights, apart, key):
    """Where a share underflows, or is 0, it adds nothing: entropies of weights and of normals are left."""
    with np.errstate(divide="ignore"):
        one = to_jax(to_float32(Mixture.from_covariances(weights, [[0.0], [apart]], [[1.0], [1.0]])))
    slope = jax.grad(lambda one: entropy(one, key=key).value)(one)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    # In the logarithm of a scale, minus that of a factor, it is the weight.
    np.testing.assert_allclose(slope.precision_factor.ravel(), np.multiply(-1.0, weights), atol=1e-3)


def test_a_divergence_beyond_every_number_is_infinite(key):
    near, far = (Mixture.from_covariances([1.0], [[mean]], [[1.0]]) for mean in (0.0, 1e170))
    for found in (kl_divergence(near, far, key=key), kl_divergence(far, near, key=key)):
        assert (found.value, found.standard_error) == (np.inf, np.inf)
    assert kl_divergence(near, near, key=key).value == 0.0
