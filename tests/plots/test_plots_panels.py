"""What all pictures share: panels, columns, the caller's axes, arguments that are refused, hard inputs."""

import dataclasses
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import each_factor_shape, random_case
from matplotlib import pyplot
from matplotlib.figure import Figure
from plot_helpers import (
    FULL,
    by_gid,
    check_drawable,
    check_finite,
    each_dimension,
    make_fit,
    posterior_of,
)

from bayesgmm import plots
from bayesgmm.comparison import report
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots import (
    plot_assignments,
    plot_criteria,
    plot_posterior_ellipses,
    plot_posterior_parameters,
    plot_responsibility_uncertainty,
    plot_traces,
)
from bayesgmm.plots.panels import cluster_colour, cluster_marker, line_styles, root_figure
from bayesgmm.plots.view import one_mixture, point_and_draws, posterior_draws

pytestmark = pytest.mark.usefixtures("pictures_alone")


@each_factor_shape
@each_dimension
def test_every_family_and_dimension_is_drawn(family, d, rng):
    case = random_case(family, 3, d, rng)
    x = case.rows(60, rng)
    fit = make_fit(case, "nuts", draws=posterior_of(case, rng, shape=(2, 4)))
    num_panels = {1: 1, 2: 1, 4: 10}[d]
    check = check_drawable if d < 4 or family.name == "full" else check_finite
    for figure in (
        root_figure(plot_assignments(case.mixture, x)),
        root_figure(plot_posterior_ellipses(fit, x, num_draws=8)),
    ):
        assert isinstance(figure, Figure)
        assert sum(ax.axison for ax in figure.axes) == num_panels
        check(figure)
    check(plot_responsibility_uncertainty(fit, x))


def test_columns_choose_and_name_the_features(rng):
    case = random_case(FULL, 3, 4, rng)
    x = case.rows(60, rng)
    table = pd.DataFrame(x, columns=list("abcd"))
    figure = root_figure(plot_assignments(case.mixture, table, columns=["d", 1]))
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("d", "b")
    pair = case.mixture.marginal([3, 1])
    np.testing.assert_allclose(pair.covariances, case.covariances[:, [3, 1]][:, :, [3, 1]], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(pair.means, case.means[:, [3, 1]])
    labels = np.asarray(case.mixture.predict(x))
    np.testing.assert_array_equal(by_gid(figure, "cluster 1")[0].get_offsets(), x[labels == 1][:, [3, 1]])
    (ax,) = root_figure(plot_assignments(case.mixture, x, columns=[2], feature_names=("a", "b", "c", "d"))).axes
    assert ax.get_xlabel() == "c"
    grid = root_figure(plot_assignments(case.mixture, table)).axes
    assert {ax.get_xlabel() for ax in grid} - {""} == {"a", "b", "c", "d"}
    assert {ax.get_ylabel() for ax in grid} - {""} == {"b", "c", "d"}


def test_panels_of_one_feature_share_its_limits(rng):
    case = random_case(FULL, 3, 4, rng)
    figure = root_figure(plot_assignments(case.mixture, case.rows(60, rng)))
    grid = np.array(figure.axes).reshape(4, 4)
    for feature in range(4):
        spans = {grid[row, feature].get_xlim() for row in range(feature, 4)}
        spans |= {grid[feature, column].get_ylim() for column in range(feature)}
        assert len(spans) == 1


def test_axes_of_the_caller_are_used(rng):
    case = random_case(FULL, 3, 4, rng)
    x = case.rows(60, rng)
    figure = Figure()
    grid = figure.subplots(3, 3)
    assert root_figure(plot_assignments(case.mixture, x, columns=[0, 1, 3], ax=grid)) is figure
    assert root_figure(plot_responsibility_uncertainty(case.mixture, x, ax=Figure().subplots(3, 3))) is not figure
    ax = Figure().add_subplot()
    assert root_figure(plot_assignments(case.mixture, x, columns=[0, 1], ax=ax)) is ax.figure
    outer = Figure(layout="constrained")
    left, right = outer.subfigures(1, 2)
    assert root_figure(plot_criteria(pd.DataFrame({"num_components": [1], "bic": [3.0]}), ax=left.subplots())) is outer
    assert root_figure(plot_traces({"EM": make_fit(case)}, ax=right.subplots())) is outer
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


def test_mixtures_that_cannot_be_drawn_are_refused(rng):
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


def test_single_precision_jax_arrays_are_drawn(rng):
    case = random_case(FULL, 3, 2, rng)
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), case.mixture)
    x = jnp.asarray(case.rows(60, rng), jnp.float32)
    draws = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), posterior_of(case, rng))
    fit = dataclasses.replace(
        make_fit(case), engine="nuts", mixture=single, draws=draws, trace=jnp.zeros((2, 5), jnp.float32)
    )
    for figure in (
        root_figure(plot_assignments(single, x)),
        root_figure(plot_posterior_ellipses(fit, x)),
        root_figure(plot_responsibility_uncertainty(fit, x)),
        root_figure(plot_posterior_parameters({"NUTS": fit})),
        root_figure(plot_traces({"NUTS": fit})),
    ):
        check_drawable(figure)


def test_empty_clusters_one_component_and_odd_columns_are_drawn(rng):
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


def test_colours_markers_and_lines_tell_apart(rng):
    assert len({(cluster_colour(cluster), cluster_marker(cluster)) for cluster in range(56)}) == 56
    case = random_case(FULL, 3, 1, rng)
    fits = {str(number): make_fit(case, engine) for number, engine in enumerate(["vi", "vi", "vi", "nuts", "gibbs"])}
    styles = line_styles(fits)
    assert styles["3"] == "-"
    assert len(set(styles.values())) == 5


def test_what_is_no_mixture_and_no_fit_is_refused(rng):
    case = random_case(FULL, 2, 2, rng)
    several = dataclasses.replace(make_fit(case), mixture=posterior_of(case, rng))
    for take, thing, message in (
        (one_mixture, "full", "got str"),
        (one_mixture, several, "leading axes"),
        (lambda thing: point_and_draws(thing, 10), None, "got NoneType"),
        (lambda thing: point_and_draws(thing, 10), several, "give one fit"),
        (posterior_draws, 3, "draws are needed"),
    ):
        with pytest.raises(InputError, match=message):
            take(thing)


@pytest.mark.parametrize("name", plots.__all__)
def test_every_picture_takes_axes_and_says_what_it_returns(name):
    function = getattr(plots, name)
    parameter = inspect.signature(function).parameters["ax"]
    assert (parameter.kind, parameter.default) == (inspect.Parameter.KEYWORD_ONLY, None)
    text = inspect.getdoc(function) or ""
    assert re.search(r"Args:.*\bax\b.*Returns:.*Raises:", text, re.DOTALL)


def test_the_report_leaves_no_figure_open(rng):
    case = random_case(FULL, 2, 2, rng)
    pyplot.close("all")
    own = pyplot.figure()
    draw = functools.partial(plot_assignments, case.mixture, case.rows(30, rng))
    html = report._Figures(None, ())("name", draw, "A & B")
    assert "A &amp; B" in html
    assert pyplot.get_fignums() == [own.number]  # what the caller has open stays
    pyplot.close("all")


PLANE_PICTURES = (
    plots.plot_density_contours,
    plots.plot_density_with_slice,
    plots.plot_density_slice,
    plots.plot_assignment_entropy,
    plots.plot_responsibility_bars,
    plots.plot_responsibility_heatmap,
)


@pytest.mark.parametrize("picture", PLANE_PICTURES, ids=lambda picture: picture.__name__)
def test_one_component_shared_covariances_and_single_precision_are_drawn(picture, rng):
    one = random_case(FULL, 1, 2, rng)
    check_drawable(picture(one.mixture, one.rows(30, rng)))
    tied = random_case(FAMILIES["tied"], 3, 2, rng)
    x = tied.rows(40, rng)
    shape = (2, 5)
    draws = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (*shape, *leaf.shape)), tied.mixture)
    assert draws.precision_factor.shape[2] == 1
    check_drawable(picture(draws, x))
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (tied.mixture, x))
    check_drawable(picture(*single))
    diagonal = random_case(FAMILIES["diag"], 2, 2, rng)
    check_drawable(picture(make_fit(diagonal), diagonal.rows(30, rng)))


def test_rows_that_are_all_alike_are_drawn(rng):
    case = random_case(FULL, 2, 2, rng)
    x = np.broadcast_to(case.means[0], (12, 2)).copy()
    for picture in PLANE_PICTURES:
        check_drawable(picture(case.mixture, x))
    check_drawable(plots.plot_similarity_matrix(posterior_of(case, rng), x))
    check_drawable(plots.plot_similarity_matrix(np.ones((2, 2))))
    check_drawable(plots.plot_density_contours(case.mixture, x, columns="pca"))


def test_a_picture_that_cannot_be_drawn_leaves_a_remark(tmp_path):
    def draw():
        raise ValueError("no <room>")

    figure = report._Figures(tmp_path / "figures", ("png",))
    page = figure("forest", draw, "A caption")
    assert 'No picture "forest": ValueError: no &lt;room&gt;.' in page
    assert list((tmp_path / "figures").iterdir()) == []
    late = pyplot.figure()  # whose fault shows only when it is laid out
    late.text(0.5, 0.5, r"$\nonsense{$")
    assert 'No picture "forest": ValueError' in figure("forest", lambda: late, "A caption")
    pyplot.close(late)
