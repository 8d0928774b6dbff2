"""Densities and entropies over the plane and along slices: held to SciPy, on the artists and not on pixels."""

import numpy as np
import pytest
from helpers import random_case
from matplotlib.figure import Figure
from matplotlib.path import Path
from plot_helpers import FULL, by_gid, check_drawable, make_fit, posterior_of, starting_with
from scipy import stats

from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots import (
    plot_assignment_entropy,
    plot_density_contours,
    plot_density_slice,
    plot_density_with_slice,
)
from bayesgmm.plots.shapes import (
    assignment_entropy,
    density_at,
    plane_around,
    plane_of_region,
    region_heights,
)
from bayesgmm.plots.view import best_columns
from bayesgmm.posterior.allocations import pooled_draws

pytestmark = pytest.mark.usefixtures("pictures_alone")


def density_of(weights, means, covariances, points):
    """The dense oracle, with SciPy."""
    parts = zip(weights, means, covariances, strict=True)
    return sum(w * stats.multivariate_normal(m, c).pdf(points) for w, m, c in parts)


def density_of_draws(draws, columns, points):
    """Density of some columns under every draw, (s, n)."""
    index = np.ix_(columns, columns)
    flat = [np.asarray(field).reshape(-1, *np.shape(field)[2:]) for field in (draws.weights, draws.means)]
    covariances = np.asarray(draws.covariances).reshape(-1, *draws.covariances.shape[2:])
    return np.array(
        [
            density_of(w, m[:, columns], [one[index] for one in c], points)
            for w, m, c in zip(*flat, covariances, strict=True)
        ]
    )


def test_heights_of_one_gaussian_are_in_closed_form():
    """Of the plane's Gaussian the region of mass q ends where the density is 1 - q of its peak, whatever its shape."""
    covariance = np.array([[4.0, -0.9], [-0.9, 0.25]])
    mixture = Mixture.from_covariances([1.0], np.array([[3.0, -700.0]]), covariance[None])
    levels = np.array([0.5, 0.9, 0.99])
    peak = stats.multivariate_normal([0.0, 0.0], covariance).pdf([0.0, 0.0])
    left = region_heights(mixture, levels.tolist()) / peak
    # Five standard deviations of a binomial share.
    assert (np.abs(left - (1 - levels)) < 5 * np.sqrt(levels * (1 - levels) / 16_384)).all()


def test_averaged_draws_have_the_predictive_density(rng):
    case = random_case(FULL, 3, 2, rng)
    draws = posterior_of(case, rng, shape=(1, 20))
    points = case.rows(5000, rng)  # more than a block
    expected = density_of_draws(draws, [0, 1], points).mean(0)
    np.testing.assert_allclose(density_at(pooled_draws(draws[0]), points), expected, rtol=1e-9)


@pytest.mark.parametrize("columns", [[0, 1], [2, 0], "pca"])
def test_regions_hold_the_stated_mass(columns, rng):
    """New rows of the mixture lie in the regions drawn as often as the legend says."""
    case = random_case(FULL, 3, 3, rng)
    x, new = case.rows(80, rng), case.rows(4000, rng)
    ax = plot_density_contours(case.mixture, x, levels=(0.5, 0.9), columns=columns)
    shown = np.asarray(by_gid(ax, "rows")[0].get_offsets())
    if columns == "pca":
        # The map of the rows to what is shown is affine: found by least squares, and taken for the new rows.
        solution, *_ = np.linalg.lstsq(np.column_stack([x, np.ones(80)]), shown, rcond=None)
        points = np.column_stack([new, np.ones(4000)]) @ solution
    else:
        np.testing.assert_array_equal(shown, x[:, columns])
        points = new[:, columns]
    (regions,) = by_gid(ax, "regions")
    ring, inner = regions.get_paths()
    inside = sum(Path(part).contains_points(points).astype(int) for part in inner.to_polygons()) % 2
    around = sum(Path(part).contains_points(points).astype(int) for part in ring.to_polygons()) % 2
    assert inside.mean() == pytest.approx(0.5, abs=0.05)
    assert ((inside + around) > 0).mean() == pytest.approx(0.9, abs=0.03)


def test_principal_components_are_those_of_the_standardised_rows(rng):
    case = random_case(FULL, 2, 4, rng)
    x = case.rows(70, rng) * np.array([1.0, 100.0, 0.01, 1.0])
    far = Mixture.from_covariances([1.0], x.mean(0)[None], np.cov(x.T, bias=True)[None])
    ax = plot_density_contours(far, x, columns="pca")
    shown = np.asarray(by_gid(ax, "rows")[0].get_offsets())
    correlations = np.corrcoef(x.T)
    values = np.linalg.eigvalsh(correlations)[::-1]
    np.testing.assert_allclose(np.cov(shown.T, bias=True), np.diag(values[:2]), atol=1e-9)
    np.testing.assert_allclose(shown.mean(0), 0.0, atol=1e-9)
    assert f"{100 * values[0] / 4:.0f}%" in ax.get_xlabel()
    again = plot_density_contours(far, x + 5.0, columns="pca")
    np.testing.assert_allclose(np.asarray(by_gid(again, "rows")[0].get_offsets()), shown, atol=1e-8)


def test_the_plane_holds_all_of_the_outermost_region(rng):
    mixture = Mixture.from_covariances([0.6, 0.4], np.array([[0.0, 0.0], [3.0, 1.0]]), np.stack([np.eye(2)] * 2) * 4)
    rows = 0.1 * rng.normal(size=(50, 2))
    height = region_heights(mixture, [0.99])[0]
    span = plane_of_region(mixture, rows, height)
    edges = np.linspace(0, 1, 50)[:, None] * (span[1] - span[0]) + span[0]
    for axis, end in ((0, 0), (0, 1), (1, 0), (1, 1)):
        border = edges.copy()
        border[:, axis] = span[end, axis]
        assert (density_of([0.6, 0.4], mixture.means, mixture.covariances, border) <= height).all()
    assert (plane_around(rows)[0] > span[0]).all()


@pytest.mark.parametrize(("at", "columns"), [(None, [1]), ({0: 0.4}, [1, 0]), ({"c": -0.2, 0: 0.3}, [1, 2, 0])])
def test_slices_and_their_bands_are_the_densities_of_the_draws(at, columns, rng):
    case = random_case(FULL, 2, 3, rng)
    draws = posterior_of(case, rng, shape=(2, 9))
    fit = make_fit(case, "nuts", draws=draws)
    ax = plot_density_slice(fit, case.rows(60, rng), along="b", at=at, feature_names=iter("abc"))
    (line,) = by_gid(ax, "density")
    grid, density = np.asarray(line.get_xydata(), float).T
    values = [] if at is None else list(at.values())
    points = np.column_stack([grid, *(np.full(len(grid), value) for value in values)])
    curves = density_of_draws(draws, columns, points)
    np.testing.assert_allclose(density, curves.mean(0), rtol=1e-8, atol=1e-300)
    low, high = np.quantile(curves, [0.05, 0.95], axis=0)
    vertices = by_gid(ax, "band")[0].get_paths()[0].vertices
    np.testing.assert_allclose(np.sort(vertices[vertices[:, 0] == grid[100], 1])[[0, -1]], [low[100], high[100]])
    assert ax.get_xlabel() == "b"
    check_drawable(ax, laid_out=True)


def test_a_slice_is_drawn_beneath_its_plane(rng):
    case = random_case(FULL, 2, 3, rng)
    x = case.rows(60, rng)
    plane, below = plot_density_with_slice(case.mixture, x, columns=[2, 0], at=0.25)
    assert plane.get_xlim() == below.get_xlim()
    assert set(by_gid(plane, "slice")[0].get_ydata()) == {0.25}
    grid, density = np.asarray(by_gid(plane, "density")[0].get_xydata(), float).T
    assert (grid[0], grid[-1]) == pytest.approx(plane.get_xlim())
    index = np.ix_([2, 0], [2, 0])
    expected = density_of(
        case.weights,
        case.means[:, [2, 0]],
        [covariance[index] for covariance in case.covariances],
        np.column_stack([grid, np.full(len(grid), 0.25)]),
    )
    np.testing.assert_allclose(density, expected, rtol=1e-8, atol=1e-300)
    assert not by_gid(plane, "band")
    check_drawable(plane, laid_out=True)
    axes = Figure().subplots(1, 2)
    assert list(plot_density_with_slice(case.mixture, x, ax=axes)) == list(axes)
    assert set(by_gid(axes[0], "slice")[0].get_ydata()) == {np.median(x[:, best_columns(case.mixture, 2)[1]])}


def test_the_map_is_the_entropy_of_the_responsibilities(rng):
    case = random_case(FULL, 3, 2, rng)
    x = case.rows(60, rng)
    draws = posterior_of(case, rng, shape=(1, 6))
    for subject, mixtures in ((case.mixture, [case.mixture]), (draws, [draws[0, i] for i in range(6)])):
        ax = plot_assignment_entropy(subject, x)
        (image,) = by_gid(ax, "entropy")
        left, right, bottom, top = image.get_extent()
        values = np.asarray(image.get_array())
        side = len(values)
        for i, j in ((3, 150), (100, 20), (90, 100)):
            point = np.array([[left + (right - left) * j / (side - 1), bottom + (top - bottom) * i / (side - 1)]])
            shares = np.mean([np.asarray(mixture.responsibilities(point))[0] for mixture in mixtures], axis=0)
            assert values[i, j] == pytest.approx(stats.entropy(shares, base=2), rel=1e-6, abs=1e-9)
        assert image.get_clim() == pytest.approx((0.0, np.log2(3)))
    assert len(starting_with(plot_assignment_entropy(case.mixture, x), "ellipse")) == 3
    check_drawable(ax)


def test_entropy_along_one_feature_and_at_its_ends(rng):
    mixture = Mixture.from_covariances([0.5, 0.5], np.array([[-1.0], [1.0]]), np.ones((2, 1, 1)))
    ax = plot_assignment_entropy(mixture, rng.normal(size=40))
    grid, values = np.asarray(by_gid(ax, "entropy")[0].get_xydata(), float).T
    share = 1 / (1 + np.exp(-2 * grid))  # logistic: equal weights and scales
    np.testing.assert_allclose(values, stats.entropy([share, 1 - share], base=2), rtol=1e-8)
    assert assignment_entropy(np.array([[1.0, 0.0], [0.25, 0.75]])) == pytest.approx(
        [0.0, stats.entropy([0.25, 0.75], base=2)]
    )
    check_drawable(ax, laid_out=True)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda m, x: plot_density_contours(m, x, columns=[1]), "give two"),
        (lambda m, x: plot_density_contours(m, x, levels=(0.5, 1.5)), "levels"),
        (lambda m, x: plot_density_contours(m, x, ax=Figure().subplots(2)), "ax holds 2 axes"),
        (lambda m, x: plot_density_contours(m, x, ax="here"), "matplotlib Axes; got str"),
        (lambda m, x: plot_density_contours(m, x, columns=[0, 1, 2]), "one to 2 different columns"),
        (lambda m, x: plot_density_slice(m, x, along=0, at={0: 1.0}), "names? a column twice"),
        (lambda m, x: plot_density_slice(m, x, at={1: np.inf}), "at\\[1\\]=inf must be a finite number"),
        (lambda m, x: plot_density_slice(m, x, at={9: 1.0}), "counted from 0"),
        (lambda m, x: plot_density_slice(m, x, span=(1.0, 1.0)), "two rising numbers"),
        (lambda m, x: plot_density_with_slice(m, x, columns="pca"), "no column to cut along"),
        (lambda m, x: plot_density_with_slice(m, x, columns="discriminant"), "no column to cut along"),
        (lambda m, x: plot_density_with_slice(m, x, ax=Figure().subplots(3)), "a plane and its slice need"),
        (lambda m, x: plot_assignment_entropy(m, x, columns=[2]), "give two"),
        (lambda m, x: plot_density_contours(m.marginal([0]), x[:, 0]), "plot_density_slice"),
        (lambda m, x: plot_density_contours(m.marginal([0]), x[:, 0], columns="pca"), "two features or more"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(draw, message, rng):
    case = random_case(FULL, 2, 3, rng)
    with pytest.raises(InputError, match=message) as error:
        draw(case.mixture, case.rows(30, rng))
    assert "\n" not in str(error.value)
