"""Columns and directions that tell components apart, against closed forms."""

import numpy as np
import pytest
from helpers import DATA

import bayesgmm
from bayesgmm.errors import InputError
from bayesgmm.mixtures.discrimination import column_separations, discriminant_coordinates
from bayesgmm.plots import plot_assignments, plot_density_contours
from bayesgmm.plots.view import best_columns

pytestmark = pytest.mark.usefixtures("pictures_alone")


def mixture_of(means, covariances, weights=None):
    means = np.asarray(means, float)
    weights = np.full(len(means), 1 / len(means)) if weights is None else weights
    return bayesgmm.Mixture.from_covariances(
        weights, means, np.broadcast_to(covariances, (len(means), *np.shape(covariances)[-2:]))
    )


def random_covariance(rng, d):
    square = rng.normal(size=(d, d))
    return square @ square.T + 0.1 * np.eye(d)


def test_separations_are_distances_in_standard_deviations():
    mixture = mixture_of([[0.0, 0.0], [3.0, 0.0]], [np.diag([1.0, 4.0]), np.diag([3.0, 4.0])], [0.25, 0.75])
    apart = 3 / np.sqrt(2)
    np.testing.assert_allclose(column_separations(mixture), [[0.75 * apart, 0.0], [0.25 * apart, 0.0]])


def test_equal_shapes_are_told_apart_by_fishers_direction(rng):
    """Of two components W^-1 (mu_1 - mu_2); one direction, for it holds all of their difference."""
    within, means = random_covariance(rng, 4), rng.normal(size=(2, 4))
    directions, strengths = discriminant_coordinates(mixture_of(means, within, [0.3, 0.7]))
    fisher = np.linalg.solve(within, means[0] - means[1])
    cosine = directions[0] @ fisher / np.linalg.norm(directions[0]) / np.linalg.norm(fisher)
    assert abs(cosine) == pytest.approx(1, abs=1e-10)
    np.testing.assert_allclose(strengths[1:], 0, atol=1e-12)


def test_equal_means_are_told_apart_by_the_direction_of_other_spread(rng):
    spread = random_covariance(rng, 3)
    direction = np.array([1.0, -2.0, 0.5])
    direction /= np.linalg.norm(direction)
    wider = spread + 5 * np.outer(direction, direction)
    mixture = mixture_of(np.zeros((2, 3)), [spread, wider])
    found = discriminant_coordinates(mixture)[0][0]
    # Sigma v is along what is wider, for M v = lambda Sigma v and M is of rank one.
    along = np.asarray(mixture.covariance) @ found
    assert abs(along @ direction) / np.linalg.norm(along) == pytest.approx(1, abs=1e-10)


def test_directions_have_unit_variance_and_no_units(rng):
    mixture = mixture_of(rng.normal(size=(3, 4)), np.stack([random_covariance(rng, 4) for _ in range(3)]))
    directions, strengths = discriminant_coordinates(mixture)
    np.testing.assert_allclose(directions @ np.asarray(mixture.covariance) @ directions.T, np.eye(4), atol=1e-9)
    units = np.array([1e-6, 1.0, 10.0, 1e8])
    scaled = mixture_of(mixture.means * units, np.asarray(mixture.covariances) * np.outer(units, units))
    again, same = discriminant_coordinates(scaled)
    np.testing.assert_allclose(same, strengths, rtol=1e-7)
    np.testing.assert_allclose(again * units, directions, rtol=1e-6, atol=1e-9)


def test_of_many_columns_those_are_drawn_that_separate_the_components():
    """As of bank notes, whose last columns tell the false from the true."""
    means = np.zeros((2, 6))
    means[1, [1, 3, 4, 5]] = [1.0, 2.0, 5.0, 6.0]
    mixture = mixture_of(means, np.eye(6))
    assert best_columns(mixture) == (1, 3, 4, 5)
    assert best_columns(mixture, 2) == (4, 5)
    draws = bayesgmm.Mixture(*(np.stack([np.stack([leaf] * 3)] * 2) for leaf in (
        mixture.log_weights, mixture.means, mixture.precision_factor)))  # fmt: skip
    assert best_columns(draws) == (1, 3, 4, 5)
    x = np.random.default_rng(0).normal(size=(60, 6))
    axes = plot_density_contours(mixture, x, feature_names=list("abcdef"))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("e", "f")
    assert plot_assignments(mixture, x, columns=range(6)).shape == (6, 6)


def test_the_plane_of_discriminant_coordinates_is_named_by_its_loadings():
    x = DATA["iris"]
    mixture = mixture_of([x[:50].mean(0), x[50:].mean(0)], [np.cov(x[:50].T), np.cov(x[50:].T)], [1 / 3, 2 / 3])
    axes = plot_assignments(mixture, x, columns="discriminant", feature_names=["a", "b", "c", "d"])
    assert axes.get_xlabel().startswith("discriminant 1: ")
    shown = (x - x.mean(0)) @ discriminant_coordinates(mixture)[0][:2].T
    # Setosa and the others do not overlap in it.
    assert shown[:50, 0].max() < shown[50:, 0].min() or shown[50:, 0].max() < shown[:50, 0].min()
    with pytest.raises(InputError, match="two components or more"):
        plot_assignments(mixture_of([[0.0, 0.0]], np.eye(2)), x[:, :2], columns="discriminant")
