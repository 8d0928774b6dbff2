"""The NumPyro model: its density is the package's, its sites are a mixture, and any NumPyro inference can use it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from helpers import (
    DATA,
    assert_close,
    each_conjugate_family,
    each_family,
    each_family_and,
    each_representation,
    random_case,
    target_of,
)
from numpyro import distributions as dist
from numpyro.infer import Predictive, log_likelihood
from numpyro.infer.util import log_density
from scipy import stats

import bayesgmm
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.target.numpyro_model import MixtureDistribution, log_prior_of_sites, mixture_of_sites, sites_of_mixture
from bayesgmm.target.unconstrained import Target

pytestmark = pytest.mark.usefixtures("x64")


@each_family
@pytest.mark.parametrize("num_features", [1, 3])
def test_sites_and_mixture_are_inverse(family, num_features, rng):
    mixture = random_case(family, 3, num_features, rng).mixture
    sites = sites_of_mixture(mixture, family)
    assert ("correlation_cholesky" in sites) == family.has_correlations(num_features)
    assert sites["scales"].shape == family.scale_shape(3, num_features)
    assert_close(mixture_of_sites(sites, family), mixture, 1e-12)


@each_family
@pytest.mark.parametrize("num_features", [1, 3])
def test_unconstrained_coordinates_and_mixture_are_inverse(family, num_features, rng):
    case = random_case(family, 2, num_features, rng)
    prior = bayesgmm.default_prior(case.rows(50, rng), 2)
    target = target_of(case.rows(50, rng), 2, family, prior, case.mixture)
    assert_close(target.mixture_at(target.vector_of(case.mixture)), case.mixture, 1e-12)


@each_family
def test_unconstrained_dimension_is_the_number_of_parameters(family, rng):
    case = random_case(family, 3, 4, rng)
    x = case.rows(50, rng)
    target = target_of(x, 3, family, bayesgmm.default_prior(x, 3), case.mixture)
    assert target.vector_of(case.mixture).shape == (target.size,) == (family.num_parameters(3, 4),)


@each_family
def test_log_density_is_the_shared_likelihood_plus_the_prior(family, rng):
    """Against scipy for the prior terms, and the package's log-likelihood for the rows."""
    case = random_case(family, 2, 3, rng)
    x = case.rows(40, rng)
    prior = bayesgmm.default_prior(x, 2, concentration=[1.5, 3.0], scale_sigma=0.7, correlation_concentration=1.3)
    sites = sites_of_mixture(case.mixture, family)
    density, _ = log_density(bayesgmm.model, (x, 2, family, prior), {}, sites)

    log_median = np.log(prior.scales.median)
    if sites["scales"].shape[1] == 1:
        log_median = log_median.mean(keepdims=True)
    scales = np.asarray(sites["scales"])
    expected = float(bayesgmm.log_likelihood(case.mixture, x))
    expected += stats.dirichlet(prior.concentration).logpdf(case.weights)
    expected += stats.norm(prior.mean_loc, prior.mean_scale).logpdf(case.means).sum()
    expected += (stats.norm(log_median, 0.7).logpdf(np.log(scales)) - np.log(scales)).sum()
    if family.has_correlations(3):
        cholesky = np.asarray(sites["correlation_cholesky"])
        # LKJ on the Cholesky factor: the determinant to the power 2(eta - 1), times its diagonal's Jacobian.
        powers = np.array([2 * (1.3 - 1) + 3 - 1 - row for row in range(1, 3)])
        kernel = (powers * np.log(np.diagonal(cholesky, axis1=1, axis2=2)[:, 1:])).sum()
        reference = dist.LKJCholesky(3, 1.3)
        normaliser = float(reference.log_prob(jnp.eye(3)))  # where the kernel is zero
        expected += kernel + normaliser * len(cholesky)
    np.testing.assert_allclose(float(density), expected, rtol=1e-11)


def log_density_of_hierarchical_scales(scales, rate, a):
    """Of scales whose reciprocal squares are gamma variables: by SciPy, and the derivative of that map, 2 / s^3."""
    return (stats.gamma(a, scale=1 / rate).logpdf(scales**-2.0) + np.log(2.0) - 3 * np.log(scales)).sum()


@each_family_and("num_features", 3, [1])
@pytest.mark.parametrize("scale_prior", ["half_normal", "hierarchical"])
def test_other_priors_of_scales_are_scipys(scale_prior, num_features, family, rng):
    """Of the model, of its sites one by one, and of the engines' objective in units of their own."""
    case = random_case(family, 2, num_features, rng)
    x = 10.0 * case.rows(40, rng)
    numbers = {"half_normal": {}, "hierarchical": {"precision_shape": 2.5, "rate_shape": 0.7}}[scale_prior]
    prior = bayesgmm.default_prior(x, 2, scale_prior=scale_prior, **numbers)
    sites = sites_of_mixture(case.mixture, family, prior)
    scales = np.asarray(sites["scales"])

    def for_each(values):
        return np.exp(np.log(values).mean(keepdims=True)) if scales.shape[1] == 1 else values

    expected = {}
    if scale_prior == "half_normal":
        assert "scale_rate" not in sites
        expected["scales"] = stats.halfnorm(scale=for_each(prior.scales.sd)).logpdf(scales).sum()
    else:
        own_rate = for_each(prior.scales.rate_rate)
        posterior_mean = (0.7 + len(scales) * 2.5) / (own_rate + (scales**-2.0).sum(0))
        np.testing.assert_allclose(sites["scale_rate"], posterior_mean, rtol=1e-12)
        sites["scale_rate"] = jnp.asarray(posterior_mean * rng.uniform(0.5, 2.0, posterior_mean.shape))
        rate = np.asarray(sites["scale_rate"])
        expected["scales"] = log_density_of_hierarchical_scales(scales, rate, 2.5)
        expected["scale_rate"] = stats.gamma(0.7, scale=1 / own_rate).logpdf(rate).sum()
    found = log_prior_of_sites(sites, 2, family, prior)
    assert set(found) == set(sites)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11)

    total = sum(float(value) for value in found.values()) + float(bayesgmm.log_likelihood(case.mixture, x))
    density, _ = log_density(bayesgmm.model, (x, 2, family, prior), {}, sites)
    np.testing.assert_allclose(density, total, rtol=1e-11)
    target = target_of(x, 2, family, prior, case.mixture)
    point = target.vector_of(case.mixture)
    back = target.sites_at(point)[0]
    assert_close(target.mixture_of(back), case.mixture, 1e-12)
    if scale_prior == "hierarchical":
        np.testing.assert_allclose(back["scale_rate"], posterior_mean, rtol=1e-12)
        parts = target.split(point) | {"scale_rate": jnp.log(sites["scale_rate"])}
        point = jnp.concatenate([jnp.ravel(parts[name]) for name in sorted(parts)])
    np.testing.assert_allclose(target.log_unit() - target.energy(point, jacobian=0.0), total, rtol=1e-11)


def rise_of_density(x, prior, first_covariances):
    """How the log posterior density changes as one component closes in on rows, in powers of its width."""
    rest = np.atleast_2d(np.cov(x.T))
    family = bayesgmm.FAMILIES["full"]
    found = []
    for mean, covariance in first_covariances:
        mixture = bayesgmm.Mixture.from_covariances(
            np.array([0.1, 0.9]), np.stack([mean, x.mean(0)]), np.stack([covariance, rest])
        )
        sites = sites_of_mixture(mixture, family, prior)
        found.append(float(log_density(bayesgmm.model, (x, 2, family, prior), {}, sites)[0]))
    return (found[1] - found[0]) / np.log(10.0)


@pytest.mark.parametrize(
    ("scale_prior", "num_equal", "power"),
    [
        ("half_normal", 1, 1.0),  # as the density of the row at its mean
        ("hierarchical", 1, 2 * (2.0 * (1 - 2) - 0.2 + 1.5 + 0.5)),
        ("hierarchical", 2, 2 * (2.0 * (1 - 2) - 0.2 + 1.5 + 1.0)),
        ("lognormal", 5, None),
    ],
)
def test_where_a_component_can_collapse_onto_rows(scale_prior, num_equal, power, rng):
    """The density rises without bound or falls as a component shrinks onto equal rows, as `bayesgmm.priors` says."""
    x = np.concatenate([rng.normal(size=(40, 1)), np.full((num_equal, 1), 0.3)])
    prior = bayesgmm.default_prior(x, 2, scale_prior=scale_prior)
    rise = rise_of_density(x, prior, [(x[-1], np.array([[width**2]])) for width in (1e-6, 1e-7)])
    if power is None:
        assert rise < -5.0
    else:
        assert rise == pytest.approx(power, abs=0.02)


@pytest.mark.parametrize(("concentration", "power"), [(2.0, 1.0), (2.5, 0.0), (3.0, -1.0)])
def test_where_a_component_can_collapse_onto_a_plane(concentration, power, rng):
    """Three rows lie in a plane, whatever they are: LKJ holds a component off it from a concentration of 5/2 on."""
    x = rng.normal(size=(40, 3))
    prior = bayesgmm.default_prior(x, 2, correlation_concentration=concentration)
    mean = x[:3].mean(0)
    normal = np.linalg.svd(x[:3] - mean)[2][-1]
    flat = [(mean, np.eye(3) - (1 - width**2) * np.outer(normal, normal)) for width in (1e-4, 1e-5)]
    assert rise_of_density(x, prior, flat) == pytest.approx(power, abs=0.02)


@each_conjugate_family
@pytest.mark.parametrize("num_features", [1, 3])
def test_conjugate_sites_and_unconstrained_coordinates_are_inverse(family, num_features, rng):
    case = random_case(family, 2, num_features, rng)
    prior = bayesgmm.conjugate_prior(case.rows(50, rng), 2, family)
    sites = sites_of_mixture(case.mixture, family, prior)
    assert set(sites) == {"weights", "means", "variances" if family.diagonal else "covariances"}
    assert_close(mixture_of_sites(sites, family), case.mixture, 1e-12)
    target = target_of(case.rows(50, rng), 2, family, prior, case.mixture)
    assert target.size == family.num_parameters(2, num_features)
    assert_close(target.mixture_at(target.vector_of(case.mixture)), case.mixture, 1e-12)


@each_conjugate_family
@pytest.mark.parametrize("num_features", [1, 3])
def test_conjugate_log_density_is_the_shared_likelihood_plus_the_prior(family, num_features, rng):
    """Of the model, and of the engines' objective in units of their own."""
    case = random_case(family, 3, num_features, rng)
    x = 10.0 * case.rows(40, rng)
    prior = bayesgmm.conjugate_prior(x, 3, family, concentration=[1.5, 1.0, 3.0], shrinkage=0.5)
    expected = bayesgmm.log_likelihood(case.mixture, x) + bayesgmm.log_prior(case.mixture, family, prior)

    @jax.jit
    def densities(mixture, x, prior):
        sites = sites_of_mixture(mixture, family, prior)
        target = Target(as_rows(x), prior, 3, family)
        return (
            log_density(bayesgmm.model, (x, 3, family, prior), {}, sites)[0],
            -target.energy(target.vector_of(mixture), jacobian=0.0),
        )

    of_model, of_target = densities(case.mixture, x, prior)
    shift = target_of(x, 3, family, prior, case.mixture).log_unit()
    np.testing.assert_allclose([of_model, of_target + shift], [expected, expected], rtol=1e-11)


@each_conjugate_family
def test_conjugate_prior_draws_have_the_moments_of_the_prior(family, key, rng):
    """Samples, as `log_prob`, are in the units of the data: their averages are the prior's own."""
    x = random_case(family, 2, 2, rng).rows(50, rng) * np.array([1.0, 20.0])
    prior = bayesgmm.conjugate_prior(x, 2, family, dof=12.0, shrinkage=2.0)
    drawn = Predictive(bayesgmm.model, num_samples=4000)(key, None, 2, family, prior, num_rows=3)
    assert drawn["x"].shape == (4000, 3, 2)
    if family.diagonal:
        averages, expected = drawn["variances"].mean(0), prior.scale / (12.0 - 2)
    else:
        averages, expected = drawn["covariances"].mean(0), prior.scale / (12.0 - 2 - 1)
    size = np.abs(expected) if family.diagonal else np.sqrt(np.outer(np.diagonal(expected), np.diagonal(expected)))
    np.testing.assert_array_less(np.abs(averages - expected) / size, 0.05)
    variances = expected if family.diagonal else np.diagonal(expected)
    np.testing.assert_allclose(drawn["means"].var(0) / (variances / 2.0), np.ones((2, 2)), atol=0.15)
    np.testing.assert_array_less(np.abs(drawn["means"].mean(0) - prior.mean) / np.sqrt(variances), 0.1)


@each_representation
def test_numpyro_log_likelihood_is_ours_row_by_row(family, rng):
    case = random_case(family, 2, 2, rng)
    x = case.rows(30, rng)
    sites = jax.tree.map(lambda leaf: leaf[None], sites_of_mixture(case.mixture, family))
    pointwise = log_likelihood(bayesgmm.model, sites, x, 2, family.name)
    assert set(pointwise) == {"x"}
    np.testing.assert_allclose(pointwise["x"][0], case.mixture.log_prob(x), rtol=1e-12)


@each_representation
def test_prior_predictive_rows(family, key, rng):
    prior = bayesgmm.default_prior(random_case(family, 2, 3, rng).rows(50, rng), 2)
    drawn = Predictive(bayesgmm.model, num_samples=7)(key, None, 2, family.name, prior, num_rows=11)
    assert drawn["x"].shape == (7, 11, 3)
    assert np.isfinite(drawn["x"]).all()
    assert drawn["weights"].shape == (7, 2)


def test_distribution_samples_the_mixture_and_is_a_pytree(key, rng):
    case = random_case(bayesgmm.FAMILIES["full"], 2, 1, rng)
    distribution = MixtureDistribution(case.mixture)
    again = jax.tree.unflatten(*reversed(jax.tree.flatten(distribution)))
    rows = again.sample(key, (4000,))
    assert rows.shape == (4000, 1)

    def cumulative(points):
        scales = np.sqrt(case.covariances[:, 0, 0])
        return stats.norm(case.means[:, 0], scales).cdf(points[:, None]) @ case.weights

    assert stats.kstest(np.asarray(rows)[:, 0], cumulative).pvalue > 1e-3
    mean = case.weights @ case.means
    assert_close(distribution.mean, mean, 1e-14)
    assert_close(distribution.variance, case.weights @ (case.covariances[:, 0] + (case.means - mean) ** 2), 1e-13)
    draws = jax.tree.map(lambda leaf: np.stack([leaf] * 3)[None], case.mixture)
    with pytest.raises(
        bayesgmm.InputError, match=r"mixture has leading axes \(1, 3\); index it down .* mixture\[0, 0\]"
    ):
        MixtureDistribution(draws)
    assert jax.vmap(distribution.log_prob)(rows.reshape(4, 1000, 1)).shape == (4, 1000)


def test_minibatch_plate_scales_the_likelihood(rng):
    """The rows are an ordinary plate: a user's own model can subsample it around our distribution."""
    case = random_case(bayesgmm.FAMILIES["diag"], 2, 2, rng)
    x = case.rows(60, rng)

    def minibatch():
        with numpyro.plate("rows", 60, subsample_size=20):
            batch = numpyro.subsample(jnp.asarray(x), event_dim=1)
            numpyro.sample("x", MixtureDistribution(case.mixture), obs=batch)

    with numpyro.handlers.seed(rng_seed=0):
        density, sites = log_density(minibatch, (), {}, {})
    batch = sites["x"]["value"]
    np.testing.assert_allclose(density, 3.0 * case.mixture.log_prob(batch).sum(), rtol=1e-12)


def test_default_prior_is_used_when_none_is_given(rng):
    x = DATA["faithful"]
    sites = sites_of_mixture(random_case(bayesgmm.FAMILIES["full"], 2, 2, rng).mixture, bayesgmm.FAMILIES["full"])
    without, _ = log_density(bayesgmm.model, (x, 2), {}, sites)
    with_prior, _ = log_density(bayesgmm.model, (x, 2, "full", bayesgmm.default_prior(x, 2)), {}, sites)
    assert float(without) == float(with_prior)


def test_prior_predictive_needs_a_prior_and_a_number_of_rows(key):
    with pytest.raises(bayesgmm.InputError, match="x=None samples from the prior predictive and needs both"):
        Predictive(bayesgmm.model, num_samples=1)(key, None, 2)
