"""Pictures that ArviZ draws on axes of one's own: what is on them is what is in the tree."""

import arviz
import jax
import numpy as np
import pytest
from helpers import random_case
from matplotlib import colors
from matplotlib.figure import Figure
from plot_helpers import FULL, by_gid, check_drawable, make_fit, posterior_of
from scipy import stats

import bayesgmm
from bayesgmm.diagnostics.leave_one_out import pointwise_loo
from bayesgmm.errors import InputError
from bayesgmm.plots import plot_chain_ranks, plot_chain_traces, plot_pareto_k, plot_posterior_predictive
from bayesgmm.plots.panels import BLUE, INK, PALETTE

pytestmark = pytest.mark.usefixtures("pictures_alone")


@pytest.fixture(scope="module")
def tree():
    return make_tree()


def make_tree():
    num_draws = 60
    rng = np.random.default_rng(7)
    case = random_case(FULL, 2, 2, rng)
    x = case.rows(50, rng)
    x[17] += 30.0  # far from all others: its Pareto k is large
    draws = posterior_of(case, rng, shape=(3, num_draws), scale=0.1)
    fit = make_fit(case, "nuts", np.zeros((3, num_draws)), draws)
    prior = bayesgmm.default_prior(x, 2)
    return bayesgmm.to_datatree(fit, x, prior=prior, key=jax.random.key(0), feature_names=["speed", "mass"])


def test_pareto_k_of_every_row_is_drawn(tree):
    ax = plot_pareto_k(tree)
    expected = np.asarray(pointwise_loo(tree).pareto_k)
    (points,) = [one for one in ax.collections if len(one.get_offsets()) == 50]
    np.testing.assert_allclose(np.asarray(points.get_offsets()), np.column_stack([np.arange(50), expected]))
    threshold = min(1 - 1 / np.log10(180), 0.7)
    assert by_gid(ax, "threshold")[0].get_ydata()[0] == pytest.approx(threshold)
    bad = np.flatnonzero(expected > threshold)
    assert 17 in bad
    marked = {text.get_text().strip() for text in ax.texts}
    assert {str(row) for row in bad} == {"".join(filter(str.isdigit, text)) for text in marked}
    assert f"{len(bad)} row" in ax.get_legend().get_texts()[0].get_text()
    check_drawable(ax, laid_out=True)
    mine = Figure().add_subplot()
    assert plot_pareto_k(tree, ax=mine) is mine
    assert len(mine.collections) == len(ax.collections)


@pytest.mark.parametrize("kind", ["kde", "ecdf", "hist"])
def test_replicated_data_are_drawn_beneath_the_data(tree, kind):
    axes = plot_posterior_predictive(tree, num_replicates=12, kind=kind)
    assert [ax.get_xlabel() for ax in axes] == ["speed", "mass"]
    for ax in axes:
        drawn = [line.get_color() for line in lines_with_data(ax)] or [patch.get_edgecolor() for patch in ax.patches]
        assert sum(colors.same_color(colors.to_hex(one), BLUE) for one in drawn) == 12
        assert sum(colors.same_color(colors.to_hex(one), INK) for one in drawn) == 1
    check_drawable(axes, laid_out=kind == "kde")


def test_distribution_functions_are_those_of_the_data_and_of_evenly_spaced_draws(tree):
    axes = plot_posterior_predictive(tree, num_replicates=3, kind="ecdf")
    replicated = np.asarray(tree.posterior_predictive["x"]).reshape(-1, 50, 2)[[0, 90, 179]]
    for feature, ax in enumerate(axes):
        *lines, of_data = [np.asarray(line.get_xydata(), float) for line in lines_with_data(ax)]
        assert furthest_from(np.asarray(tree.observed_data["x"])[:, feature], of_data) <= 1.01 / 50
        for values in replicated[:, :, feature]:  # in any order
            assert min(furthest_from(values, line) for line in lines) <= 1.01 / 50


def lines_with_data(ax):
    """The lines that are drawn: entries of the legend are lines without data."""
    return [line for line in ax.get_lines() if len(line.get_xdata())]


def furthest_from(values, line):
    """Largest distance of a line from a distribution function, which is 1 / n for the side of a step alone."""
    return np.abs(line[:, 1] - stats.ecdf(values).cdf.evaluate(line[:, 0])).max()


def test_five_features_take_two_rows_of_panels():
    rng = np.random.default_rng(3)
    x, new = rng.normal(size=(30, 5)), rng.normal(size=(2, 4, 30, 5))
    names = ["speed", "mass", "age", "size", "rate"]
    five = arviz.from_dict(
        {"posterior": {"weights": rng.random((2, 4))}, "posterior_predictive": {"x": new}, "observed_data": {"x": x}},
        dims={"x": ["row", "feature"]},
        coords={"feature": names},
    )
    axes = plot_posterior_predictive(five, num_replicates=5)
    assert [ax.get_xlabel() for ax in axes] == names
    check_drawable(axes)


@pytest.mark.parametrize("plot", [plot_chain_traces, plot_chain_ranks])
def test_a_row_for_every_parameter_and_a_line_for_every_chain(plot, tree):
    axes = plot(tree)
    assert axes.shape == (6, 2)
    assert [ax.get_xlabel() for ax in axes[:, 0]] == [
        "weight, cluster 0", "weight, cluster 1", "mean of speed, cluster 0", "mean of mass, cluster 0",
        "mean of speed, cluster 1", "mean of mass, cluster 1",
    ]  # fmt: skip
    for ax in axes.ravel():
        shades = {colors.to_hex(line.get_color()) for line in ax.get_lines()}
        assert {colour.lower() for colour in PALETTE[:3]} <= shades
    assert [text.get_text() for text in axes[0, 1].get_legend().get_texts()] == ["chain 0", "chain 1", "chain 2"]
    check_drawable(axes)


def test_traces_are_the_draws_in_the_order_of_their_names(tree):
    axes = plot_chain_traces(tree, var_names=["means", "scales"], coords={"cluster": 1})
    assert [ax.get_xlabel() for ax in axes[:, 0]] == [
        f"{word} of {name}, cluster 1" for word in ("mean", "sd") for name in ("speed", "mass")
    ]
    means = np.asarray(tree.posterior["means"])[:, :, 1]
    for feature in range(2):
        lines = [np.asarray(line.get_ydata(), float) for line in axes[feature, 1].get_lines()]
        for chain in range(3):
            assert any(np.array_equal(line, means[chain, :, feature]) for line in lines)
    mine = Figure(layout="constrained").subplots(2, 2)
    drawn = plot_chain_ranks(tree, var_names=["weights"], ax=mine)
    assert (drawn == mine).all()
    check_drawable(drawn, laid_out=True)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda tree: plot_pareto_k(3), "got int"),
        (lambda tree: plot_pareto_k(without(tree, "log_likelihood")), "no group log_likelihood"),
        (lambda tree: plot_posterior_predictive(without(tree, "observed_data")), "no group observed_data"),
        (lambda tree: plot_posterior_predictive(tree, kind="dot"), "kind='dot'"),
        (lambda tree: plot_posterior_predictive(tree, num_replicates=0), "num_replicates=0"),
        (lambda tree: plot_posterior_predictive(tree, ax=Figure().subplots(3)), "2 features need axes of shape"),
        (lambda tree: plot_chain_traces(tree, var_names=["sigma"]), "'sigma'"),
        (lambda tree: plot_chain_traces(tree, var_names=[]), "var_names has none"),
        (lambda tree: plot_chain_traces(tree, coords={"cluster": 9}), "coords="),
        (lambda tree: plot_chain_ranks(tree, coords={"colour": 1}), "coords="),
        (lambda tree: plot_chain_ranks(tree, var_names=["weights", "means", "covariances"]), "leave 14 parameters"),
        (lambda tree: plot_chain_ranks(tree, ax=Figure().subplots(3)), "6 parameters need axes of shape"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(draw, message, tree):
    with pytest.raises(InputError, match=message) as error:
        draw(tree)
    assert "\n" not in str(error.value)


def without(tree, group):
    return tree.filter(lambda node: node.name != group)


def test_a_point_has_no_chains_and_no_pareto_k():
    rng = np.random.default_rng(7)
    case = random_case(FULL, 2, 2, rng)
    x = case.rows(50, rng)
    fit = make_fit(case, "map", np.array([-3.0, -2.0]))
    point = bayesgmm.to_datatree(fit, x, prior=bayesgmm.default_prior(x, 2), key=jax.random.key(0))
    for draw in (plot_pareto_k, plot_chain_traces, plot_chain_ranks):
        with pytest.raises(InputError, match="1 draws; give that of a fit by VI"):
            draw(point)
    check_drawable(plot_posterior_predictive(point))
