"""Draws from the prior have its stated margins, their log-density is SciPy's, and the figure shows what it claims."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import (
    DATA,
    each_conjugate_family,
    each_family,
    each_family_and,
    random_case,
    random_draws,
    to_float32,
)
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.path import Path
from scipy import integrate, special, stats
from test_model import log_density_of_hierarchical_scales

import bayesgmm
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.plots import plot_prior_predictive
from bayesgmm.plots.draws import predictive_density
from bayesgmm.plots.panels import root_figure
from bayesgmm.target.prior_simulation import draw_scale_rates, log_prior_of_draws, prior_draws, prior_predictive

each_scale_prior = pytest.mark.parametrize("scale_prior", ["lognormal", "half_normal", "hierarchical"])


def of_first_scale(prior, family):
    """Distribution of the first scale of a component, by SciPy."""
    prior = prior.scales
    number = getattr(prior, {"lognormal": "median", "half_normal": "sd", "hierarchical": "rate_rate"}[prior.name])
    number = np.exp(np.log(number).mean()) if family.isotropic else number[0]
    if prior.name == "lognormal":
        return stats.lognorm(prior.sigma, scale=number).cdf
    if prior.name == "half_normal":
        return stats.halfnorm(scale=number).cdf
    a, g = float(prior.precision_shape), float(prior.rate_shape)
    return lambda scale: stats.f(2 * g, 2 * a).cdf(scale**2 * number * a / g)


@each_family
@each_scale_prior
def test_prior_draws_have_the_stated_margins(scale_prior, family, key, rng):
    x = random_case(family, 2, 2, rng).rows(200, rng)
    prior = bayesgmm.default_prior(x, 2, concentration=[2.0, 3.0], scale_prior=scale_prior)
    draws = prior_draws(prior, family, 2, 2000, key=key)
    assert draws.draw_shape == (1, 2000)
    assert draws.means.dtype == np.float64
    weights = np.asarray(draws.weights)[0, :, 0]
    assert stats.kstest(weights, stats.beta(2.0, 3.0).cdf).pvalue > 1e-4
    means = np.asarray(draws.means)[0, :, 1, 0]
    assert stats.kstest(means, stats.norm(prior.mean_loc[0], prior.mean_scale[0]).cdf).pvalue > 1e-4
    scales = np.asarray(draws.scales)[0, :, 0, 0]
    assert stats.kstest(scales, of_first_scale(prior, family)).pvalue > 1e-4


@each_family
def test_rates_drawn_given_the_scales_have_the_prior_of_the_rate(family, key, rng):
    """Scales from the prior and rates given them are draws from the joint prior, whose margin is the hyperprior."""
    prior = bayesgmm.default_prior(DATA["faithful"], 3, scale_prior="hierarchical", rate_shape=0.8)
    draw_key, rate_key = jax.random.split(key)
    draws = prior_draws(prior, family, 3, 2000, key=draw_key)
    rates = np.asarray(draw_scale_rates(draws, family, prior.scales, key=rate_key))
    assert rates.shape == (1, 2000, 1 if family.isotropic else 2)
    own = np.exp(np.log(prior.scales.rate_rate).mean()) if family.isotropic else prior.scales.rate_rate[0]
    assert stats.kstest(rates[0, :, 0], stats.gamma(0.8, scale=1 / own).cdf).pvalue > 1e-4
    # And the scales, given the rate, are those of the prior: their precisions in units of the rate are plain gamma.
    precisions = np.asarray(draws.scales)[0, :, 0, 0] ** -2.0 * rates[0, :, 0]
    assert stats.kstest(precisions, stats.gamma(2.0).cdf).pvalue > 1e-4


def test_nuts_samples_the_hierarchical_model():
    """One normal component: against quadrature over its mean and scale, with the rate integrated out in closed form."""
    x = np.random.default_rng(3).normal(5.0, 2.0, (8, 1))
    numbers = {"mean_loc": 0.0, "mean_scale": 5.0, "precision_shape": 2.0, "rate_shape": 0.5, "rate_rate": 2.0}
    prior = bayesgmm.default_prior(x, 1, scale_prior="hierarchical", **numbers)
    fit = bayesgmm.fit_nuts(x, 1, prior=prior, key=jax.random.key(0), num_chains=2, num_draws=3000, on_failure="raise")
    scales = np.linspace(0.3, 12.0, 1500)[:, None]
    means = np.linspace(-6.0, 14.0, 600)[None]
    f = stats.f(2 * 0.5, 2 * 2.0)
    ratio = scales**2 * 2.0 * 2.0 / 0.5
    log_density = f.logpdf(ratio) + np.log(scales) + stats.norm(0.0, 5.0).logpdf(means)
    log_density = log_density + stats.norm(means[..., None], scales[..., None]).logpdf(x[:, 0]).sum(-1)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    import arviz

    for found, grid in ((fit.draws.scales, scales), (fit.draws.means, means)):
        found = np.asarray(found)[..., 0, 0]
        assert abs(found.mean() - (density * grid).sum()) < 4 * float(arviz.mcse(found))
        of_square = float(arviz.mcse(found**2))
        assert abs((found**2).mean() - (density * grid**2).sum()) < 4 * of_square


@each_family_and("num_features", 2, [1])
@each_scale_prior
def test_log_prior_of_draws_is_scipys(num_features, scale_prior, family, rng):
    d = num_features
    draws = random_draws(family, 3, d, (2, 3), rng)
    x = random_case(family, 3, d, rng).rows(60, rng)
    prior = bayesgmm.default_prior(
        x, 3, scale_prior=scale_prior, concentration=[1.5, 1.0, 4.0], correlation_concentration=2.5
    )
    is_hierarchical = scale_prior == "hierarchical"
    num_scales = 1 if family.isotropic else d
    rates = rng.uniform(0.5, 2.0, (2, 3, num_scales)) if is_hierarchical else None
    found = log_prior_of_draws(draws, family, prior, rates)
    assert all(values.shape == (2, 3) and values.dtype == np.float64 for values in found.values())

    def for_each(values):
        return np.exp(np.log(values).mean(keepdims=True)) if family.isotropic else values

    for chain, draw in np.ndindex(2, 3):
        one = draws[chain, draw]
        free = np.asarray(one.covariances)[: 1 if family.shared else 3]
        scales = np.sqrt(np.diagonal(free, axis1=1, axis2=2))[:, :num_scales]
        expected = {
            "weights": stats.dirichlet(prior.concentration).logpdf(np.asarray(one.weights)),
            "means": stats.norm(prior.mean_loc, prior.mean_scale).logpdf(one.means).sum(),
        }
        if scale_prior == "lognormal":
            expected["scales"] = stats.lognorm(1.0, scale=for_each(prior.scales.median)).logpdf(scales).sum()
        elif scale_prior == "half_normal":
            expected["scales"] = stats.halfnorm(scale=for_each(prior.scales.sd)).logpdf(scales).sum()
        else:
            rate = rates[chain, draw]
            expected["scales"] = log_density_of_hierarchical_scales(scales, rate, 2.0)
            expected["scale_rate"] = stats.gamma(0.2, scale=1 / for_each(prior.scales.rate_rate)).logpdf(rate).sum()
        if family.has_correlations(d):
            # Of two features: (1 - r^2)^(eta - 1), normalised, for r; for the factor's last entry times |d r / d L22|,
            # which NumPyro, as Stan, counts from the entry below the diagonal, L21 = r: a factor of one.
            r = free[:, 0, 1] / scales.prod(1)
            normaliser = integrate.quad(lambda r: (1 - r**2) ** 1.5, -1, 1)[0]
            expected["correlation_cholesky"] = (1.5 * np.log1p(-(r**2)) - np.log(normaliser)).sum()
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][chain, draw], value, rtol=1e-9, err_msg=name)


@each_conjugate_family
def test_log_prior_of_draws_under_the_conjugate_prior(family, rng):
    draws = random_draws(family, 2, 3, (2, 4), rng)
    prior = bayesgmm.conjugate_prior(random_case(family, 2, 3, rng).rows(60, rng), 2, family, concentration=1.5)
    found = log_prior_of_draws(draws, family, prior)
    assert set(found) == {"weights", "means", "variances" if family.diagonal else "covariances"}
    for index in np.ndindex(2, 4):
        one = draws[index]
        covariances = np.asarray(one.covariances)
        means = sum(
            stats.multivariate_normal(prior.mean, covariance / prior.shrinkage).logpdf(mean)
            for mean, covariance in zip(np.asarray(one.means), covariances, strict=True)
        )
        np.testing.assert_allclose(found["means"][index], means, rtol=1e-10)
        free = covariances[: 1 if family.shared else 2]
        if family.diagonal:
            variances = np.diagonal(free, axis1=1, axis2=2)[:, : 1 if family.isotropic else 3]
            expected = stats.invgamma(prior.dof / 2, scale=prior.scale / 2).logpdf(variances).sum()
            np.testing.assert_allclose(found["variances"][index], expected, rtol=1e-10)
        else:
            expected = sum(stats.invwishart(float(prior.dof), prior.scale).logpdf(covariance) for covariance in free)
            np.testing.assert_allclose(found["covariances"][index], expected, rtol=1e-10)


def test_the_order_of_components_does_not_matter_to_an_even_prior(rng):
    draws = random_draws(FAMILIES["full"], 3, 2, (1, 5), rng)
    prior = bayesgmm.default_prior(DATA["faithful"], 3)
    before, after = (log_prior_of_draws(d, FAMILIES["full"], prior) for d in (draws, draws.permute([2, 0, 1])))
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-12)


@each_family
def test_prior_predictive_rows_have_the_spread_of_the_prior(family, key):
    x = DATA["faithful"]
    prior = bayesgmm.default_prior(x, 2, scale_sigma=0.3)
    rows = np.asarray(prior_predictive(prior, family, 2, 3, 4000, key=key))
    assert rows.shape == (1, 4000, 3, 2)
    # The variance of a row is that of its component's mean, plus the component's expected variance.
    of_scales = np.exp(np.log(prior.scales.median).mean()) if family.isotropic else prior.scales.median
    variance = prior.mean_scale**2 + of_scales**2 * np.exp(2 * 0.3**2)
    np.testing.assert_allclose(rows[0, :, 0].var(0), variance, rtol=0.1)
    np.testing.assert_allclose(rows[0, :, 0].mean(0), prior.mean_loc, atol=4 * np.sqrt(variance.max() / 4000))


def test_float32_priors_give_finite_float32_draws(key):
    x = DATA["iris"].astype(np.float32)
    for prior in (
        bayesgmm.default_prior(x, 3),
        bayesgmm.conjugate_prior(x, 3),
        to_float32(bayesgmm.default_prior(x, 3, scale_prior="hierarchical")),
    ):
        rows = prior_predictive(prior, "full", 3, 2, 1000, key=key)
        assert rows.dtype == np.float32
        assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (bayesgmm.default_prior(DATA["faithful"], 2), "full", 3, 5),
            r"prior is for k=2 components.*default_prior\(x, 3",
        ),
        (
            (bayesgmm.conjugate_prior(DATA["faithful"], 2), "diag", 2, 5),
            r"prior has a scale of shape \(2, 2\), not \(2,",
        ),
        (("flat", "full", 2, 5), r"prior is 'flat', which is no prior; make it with default_prior\(x, 2\)"),
        ((bayesgmm.default_prior(DATA["faithful"], 2), "round", 2, 5), "family='round' is not known"),
        (
            (bayesgmm.default_prior(DATA["faithful"], 2), "full", 2, 0),
            "num_draws=0 must be a whole number of at least 1",
        ),
        ((bayesgmm.default_prior(DATA["faithful"], 2), "full", 2.5, 5), "num_components=2.5 must be a whole number"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message, key):
    with pytest.raises(bayesgmm.InputError, match=message):
        prior_draws(*arguments, key=key)
    with pytest.raises(bayesgmm.InputError, match=message):
        prior_predictive(*arguments[:3], 4, arguments[3], key=key)


def test_number_of_rows_and_key_are_checked(key):
    prior = bayesgmm.default_prior(DATA["faithful"], 2)
    with pytest.raises(bayesgmm.InputError, match="num_rows=0 must be a whole number"):
        prior_predictive(prior, "full", 2, 0, 5, key=key)
    with pytest.raises(bayesgmm.InputError, match=r"key=3 is not a random key; pass key=jax.random.key\(3\)"):
        prior_draws(prior, "full", 2, 5, key=3)


def children(figure, kind):
    return [artist for ax in figure.axes for artist in ax.get_children() if isinstance(artist, kind)]


def test_predictive_curve_is_the_exact_density(rng):
    """Student's t, which the predictive distribution of one component is under the conjugate prior."""
    new = stats.t(5, 1.0, 2.0).rvs((40_000, 1), random_state=rng)
    (centres,), density = predictive_density(new)
    exact = stats.t(5, 1.0, 2.0).pdf(centres)
    assert np.abs(density - exact).max() < 0.05 * exact.max()
    assert (density * np.gradient(centres)).sum() == pytest.approx(0.99, abs=0.01)


@pytest.mark.usefixtures("pictures_alone")
def test_regions_hold_the_stated_mass(key):
    """New rows, drawn afresh, lie in the regions as often as the legend says."""
    x = DATA["faithful"]
    for prior in (bayesgmm.default_prior(x, 2), bayesgmm.conjugate_prior(x, 2)):
        figure = root_figure(plot_prior_predictive(prior, x, key=key))
        rows = np.asarray(prior_predictive(prior, "full", 2, 1, 4000, key=jax.random.fold_in(key, 1)))[0, :, 0]
        contours = next(a for a in children(figure, object) if hasattr(a, "levels"))
        inner = contours.get_paths()[1]
        outer = contours.get_paths()[0]  # a ring around the inner one
        in_inner = sum(Path(part).contains_points(rows) for part in inner.to_polygons())
        in_outer = sum(Path(part).contains_points(rows).astype(int) for part in outer.to_polygons())
        assert (in_inner % 2).mean() == pytest.approx(0.5, abs=0.05)
        assert ((in_outer % 2 + in_inner % 2) > 0).mean() == pytest.approx(0.9, abs=0.03)


@pytest.mark.usefixtures("pictures_alone")
@pytest.mark.parametrize("name", ["galaxies", "faithful", "iris"])
def test_figure_shows_all_rows_the_components_and_ninety_five_percent_of_the_prior(name, key):
    x = DATA[name]
    d = x.shape[1]
    prior = bayesgmm.default_prior(x, 3)
    figure = root_figure(plot_prior_predictive(prior, x, key=key, num_draws=4))
    new = np.asarray(prior_predictive(prior, "full", 3, 2, 2000, key=key)).reshape(-1, d)
    clouds = [cloud for cloud in children(figure, PathCollection) if cloud.get_gid() == "rows"]
    assert len(clouds) == d * (d - 1) // 2
    draws = [lines for lines in children(figure, LineCollection) if lines.get_gid() == "draws"]
    assert len(draws) == len(clouds) + (0 if d == 2 else d)
    segments = sorted({len(lines.get_segments()) for lines in draws})
    assert segments == ([4] if d == 1 else [12] if d == 2 else [4, 12])  # mixtures; components of mixtures
    shown = [ax for ax in figure.axes if ax.axison]
    first = shown[-1] if d > 2 else shown[0]
    column = d - 1 if d > 2 else 0
    low, high = first.get_xlim()
    assert low < x[:, column].min()
    assert x[:, column].max() < high
    assert np.mean((low < new[:, column]) & (new[:, column] < high)) == pytest.approx(0.955, abs=0.025)
    if clouds:
        np.testing.assert_array_equal(np.asarray(clouds[0].get_offsets()), x[:, [0, 1]])
    figure.set_layout_engine("none")
    figure.canvas.draw()


def test_figure_refuses_what_does_not_fit(key):
    x = DATA["faithful"]
    prior = bayesgmm.default_prior(x, 2)
    with pytest.raises(bayesgmm.InputError, match="prior is for 2 features, and x has 4; make it of the same columns"):
        plot_prior_predictive(prior, DATA["iris"], key=key)
    with pytest.raises(ValueError, match="num_draws=0 must be a whole number of at least 1"):
        plot_prior_predictive(prior, x, key=key, num_draws=0)
    with pytest.raises(ValueError, match=r"levels=\(0.5, 0.5\) must be two different"):
        plot_prior_predictive(prior, x, key=key, levels=(0.5, 0.5))
    with pytest.raises(bayesgmm.InputError, match="prior has a scale of shape"):
        plot_prior_predictive(bayesgmm.conjugate_prior(x, 2), x, family="diag", key=key)


@pytest.mark.parametrize("stick_breaking", [False, True])
def test_log_prior_of_weights_below_the_smallest_number(stick_breaking):
    """A draw holds their logarithms, and its density is finite; of a weight of 0 it would not be."""
    x, alpha = DATA["faithful"], 1e-3
    prior = bayesgmm.conjugate_prior(x, 2, concentration=alpha, stick_breaking=stick_breaking)
    mixture = bayesgmm.fit_em(x, 2, start=np.arange(len(x)) % 2, on_failure="ignore", max_steps=0).mixture
    draws = dataclasses.replace(mixture, log_weights=np.array([0.0, -5000.0]))
    draws = jax.tree.map(lambda leaf: np.asarray(leaf)[None, None], draws)
    found = log_prior_of_draws(draws, FAMILIES["full"], prior)["weights"]
    # Beta(alpha, alpha) of the first weight; of a stick Beta(1, alpha).
    constant = -special.betaln(1.0 if stick_breaking else alpha, alpha)
    np.testing.assert_allclose(found, constant + (alpha - 1.0) * -5000.0, rtol=1e-12)
