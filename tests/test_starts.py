"""Where engines start: k-means++ seeds and the partition around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, assert_close, each_family, to_jax
from scipy import stats

from bayesgmm.starts import column_moments, kmeans_plus_plus, mixture_of_partition, standardise, start_at_seeds

pytestmark = pytest.mark.usefixtures("strict")


@pytest.fixture
def recorded_seeds(monkeypatch):
    """Rows drawn as seeds, in order; for runs without compilation."""
    seeds = []
    draw = jax.random.categorical

    def record(key, logits):
        seeds.append(int(draw(key, logits)))
        return jnp.asarray(seeds[-1])

    monkeypatch.setattr(jax.random, "categorical", record)
    return seeds


def partitions_of(x, num_components, row_weights, keys):
    """One partition for each key, (keys, n)."""
    return jax.jit(jax.vmap(lambda key: kmeans_plus_plus(x, num_components, row_weights, key=key)))(keys)


@pytest.mark.usefixtures("x64")
def test_column_moments_are_weighted(rng):
    x, row_weights = rng.normal(size=(30, 3)) * [1.0, 10.0, 0.1] + [0.0, 1e4, -5.0], rng.uniform(size=30)
    mean, variance = column_moments(*to_jax((x, row_weights)))
    expected = np.average(x, axis=0, weights=row_weights)
    assert_close(mean, expected, 1e-14)
    assert_close(variance, np.average((x - expected) ** 2, axis=0, weights=row_weights), 1e-12)
    mean, variance = column_moments(standardise(*to_jax((x, row_weights))), jnp.asarray(row_weights))
    np.testing.assert_allclose(mean, 0.0, atol=1e-11)
    np.testing.assert_allclose(variance, 1.0, rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_a_constant_column_is_standardised_to_zero(rng):
    x = np.stack([rng.normal(size=9), np.full(9, 3.0)], axis=1)
    standard = standardise(jnp.asarray(x), jnp.ones(9))
    np.testing.assert_array_equal(standard[:, 1], np.zeros(9))


@pytest.mark.parametrize("num_components", [2, 5])
@pytest.mark.usefixtures("x64")
def test_labels_are_the_nearest_seeds_and_seeds_are_distinct(num_components, recorded_seeds, rng, key):
    x = rng.normal(size=(25, 2))
    with jax.disable_jit():
        labels = kmeans_plus_plus(jnp.asarray(x), num_components, jnp.ones(25), key=key)
    assert len(set(recorded_seeds)) == num_components
    distances = np.square(x[:, None, :] - x[recorded_seeds]).sum(2)
    np.testing.assert_array_equal(labels, distances.argmin(1))
    np.testing.assert_array_equal(labels[np.array(recorded_seeds)], np.arange(num_components))


def test_one_component_takes_every_row(rng, key):
    labels = kmeans_plus_plus(jnp.asarray(rng.normal(size=(25, 2)), jnp.float32), 1, jnp.ones(25), key=key)
    np.testing.assert_array_equal(labels, np.zeros(25))


def test_as_many_components_as_rows_gives_each_row_its_own():
    x = jnp.asarray(np.array([[0.0], [1.0], [1.5], [9.0]], np.float32))
    keys = jax.random.split(jax.random.key(0), 200)
    labels = partitions_of(x, 4, jnp.ones(4), keys)
    np.testing.assert_array_equal(np.sort(labels, axis=1), np.tile(np.arange(4), (200, 1)))


def test_repeated_rows_are_never_two_seeds():
    x = jnp.asarray(np.repeat(np.array([[0.0], [1.0], [5.0]], np.float32), 10, axis=0))
    keys = jax.random.split(jax.random.key(0), 200)
    labels = partitions_of(x, 3, jnp.ones(30), keys)
    assert (np.sort(labels[:, ::10], axis=1) == np.arange(3)).all()


def test_seeds_are_drawn_by_weight_and_squared_distance(key):
    """Frequencies of all partitions of five points into two, against Arthur & Vassilvitskii's probabilities."""
    points = np.array([0.0, 1.0, 3.0, 7.0, 8.0])
    row_weights = np.array([1.0, 2.0, 1.0, 0.0, 3.0])
    squares = np.square(points[:, None] - points)
    expected = {}
    for first, second in np.ndindex(5, 5):
        shares = row_weights * squares[first]
        probability = row_weights[first] / row_weights.sum() * shares[second] / shares.sum()
        partition = tuple((squares[second] < squares[first]).astype(int).tolist())
        expected[partition] = expected.get(partition, 0.0) + probability
    num_draws = 20_000
    x, weights = jnp.asarray(points[:, None], jnp.float32), jnp.asarray(row_weights, jnp.float32)
    labels = partitions_of(x, 2, weights, jax.random.split(key, num_draws))
    partitions, counts = np.unique(labels, axis=0, return_counts=True)
    observed = {tuple(partition.tolist()): count for partition, count in zip(partitions, counts, strict=True)}
    possible = [partition for partition, probability in expected.items() if probability > 0]
    assert set(observed) <= set(possible)
    frequencies = [observed.get(partition, 0) for partition in possible]
    assert stats.chisquare(frequencies, [num_draws * expected[partition] for partition in possible]).pvalue > 1e-4


def test_a_row_of_weight_zero_is_never_a_seed(key):
    """Not even the one farthest away, which would otherwise nearly always be drawn."""
    x = jnp.asarray(np.array([[0.0], [1.0], [2.0], [1000.0]], np.float32))
    weights = jnp.asarray(np.array([1.0, 1.0, 1.0, 0.0], np.float32))
    labels = partitions_of(x, 3, weights, jax.random.split(key, 500))
    # As a seed it would have a label of its own.
    assert (labels[:, 3] == labels[:, 2]).all()


@pytest.mark.usefixtures("x64")
@each_family
def test_a_start_is_the_maximum_for_its_partition(family, rng):
    x, labels = DATA["iris"], rng.integers(3, size=150)
    responsibilities = np.eye(3)[labels]
    mixture = mixture_of_partition(*to_jax((x, responsibilities, np.ones(150))), family, jnp.zeros(4))
    parts = [x[labels == label] for label in range(3)]
    scatter = np.stack([len(part) * np.cov(part.T, bias=True) for part in parts])
    scatter = np.diagonal(scatter, axis1=1, axis2=2) if family.diagonal else scatter
    covariances = np.asarray(family.maximise(*to_jax((np.array([float(len(part)) for part in parts]), scatter))))
    expected = covariances[:, :, None] * np.eye(4) if family.diagonal else covariances
    assert_close(mixture.weights, np.bincount(labels) / 150, 1e-13)
    assert_close(mixture.means, np.stack([part.mean(0) for part in parts]), 1e-13)
    assert_close(mixture.covariances, np.broadcast_to(expected, (3, 4, 4)), 1e-12)


@pytest.mark.usefixtures("x64")
@each_family
def test_a_start_does_not_depend_on_units_or_origin(family, key):
    """Columns are standardised first, so the same key gives the same partition."""
    x = jnp.asarray(DATA["faithful"])
    scale, shift = jnp.asarray(np.array([1024.0, 0.25])), jnp.asarray(np.array([50.0, -3.0]))
    ones, none = jnp.ones(len(x)), jnp.zeros(2)
    start = start_at_seeds(x, 3, ones, family, none, key=key)
    moved = start_at_seeds(scale[None] * x + shift[None], 3, ones, family, none, key=key)
    assert_close(moved.weights, start.weights, 1e-12)
    assert_close(moved.means, scale[None] * start.means + shift[None], 1e-12)


@each_family
def test_float32_stays_float32(family, key):
    x = jnp.asarray(DATA["faithful"], jnp.float32)
    start = start_at_seeds(x, 3, jnp.ones(len(x)), family, jnp.zeros(2), key=key)
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {np.dtype(np.float32)}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(start))
