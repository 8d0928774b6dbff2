"""Clouds of draws, bands and uncertainty of assignments: checked on the artists, not on pixels."""

import numpy as np
import pytest
from helpers import random_case
from matplotlib.collections import LineCollection
from plot_helpers import FULL, by_gid, check_drawable, make_fit, posterior_of, starting_with

from bayesgmm.plots import plot_posterior_ellipses, plot_responsibility_uncertainty
from bayesgmm.plots.panels import root_figure
from bayesgmm.plots.view import thinned_draws
from bayesgmm.posterior.allocations import mean_responsibilities

pytestmark = pytest.mark.usefixtures("pictures_alone")


def test_posterior_ellipses_are_those_of_the_draws(rng):
    case = random_case(FULL, 3, 2, rng)
    draws = posterior_of(case, rng, shape=(2, 5))
    figure = root_figure(
        plot_posterior_ellipses(make_fit(case, "nuts", draws=draws), case.rows(60, rng), num_draws=10, level=0.5)
    )
    for cluster in range(3):
        (lines,) = by_gid(figure, f"draws {cluster}")
        assert isinstance(lines, LineCollection)
        assert len(lines.get_segments()) == 10
        for segment, mean in zip(lines.get_segments(), draws.means.reshape(10, 3, 2)[:, cluster], strict=True):
            np.testing.assert_allclose(segment[:-1].mean(0), mean, atol=1e-10)
        (point,) = by_gid(figure, f"ellipse {cluster} 0.5")
        np.testing.assert_allclose(np.asarray(point.get_xydata())[:-1].mean(0), case.means[cluster], atol=1e-10)


def test_posterior_band_is_pointwise_and_contains_the_point(rng):
    case = random_case(FULL, 3, 1, rng)
    x = case.rows(60, rng)
    draws = posterior_of(case, rng)
    figure = root_figure(plot_posterior_ellipses(make_fit(case, "nuts", draws=draws), x, num_draws=11))
    (curve,) = by_gid(figure, "mixture")
    grid, density = np.asarray(curve.get_xydata(), float).T
    all_draws = np.exp(draws.log_prob(grid[:, None])).reshape(-1, len(grid))
    low, high = np.quantile(all_draws, [0.05, 0.95], axis=0)
    assert np.mean((density >= low) & (density <= high)) > 0.95
    (band,) = by_gid(figure, "band")
    vertices = band.get_paths()[0].vertices
    assert vertices[:, 1].max() == pytest.approx(high.max())
    assert len(by_gid(figure, "draws")[0].get_segments()) == 11


def test_uncertainty_is_one_less_the_largest_mean_responsibility(rng):
    case = random_case(FULL, 3, 2, rng)
    x = case.rows(60, rng)
    draws = posterior_of(case, rng)
    responsibilities = np.asarray(draws.responsibilities(x)).mean((0, 1))
    for subject, expected in (
        (case.mixture, np.asarray(case.mixture.responsibilities(x))),
        (make_fit(case), np.asarray(case.mixture.responsibilities(x))),
        (draws, responsibilities),
        (make_fit(case, "vi", draws=draws), responsibilities),
    ):
        figure = root_figure(plot_responsibility_uncertainty(subject, x))
        (rows,) = by_gid(figure, "rows")
        expected_uncertainty = np.sort(1 - expected.max(1))
        np.testing.assert_allclose(rows.get_array(), expected_uncertainty, rtol=1e-9, atol=1e-12)
        assert (np.diff(rows.get_sizes()) >= 0).all()
        assert rows.get_clim() == pytest.approx((0.0, 2 / 3))
    flat = thinned_draws(draws, 1000)
    np.testing.assert_allclose(mean_responsibilities(flat, x), responsibilities, rtol=1e-9, atol=1e-14)


def test_responsibility_curves_sum_to_one_inside_their_bands(rng):
    case = random_case(FULL, 3, 1, rng)
    figure = root_figure(
        plot_responsibility_uncertainty(make_fit(case, "nuts", draws=posterior_of(case, rng)), case.rows(60, rng))
    )
    curves = np.stack([by_gid(figure, f"cluster {cluster}")[0].get_ydata() for cluster in range(3)])
    np.testing.assert_allclose(curves.sum(0), 1.0, rtol=1e-9)
    np.testing.assert_allclose(by_gid(figure, "uncertainty")[0].get_ydata(), 1 - curves.max(0))
    assert len(starting_with(figure, "band")) == 3
    assert not starting_with(root_figure(plot_responsibility_uncertainty(case.mixture, case.rows(60, rng))), "band")
    check_drawable(figure, laid_out=True)


def test_draws_are_thinned_evenly_over_all_chains(rng):
    case = random_case(FULL, 3, 1, rng)
    draws = posterior_of(case, rng, shape=(3, 10))
    thinned = thinned_draws(draws, 4)
    np.testing.assert_array_equal(thinned.means, draws.means.reshape(30, 3, 1)[[0, 10, 19, 29]])
    assert thinned_draws(draws, 100).draw_shape == (30,)
    assert draws.marginal([0]).draw_shape == (3, 10)


def test_the_bold_point_is_the_one_that_is_asked_for(rng):
    case, other = random_case(FULL, 3, 2, rng), random_case(FULL, 3, 2, rng)
    x = case.rows(40, rng)
    fit = make_fit(case, "nuts", draws=posterior_of(case, rng))
    for point, expected, label in (
        (None, case, "the posterior mean"),
        (make_fit(other), other, "EM fit"),
        (other.mixture, other, "the point"),
    ):
        ax = plot_posterior_ellipses(fit, x, point=point, level=0.5)
        for cluster in range(3):
            (ellipse,) = by_gid(ax, f"ellipse {cluster} 0.5")
            np.testing.assert_allclose(np.asarray(ellipse.get_xydata())[:-1].mean(0), expected.means[cluster])
        assert ax.get_legend().get_texts()[-1].get_text().startswith(f"{label}: mean")
    two = random_case(FULL, 2, 2, rng)
    with pytest.raises(ValueError, match="point has 2 components, but the draws have 3"):
        plot_posterior_ellipses(fit, x, point=two.mixture)
