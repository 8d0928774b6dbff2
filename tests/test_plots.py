"""Figures show the numbers they claim to show: checked on the artists, not on pixels."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import DATA, each_family, random_case
from matplotlib import colors, pyplot, rcParams
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path
from scipy import stats

from bayesgmm.families import FAMILIES
from bayesgmm.mixture import Mixture
from bayesgmm.plots import (
    plot_assignments,
    plot_criteria,
    plot_posterior_ellipses,
    plot_posterior_parameters,
    plot_responsibility_uncertainty,
    plot_traces,
)
from bayesgmm.plots.panels import marginal, thinned_draws
from bayesgmm.plots.parameters import density_of_draws
from bayesgmm.plots.shapes import bin_edges
from bayesgmm.plots.style import cluster_colour, cluster_marker, line_styles
from bayesgmm.plots.traces import settled_limits, smooth, trace_lines
from bayesgmm.plots.uncertainty import mean_responsibilities
from bayesgmm.results import Fit

each_dimension = pytest.mark.parametrize("d", [1, 2, 4])
FULL = FAMILIES["full"]


@pytest.fixture(autouse=True)
def no_state_left():
    """No figure open in pyplot, no parameter of matplotlib changed."""
    before = dict(rcParams)
    yield
    assert pyplot.get_fignums() == []
    assert dict(rcParams) == before


@pytest.fixture
def make_fit():
    def make(case, engine="em", trace=None, draws=None):
        trace = np.array([-30.0, -20.0, -15.0, np.nan, np.nan]) if trace is None else trace
        return Fit(engine, "full", case.mixture, np.float64(-15.0), np.int32(0), np.int32(2), trace, draws)

    return make


def posterior_of(case, rng, scale=0.05, shape=(2, 30)):
    """Draws about a mixture, small enough steps that labels cannot switch."""
    k, d = case.means.shape
    weights = rng.dirichlet(400 * case.weights, size=shape)
    means = case.means + scale * rng.normal(size=(*shape, k, d))
    inflated = case.covariances * np.exp(scale * rng.normal(size=(*shape, k)))[..., None, None]
    return Mixture.from_covariances(weights, means, inflated)


def by_gid(figure, gid):
    return [artist for ax in figure.axes for artist in ax.get_children() if artist.get_gid() == gid]


def starting_with(figure, prefix):
    return [artist for ax in figure.axes for artist in ax.get_children() if str(artist.get_gid()).startswith(prefix)]


def check_drawable(figure, *, laid_out=False):
    """It renders, and nothing in it is NaN. Laying out many panels takes seconds, so that is tried on some only."""
    if not laid_out:
        figure.set_layout_engine("none")
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    check_finite(figure)


def check_finite(figure):
    for ax in figure.axes:
        assert np.isfinite([*ax.get_xlim(), *ax.get_ylim()]).all()
        for line in ax.get_lines():
            assert np.isfinite(np.asarray(line.get_xydata(), float)).all()
        for collection in ax.collections:
            assert np.isfinite(np.ma.getdata(collection.get_offsets())).all()
            assert all(np.isfinite(path.vertices).all() for path in collection.get_paths())


@each_family
@each_dimension
def test_every_family_and_dimension_is_drawn(family, d, rng, make_fit):
    case = random_case(family, 3, d, rng)
    x = case.rows(60, rng)
    fit = make_fit(case, "nuts", draws=posterior_of(case, rng, shape=(2, 4)))
    num_panels = {1: 1, 2: 1, 4: 10}[d]
    check = check_drawable if d < 4 or family.name == "full" else check_finite
    for figure in (plot_assignments(case.mixture, x), plot_posterior_ellipses(fit, x, num_draws=8)):
        assert isinstance(figure, Figure)
        assert sum(ax.axison for ax in figure.axes) == num_panels
        check(figure)
    check(plot_responsibility_uncertainty(fit, x))


@each_dimension
def test_rows_have_the_colour_of_their_cluster(d, rng):
    case = random_case(FULL, 3, d, rng)
    x = case.rows(60, rng)
    labels = np.asarray(case.mixture.predict(x))
    figure = plot_assignments(case.mixture, x)
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
    figure = plot_assignments(case.mixture, case.rows(60, rng), levels=(0.3, 0.9))
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


@each_family
def test_density_curves_are_the_mixture(family, rng):
    """Curves agree with the mixture's own density, add up over components, and hold the mass of the range shown."""
    case = random_case(family, 3, 1, rng)
    figure = plot_assignments(case.mixture, case.rows(60, rng))
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
    figure = plot_assignments(case.mixture, case.rows(60, rng))
    rows = case.rows(40_000, rng)
    for feature, curve in enumerate(by_gid(figure, "mixture")):
        grid, density = np.asarray(curve.get_xydata(), float).T
        low, high = np.quantile(rows[:, feature], [0.2, 0.7])
        inside = (grid >= low) & (grid <= high)
        assert np.trapezoid(density[inside], grid[inside]) == pytest.approx(0.5, abs=0.03)


def test_means_are_marked(rng):
    case = random_case(FULL, 3, 2, rng)
    figure = plot_assignments(case.mixture, case.rows(60, rng))
    marks = np.concatenate([artist.get_xydata() for artist in starting_with(figure, "mean")])
    np.testing.assert_allclose(marks, case.means)


def test_columns_choose_and_name_the_features(rng):
    case = random_case(FULL, 3, 4, rng)
    x = case.rows(60, rng)
    table = pd.DataFrame(x, columns=list("abcd"))
    figure = plot_assignments(case.mixture, table, columns=["d", 1])
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("d", "b")
    pair = marginal(case.mixture, [3, 1])
    np.testing.assert_allclose(pair.covariances, case.covariances[:, [3, 1]][:, :, [3, 1]], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(pair.means, case.means[:, [3, 1]])
    labels = np.asarray(case.mixture.predict(x))
    np.testing.assert_array_equal(by_gid(figure, "cluster 1")[0].get_offsets(), x[labels == 1][:, [3, 1]])
    (ax,) = plot_assignments(case.mixture, x, columns=[2], feature_names=("a", "b", "c", "d")).axes
    assert ax.get_xlabel() == "c"
    grid = plot_assignments(case.mixture, table).axes
    assert {ax.get_xlabel() for ax in grid} - {""} == {"a", "b", "c", "d"}
    assert {ax.get_ylabel() for ax in grid} - {""} == {"b", "c", "d"}


def test_panels_of_one_feature_share_its_limits(rng):
    case = random_case(FULL, 3, 4, rng)
    figure = plot_assignments(case.mixture, case.rows(60, rng))
    grid = np.array(figure.axes).reshape(4, 4)
    for feature in range(4):
        spans = {grid[row, feature].get_xlim() for row in range(feature, 4)}
        spans |= {grid[feature, column].get_ylim() for column in range(feature)}
        assert len(spans) == 1


def test_axes_of_the_caller_are_used(rng, make_fit):
    case = random_case(FULL, 3, 4, rng)
    x = case.rows(60, rng)
    figure = Figure()
    grid = figure.subplots(3, 3)
    assert plot_assignments(case.mixture, x, columns=[0, 1, 3], ax=grid) is figure
    assert plot_responsibility_uncertainty(case.mixture, x, ax=Figure().subplots(3, 3)) is not figure
    ax = Figure().add_subplot()
    assert plot_assignments(case.mixture, x, columns=[0, 1], ax=ax) is ax.figure
    outer = Figure(layout="constrained")
    left, right = outer.subfigures(1, 2)
    assert plot_criteria(pd.DataFrame({"num_components": [1], "bic": [3.0]}), ax=left.subplots()) is outer
    assert plot_traces({"EM": make_fit(case)}, axes=right.subplots()) is outer
    with pytest.raises(ValueError, match="ax has shape"):
        plot_assignments(case.mixture, x, ax=grid)
    with pytest.raises(ValueError, match="need one"):
        plot_assignments(case.mixture, x, columns=[0], ax=grid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": (0.5, 1.0)}, "levels"),
        ({"levels": ()}, "levels"),
        ({"columns": [0, 0]}, "different"),
        ({"columns": []}, "different"),
        ({"columns": [9]}, "counted from 0"),
        ({"columns": ["z"]}, "'z'"),
        ({"feature_names": ["a"]}, "feature_names has 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, rng):
    case = random_case(FULL, 3, 2, rng)
    with pytest.raises(ValueError, match=message):
        plot_assignments(case.mixture, case.rows(60, rng), **arguments)


def test_mixtures_that_cannot_be_drawn_are_refused(rng, make_fit):
    case = random_case(FULL, 3, 2, rng)
    x = case.rows(60, rng)
    broken = dataclasses.replace(case.mixture, means=np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="NaN"):
        plot_assignments(broken, x)
    with pytest.raises(ValueError, match="leading axes"):
        plot_assignments(posterior_of(case, rng), x)
    with pytest.raises(ValueError, match="x has 1 features"):
        plot_assignments(case.mixture, x[:, :1])
    with pytest.raises(ValueError, match="'em' has no draws") as error:
        plot_posterior_ellipses(make_fit(case), x)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="num_draws=0"):
        plot_posterior_ellipses(make_fit(case, "vi", draws=posterior_of(case, rng)), x, num_draws=0)
    with pytest.raises(ValueError, match="none of the fits"):
        plot_posterior_parameters({"EM": make_fit(case)})
    with pytest.raises(ValueError, match="at least two"):
        plot_responsibility_uncertainty(case.mixture, x, columns=[0])


def test_posterior_ellipses_are_those_of_the_draws(rng, make_fit):
    case = random_case(FULL, 3, 2, rng)
    draws = posterior_of(case, rng, shape=(2, 5))
    figure = plot_posterior_ellipses(make_fit(case, "nuts", draws=draws), case.rows(60, rng), num_draws=10, level=0.5)
    for cluster in range(3):
        (lines,) = by_gid(figure, f"draws {cluster}")
        assert isinstance(lines, LineCollection)
        assert len(lines.get_segments()) == 10
        for segment, mean in zip(lines.get_segments(), draws.means.reshape(10, 3, 2)[:, cluster], strict=True):
            np.testing.assert_allclose(segment[:-1].mean(0), mean, atol=1e-10)
        (point,) = by_gid(figure, f"ellipse {cluster} 0.5")
        np.testing.assert_allclose(np.asarray(point.get_xydata())[:-1].mean(0), case.means[cluster], atol=1e-10)


def test_posterior_band_is_pointwise_and_contains_the_point(rng, make_fit):
    case = random_case(FULL, 3, 1, rng)
    x = case.rows(60, rng)
    draws = posterior_of(case, rng)
    figure = plot_posterior_ellipses(make_fit(case, "nuts", draws=draws), x, num_draws=11)
    (curve,) = by_gid(figure, "mixture")
    grid, density = np.asarray(curve.get_xydata(), float).T
    all_draws = np.exp(draws.log_prob(grid[:, None])).reshape(-1, len(grid))
    low, high = np.quantile(all_draws, [0.05, 0.95], axis=0)
    assert np.mean((density >= low) & (density <= high)) > 0.95
    (band,) = by_gid(figure, "band")
    vertices = band.get_paths()[0].vertices
    assert vertices[:, 1].max() == pytest.approx(high.max())
    assert len(by_gid(figure, "draws")[0].get_segments()) == 11


def test_uncertainty_is_one_less_the_largest_mean_responsibility(rng, make_fit):
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
        figure = plot_responsibility_uncertainty(subject, x)
        (rows,) = by_gid(figure, "rows")
        expected_uncertainty = np.sort(1 - expected.max(1))
        np.testing.assert_allclose(rows.get_array(), expected_uncertainty, rtol=1e-9, atol=1e-12)
        assert (np.diff(rows.get_sizes()) >= 0).all()
        assert rows.get_clim() == pytest.approx((0.0, 2 / 3))
    flat = thinned_draws(draws, 1000)
    np.testing.assert_allclose(mean_responsibilities(flat, x), responsibilities, rtol=1e-9, atol=1e-14)


def test_responsibility_curves_sum_to_one_inside_their_bands(rng, make_fit):
    case = random_case(FULL, 3, 1, rng)
    figure = plot_responsibility_uncertainty(make_fit(case, "nuts", draws=posterior_of(case, rng)), case.rows(60, rng))
    curves = np.stack([by_gid(figure, f"cluster {cluster}")[0].get_ydata() for cluster in range(3)])
    np.testing.assert_allclose(curves.sum(0), 1.0, rtol=1e-9)
    np.testing.assert_allclose(by_gid(figure, "uncertainty")[0].get_ydata(), 1 - curves.max(0))
    assert len(starting_with(figure, "band")) == 3
    assert not starting_with(plot_responsibility_uncertainty(case.mixture, case.rows(60, rng)), "band")
    check_drawable(figure, laid_out=True)


def test_traces_say_what_they_show_without_padding(rng, make_fit):
    case = random_case(FULL, 3, 2, rng)
    elbo = -200 * np.exp(-np.arange(2000) / 100) + rng.normal(size=2000)
    fits = {
        "em": make_fit(case),
        "map": make_fit(case, "map", np.array([-5.0, -4.0, -3.5])),
        "vi (normal)": make_fit(case, "vi", elbo),
        "vi (full rank)": make_fit(case, "vi", elbo + 5),
        "nuts": make_fit(case, "nuts", rng.normal(size=(3, 40))),
    }
    figure = plot_traces(fits)
    check_drawable(figure)
    em, map_, vi, nuts = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "log-likelihood", "log posterior density", "ELBO", "log posterior density"
    ]  # fmt: skip
    assert [ax.get_xlabel() for ax in figure.axes] == ["step", "step", "step", "draw"]
    np.testing.assert_array_equal(em.get_lines()[0].get_ydata(), [-30, -20, -15])
    np.testing.assert_array_equal(map_.get_lines()[0].get_ydata(), [-5, -4, -3.5])
    assert len(nuts.get_lines()) == 3
    assert {text.get_text() for text in vi.get_legend().get_texts()} == {"vi (normal)", "vi (full rank)"}
    low, high = vi.get_ylim()
    assert low > -30, "the start would flatten the settled part"
    assert low < -3 < 8 < high
    raw = by_gid(figure, "raw")[0].get_ydata()
    np.testing.assert_array_equal(raw, elbo)


def test_traces_that_cannot_be_drawn_are_refused(rng, make_fit):
    case = random_case(FULL, 3, 2, rng)
    with pytest.raises(ValueError, match="fits is empty"):
        plot_traces({})
    with pytest.raises(ValueError, match="no finite value"):
        plot_traces({"EM": make_fit(case, trace=np.full(4, np.nan))})
    with pytest.raises(ValueError, match="axes holds 1"):
        plot_traces({"a": make_fit(case), "b": make_fit(case, "map")}, axes=Figure().add_subplot())


def test_trace_helpers(make_fit, rng):
    case = random_case(FULL, 3, 1, rng)
    lines = trace_lines("x", make_fit(case, trace=np.array([[-np.inf, 1.0, 2.0, np.nan], [0.0, 1.0, np.nan, np.nan]])))
    np.testing.assert_array_equal(lines, [[np.nan, 1, 2], [0, 1, np.nan]])
    centres, means = smooth(np.array([1.0, 3.0, np.nan, 5.0]), 2)
    np.testing.assert_allclose(centres, [0.5, 1.5, 2.5])
    np.testing.assert_allclose(means, [2.0, 3.0, 5.0])
    low, high = settled_limits([np.full((1, 10), 3.0)])
    assert low < 3 < high


@pytest.mark.parametrize("d", [1, 2])
def test_points_are_marked_at_their_values_and_densities_follow_the_draws(d, rng, make_fit):
    case, other = random_case(FULL, 3, d, rng), random_case(FULL, 3, d, rng)
    draws = posterior_of(case, rng)
    fits = {
        "EM": make_fit(case),
        "MAP": make_fit(other, "map"),
        "VI": make_fit(case, "vi", draws=draws),
        "NUTS": make_fit(case, "nuts", draws=draws),
    }
    figure = plot_posterior_parameters(fits)
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


def test_parameters_of_unlike_fits_are_refused(rng, make_fit):
    three, two = random_case(FULL, 3, 2, rng), random_case(FULL, 2, 2, rng)
    fit = make_fit(three, "nuts", draws=posterior_of(three, rng))
    with pytest.raises(ValueError, match="must agree"):
        plot_posterior_parameters({"NUTS": fit, "EM": make_fit(two)})
    with pytest.raises(ValueError, match=r"need \(3, 3\)"):
        plot_posterior_parameters({"NUTS": fit}, axes=Figure().subplots(2, 2))


def test_density_of_draws_that_are_all_equal():
    assert density_of_draws(np.full(50, 0.3), (0.0, 1.0)) is None
    grid, _ = density_of_draws(np.linspace(0.0, 0.02, 50), (0.0, 1.0))
    assert grid[0] == 0.0


def test_criteria_mark_each_minimum_and_the_selected_number():
    table = pd.DataFrame(
        {
            "num_components": [3, 1, 2, 4],
            "bic": [8.0, 20.0, 7.0, np.nan],
            "aic": [5.0, 19.0, 6.0, 5.5],
            "icl": [9.0, 8.5, 9.1, np.inf],
        }
    )
    figure = plot_criteria(table, selected=2)
    for name, k, value in (("bic", 2, 7.0), ("aic", 3, 5.0), ("icl", 1, 8.5)):
        (mark,) = by_gid(figure, f"minimum {name}")
        np.testing.assert_array_equal(mark.get_xydata(), [[k, value]])
        np.testing.assert_array_equal(by_gid(figure, name)[0].get_xdata(), [1, 2, 3, 4])
    texts = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert texts == {"BIC", "AIC", "ICL", "minimum", "selected: k = 2"}
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    for wrong, message in (
        (table.drop(columns="num_components"), "num_components"),
        (pd.concat([table, table]), "more than once"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_criteria(wrong)
    with pytest.raises(ValueError, match="selected=7"):
        plot_criteria(table, selected=7)


def test_single_precision_jax_arrays_are_drawn(rng, make_fit):
    case = random_case(FULL, 3, 2, rng)
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), case.mixture)
    x = jnp.asarray(case.rows(60, rng), jnp.float32)
    draws = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), posterior_of(case, rng))
    fit = dataclasses.replace(
        make_fit(case), engine="nuts", mixture=single, draws=draws, trace=jnp.zeros((2, 5), jnp.float32)
    )
    for figure in (
        plot_assignments(single, x),
        plot_posterior_ellipses(fit, x),
        plot_responsibility_uncertainty(fit, x),
        plot_posterior_parameters({"NUTS": fit}),
        plot_traces({"NUTS": fit}),
    ):
        check_drawable(figure)


def test_empty_clusters_one_component_and_odd_columns_are_drawn(rng, make_fit):
    case = random_case(FULL, 3, 1, rng)
    far = Mixture.from_covariances([0.999, 0.001], np.array([[0.0], [50.0]]), np.ones((2, 1, 1)))
    check_drawable(plot_assignments(far, rng.normal(size=60)))
    one = random_case(FULL, 1, 2, rng)
    x = one.rows(60, rng)
    x[:, 1] = x[:, 1].round()
    check_drawable(plot_assignments(one.mixture, x))
    check_drawable(plot_responsibility_uncertainty(one.mixture, x))
    check_drawable(plot_assignments(case.mixture, np.full(60, 1.5)))
    many = random_case(FULL, 10, 2, rng)
    check_drawable(plot_assignments(many.mixture, many.rows(60, rng)))


def test_bins_of_rounded_data_hold_equally_many_values():
    values = DATA["iris"][:, 1]
    edges = bin_edges(values)
    width = edges[1] - edges[0]
    assert width / 0.1 == pytest.approx(round(width / 0.1))
    assert edges[0] < values.min() <= values.max() < edges[-1]
    assert 12 <= len(bin_edges(DATA["galaxies"][:, 0])) <= 52


def test_draws_are_thinned_evenly_over_all_chains(rng):
    case = random_case(FULL, 3, 1, rng)
    draws = posterior_of(case, rng, shape=(3, 10))
    thinned = thinned_draws(draws, 4)
    np.testing.assert_array_equal(thinned.means, draws.means.reshape(30, 3, 1)[[0, 10, 19, 29]])
    assert thinned_draws(draws, 100).draw_shape == (30,)
    assert marginal(draws, [0]).draw_shape == (3, 10)


def test_colours_markers_and_lines_tell_apart(make_fit, rng):
    assert len({(cluster_colour(cluster), cluster_marker(cluster)) for cluster in range(56)}) == 56
    case = random_case(FULL, 3, 1, rng)
    fits = {str(number): make_fit(case, engine) for number, engine in enumerate(["vi", "vi", "vi", "nuts", "gibbs"])}
    styles = line_styles(fits)
    assert styles["3"] == "-"
    assert len(set(styles.values())) == 5


def test_fits_of_one_engine_may_have_traces_of_different_lengths(rng, make_fit):
    case = random_case(FULL, 2, 2, rng)
    fits = {
        name: make_fit(case, engine="vi", trace=-50.0 + rng.normal(size=length))
        for name, length in (("vi (normal)", 350), ("vi (full rank)", 400))
    }
    (ax,) = plot_traces(fits).axes
    longest = max(line.get_xdata()[-1] for line in ax.lines)
    assert longest == 399
