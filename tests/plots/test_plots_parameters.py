"""Posterior densities of parameters: checked on the artists, not on pixels."""

import numpy as np
import pytest
from helpers import random_case
from matplotlib import colors
from matplotlib.figure import Figure
from plot_helpers import FULL, by_gid, check_drawable, make_fit, posterior_of

from bayesgmm.plots import plot_posterior_parameters
from bayesgmm.plots.panels import cluster_colour, root_figure
from bayesgmm.plots.parameters import density_of_draws

pytestmark = pytest.mark.usefixtures("pictures_alone")


@pytest.mark.parametrize("d", [1, 2])
def test_points_are_marked_at_their_values_and_densities_follow_the_draws(d, rng):
    case, other = random_case(FULL, 3, d, rng), random_case(FULL, 3, d, rng)
    draws = posterior_of(case, rng)
    fits = {
        "EM": make_fit(case),
        "MAP": make_fit(other, "map"),
        "VI": make_fit(case, "vi", draws=draws),
        "NUTS": make_fit(case, "nuts", draws=draws),
    }
    figure = root_figure(plot_posterior_parameters(fits))
    check_drawable(figure)
    grid = np.array(figure.axes).reshape(1 + d, 3)
    for name, subject in (("EM", case), ("MAP", other)):
        expected = np.concatenate([subject.weights[None], subject.means.T]).ravel()
        marks = [mark.get_xdata()[0] for mark in by_gid(figure, f"mark {name}")]
        np.testing.assert_allclose(marks, expected)
    for (row, cluster), ax in np.ndenumerate(grid):
        solid, dashed = (
            next(line for line in ax.get_lines() if line.get_gid() == f"density {name}") for name in ("NUTS", "VI")
        )
        assert colors.same_color(solid.get_color(), cluster_colour(cluster))
        assert solid.get_linestyle() != dashed.get_linestyle()
        values = (draws.weights if row == 0 else draws.means[..., row - 1])[..., cluster]
        points, density = np.asarray(solid.get_xydata(), float).T
        assert np.trapezoid(density, points) == pytest.approx(1.0, abs=0.05)
        mean = np.trapezoid(points * density, points) / np.trapezoid(density, points)
        assert mean == pytest.approx(np.mean(values), abs=0.2 * np.std(values))
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == set(fits)


def test_parameters_of_unlike_fits_are_refused(rng):
    three, two = random_case(FULL, 3, 2, rng), random_case(FULL, 2, 2, rng)
    fit = make_fit(three, "nuts", draws=posterior_of(three, rng))
    with pytest.raises(ValueError, match="must agree"):
        plot_posterior_parameters({"NUTS": fit, "EM": make_fit(two)})
    with pytest.raises(ValueError, match=r"need axes of shape \(3, 3\)"):
        plot_posterior_parameters({"NUTS": fit}, ax=Figure().subplots(2, 2))


def test_density_of_draws_that_are_all_equal():
    assert density_of_draws(np.full(50, 0.3), (0.0, 1.0)) is None
    grid, _ = density_of_draws(np.linspace(0.0, 0.02, 50), (0.0, 1.0))
    assert grid[0] == 0.0
