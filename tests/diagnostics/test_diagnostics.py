"""ArviZ: every engine's DataTree has its groups and names, is read back equal, and works in ArviZ as it stands."""

import warnings

import arviz
import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray
from helpers import DATA, each_representation, random_draws
from scipy import stats

import bayesgmm
from bayesgmm.diagnostics.datatree import lean_datatree
from bayesgmm.diagnostics.leave_one_out import prior_sensitivity
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.target.prior_simulation import log_prior_of_draws

NAMES = ["eruptions", "waiting"]


@pytest.fixture(scope="module")
def fits():
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
    x = DATA["faithful"]
    prior = bayesgmm.default_prior(x, 2)
    key = jax.random.key(12)
    return {name: bayesgmm.to_datatree(fit, x, prior=prior, key=key, feature_names=NAMES) for name, fit in fits.items()}


@pytest.mark.parametrize("engine", ["map", "vi", "nuts"])
def test_groups_dimensions_and_values(engine, fits, trees):
    tree, fit = trees[engine], fits[engine]
    groups = {"posterior", "log_likelihood", "observed_data", "posterior_predictive", "prior", "log_prior"}
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
    assert set(tree.log_prior.data_vars) == {"weights", "means", "scales", "correlation_cholesky"}
    assert all(values.dims == ("chain", "draw") for values in tree.log_prior.data_vars.values())
    prior = bayesgmm.default_prior(DATA["faithful"], 2)
    expected = stats.norm(prior.mean_loc, prior.mean_scale).logpdf(np.reshape(draws.means, (*shape, 2, 2))).sum((2, 3))
    np.testing.assert_allclose(tree.log_prior["means"].values, expected, rtol=1e-10)
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


@each_representation
def test_every_family_has_a_tree(family, key, rng):
    x = DATA["faithful"]
    fit = bayesgmm.fit_map(x, 2, family=family, key=key)
    tree = bayesgmm.to_datatree(fit, x, prior=bayesgmm.default_prior(x, 2), key=key)
    assert ("covariances" in tree.posterior) == family.has_correlations(2)
    assert list(tree.posterior["feature"].values) == ["x0", "x1"]


def exact_fit(x, prior, rng, num_draws):
    """One normal component under the conjugate prior: independent draws from its posterior, by NumPy, as a fit."""
    n, mean = len(x), x.mean()
    kappa = prior.shrinkage + n
    loc = (prior.shrinkage * prior.mean[0] + n * mean) / kappa
    scale = prior.scale[0] + ((x - mean) ** 2).sum() + prior.shrinkage * n / kappa * (mean - prior.mean[0]) ** 2
    variances = scale / rng.chisquare(prior.dof + n, (4, num_draws))
    means = rng.normal(loc, np.sqrt(variances / kappa))
    shape = (4, num_draws, 1)
    draws = bayesgmm.Mixture.from_covariances(np.ones(shape), means[..., None, None], variances[..., None, None])
    mixture = bayesgmm.Mixture.from_covariances(np.ones(1), [[loc]], [[variances.mean()]])
    zero = np.float64(0.0)
    return bayesgmm.Fit("nuts", "diag", mixture, zero, np.int32(0), np.int32(0), np.zeros((4, num_draws)), draws)


@pytest.mark.parametrize(
    ("settings", "diagnosis"),
    [
        ({"shrinkage": 20.0, "mean": 6.0}, "potential prior-data conflict"),  # as sure as the data, of another place
        ({"shrinkage": 0.01, "mean": 0.0}, "✓"),
    ],
)
def test_a_prior_in_conflict_with_the_data_is_flagged_and_a_weak_one_is_not(settings, diagnosis, key, rng, caplog):
    x = rng.normal(0.0, 1.0, (40, 1))
    prior = bayesgmm.conjugate_prior(x, 1, "diag", **settings)
    fit = exact_fit(x, prior, rng, 1000)
    tree = bayesgmm.to_datatree(fit, x, prior=prior, key=key, feature_names=["a"])
    found = prior_sensitivity(tree)
    assert list(found.index) == ["means[0, a]", "scales[0, a]"]  # the only weight does not vary
    assert found.loc["means[0, a]", "diagnosis"] == diagnosis
    assert not caplog.records  # the table says it; ArviZ would log it too
    assert (found["likelihood"] > 0.05).all()


def test_the_power_scaled_posterior_is_the_exact_one(key, rng):
    """Draws weighted by a power of `log_prior` have the mean of the posterior under the prior to one power more."""
    x = rng.normal(0.0, 1.0, (40, 1))
    prior = bayesgmm.conjugate_prior(x, 1, "diag", shrinkage=5.0, mean=2.0)
    fit = exact_fit(x, prior, rng, 5000)
    tree = bayesgmm.to_datatree(fit, x, prior=prior, key=key)
    power = 1.3
    total = sum(values.values for values in tree.log_prior.data_vars.values())
    weights = np.exp((power - 1) * (total - total.max()))
    found = (weights * tree.posterior["means"].values[..., 0, 0]).sum() / weights.sum()
    # A normal-inverse-gamma density to a power is another one, with power times as many rows for its mean.
    kappa = power * 5.0
    exact = (kappa * 2.0 + x.sum()) / (kappa + len(x))
    error = weights.std() * tree.posterior["means"].values.std() / weights.mean() / np.sqrt(weights.size)
    error += tree.posterior["means"].values.std() / np.sqrt(weights.size)
    assert abs(found - exact) < 4 * error
    assert abs(float(tree.posterior["means"].mean()) - exact) > 20 * error


def test_sensitivity_of_a_mixture_by_sampling(trees):
    found = prior_sensitivity(trees["nuts"])
    assert set(found["diagnosis"]) <= {"✓", "potential prior-data conflict", "potential strong prior / weak likelihood"}
    assert (found.loc[["means[0, eruptions]", "means[1, waiting]"], "diagnosis"] == "✓").all()
    assert len(found) == 2 + 4 + 4
    assert len(prior_sensitivity(trees["nuts"], var_names=["weights"])) == 2


def test_sensitivity_needs_draws_and_the_log_prior(trees):
    with pytest.raises(
        bayesgmm.InputError, match=r"posterior of 1 draws, and importance weights need .*fit_nuts or fit_vi"
    ):
        prior_sensitivity(trees["map"])
    with pytest.raises(bayesgmm.InputError, match="tree has no group log_prior; make it with to_datatree"):
        prior_sensitivity(trees["nuts"].drop_nodes("log_prior"))


@pytest.mark.parametrize("family", ["full", "spherical"])
def test_hierarchical_scales_have_their_rates_in_the_tree(family, key, rng, tmp_path):
    x = DATA["faithful"]
    prior = bayesgmm.default_prior(x, 2, scale_prior="hierarchical")
    draws = random_draws(FAMILIES[family], 2, 2, (2, 30), rng)
    mixture = draws[0, 0]
    fit = bayesgmm.Fit("nuts", family, mixture, np.float64(0.0), np.int32(0), np.int32(0), np.zeros((2, 30)), draws)
    tree = bayesgmm.to_datatree(fit, x, prior=prior, key=key)
    rates = tree.posterior["scale_rate"]
    assert rates.dims == (("chain", "draw") if family == "spherical" else ("chain", "draw", "feature"))
    assert "scale_rate" in tree.prior
    values = rates.values[..., None] if family == "spherical" else rates.values
    expected = log_prior_of_draws(draws, FAMILIES[family], prior, values)
    for name, value in expected.items():
        np.testing.assert_allclose(tree.log_prior[name].values, value, rtol=1e-12)
    bayesgmm.save_datatree(tree, tmp_path / "fit.nc")
    assert bayesgmm.load_datatree(tmp_path / "fit.nc").identical(tree)
    assert "scale_rate" in "".join(prior_sensitivity(tree).index)


def test_em_has_no_tree(key):
    x = DATA["faithful"]
    fit = bayesgmm.fit_em(x, 2, key=key)
    with pytest.raises(ValueError, match="fit is by EM, which has no posterior"):
        bayesgmm.to_datatree(fit, x, prior=bayesgmm.default_prior(x, 2), key=key)


def test_em_under_a_prior_has_a_tree_as_the_mode_has(key):
    x = DATA["faithful"]
    prior = bayesgmm.conjugate_prior(x, 2)
    fit = bayesgmm.fit_em(x, 2, prior=prior, key=key)
    tree = bayesgmm.to_datatree(fit, x, prior=prior, key=key)
    np.testing.assert_allclose(tree.posterior["means"].values[0, 0], fit.mixture.means)
    assert tree.attrs["engine"] == "em"


def test_of_many_rows_and_draws_some_are_kept_in_all_groups(fits, monkeypatch, key):
    from bayesgmm.diagnostics import datatree as diagnostics

    x, fit = DATA["faithful"], fits["nuts"]
    num_chains, num_draws = fit.draws.draw_shape
    monkeypatch.setattr(diagnostics, "_MAX_POINTWISE", -(-len(x) * num_chains * num_draws // 3))
    tree = bayesgmm.to_datatree(fit, x, prior=bayesgmm.default_prior(x, 2), key=key)
    assert tree.attrs["every"] == 3
    for group in ("posterior", "log_likelihood", "log_prior", "sample_stats"):
        assert tree[group].sizes["draw"] == -(-num_draws // 3)
    np.testing.assert_array_equal(tree.posterior["weights"], np.asarray(fit.draws.weights)[:, ::3])
    assert np.isfinite(bayesgmm.loo(tree).elpd)


def test_the_trace_in_a_tree_has_no_unused_end(key):
    x = DATA["faithful"]
    prior = bayesgmm.conjugate_prior(x, 2)
    fit = bayesgmm.fit_cavi(x, 2, prior=prior, key=key, num_draws=25)
    trace = bayesgmm.to_datatree(fit, x, prior=prior, key=key).optimization["objective"].values
    assert len(trace) == int(fit.num_steps) + 1 < len(fit.trace)
    assert np.isfinite(trace).all()


@pytest.mark.parametrize("num_draws", [4, 6])
def test_too_few_draws_have_no_leave_one_out(num_draws, key, rng):
    """Fewer than 25 in all: the largest fifth has not the five that a Pareto distribution is fitted to."""
    x = rng.normal(size=(40, 1))
    prior = bayesgmm.conjugate_prior(x, 1, "diag")
    tree = bayesgmm.to_datatree(exact_fit(x, prior, rng, num_draws), x, prior=prior, key=key)
    assert bayesgmm.loo(tree) is None
    with pytest.raises(bayesgmm.InputError, match=f"posterior of {4 * num_draws} draws, and importance weights need"):
        bayesgmm.compare_loo({"one": tree, "two": tree})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_leave_one_out_of_densities_that_are_not_finite(value, key, rng):
    x = rng.normal(size=(40, 1))
    prior = bayesgmm.conjugate_prior(x, 1, "diag")
    tree = bayesgmm.to_datatree(exact_fit(x, prior, rng, 25), x, prior=prior, key=key)
    assert np.isfinite(bayesgmm.loo(tree).elpd)
    tree = tree.copy(deep=True)
    tree["log_likelihood"]["x"].values[1, 2, 3] = value
    found = bayesgmm.loo(tree)
    assert np.isnan(found.elpd)
    assert found.num_bad == 40
    for function in (prior_sensitivity, lambda tree: bayesgmm.compare_loo({"one": tree, "two": tree})):
        with pytest.raises(bayesgmm.InputError, match=r"log_likelihood.* infinite or NaN in 1 of 100 draws"):
            function(tree)


@pytest.mark.parametrize("engine", ["map", "vi", "nuts"])
def test_a_lean_tree_has_the_same_diagnostics_in_a_small_file(engine, trees, tmp_path):
    tree, path = trees[engine], tmp_path / "lean.nc"
    bayesgmm.save_datatree(lean_datatree(tree), path)
    lean = bayesgmm.load_datatree(path)
    assert set(lean.children) == set(tree.children)
    np.testing.assert_array_equal(lean.posterior["means"], tree.posterior["means"])
    np.testing.assert_allclose(lean.log_likelihood["x"], tree.log_likelihood["x"], rtol=1e-5)
    assert tree.log_likelihood["x"].dtype == np.float64  # as it was
    if engine == "nuts":
        assert path.stat().st_size < 2e6
        assert bayesgmm.loo(lean).elpd == pytest.approx(bayesgmm.loo(tree).elpd, abs=0.01)


def test_of_an_approximation_a_lean_tree_has_a_thousand_draws(fits):
    x, prior = DATA["faithful"], bayesgmm.default_prior(DATA["faithful"], 2)
    tree = bayesgmm.to_datatree(fits["vi"], x, prior=prior, key=jax.random.key(0))
    many = tree.copy()
    for name in ("posterior", "log_likelihood", "log_prior"):
        many[name] = xarray.DataTree(xarray.concat([tree[name].to_dataset()] * 2, "draw"))
    lean = lean_datatree(many)
    assert {lean[name].sizes["draw"] for name in ("posterior", "log_likelihood", "log_prior")} == {1000}
