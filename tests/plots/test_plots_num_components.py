"""Weights of the number of clusters, and the components that draws fill: checked on the artists, not on pixels."""

import jax
import numpy as np
import pandas as pd
import pytest
from helpers import random_case
from matplotlib.figure import Figure
from plot_helpers import FULL, check_drawable, make_fit, posterior_of, starting_with
from scipy import special, stats

from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots import plot_num_components, plot_occupied_components
from bayesgmm.plots.num_components import occupied_probabilities

pytestmark = pytest.mark.usefixtures("pictures_alone")


def bars(ax, gid):
    return [bar.get_height() for bar in starting_with(ax, gid)]


def test_weights_are_those_of_schwarz_and_of_stacking():
    bic = np.array([1e4 + 9.0, 1e4, np.nan, 1e4 + 2.0])
    table = pd.DataFrame({"num_components": [3, 1, 4, 2], "bic": bic, "weight": [0.2, 0.5, 0.0, 0.3]})
    ax = plot_num_components(table)
    expected = special.softmax(np.where(np.isnan(bic), -np.inf, -bic / 2))[[1, 3, 0, 2]]
    np.testing.assert_allclose(bars(ax, "bic"), expected, rtol=1e-12)
    np.testing.assert_allclose(bars(ax, "weight"), [0.5, 0.3, 0.2, 0.0])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "3", "4"]
    assert len(ax.get_legend().get_texts()) == 2
    check_drawable(ax, laid_out=True)
    alone = plot_num_components(table[["num_components", "bic"]])
    assert alone.get_legend() is None
    assert alone.get_ylabel() == "posterior probability (BIC)"


def test_weights_of_families_are_added_up():
    table = pd.DataFrame(
        {"family": ["full", "tied", "full", "tied"], "num_components": [1, 1, 2, 2], "bic": [4.0, 2.0, 0.0, 6.0]}
    )
    shares = special.softmax(-table["bic"].to_numpy() / 2)
    np.testing.assert_allclose(bars(plot_num_components(table), "bic"), [shares[:2].sum(), shares[2:].sum()])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"bic": [1.0, 2.0]}, "needs columns num_components"),
        ({"num_components": [1, 2], "icl": [1.0, 2.0]}, "and bic or weight"),
        ({"num_components": [1, 1], "bic": [1.0, 2.0]}, "more than once"),
        ({"num_components": [1, 2], "bic": [np.nan, np.inf]}, "no finite bic"),
        ({"num_components": [1, 2], "weight": [0.5, 0.6]}, "add up to 1"),
        ({"num_components": [1, 2], "weight": [1.5, -0.5]}, "at least 0"),
    ],
)
def test_tables_without_weights_are_refused(columns, message):
    with pytest.raises(InputError, match=message) as error:
        plot_num_components(pd.DataFrame(columns))
    assert "\n" not in str(error.value)


def test_occupied_components_of_equal_shares_are_counted_in_closed_form(key):
    """m rows that fall on any of three components alike: the classical occupancy numbers."""
    num_draws, m = 6000, 4
    one = Mixture.from_covariances(np.full(3, 1 / 3), np.zeros((3, 1)), np.ones((3, 1, 1)))
    draws = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (num_draws, *leaf.shape)), one)
    found = occupied_probabilities(draws, np.zeros((m, 1)), key)
    ways = np.array([special.comb(3, j) * special.factorial(j) * stirling(m, j) for j in (1, 2, 3)])
    expected = ways / 3**m
    assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / num_draws)).all()
    assert stats.chisquare(found * num_draws, expected * num_draws).pvalue > 1e-4


def stirling(m, j):
    return sum((-1) ** (j - i) * special.comb(j, i) * i**m for i in range(j + 1)) / special.factorial(j)


def test_bars_are_the_occupied_components_of_the_draws(key, rng):
    near = np.array([[0.0], [5.0], [500.0]])  # nothing is at the last one
    case_draws = Mixture.from_covariances(
        np.full((2, 10, 3), 1 / 3), np.broadcast_to(near, (2, 10, 3, 1)), np.ones((2, 10, 3, 1, 1))
    )
    x = np.concatenate([rng.normal(size=20), 5 + rng.normal(size=20)])
    ax = plot_occupied_components(case_draws, x, key=key)
    assert bars(ax, "occupied") == [0.0, 1.0, 0.0]
    assert ax.get_xlabel() == "occupied components, of 3"
    check_drawable(ax, laid_out=True)


def test_what_has_no_draws_or_no_key_is_refused(key, rng):
    case = random_case(FULL, 2, 2, rng)
    x = case.rows(20, rng)
    with pytest.raises(InputError, match="'em' has no draws"):
        plot_occupied_components(make_fit(case), x, key=key)
    with pytest.raises(InputError, match="is not a random key"):
        plot_occupied_components(posterior_of(case, rng), x, key=3)
    with pytest.raises(InputError, match="ax holds 2 axes"):
        plot_occupied_components(posterior_of(case, rng), x, key=key, ax=Figure().subplots(2))
