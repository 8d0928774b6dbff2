"""ArviZ: every engine's DataTree has its groups and names, is read back equal, and works in ArviZ as it stands."""

import warnings

import arviz
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import DATA, each_family, random_case
from scipy import stats

import bayesgmm
from bayesgmm.diagnostics import draw_prior

NAMES = ["eruptions", "waiting"]


@pytest.fixture(scope="module")
def fits():
    import jax

    key = jax.random.key(11)
    x = DATA["faithful"]
    start = bayesgmm.fit_em(x, 2, key=key).mixture
    few = {"num_chains": 2, "num_warmup": 300, "num_draws": 500, "on_failure": "ignore"}
    return {
        "map": bayesgmm.fit_map(x, 2, key=key, start=start),
        "vi": bayesgmm.fit_vi(x, 2, key=key, start=start, num_draws=1000),
        "nuts": bayesgmm.fit_nuts(x, 2, key=key, start=start, **few),
    }


@pytest.fixture(scope="module")
def trees(fits):
    import jax

    x = DATA["faithful"]
    prior = bayesgmm.default_prior(x, 2)
    key = jax.random.key(12)
    return {name: bayesgmm.to_datatree(fit, x, prior=prior, key=key, feature_names=NAMES) for name, fit in fits.items()}


@pytest.mark.parametrize("engine", ["map", "vi", "nuts"])
def test_groups_dimensions_and_values(engine, fits, trees):
    tree, fit = trees[engine], fits[engine]
    groups = {"posterior", "log_likelihood", "observed_data", "posterior_predictive", "prior"}
    assert groups <= set(tree.children)
    assert ("sample_stats" in tree.children) == (engine != "map")
    assert ("optimization" in tree.children) == (engine != "nuts")
    assert tree.posterior["means"].dims == ("chain", "draw", "cluster", "feature")
    assert tree.posterior["covariances"].dims == ("chain", "draw", "cluster", "feature", "feature_other")
    assert list(tree.posterior["feature"].values) == NAMES
    assert tree.log_likelihood["x"].dims == ("chain", "draw", "row")
    assert tree.posterior_predictive["x"].dims == ("chain", "draw", "row", "feature")
    assert not any("component" in node.dims for node in tree.subtree)
    draws = fit.mixture if fit.draws is None else fit.draws
    shape = (1, 1) if fit.draws is None else fit.draws.draw_shape
    np.testing.assert_array_equal(tree.posterior["weights"].values, np.reshape(draws.weights, (*shape, 2)))
    np.testing.assert_array_equal(tree.observed_data["x"].values, DATA["faithful"])
    expected = np.reshape(draws.log_prob(DATA["faithful"]), (*shape, 272))
    np.testing.assert_allclose(tree.log_likelihood["x"].values, expected, rtol=1e-12)
    assert tree.attrs["result"] == fit.code.name


@pytest.mark.parametrize("engine", ["map", "vi", "nuts"])
def test_saved_and_read_back_equal(engine, trees, tmp_path):
    path = tmp_path / "fit.nc"
    bayesgmm.save_datatree(trees[engine], path)
    again = bayesgmm.load_datatree(path)
    assert again.identical(trees[engine])


def test_arviz_summary_loo_and_plots_work_as_they_stand(trees):
    tree = trees["nuts"]
    summary = arviz.summary(tree)
    assert "means[1, waiting]" in summary.index
    assert arviz.loo(tree).elpd == pytest.approx(bayesgmm.loo(tree).elpd)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's own, of plotting libraries
        arviz.plot_trace_dist(tree, var_names=["weights", "means"])
        arviz.plot_forest(tree, var_names=["means"])
        arviz.plot_dist(tree, var_names=["weights"])
        arviz.plot_ppc_dist(tree, num_samples=10)
        arviz.plot_prior_posterior(tree, var_names=["weights"])
    plt.close("all")


def test_loo_of_a_known_model(key):
    """One normal component: LOO by refitting is available in closed form as a check of the whole path."""
    x = np.random.default_rng(8).normal(1.0, 2.0, size=(60, 1))
    prior = bayesgmm.default_prior(x, 1, mean_scale=100.0, scale_sigma=5.0)
    fit = bayesgmm.fit_nuts(x, 1, key=key, prior=prior, num_draws=2000, num_chains=2)
    found = bayesgmm.loo(bayesgmm.to_datatree(fit, x, prior=prior, key=key))
    # Under the reference prior 1 / sigma, to which this one is close, the predictive density is Student's t.
    exact = 0.0
    for row in range(60):
        rest = np.delete(x[:, 0], row)
        scale = rest.std(ddof=1) * np.sqrt(1 + 1 / 59)
        exact += stats.t(58, rest.mean(), scale).logpdf(x[row, 0])
    assert found.elpd == pytest.approx(exact, abs=0.15)
    assert found.p == pytest.approx(2.0, abs=0.5)
    assert found.num_bad == 0


def test_loo_of_a_point_and_of_an_approximation(trees):
    assert bayesgmm.loo(trees["map"]) is None
    vi, nuts = bayesgmm.loo(trees["vi"]), bayesgmm.loo(trees["nuts"])
    assert vi.elpd == pytest.approx(nuts.elpd, abs=1.0)


@each_family
def test_prior_draws_have_the_stated_marginals(family, key, rng):
    x = random_case(family, 2, 2, rng).rows(200, rng)
    prior = bayesgmm.default_prior(x, 2, concentration=[2.0, 3.0])
    draws = draw_prior(prior, family, 2, 2000, key=key)
    assert draws.draw_shape == (1, 2000)
    weights = np.asarray(draws.weights)[0, :, 0]
    assert stats.kstest(weights, stats.beta(2.0, 3.0).cdf).pvalue > 1e-4
    means = np.asarray(draws.means)[0, :, 1, 0]
    assert stats.kstest(means, stats.norm(prior.mean_loc[0], prior.mean_scale[0]).cdf).pvalue > 1e-4
    log_scales = np.log(np.asarray(draws.scales)[0, :, 0, 0])
    median = np.log(prior.scale_median)
    median = median.mean() if family.name == "spherical" else median[0]
    assert stats.kstest(log_scales, stats.norm(median, 1.0).cdf).pvalue > 1e-4


@each_family
def test_every_family_has_a_tree(family, key, rng):
    x = DATA["faithful"]
    fit = bayesgmm.fit_map(x, 2, family=family, key=key)
    tree = bayesgmm.to_datatree(fit, x, prior=bayesgmm.default_prior(x, 2), key=key)
    assert ("covariances" in tree.posterior) == family.has_correlations(2)
    assert list(tree.posterior["feature"].values) == ["x0", "x1"]


def test_em_has_no_tree(key):
    x = DATA["faithful"]
    fit = bayesgmm.fit_em(x, 2, key=key)
    with pytest.raises(ValueError, match="fit is by EM, which has no posterior"):
        bayesgmm.to_datatree(fit, x, prior=bayesgmm.default_prior(x, 2), key=key)
