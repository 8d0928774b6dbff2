"""Responsibilities of rows and their similarity: checked on the artists, not on pixels."""

import numpy as np
import pytest
from helpers import random_case
from matplotlib import colors
from matplotlib.figure import Figure
from plot_helpers import FULL, by_gid, check_drawable, make_fit, posterior_of, starting_with

from bayesgmm.errors import InputError
from bayesgmm.plots import plot_responsibility_bars, plot_responsibility_heatmap, plot_similarity_matrix
from bayesgmm.plots.panels import cluster_colour
from bayesgmm.plots.responsibilities import similarity_order
from bayesgmm.posterior.similarity import similarity_matrix

pytestmark = pytest.mark.usefixtures("pictures_alone")


def check_sorted(shares):
    """By cluster, and within a cluster the surest first."""
    labels = shares.argmax(1)
    assert (np.diff(labels) >= 0).all()
    for cluster in np.unique(labels):
        assert (np.diff(shares[labels == cluster].max(1)) <= 0).all()


def test_bars_are_the_responsibilities_of_every_row(rng):
    case = random_case(FULL, 3, 2, rng)
    x = case.rows(70, rng)
    draws = posterior_of(case, rng)
    averaged = np.asarray(draws.responsibilities(x)).mean((0, 1))
    for subject, expected in (
        (case.mixture, np.asarray(case.mixture.responsibilities(x))),
        (make_fit(case), np.asarray(case.mixture.responsibilities(x))),
        (make_fit(case, "nuts", draws=draws), averaged),
    ):
        ax = plot_responsibility_bars(subject, x)
        steps = [by_gid(ax, f"cluster {cluster}")[0] for cluster in range(3)]
        for cluster, step in enumerate(steps):
            assert colors.same_color(step.get_facecolor(), cluster_colour(cluster))
        shares = np.stack([step.get_data().values - step.get_data().baseline for step in steps], axis=1)
        np.testing.assert_allclose(shares.sum(1), 1.0, atol=1e-9)
        check_sorted(shares)
        order = np.lexsort(np.round(expected.T, 9))
        np.testing.assert_allclose(shares[np.lexsort(np.round(shares.T, 9))], expected[order], atol=1e-8)
        borders = [line.get_xdata()[0] for line in by_gid(ax, "border")]
        np.testing.assert_array_equal(borders, np.flatnonzero(np.diff(shares.argmax(1))) + 1)
    check_drawable(ax, laid_out=True)


def test_the_heat_map_is_the_sorted_matrix(rng):
    case = random_case(FULL, 4, 2, rng)
    x = case.rows(50, rng)
    ax = plot_responsibility_heatmap(case.mixture, x)
    (image,) = by_gid(ax, "responsibilities")
    shown = np.asarray(image.get_array())
    check_sorted(shown)
    expected = np.asarray(case.mixture.responsibilities(x))
    np.testing.assert_array_equal(np.sort(shown, axis=0), np.sort(expected, axis=0))
    assert image.get_clim() == (0.0, 1.0)
    assert list(image.get_extent()) == [-0.5, 3.5, 50, 0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3"]
    check_drawable(ax, laid_out=True)


def test_a_cluster_without_rows_has_no_bars_of_its_own(rng):
    case = random_case(FULL, 2, 2, rng)
    far = 1e3 + case.rows(20, rng)
    one = case.mixture.permute([0, 1])
    ax = plot_responsibility_bars(one, far)
    assert len(by_gid(ax, "border")) <= 1
    check_drawable(plot_responsibility_heatmap(one, far))


def test_similarities_are_shown_in_an_order_of_the_rows(rng):
    case = random_case(FULL, 3, 2, rng)
    x = case.rows(40, rng)
    draws = posterior_of(case, rng)
    matrix = similarity_matrix(draws, x)
    for arguments in ((draws, x), (make_fit(case, "nuts", draws=draws), x), (matrix,)):
        ax = plot_similarity_matrix(*arguments)
        (image,) = by_gid(ax, "similarity")
        order = similarity_order(matrix)
        assert sorted(order) == list(range(40))
        np.testing.assert_array_equal(np.asarray(image.get_array()), matrix[np.ix_(order, order)])
    assert not by_gid(ax, "cluster")
    check_drawable(ax, laid_out=True)


def test_blocks_stand_together_and_are_outlined():
    """Rows of three sure clusters, shuffled: in the picture each is one block, the largest first."""
    sizes = (5, 12, 8)
    labels = np.random.default_rng(3).permutation(np.repeat([7, 2, 4], sizes))
    matrix = np.where(labels[:, None] == labels, 0.9, 0.1)
    np.fill_diagonal(matrix, 1.0)
    alone = labels[similarity_order(matrix)]
    assert np.count_nonzero(np.diff(alone)) == 2
    ax = plot_similarity_matrix(matrix, labels=labels)
    squares = [(patch.get_xy(), patch.get_width(), patch.get_height()) for patch in starting_with(ax, "cluster")]
    assert squares == [((0, 0), 12, 12), ((12, 12), 8, 8), ((20, 20), 5, 5)]
    shown = np.asarray(by_gid(ax, "similarity")[0].get_array())
    assert (shown[:12, :12] >= 0.9).all()
    assert (shown[:12, 12:] == 0.1).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.eye(3)[:2],), {}, r"shape \(2, 3\)"),
        ((2 * np.eye(3),), {}, "between 0 and 1"),
        ((np.triu(np.ones((3, 3))),), {}, "symmetric"),
        ((np.full((2, 2), np.nan),), {}, "between 0 and 1"),
        ((np.eye(3),), {"labels": [0, 1]}, "one for each of 3 rows"),
        ((np.eye(3),), {"ax": Figure().subplots(2)}, "ax holds 2 axes"),
    ],
)
def test_matrices_that_are_no_similarities_are_refused(arguments, options, message):
    with pytest.raises(InputError, match=message) as error:
        plot_similarity_matrix(*arguments, **options)
    assert "\n" not in str(error.value)


def test_fits_without_draws_and_rows_that_do_not_fit_are_refused(rng):
    case = random_case(FULL, 2, 2, rng)
    x = case.rows(30, rng)
    draws = posterior_of(case, rng)
    with pytest.raises(InputError, match="'em' has no draws"):
        plot_similarity_matrix(make_fit(case), x)
    with pytest.raises(InputError, match="x is missing"):
        plot_similarity_matrix(draws)
    with pytest.raises(InputError, match="max_rows=30"):
        plot_similarity_matrix(draws, x, max_rows=10)
    with pytest.raises(InputError, match="draws are needed"):
        plot_similarity_matrix(case.mixture, x)
    for draw in (plot_responsibility_bars, plot_responsibility_heatmap):
        with pytest.raises(InputError, match="x has 1 features"):
            draw(case.mixture, x[:, :1])
