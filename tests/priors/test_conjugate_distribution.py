"""The conjugate distribution: its update, density, draws and predictive density, against SciPy and simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense, each_conjugate_family, random_case
from scipy import integrate, stats
from scipy.special import logsumexp

from bayesgmm import InputError, conjugate_prior
from bayesgmm.likelihood.moments import Moments
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.mixture import joint_of_rows
from bayesgmm.priors.conjugate import distribution_of_prior
from bayesgmm.priors.normal_inverse_wishart import (
    expected_mixture,
    log_evidence,
    log_prob_of_mixture,
    sample_mixture,
    update,
)

pytestmark = pytest.mark.usefixtures("x64")


def prior_of(family, x, num_components, rng):
    """A prior with numbers that are nothing special."""
    d = x.shape[1]
    return conjugate_prior(
        x,
        num_components,
        family,
        concentration=rng.uniform(1, 3, num_components),
        mean=rng.normal(size=d),
        shrinkage=0.7,
        dof=d + 3.5,
    )


def moments_of_labels(x, labels, num_components, family):
    """Counts and moments about zero, by loops over components."""
    count = np.array([(labels == j).sum() for j in range(num_components)], float)
    first = np.stack([x[labels == j].sum(0) for j in range(num_components)])
    second = np.stack([x[labels == j].T @ x[labels == j] for j in range(num_components)])
    if family.diagonal:
        second = np.diagonal(second, axis1=1, axis2=2)
    return Moments(np.zeros_like(first), *(jnp.asarray(part) for part in (count, first, second, 0.0)))


def posterior_of(family, rng, n=60, d=3, k=2):
    case = random_case(family, k, d, rng)
    x = case.rows(n, rng)
    prior = distribution_of_prior(prior_of(family, x, k, rng), family, k)
    labels = rng.integers(0, k, n)
    return x, labels, prior, update(prior, moments_of_labels(x, labels, k, family), family)


def log_density_of_covariance(family, distribution, covariances, j):
    """By SciPy: of one covariance matrix, or the variances of one component."""
    dof, scale = np.asarray(distribution.dof)[j], np.asarray(distribution.scale)[j]
    if not family.diagonal:
        return stats.invwishart(df=dof, scale=scale).logpdf(covariances[j])
    variances = np.diagonal(covariances[j])[: len(scale)]
    return stats.invgamma(0.5 * dof, scale=0.5 * scale).logpdf(variances).sum()


@each_conjugate_family
@pytest.mark.parametrize("d", [1, 3])
def test_density_is_that_of_scipy(family, d, rng):
    _, _, _, posterior = posterior_of(family, rng, d=d)
    case = random_case(family, 2, d, rng)
    expected = stats.dirichlet(posterior.concentration).logpdf(case.weights)
    for j in range(2):
        spread = case.covariances[j] / posterior.shrinkage[j]
        expected += stats.multivariate_normal(posterior.mean[j], spread).logpdf(case.means[j])
    for j in range(1 if family.shared else 2):
        expected += log_density_of_covariance(family, posterior, case.covariances, j)
    np.testing.assert_allclose(log_prob_of_mixture(posterior, case.mixture), expected, rtol=1e-11)


@each_conjugate_family
def test_update_is_bayes_theorem(family, rng):
    """Likelihood of rows and allocations times prior over posterior: the same evidence wherever it is taken."""
    x, labels, prior, posterior = posterior_of(family, rng)
    found = []
    for _ in range(3):
        case = random_case(family, 2, 3, rng)
        joint = case.joint_log_prob(x)[np.arange(len(x)), labels].sum()
        found.append(joint + log_prob_of_mixture(prior, case.mixture) - log_prob_of_mixture(posterior, case.mixture))
    np.testing.assert_allclose(found, log_evidence(posterior, prior, jnp.asarray(float(len(x)))), rtol=1e-10)


@jax.jit
def draws_of(posterior, keys):
    """A mixture for each key; of a constant posterior XLA would work out parts of all of them while it compiles."""
    return jax.vmap(lambda key: sample_mixture(posterior, key=key))(keys)


@each_conjugate_family
def test_draws_have_the_moments_and_quantiles_of_the_distribution(family, rng, key):
    *_, posterior = posterior_of(family, rng)
    draws = draws_of(posterior, jax.random.split(key, 4000))
    weights, means, covariances = (np.asarray(part) for part in (draws.weights, draws.means, draws.covariances))
    for j in range(2):
        rest = posterior.concentration.sum() - posterior.concentration[j]
        assert stats.kstest(weights[:, j], stats.beta(posterior.concentration[j], rest).cdf).pvalue > 1e-4
    e = 0 if family.shared else 1
    dof, scale = np.asarray(posterior.dof)[e], np.asarray(posterior.scale)[e]
    direction = rng.normal(size=3)
    if family.diagonal:
        law = stats.invgamma(0.5 * dof, scale=0.5 * scale[0])
        assert stats.kstest(covariances[:, 1, 0, 0], law.cdf).pvalue > 1e-4
        if not family.isotropic:
            assert (
                stats.kstest(covariances[:, 1, 2, 2], stats.invgamma(0.5 * dof, scale=0.5 * scale[2]).cdf).pvalue > 1e-4
            )
    else:
        # 1 / a' P a of a Wishart precision P is that of a chi-square with dof degrees of freedom.
        precision = np.linalg.inv(covariances[:, 1])
        form = np.einsum("i,sij,j->s", direction, precision, direction)
        assert stats.kstest(form / (direction @ np.linalg.solve(scale, direction)), stats.chi2(dof).cdf).pvalue > 1e-4
        np.testing.assert_allclose(
            covariances[:, 1].mean(0), scale / (dof - 4), atol=6 * covariances[:, 1].std(0).max() / 60
        )
    spread = np.linalg.cholesky(covariances[:, 1])
    whitened = np.linalg.solve(spread, (means[:, 1] - np.asarray(posterior.mean)[1])[..., None])[..., 0]
    standard = (whitened * np.sqrt(posterior.shrinkage[1])).ravel()
    assert stats.kstest(standard, stats.norm.cdf).pvalue > 1e-4


@each_conjugate_family
def test_expected_mixture_is_the_mean_log_density_of_draws(family, rng, key):
    x, _, _, posterior = posterior_of(family, rng)
    draws = draws_of(posterior, jax.random.split(key, 4000))
    joint = np.asarray(draws.joint_log_prob(x[:5]))
    error = joint.std(0) / np.sqrt(len(joint))
    found = joint_of_rows(expected_mixture(posterior), x[:5]).T  # its weights do not sum to one
    assert (np.abs(joint.mean(0) - found) < 5 * error).all()


@each_conjugate_family
def test_predictive_density_is_the_mean_density_of_draws(family, rng, key):
    x, _, _, posterior = posterior_of(family, rng)
    draws = draws_of(posterior, jax.random.split(key, 4000))
    density = np.exp(np.asarray(draws.log_prob(x[:8])))
    found = np.exp(posterior.predictive_log_prob(x[:8]))
    assert (np.abs(density.mean(0) - found) < 5 * density.std(0) / np.sqrt(len(density))).all()


def test_predictive_density_is_a_student_mixture(rng):
    x, _, _, posterior = posterior_of(FAMILIES["full"], rng)
    weights = np.asarray(posterior.concentration / posterior.concentration.sum())
    parts = []
    for j in range(2):
        dof = posterior.dof[j] - 2
        shape = posterior.scale[j] * (1 + posterior.shrinkage[j]) / (posterior.shrinkage[j] * dof)
        parts.append(np.log(weights[j]) + stats.multivariate_t(posterior.mean[j], shape, dof).logpdf(x))
    np.testing.assert_allclose(posterior.predictive_log_prob(x), logsumexp(parts, axis=0), rtol=1e-11)


def test_predictive_density_of_rows_far_away_has_a_logarithm(rng):
    """Tails of powers: ten times as far, the density of the heaviest tail is lower by a power of ten."""
    *_, posterior = posterior_of(FAMILIES["full"], rng)
    near, far = posterior.predictive_log_prob(np.array([[1e150, 0.0, 0.0], [1e160, 0.0, 0.0]]))
    power = (np.asarray(posterior.dof) - 3 + 1).min() + 3
    np.testing.assert_allclose(far - near, -power * 10 * np.log(10), rtol=1e-10)


@each_conjugate_family
def test_predictive_density_integrates_to_one(family, rng):
    *_, posterior = posterior_of(family, rng, d=1)
    total, _ = integrate.quad(
        lambda value: float(np.exp(posterior.predictive_log_prob(np.array([[value]])))[0]), -np.inf, np.inf
    )
    assert total == pytest.approx(1.0, abs=1e-7)


def test_rows_of_another_width_are_refused(rng):
    *_, posterior = posterior_of(FAMILIES["diag"], rng)
    with pytest.raises(InputError, match="x must have shape"):
        posterior.predictive_log_prob(np.zeros((2, 5)))


def test_shapes_are_those_of_the_family(rng):
    for family in FAMILIES.values():
        *_, posterior = posterior_of(family, rng)
        mixture = expected_mixture(posterior)
        assert dense(np.asarray(mixture.covariances), FAMILIES["full"], 2).shape == (2, 3, 3)
        assert len(posterior.dof) == len(posterior.scale) == (1 if family.shared else 2)
