"""Rows by hard assignment, ellipses and densities of the components: checked on the artists, not on pixels."""

import numpy as np
import pytest
from helpers import DATA, each_representation, random_case
from matplotlib import colors
from matplotlib.collections import PathCollection
from matplotlib.path import Path
from plot_helpers import FULL, by_gid, each_dimension, starting_with
from scipy import stats

from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.plots import plot_assignments
from bayesgmm.plots.panels import cluster_colour, root_figure
from bayesgmm.plots.shapes import bin_edges

pytestmark = pytest.mark.usefixtures("pictures_alone")


@each_dimension
def test_rows_have_the_colour_of_their_cluster(d, rng):
    case = random_case(FULL, 3, d, rng)
    x = case.rows(60, rng)
    labels = np.asarray(case.mixture.predict(x))
    figure = root_figure(plot_assignments(case.mixture, x))
    if d == 1:
        rugs = by_gid(figure, "rug")
        for cluster, rug in enumerate(rugs):
            assert rug.get_color() == cluster_colour(cluster)
            np.testing.assert_array_equal(np.asarray(rug.get_xdata()), x[labels == cluster, 0])
        assert len(rugs) == 3
        return
    for cluster in range(3):
        clouds = by_gid(figure, f"cluster {cluster}")
        assert len(clouds) == d * (d - 1) // 2
        for cloud in clouds:
            assert isinstance(cloud, PathCollection)
            assert colors.to_hex(cloud.get_facecolor()[0]) == cluster_colour(cluster).lower()
        np.testing.assert_array_equal(np.asarray(clouds[0].get_offsets()), x[labels == cluster][:, [0, 1]])


@pytest.mark.parametrize(
    ("family", "d"), [*((family, 2) for family in FAMILIES), ("full", 4)], ids=lambda value: str(value)
)
def test_ellipses_hold_the_stated_mass(family, d, rng):
    """The share of a component's own rows inside its outline, in every panel; and all of the outline is equidistant."""
    case = random_case(FAMILIES[family], 3, d, rng)
    figure = root_figure(plot_assignments(case.mixture, case.rows(60, rng), levels=(0.3, 0.9)))
    pairs = [(j, i) for i in range(1, d) for j in range(i)]
    normal = rng.normal(size=(4000, d))
    for cluster in range(3):
        sample = case.means[cluster] + normal @ np.linalg.cholesky(case.covariances[cluster]).T
        for level in (0.3, 0.9):
            outlines = by_gid(figure, f"ellipse {cluster} {level:g}")
            assert len(outlines) == len(pairs)
            for pair, outline in zip(pairs, outlines, strict=True):
                points = np.asarray(outline.get_xydata(), float)
                inside = Path(points).contains_points(sample[:, pair]).mean()
                assert abs(inside - level) < 5 * np.sqrt(level * (1 - level) / 4000) + 0.005
                centred = points - case.means[cluster][list(pair)]
                precision = np.linalg.inv(case.covariances[cluster][np.ix_(pair, pair)])
                distances = np.einsum("pi,ij,pj->p", centred, precision, centred)
                np.testing.assert_allclose(distances, -2 * np.log(1 - level), rtol=1e-8)


@each_representation
def test_density_curves_are_the_mixture(family, rng):
    """Curves agree with the mixture's own density, add up over components, and hold the mass of the range shown."""
    case = random_case(family, 3, 1, rng)
    figure = root_figure(plot_assignments(case.mixture, case.rows(60, rng)))
    (total,) = by_gid(figure, "mixture")
    grid, density = np.asarray(total.get_xydata(), float).T
    np.testing.assert_allclose(density, np.exp(case.mixture.log_prob(grid[:, None])), rtol=1e-12)
    parts = [by_gid(figure, f"component {cluster}")[0].get_ydata() for cluster in range(3)]
    np.testing.assert_allclose(np.sum(parts, axis=0), density, rtol=1e-10)
    scales = np.sqrt(case.covariances[:, :, 0])
    mass = np.diff(stats.norm(case.means, scales).cdf(grid[[0, -1]]), axis=1)[:, 0] @ case.weights
    assert mass > 0.9
    assert np.trapezoid(density, grid) == pytest.approx(mass, abs=1e-3)


def test_marginals_of_the_grid_are_densities_of_the_column(rng):
    """By Monte Carlo: the diagonal's curve against the share of the mixture's own rows in a range."""
    case = random_case(FULL, 3, 4, rng)
    figure = root_figure(plot_assignments(case.mixture, case.rows(60, rng)))
    rows = case.rows(40_000, rng)
    for feature, curve in enumerate(by_gid(figure, "mixture")):
        grid, density = np.asarray(curve.get_xydata(), float).T
        low, high = np.quantile(rows[:, feature], [0.2, 0.7])
        inside = (grid >= low) & (grid <= high)
        assert np.trapezoid(density[inside], grid[inside]) == pytest.approx(0.5, abs=0.03)


def test_means_are_marked(rng):
    case = random_case(FULL, 3, 2, rng)
    figure = root_figure(plot_assignments(case.mixture, case.rows(60, rng)))
    marks = np.concatenate([artist.get_xydata() for artist in starting_with(figure, "mean")])
    np.testing.assert_allclose(marks, case.means)


def test_bins_of_rounded_data_hold_equally_many_values():
    values = DATA["iris"][:, 1]
    edges = bin_edges(values)
    width = edges[1] - edges[0]
    assert width / 0.1 == pytest.approx(round(width / 0.1))
    assert edges[0] < values.min() <= values.max() < edges[-1]
    assert 12 <= len(bin_edges(DATA["galaxies"][:, 0])) <= 52
