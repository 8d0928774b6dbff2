"""Weights of a truncated Dirichlet process: a generalised Dirichlet, in closed form and by simulation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA
from scipy import special, stats
from sklearn.mixture import BayesianGaussianMixture

import bayesgmm
from bayesgmm import InputError, conjugate_prior, fit_cavi
from bayesgmm.priors.mixing_weights import (
    expected_log_weights,
    log_constant_of_weights,
    log_mean_weights,
    log_prob_of_weights,
    sample_log_weights,
    update_weights,
)
from bayesgmm.target.numpyro_model import StickBreakingWeights

A, B = np.array([1.0, 2.5, 0.7, 9.0]), np.array([0.6, 1.4, 3.0, np.nan])  # the last remainder means nothing


def sticks(weights):
    """Shares of what earlier pieces have left."""
    return weights[:-1] / (1.0 - np.concatenate([[0.0], weights[:-2].cumsum()]))


@pytest.mark.usefixtures("x64")
def test_two_components_are_a_dirichlet_distribution(rng, key):
    a, gamma = jnp.array([1.3, 5.0]), jnp.array([0.4, 7.0])
    same = jnp.array([1.3, 0.4])
    count = jnp.array([3.0, 5.5])
    log_weights = jnp.log(jnp.asarray(rng.dirichlet([1.0, 1.0])))
    for function in (expected_log_weights, log_mean_weights, log_constant_of_weights):
        np.testing.assert_allclose(function(a, gamma), function(same, None), rtol=1e-12)
        np.testing.assert_allclose(
            function(*update_weights(a, gamma, count)), function(*update_weights(same, None, count)), rtol=1e-12
        )
    np.testing.assert_allclose(
        log_prob_of_weights(a, gamma, log_weights), log_prob_of_weights(same, None, log_weights), rtol=1e-12
    )


@pytest.mark.usefixtures("x64")
def test_density_is_that_of_independent_beta_pieces(rng):
    weights = rng.dirichlet(np.ones(4))
    jacobian = np.asarray(
        jax.jacfwd(lambda w: w / (1.0 - jnp.concatenate([jnp.zeros(1), w[:-1].cumsum()])))(weights[:-1])
    )
    expected = stats.beta(A[:-1], B[:-1]).logpdf(sticks(weights)).sum() + np.linalg.slogdet(jacobian)[1]
    found = log_prob_of_weights(jnp.asarray(A), jnp.asarray(B), jnp.log(weights))
    assert found == pytest.approx(expected, rel=1e-12)
    prior = StickBreakingWeights(jnp.asarray(B[:-1]))  # of a process: the first numbers are 1
    weights = rng.dirichlet(np.ones(3), size=2)
    expected = [stats.beta(1.0, B[:2]).logpdf(sticks(row)).sum() - np.log(1.0 - row[0]) for row in weights]
    np.testing.assert_allclose(prior.log_prob(jnp.asarray(weights)), expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_moments_by_formula_and_by_simulation(key):
    a, b = jnp.asarray(A), jnp.asarray(B)
    draws = jax.vmap(lambda key: sample_log_weights(a, b, key=key))(jax.random.split(key, 40_000))
    np.testing.assert_allclose(jnp.exp(draws).sum(1), 1.0, rtol=1e-12)
    for found, values in ((jnp.exp(log_mean_weights(a, b)), jnp.exp(draws)), (expected_log_weights(a, b), draws)):
        values = np.asarray(values)
        assert (np.abs(found - values.mean(0)) < 5 * values.std(0) / 200).all()
    share = A[:-1] / (A + B)[:-1]
    np.testing.assert_allclose(
        np.exp(log_mean_weights(a, b)), np.append(share, 1.0) * np.append(1.0, (1 - share).cumprod()), rtol=1e-12
    )
    assert expected_log_weights(a, b)[0] == pytest.approx(special.digamma(1.0) - special.digamma(1.6), rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_counts_update_it(rng):
    """Bayes' rule: prior density times the probability of the allocations, over their evidence, is the update."""
    a, b, count = jnp.asarray(A), jnp.asarray(B), jnp.asarray(rng.integers(0, 9, 4).astype(float))
    log_weights = jnp.log(jnp.asarray(rng.dirichlet(np.ones(4))))
    posterior = update_weights(a, b, count)
    evidence = log_constant_of_weights(*posterior) - log_constant_of_weights(a, b)
    expected = log_prob_of_weights(a, b, log_weights) + (count * log_weights).sum() - evidence
    assert log_prob_of_weights(*posterior, log_weights) == pytest.approx(float(expected), rel=1e-11)


def test_pieces_of_no_size_and_single_components():
    prior = StickBreakingWeights(jnp.ones(3))
    assert np.isfinite(prior.log_prob(jnp.array([0.4, 0.0, 0.6])))
    one = jnp.ones(1)
    assert float(log_prob_of_weights(one, one, jnp.zeros(1))) == 0.0
    assert float(expected_log_weights(one, one)[0]) == 0.0


class TruncatedAtOne(BayesianGaussianMixture):
    """Scikit-learn's engine from responsibilities of ours, with nothing left after the last component."""

    def _initialize_parameters(self, X, random_state, xp=None):
        self._initialize(X, self.given)

    def _estimate_weights(self, nk):
        super()._estimate_weights(nk)
        self.weight_concentration_[1][-1] = 0.0

    def _m_step(self, X, log_resp, **options):
        # Below a concentration of 1 the best order is the descending one, and scikit-learn keeps any.
        super()._m_step(X, log_resp[:, np.argsort(-np.exp(log_resp).sum(0))], **options)


@pytest.mark.filterwarnings("ignore:(invalid|divide)")  # of the remainder of the last component, which is dropped
@pytest.mark.parametrize("name", ["faithful", "iris"])
def test_coordinate_ascent_walks_with_scikit_learn(name, rng, key):
    x, k, steps, gamma = DATA[name], 4, 30, 0.35
    shares = rng.dirichlet(np.ones(k), len(x))
    theirs = TruncatedAtOne(
        n_components=k, reg_covar=0, weight_concentration_prior=gamma, mean_precision_prior=0.5, tol=0, max_iter=steps
    )
    theirs.given = shares
    theirs._compute_lower_bound = lambda *_: 0.0  # it would take the logarithm of the remainder that is 0
    with pytest.warns(UserWarning, match="did not converge"):
        theirs.fit(x)
    prior = conjugate_prior(
        x, k, concentration=gamma, shrinkage=0.5, dof=x.shape[1], scale=np.cov(x.T), stick_breaking=True
    )
    options = {"prior": prior, "key": key, "start": shares, "tol": 0, "on_failure": "ignore", "num_draws": 0}
    ours = fit_cavi(x, k, max_steps=steps - 1, **options)
    found = ours.approximation
    for mine, other in (
        (found.mean, theirs.means_),
        (found.concentration, theirs.weight_concentration_[0]),
        (found.remainder[:-1], theirs.weight_concentration_[1][:-1]),
        (found.scale / found.dof[:, None, None], theirs.covariances_),
        (ours.mixture.weights, theirs.weights_),
    ):
        np.testing.assert_allclose(mine, other, rtol=1e-7, atol=1e-7 * np.abs(other).max())
    bounds = np.asarray(ours.trace)
    assert (np.diff(bounds) > -1e-9 * np.abs(bounds[0])).all()


@pytest.mark.parametrize("concentration", [0.01, 1.0, 30.0])
def test_pieces_of_a_stick_are_in_their_best_order(concentration, key):
    """No other order of the components has a higher bound: that order changes the evidence of the weights alone."""
    x, k = DATA["iris"], 4
    prior = conjugate_prior(x, k, concentration=concentration, stick_breaking=True)
    fit = fit_cavi(x, k, prior=prior, key=key, num_draws=0)
    count = np.asarray(fit.approximation.concentration) - 1.0

    def evidence(order):
        later = np.append(count[list(order)][::-1].cumsum()[::-1][1:], 0.0)
        return special.betaln(1.0 + count[list(order)], concentration + later)[:-1].sum()

    best = max(map(evidence, itertools.permutations(range(k))))
    assert evidence(range(k)) == pytest.approx(best, abs=1e-6)
    if concentration < 1:
        assert (np.diff(count) < 1e-6).all()


@functools.cache
def two_component_fits(engine):
    """The same posterior under the two names that its prior has for k = 2."""
    x, key = DATA["faithful"], jax.random.key(3)
    priors = (
        conjugate_prior(x, 2, concentration=0.7, stick_breaking=True),
        conjugate_prior(x, 2, concentration=np.array([1.0, 0.7])),
    )
    return [getattr(bayesgmm, engine)(x, 2, prior=prior, key=key, on_failure="ignore") for prior in priors]


def test_two_components_have_the_same_approximation():
    sticks, dirichlet = two_component_fits("fit_cavi")
    assert sticks.summary["elbo"] == pytest.approx(dirichlet.summary["elbo"], rel=1e-6)
    order = np.argsort(sticks.mixture.means[:, 0])
    np.testing.assert_allclose(sticks.approximation.mean[order], dirichlet.approximation.mean, rtol=1e-3)


@pytest.mark.parametrize("engine", [pytest.param("fit_gibbs", marks=pytest.mark.slow), "fit_nuts"])
def test_two_components_have_the_same_draws_by_samplers(engine):
    sticks, dirichlet = two_component_fits(engine)
    assert sticks.successful
    first, second = (np.asarray(fit.draws.weights)[..., 0] for fit in (sticks, dirichlet))
    variances = [draws.var() / fit.summary["ess_bulk"] for draws, fit in ((first, sticks), (second, dirichlet))]
    assert abs(first.mean() - second.mean()) < 5 * np.sqrt(sum(variances))


def test_fits_have_their_log_prior_in_arviz(key):
    x = DATA["faithful"]
    prior = conjugate_prior(x, 3, stick_breaking=True)
    fit = fit_cavi(x, 3, prior=prior, key=key, num_draws=30)
    tree = bayesgmm.to_datatree(fit, x, prior=prior, key=key)
    weights = np.asarray(tree.posterior["weights"])[0]
    expected = [stats.beta(1, 1).logpdf(sticks(row)).sum() - np.log(1 - row[0]) for row in weights]
    np.testing.assert_allclose(np.asarray(tree["log_prior"]["weights"])[0], expected, rtol=1e-9)


@pytest.mark.parametrize("engine", ["fit_em", "fit_map"])
def test_engines_that_look_for_a_mode_refuse_it(engine, key):
    x = DATA["faithful"]
    prior = conjugate_prior(x, 2, stick_breaking=True)
    with pytest.raises(InputError, match=r"stick_breaking=True has .* no mode; use stick_breaking=False"):
        getattr(bayesgmm, engine)(x, 2, prior=prior, key=key)


def test_description_and_checks():
    x = DATA["faithful"]
    text = conjugate_prior(x, 3, concentration=0.5, stick_breaking=True).describe()
    assert "Beta(1, 0.5) of what earlier components left" in text
    low, high = stats.beta(1, 0.5).interval(0.95)
    assert f"{low:.3g} to {high:.3g}" in text
    with pytest.raises(InputError, match="stick_breaking='yes' must be True or False"):
        conjugate_prior(x, 3, stick_breaking="yes")
