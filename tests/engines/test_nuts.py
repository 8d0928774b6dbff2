"""NUTS: draws of the right posterior, with chains, divergences and R-hat told."""

import dataclasses

import jax
import numpy as np
import pytest
from fits import NUTS, nuts
from helpers import DATA, at_length
from scipy import integrate, stats

import bayesgmm
from bayesgmm.engines.draws import with_convergence
from bayesgmm.posterior.chain_agreement import convergence

FEW = {**NUTS, "on_failure": "ignore"}


@at_length(bayesgmm.FAMILIES)
def test_fits_every_family(family, key):
    x = DATA["faithful"]
    em = bayesgmm.fit_em(x, 2, family=family, key=key)
    fit = bayesgmm.fit_nuts(x, 2, family=family, key=key, start=em.mixture, **FEW)
    assert fit.draws.draw_shape == (2, 400)
    assert fit.summary["r_hat"] < 1.05  # of 400 draws
    assert fit.summary["divergences"] == 0
    agree = fit.summary["r_hat"] <= 1.01 and fit.summary["ess_bulk"] >= 200
    assert fit.code is (bayesgmm.ResultCode.successful if agree else bayesgmm.ResultCode.not_mixed)
    assert fit.trace.shape == (2, 400)
    assert {"diverging", "acceptance_rate", "n_steps", "energy", "step_size", "tree_depth", "lp"} <= set(
        fit.sample_stats
    )
    assert (2.0 ** fit.sample_stats["tree_depth"] >= fit.sample_stats["n_steps"]).all()
    np.testing.assert_array_equal(bayesgmm.match_labels(fit.mixture, em.mixture), [0, 1])
    deviation = np.asarray(fit.draws.means).std((0, 1))
    assert (np.abs(fit.mixture.means - em.mixture.means) < 2 * deviation).all()


def test_one_component_against_quadrature(key):
    """k = 1, d = 1: means and deviations of the exact posterior, by quadrature, within five Monte Carlo errors."""
    x = np.array([0.3, -1.2, 2.5, 0.7, 4.0, -0.5])[:, None]
    prior = bayesgmm.default_prior(x, 1, mean_loc=1.0, mean_scale=2.0, scale_median=1.5, scale_sigma=0.6)
    fit = bayesgmm.fit_nuts(x, 1, key=key, prior=prior, num_draws=3000, num_chains=2)

    means, log_scales = np.linspace(-8, 10, 801), np.linspace(-2, 4, 801)
    grid_mean, grid_log = np.meshgrid(means, log_scales, indexing="ij")
    log_density = stats.norm(1.0, 2.0).logpdf(grid_mean) + stats.norm(np.log(1.5), 0.6).logpdf(grid_log)
    for value in x[:, 0]:
        log_density += stats.norm(grid_mean, np.exp(grid_log)).logpdf(value)
    density = np.exp(log_density - log_density.max())

    def expectation(function):
        total = integrate.simpson(integrate.simpson(density, x=log_scales), x=means)
        return integrate.simpson(integrate.simpson(function * density, x=log_scales), x=means) / total

    draws = {"mean": np.asarray(fit.draws.means)[..., 0, 0], "log": np.log(np.asarray(fit.draws.scales)[..., 0, 0])}
    error_of = {"mean": grid_mean, "log": grid_log}
    for name, values in draws.items():
        exact = expectation(error_of[name])
        error = values.std() / np.sqrt(fit.summary["ess_bulk"])
        assert abs(values.mean() - exact) < 5 * error
        exact_sd = np.sqrt(expectation((error_of[name] - exact) ** 2))
        assert values.std() == pytest.approx(exact_sd, rel=0.1)


def test_chain_methods_give_the_same_posterior(key):
    x = DATA["faithful"]
    em = bayesgmm.fit_em(x, 2, family="diag", key=key)
    fits = [
        bayesgmm.fit_nuts(x, 2, family="diag", key=key, start=em.mixture, chain_method=method, **FEW)
        for method in ("parallel", "sequential", "vectorized")
    ]
    deviation = np.asarray(fits[0].draws.means).std((0, 1))
    for fit in fits[1:]:
        assert (np.abs(fit.mixture.means - fits[0].mixture.means) < 0.4 * deviation).all()


@pytest.mark.slow
def test_same_key_same_draws(key):
    x = DATA["faithful"]
    start = bayesgmm.fit_em(x, 2, key=key).mixture
    one, two = (bayesgmm.fit_nuts(x, 2, key=key, start=start, **FEW) for _ in range(2))
    np.testing.assert_array_equal(one.draws.means, two.draws.means)


def test_disagreeing_chains_and_divergences_are_not_successful():
    fit = nuts("faithful", 2, num_draws=1000)
    assert fit.code is bayesgmm.ResultCode.successful
    apart = np.asarray(fit.draws.means).copy()
    apart[1] += 5 * apart.std()
    torn = with_convergence(
        dataclasses.replace(fit, draws=dataclasses.replace(fit.draws, means=apart)), DATA["faithful"]
    )
    assert torn.code is bayesgmm.ResultCode.not_mixed
    assert torn.summary["r_hat"] > 1.5
    diverging = np.zeros_like(fit.sample_stats["diverging"])
    diverging[0, 3] = True
    stats = {**fit.sample_stats, "diverging": diverging}
    marked = with_convergence(dataclasses.replace(fit, sample_stats=stats), DATA["faithful"])
    assert marked.code is bayesgmm.ResultCode.divergent
    assert marked.summary["divergences"] == 1


def test_too_few_draws_warn(key):
    with pytest.warns(bayesgmm.FitWarning, match=r"nuts \(full, k=2\): the chains disagree"):
        bayesgmm.fit_nuts(DATA["faithful"], 2, key=key, **(NUTS | {"num_draws": 20}))


def test_r_hat_and_ess_are_those_of_arviz():
    import arviz

    fit = nuts("faithful", 2)
    values = {name: np.asarray(getattr(fit.draws, name)) for name in ("weights", "means", "scales")}
    summary = arviz.summary(arviz.from_dict({"posterior": values}), kind="diagnostics", round_to="none")
    found = convergence(fit.draws, DATA["faithful"], extra={"lp": fit.sample_stats["lp"]})
    assert found.labelled.max_r_hat == pytest.approx(summary["r_hat"].astype(float).max(), rel=1e-9)
    assert found.labelled.min_ess_bulk == pytest.approx(summary["ess_bulk"].astype(float).min(), rel=1e-9)
    assert fit.summary["r_hat"] == max(found.labelled.max_r_hat, found.invariant.max_r_hat)
    assert fit.summary["ess_bulk"] == min(found.labelled.min_ess_bulk, found.invariant.min_ess_bulk)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_chains": 0}, "num_chains=0 must be a whole number of at least 1"),
        ({"num_draws": 3}, "num_draws=3 is too few for R-hat"),
        ({"target_accept": 1.0}, "target_accept=1.0 must lie between 0 and 1"),
        ({"jitter": -0.1}, "jitter=-0.1 must be"),
        ({"chain_method": "quantum"}, "chain_method='quantum' is not known"),
    ],
)
def test_bad_arguments(settings, message, key):
    with pytest.raises(bayesgmm.InputError, match=message):
        bayesgmm.fit_nuts(DATA["faithful"], 2, key=key, **settings)


def test_float32_stays_float32(key):
    fit = bayesgmm.fit_nuts(DATA["faithful"].astype(np.float32), 2, key=key, **FEW)
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves((fit.mixture, fit.draws))} == {np.dtype(np.float32)}
