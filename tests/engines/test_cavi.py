"""Coordinate ascent: scikit-learn's steps, the exact evidence where there is one, and a bound that never falls."""

import dataclasses
from types import MappingProxyType

import jax
import numpy as np
import pytest
from helpers import DATA, each_conjugate_family
from scipy import stats
from sklearn.mixture import BayesianGaussianMixture

import bayesgmm
from bayesgmm import InputError, conjugate_prior, fit_cavi
from bayesgmm.engines.cavi import draw_from_approximation
from bayesgmm.engines.fit import ResultCode
from bayesgmm.likelihood.moments import Moments
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.priors.conjugate import distribution_of_prior
from bayesgmm.priors.normal_inverse_wishart import update
from bayesgmm.runtime import devices

QUICK = {"num_draws": 25, "on_failure": "ignore"}


class FromResponsibilities(BayesianGaussianMixture):
    """Scikit-learn's engine from responsibilities of ours."""

    def _initialize_parameters(self, X, random_state, xp=None):
        self._initialize(X, self.given)


@pytest.mark.parametrize("name", ["faithful", "iris", "simulated"])
def test_walks_with_scikit_learn(name, rng, key):
    x, k, steps = DATA[name], 3, 40
    shares = rng.dirichlet(np.ones(k), len(x))
    numbers = {"concentration": 1.7, "shrinkage": 0.3, "mean": x.mean(0) + 0.1, "dof": x.shape[1] + 2.5}
    scale = np.cov(x.T)
    theirs = FromResponsibilities(
        n_components=k,
        covariance_type="full",
        weight_concentration_prior_type="dirichlet_distribution",
        reg_covar=0,
        weight_concentration_prior=numbers["concentration"],
        mean_precision_prior=numbers["shrinkage"],
        mean_prior=numbers["mean"],
        degrees_of_freedom_prior=numbers["dof"],
        covariance_prior=scale,
        tol=0,
        max_iter=steps,
    )
    theirs.given = shares
    with pytest.warns(UserWarning, match="did not converge"):
        theirs.fit(x)
    prior = conjugate_prior(x, k, scale=scale, **numbers)
    # The responsibilities given make the first numbers; scikit-learn counts the step that follows as its first.
    ours = fit_cavi(x, k, prior=prior, key=key, start=shares, tol=0, max_steps=steps - 1, **QUICK)
    found = ours.approximation
    for mine, other in (
        (found.mean, theirs.means_),
        (found.dof, theirs.degrees_of_freedom_),
        (found.scale / found.dof[:, None, None], theirs.covariances_),
        (found.concentration, theirs.weight_concentration_),
        (found.shrinkage, theirs.mean_precision_),
    ):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6 * np.abs(other).max())
    differences = np.asarray(ours.trace) - np.asarray(theirs.lower_bounds_)
    assert np.ptp(differences) < 1e-8 * max(1.0, np.abs(theirs.lower_bounds_[-1]))


@each_conjugate_family
def test_one_component_has_the_exact_evidence(family, key):
    """k = 1: the approximation is the posterior, and the bound the product of predictive densities."""
    x = DATA["iris"][:30, :3]
    prior = conjugate_prior(x, 1, family, concentration=2.0, dof=6.0, shrinkage=0.5)
    fit = fit_cavi(x, 1, family=family, prior=prior, key=key, **QUICK)
    with jax.enable_x64(True):
        seen = distribution_of_prior(prior, FAMILIES[family.name], 1)
        evidence = 0.0
        for row in x:
            evidence += float(seen.predictive_log_prob(row[None])[0])
            second = np.square(row)[None] if family.diagonal else np.outer(row, row)[None]
            seen = update(seen, Moments(np.zeros((1, 3)), np.ones(1), row[None], second, 0.0), family)
    assert fit.summary["elbo"] == pytest.approx(evidence, rel=1e-10)
    assert fit.successful


def test_evidence_of_one_gaussian_by_quadrature(key):
    """Chib's prior on galaxies, k = 1: mu ~ N(20, 100) is not conjugate, so a conjugate one by a double integral."""
    x = DATA["galaxies"][:12]
    prior = conjugate_prior(x, 1, "diag", mean=20.0, shrinkage=0.5, dof=6.0, scale=40.0)
    fit = fit_cavi(x, 1, family="diag", prior=prior, key=key, **QUICK)
    mean, log_variance = np.meshgrid(np.linspace(-20, 60, 1201), np.linspace(-2, 9, 1201), indexing="ij")
    variance = np.exp(log_variance)
    log_joint = stats.norm(20, np.sqrt(variance / 0.5)).logpdf(mean) + stats.invgamma(3, scale=20).logpdf(variance)
    log_joint = log_joint + log_variance
    for value in x[:, 0]:
        log_joint += stats.norm(mean, np.sqrt(variance)).logpdf(value)
    top = log_joint.max()
    total = np.trapezoid(np.trapezoid(np.exp(log_joint - top), log_variance[0], axis=1), mean[:, 0])
    assert fit.summary["elbo"] == pytest.approx(top + np.log(total), abs=1e-6)


@each_conjugate_family
def test_bound_rises_and_is_a_bound(family, key):
    x = DATA["faithful"]
    fit = fit_cavi(x, 3, family=family, key=key, num_restarts=5, tol=1e-9, num_draws=400, on_failure="ignore")
    trace = np.asarray(fit.trace)[: int(fit.num_steps) + 1]
    assert (np.diff(trace) > -1e-9 * np.abs(trace[0])).all()
    # Summing over the allocations can only raise it (Jensen): E_q log p(x, theta) / q(theta) is a tighter bound.
    log_weights = np.asarray(fit.sample_stats["log_p"] - fit.sample_stats["log_q"])
    error = log_weights.std() / np.sqrt(log_weights.size)
    assert log_weights.mean() > fit.summary["elbo"] - 5 * error
    assert fit.draws.draw_shape == (1, 400)


def test_fit_is_the_best_of_its_restarts_and_keeps_labels(key):
    x = DATA["iris"]
    many = fit_cavi(x, 3, key=key, num_restarts=20, num_draws=25)
    one = fit_cavi(x, 3, key=key, num_restarts=1, num_draws=25)
    assert many.summary["elbo"] >= one.summary["elbo"] - 1e-6
    start = bayesgmm.fit_em(x, 3, key=key).mixture.permute(np.array([2, 0, 1]))
    fit = fit_cavi(x, 3, key=key, start=start, num_draws=25)
    np.testing.assert_array_equal(bayesgmm.match_labels(fit.mixture, start), [0, 1, 2])


def test_rows_on_several_devices_give_the_same(rng, monkeypatch, key):
    x = rng.normal(size=(3000, 4)) + 3 * rng.integers(0, 3, size=(3000, 1))
    shares = rng.dirichlet(np.ones(3), len(x))
    alone = fit_cavi(x, 3, key=key, start=shares, tol=0, max_steps=10, **QUICK)
    monkeypatch.setattr(devices, "LARGE", 2**10)
    jax.clear_caches()
    together = fit_cavi(x, 3, key=key, start=shares, tol=0, max_steps=10, **QUICK)
    np.testing.assert_allclose(together.summary["elbo"], alone.summary["elbo"], rtol=1e-11)
    np.testing.assert_allclose(together.approximation.mean, alone.approximation.mean, atol=1e-8)


def test_float32_stays_float32(key):
    fit = fit_cavi(DATA["faithful"].astype(np.float32), 2, key=key, num_draws=100)
    assert fit.successful
    leaves = jax.tree.leaves((fit.mixture, fit.draws, fit.approximation))
    assert {np.asarray(leaf).dtype for leaf in leaves} == {np.dtype(np.float32)}
    exact = fit_cavi(DATA["faithful"], 2, key=key, num_draws=100)
    assert fit.summary["elbo"] == pytest.approx(exact.summary["elbo"], rel=1e-5)


def test_step_limit_is_told(key):
    fit = fit_cavi(DATA["iris"], 3, key=key, max_steps=2, num_restarts=2, **QUICK)
    assert fit.code is ResultCode.max_steps_reached
    assert int(fit.num_steps) == 2
    with pytest.warns(bayesgmm.FitWarning, match="cavi"):
        fit_cavi(DATA["iris"], 3, key=key, max_steps=2, num_restarts=2, num_draws=25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_draws": 24}, "num_draws=24 is too few for k-hat; draw at least 25"),
        ({"max_steps": -1}, "max_steps=-1 must be"),
        ({"num_restarts": 0}, "num_restarts=0 must be"),
        ({"tol": -1.0}, "tol=-1.0 must be"),
        ({"start": "nowhere"}, "start='nowhere' is not known"),
        ({"start": None}, "start=None is not a start; leave it out"),
        *(
            ({"start": distribution_of_prior(conjugate_prior(x, k, family), FAMILIES[family], k)}, message)
            for x, k, family, message in (
                (DATA["faithful"], 3, "full", r"start is an approximation with means of shape \(3, 2\)"),
                (DATA["iris"], 2, "full", r"with means of shape \(2, 4\)"),
                (DATA["faithful"], 2, "tied", r"scales of shape \(1, 2, 2\); .* \(2, 2, 2\)"),
            )
        ),
        ({"prior": 3}, "prior is 3, and this takes a conjugate prior"),
        ({"prior": bayesgmm.default_prior(DATA["faithful"], 2)}, "takes a conjugate prior; make it with"),
        ({"prior": conjugate_prior(DATA["faithful"], 3)}, "prior is for k=3"),
        ({"prior": conjugate_prior(DATA["iris"], 2)}, "of 4 features"),
        ({"prior": conjugate_prior(DATA["faithful"], 2, "diag")}, "scale of shape"),
    ],
)
def test_bad_arguments(settings, message, key):
    with pytest.raises(InputError, match=message):
        fit_cavi(DATA["faithful"], 2, key=key, **settings)


@pytest.mark.parametrize("function", [bayesgmm.fit_cavi, bayesgmm.fit_gibbs])
def test_family_without_a_conjugate_prior_is_refused(function, key):
    vei = dataclasses.replace(FAMILIES["diag"], name="VEI", mclust="VEI", conjugate=None)
    with pytest.raises(InputError, match=r"family='VEI' \(VEI\) has no conjugate prior; choose one of"):
        function(DATA["faithful"], 2, family=vei, key=key)


def test_weight_two_is_the_row_twice_and_weight_none_is_no_row(rng, key):
    x, labels = DATA["iris"], np.repeat([0, 1, 2], 50)
    weights = rng.integers(0, 3, len(x)).astype(float)
    repeat = weights.astype(int)
    x = np.where(weights[:, None] > 0, x, 1e6)  # whatever it holds
    rows = np.repeat(x, repeat, axis=0)
    options = {"key": key, "tol": 1e-10, "num_draws": 25, "on_failure": "ignore"}
    weighted = fit_cavi(x, 3, row_weights=weights, start=labels, **options)
    repeated = fit_cavi(rows, 3, start=np.repeat(labels, repeat), **options)
    assert weighted.summary["elbo"] == pytest.approx(repeated.summary["elbo"], rel=1e-10)
    np.testing.assert_allclose(weighted.approximation.mean, repeated.approximation.mean, rtol=1e-6)
    np.testing.assert_allclose(weighted.sample_stats["log_p"], repeated.sample_stats["log_p"], rtol=1e-6)
    assert weighted.log_likelihood == pytest.approx(bayesgmm.log_likelihood(weighted.mixture, rows), rel=1e-9)


def test_no_draws_give_the_point_of_the_approximation(key):
    x = DATA["iris"]
    fit, drawn = (fit_cavi(x, 3, key=key, num_draws=number) for number in (0, 2000))
    assert fit.draws is None
    assert "khat" not in fit.summary
    assert fit.summary["elbo"] == drawn.summary["elbo"]
    assert fit.log_likelihood == pytest.approx(bayesgmm.log_likelihood(fit.mixture, x), rel=1e-12)
    np.testing.assert_allclose(fit.mixture.weights, drawn.mixture.weights, atol=0.01)
    np.testing.assert_allclose(fit.mixture.means, fit.approximation.mean)


def test_no_step_is_one_pass_from_the_start_and_ascents_go_on_where_they_were(key):
    x, labels = DATA["iris"], np.repeat([0, 1, 2], 50)
    options = {"key": key, "tol": 0, **QUICK}
    whole = fit_cavi(x, 3, start=labels, max_steps=7, **options)
    fit = fit_cavi(x, 3, start=labels, max_steps=0, **options)
    assert (int(fit.num_steps), len(fit.trace)) == (0, 1)
    for _ in range(7):
        fit = fit_cavi(x, 3, start=fit.approximation, max_steps=0, **options)
    assert fit.summary["elbo"] == pytest.approx(whole.summary["elbo"], rel=1e-13)
    np.testing.assert_allclose(fit.approximation.mean, whole.approximation.mean, rtol=1e-11)


def test_draws_can_be_taken_later(key):
    x = DATA["iris"]
    fit = fit_cavi(x, 3, key=key, num_draws=0)
    drawn = draw_from_approximation(fit, x, num_draws=100, key=key)
    np.testing.assert_array_equal(drawn.approximation.mean, fit.approximation.mean)
    assert drawn.draws.draw_shape == (1, 100)
    assert drawn.summary["elbo"] == fit.summary["elbo"]
    with pytest.raises(InputError, match=r"fit is by em, .* fit_cavi"):
        draw_from_approximation(bayesgmm.fit_em(x, 3, key=key), x, num_draws=100, key=key)


def test_labels_of_a_start_of_ones_own_are_kept(rng, key):
    x = np.concatenate([rng.normal(size=(40, 1)) + 3, rng.normal(size=(40, 1)) - 3])
    labels = np.repeat([0, 1], 40)
    means = {"means": np.array([[3.0], [-3.0]])}
    for start in (labels, np.eye(2)[labels], means, MappingProxyType(means)):
        assert fit_cavi(x, 2, start=start, key=key).mixture.means[0, 0] > 0
    assert fit_cavi(x, 2, start=1 - labels, key=key).mixture.means[0, 0] < 0


def test_bound_of_a_start_too_narrow_to_be_exact_is_no_fall(key):
    """Three distinct rows: components of the start have next to no spread, those of the posterior have the prior's."""
    x = np.repeat(np.array([[0.0, 0.0], [1.0, 0.3], [0.2, 2.0]]), 10, axis=0)
    fit = fit_cavi(x, 2, key=key)
    assert fit.successful
    assert (np.diff(fit.trace[: int(fit.num_steps) + 1]) > -1e-9).all()


def test_k_hat_of_rounding_is_not_told(key):
    """In float32 the log posterior density of many rows is coarser than its differences between draws."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(20_000, 2)), rng.normal(size=(20_000, 2)) + 6])
    exact = fit_cavi(x, 2, key=key, num_restarts=1)
    assert exact.summary["khat"] < 0.5
    coarse = fit_cavi(x.astype(np.float32), 2, key=key, num_restarts=1)
    assert np.isnan(coarse.summary["khat"])
    found = bayesgmm.diagnose(coarse, x.astype(np.float32))
    assert found.causes == ("k-hat",)
    assert "cannot be estimated" in str(found)
