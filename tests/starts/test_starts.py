"""Where engines start: partitions by seeds, k-means and chance, starts by name and starts that a user gives."""

import dataclasses
import functools

import fits
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import (
    DATA,
    assert_close,
    each_factor_shape,
    each_family,
    each_representation,
    own_shape,
    random_case,
    to_jax,
)
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.cluster import kmeans_plusplus as sklearn_kmeans_plusplus
from sklearn.metrics import adjusted_rand_score

import bayesgmm
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import Rows, as_rows
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.draws import draw_rows, uniform_numbers
from bayesgmm.numerics.keys import in_numpy, number_key
from bayesgmm.starts import named
from bayesgmm.starts.given import mixture_from_start
from bayesgmm.starts.kmeans import (
    draw_seeds,
    kmeans_plus_plus,
    lloyd,
    mixture_of_partition,
    square_distances,
    whitened_rows,
)
from bayesgmm.starts.named import STARTS, get_start, start_from, starts_together
from bayesgmm.starts.sampling import column_moments, sample_rows, sampling_masses, standardise

pytestmark = pytest.mark.usefixtures("strict")

each_start = pytest.mark.parametrize("start", STARTS)
each_compiled_start = pytest.mark.parametrize("start", [name for name in STARTS if name != "hierarchical"])


def partitions_of(x, num_components, row_weights, keys, **options):
    """One partition for each key, (keys, n)."""
    draw = functools.partial(draw_seeds, **options)
    return jax.jit(jax.vmap(lambda key: kmeans_plus_plus(x, num_components, row_weights, key=key, draw=draw)))(keys)


@pytest.mark.usefixtures("x64")
def test_column_moments_are_weighted(rng):
    x, row_weights = rng.normal(size=(30, 3)) * [1.0, 10.0, 0.1] + [0.0, 1e4, -5.0], rng.uniform(size=30)
    rows = to_jax(Rows(x, row_weights))
    mean, variance = column_moments(rows)
    expected = np.average(x, axis=0, weights=row_weights)
    assert_close(mean, expected, 1e-14)
    assert_close(variance, np.average((x - expected) ** 2, axis=0, weights=row_weights), 1e-12)
    mean, variance = column_moments(Rows(standardise(rows), rows.weights))
    np.testing.assert_allclose(mean, 0.0, atol=1e-11)
    np.testing.assert_allclose(variance, 1.0, rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_a_constant_column_is_standardised_to_zero(rng):
    x = np.stack([rng.normal(size=9), np.full(9, 3.0)], axis=1)
    standard = standardise(Rows(jnp.asarray(x), jnp.ones(9)))
    np.testing.assert_array_equal(standard[:, 1], np.zeros(9))


@pytest.mark.parametrize("num_exchanges", [0, 5])
@pytest.mark.parametrize("num_components", [2, 5])
@pytest.mark.usefixtures("x64")
def test_labels_are_the_nearest_seeds_and_seeds_are_distinct(num_components, num_exchanges, rng, key):
    x, options = rng.normal(size=(25, 2)), {"key": key, "num_exchanges": num_exchanges}
    seeds = draw_seeds(x, num_components, np.ones(25), **options)
    assert len(set(seeds.tolist())) == num_components
    draw = functools.partial(draw_seeds, num_exchanges=num_exchanges)
    labels = kmeans_plus_plus(x, num_components, np.ones(25), key=key, draw=draw)
    np.testing.assert_array_equal(labels, np.square(x[:, None, :] - x[seeds]).sum(2).argmin(1))
    compiled = jax.jit(lambda x, v, key: draw_seeds(x, num_components, v, **{**options, "key": key}))
    np.testing.assert_array_equal(compiled(*to_jax((x, np.ones(25))), key), seeds)


def test_many_features_and_few_give_the_same_distances(rng):
    """Squares of differences up to eight features, a product beyond; equal rows are at 0 in both."""
    few, more = rng.normal(size=(40, 8)), np.zeros((40, 3))
    from_sums, from_product = (
        square_distances(few, few),
        square_distances(np.hstack([few, more]), np.hstack([few, more])),
    )
    np.testing.assert_allclose(from_product, from_sums, rtol=1e-9, atol=1e-12)
    assert (np.diagonal(from_product) == 0).all()


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


@pytest.mark.parametrize("num_trials", [1, 2])
def test_seeds_are_drawn_by_weight_and_squared_distance(num_trials, key):
    """Frequencies of all partitions of five points into two, against Arthur & Vassilvitskii's probabilities.

    Of several trials that is taken which leaves the lowest cost, for the first seed too.
    """
    points = np.array([0.0, 1.0, 3.0, 7.5, 8.0])
    row_weights = np.array([1.0, 2.0, 1.0, 0.0, 3.0])
    squares = np.square(points[:, None] - points)

    def chances(shares, costs):
        """Of each point to be the best of the trials: all of them cost as much or more, and not all of them more."""
        shares = shares / shares.sum()
        no_less = np.array([shares[costs >= cost].sum() for cost in costs])
        more = np.array([shares[costs > cost].sum() for cost in costs])
        alike = np.array([shares[costs == cost].sum() for cost in costs])
        share_of_alike = np.divide(shares, alike, out=np.zeros(5), where=alike > 0)
        return (no_less**num_trials - more**num_trials) * share_of_alike

    expected = {}
    for first, chance in enumerate(chances(row_weights, squares @ row_weights)):
        left = np.minimum(squares, squares[first]) @ row_weights
        for second, next_chance in enumerate(chances(row_weights * squares[first], left)):
            partition = tuple((squares[second] < squares[first]).astype(int).tolist())
            expected[partition] = expected.get(partition, 0.0) + chance * next_chance
    num_draws = 20_000
    x, weights = jnp.asarray(points[:, None], jnp.float32), jnp.asarray(row_weights, jnp.float32)
    labels = partitions_of(x, 2, weights, jax.random.split(key, num_draws), num_trials=num_trials)
    partitions, counts = np.unique(labels, axis=0, return_counts=True)
    observed = {tuple(partition.tolist()): count for partition, count in zip(partitions, counts, strict=True)}
    possible = [partition for partition, probability in expected.items() if probability > 0]
    assert set(observed) <= set(possible)
    frequencies = [observed.get(partition, 0) for partition in possible]
    assert stats.chisquare(frequencies, [num_draws * expected[partition] for partition in possible]).pvalue > 1e-4


@pytest.mark.parametrize("num_features", [2, 10])
def test_seeds_that_share_a_cluster_move_to_one_that_has_none(num_features, key):
    """Of fifty clear clusters drawing alone misses some; with exchanges the cost is no more than scikit-learn's."""
    rng = np.random.default_rng(0)
    x = 6.0 * rng.normal(size=(50, num_features))[np.arange(2000) % 50] + rng.normal(size=(2000, num_features))
    missed = 0
    for number, one in enumerate(jax.random.split(key, 5)):
        seeds = draw_seeds(x, 50, np.ones(2000), key=one, num_exchanges=50)
        drawn = draw_seeds(x, 50, np.ones(2000), key=one)
        theirs, _ = sklearn_kmeans_plusplus(x, 50, random_state=number)
        cost, *others = (square_distances(x, points).min(0).sum() for points in (x[seeds], x[drawn], theirs))
        assert cost <= min(others)
        if num_features == 10:
            assert len(set(seeds % 50)) == 50
        missed += 50 - len(set(drawn % 50))
    assert missed > 0


def test_a_part_of_very_many_rows_gives_the_seeds(key):
    rng = np.random.default_rng(0)
    x = 20.0 * np.eye(3)[np.arange(30_000) % 3] + rng.normal(size=(30_000, 3))
    labels = kmeans_plus_plus(x, 3, np.ones(30_000), key=key)
    assert adjusted_rand_score(labels, np.arange(30_000) % 3) == 1.0


@pytest.mark.usefixtures("x64")
def test_a_sample_is_unbiased_and_holds_small_clusters_far_away(key):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(40_000, 2)), rng.normal(size=(6, 2)) + 9.0])
    rows = Rows(x, np.concatenate([np.ones(20_000), np.zeros(5000), np.full(15_006, 2.0)]))
    sample = sample_rows(rows, sampling_masses(rows), 4096, key=key)
    drawn, weights = sample.at(np.arange(4096)).values, sample.weights  # noqa: PD011 (no table of pandas)
    assert len(np.unique(drawn[(drawn > 5).all(1)], axis=0)) == 6
    assert not np.isin(drawn, x[20_000:25_000]).any()
    assert weights.sum() == pytest.approx(rows.weights.sum(), rel=0.02)
    mean, _ = column_moments(rows)
    np.testing.assert_allclose(np.average(drawn, axis=0, weights=weights), mean, atol=0.05)
    compiled = jax.jit(lambda rows, key: sample_rows(rows, sampling_masses(rows), 4096, key=key))(to_jax(rows), key)
    np.testing.assert_allclose(compiled.values, drawn, rtol=1e-15)


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
    mixture = mixture_of_partition(Rows(x, np.ones(150)), responsibilities, family, np.zeros(4))
    parts = [x[labels == label] for label in range(3)]
    scatter = np.stack([len(part) * np.cov(part.T, bias=True) for part in parts])
    scatter = np.diagonal(scatter, axis1=1, axis2=2) if family.diagonal else scatter
    covariances = np.asarray(family.maximise(*to_jax((np.array([float(len(part)) for part in parts]), scatter))))
    expected = covariances[:, :, None] * np.eye(4) if family.diagonal else covariances
    assert_close(mixture.weights, np.bincount(labels) / 150, 1e-13)
    assert_close(mixture.means, np.stack([part.mean(0) for part in parts]), 1e-13)
    assert_close(mixture.covariances, np.broadcast_to(expected, (3, 4, 4)), 1e-12)


@pytest.mark.usefixtures("x64")
@each_representation
def test_a_start_does_not_depend_on_units_or_origin(family, key):
    """Columns are standardised first, so the same key gives the same partition."""
    x = jnp.asarray(DATA["faithful"])
    scale, shift = jnp.asarray(np.array([1024.0, 0.25])), jnp.asarray(np.array([50.0, -3.0]))
    ones, none = jnp.ones(len(x)), jnp.zeros(2)
    start = start_from(as_rows(x, ones), 3, family, none, key=key)
    moved = start_from(as_rows(scale[None] * x + shift[None], ones), 3, family, none, key=key)
    assert_close(moved.weights, start.weights, 1e-12)
    assert_close(moved.means, scale[None] * start.means + shift[None], 1e-12)


@each_representation
def test_float32_stays_float32(family, key):
    x = jnp.asarray(DATA["faithful"], jnp.float32)
    start = start_from(as_rows(x, jnp.ones(len(x))), 3, family, jnp.zeros(2), key=key)
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {np.dtype(np.float32)}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(start))


@pytest.mark.parametrize("num_rows", [23, 300])
def test_rows_are_drawn_in_proportion_to_their_mass(num_rows, key, rng):
    """Over both levels of the draw, and never a row without mass; by NumPy and by JAX alike."""
    masses = (rng.uniform(size=num_rows) * (rng.uniform(size=num_rows) > 0.3)).astype(np.float32)
    uniform = uniform_numbers(key, (20_000, 2), masses)
    drawn = draw_rows(masses, uniform)
    np.testing.assert_array_equal(uniform, uniform_numbers(key, (20_000, 2), jnp.asarray(masses)))
    assert np.mean(drawn == jax.jit(draw_rows)(masses, uniform)) > 0.999  # sums are rounded otherwise
    counts = np.bincount(drawn, minlength=num_rows)
    assert not counts[masses == 0].any()
    positive = masses > 0
    expected = len(drawn) * masses[positive] / masses.sum(dtype=np.float64)
    assert stats.chisquare(counts[positive], expected * (len(drawn) / expected.sum())).pvalue > 1e-4


def test_draws_keep_their_digits_among_many_rows_in_float32(key):
    """A running sum of 2²⁵ ones stands still at 2²⁴ in float32."""
    drawn = draw_rows(jnp.ones(2**25, jnp.float32), jax.random.uniform(key, (8, 2), jnp.float32))
    assert int(drawn.max()) > 2**24


@pytest.mark.usefixtures("x64")
def test_lloyd_ends_where_scikit_learn_ends(rng):
    x = rng.normal(size=(400, 3)) + 2.0 * rng.normal(size=(6, 3))[rng.integers(6, size=400)]
    x -= x.mean(0)
    row_weights = rng.uniform(0.5, 2.0, size=400)
    seeds = x[rng.choice(400, 6, replace=False)]
    expected = KMeans(6, init=seeds, n_init=1, tol=0.0, algorithm="lloyd").fit(x, sample_weight=row_weights)
    nearest = np.square(x[:, None] - seeds).sum(2).argmin(1)
    labels = lloyd(*to_jax((x.T, nearest)), 6, jnp.asarray(row_weights))
    means = np.stack([np.average(x[labels == j], axis=0, weights=row_weights[labels == j]) for j in range(6)])
    inertia = (row_weights * np.square(x - means[np.asarray(labels)]).sum(1)).sum()
    assert inertia == pytest.approx(expected.inertia_, rel=1e-12)
    np.testing.assert_array_equal(labels, expected.labels_)


@pytest.mark.usefixtures("x64")
def test_a_lost_cluster_is_put_on_a_far_row():
    x = jnp.asarray(np.array([[-1.0, -0.9, -0.8, 0.7, 1.0, 9.0]]))
    labels = lloyd(x - x.mean(), jnp.asarray(np.array([0, 0, 0, 1, 1, 1])), 3, jnp.ones(6))
    assert sorted(set(np.asarray(labels).tolist())) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whitened_rows_are_uncorrelated_and_singular_ones_finite(dtype, rng):
    with jax.enable_x64(dtype == np.float64):
        mixing = np.array([[1.0, 0.8, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
        x = (rng.normal(size=(200, 3)) @ mixing * [1e3, 1.0, 0.1] + 5.0).astype(dtype)
        row_weights = jnp.asarray(rng.uniform(size=200), dtype)
        white = whitened_rows(Rows(jnp.asarray(x), row_weights))
        tolerance = 1e-2 if dtype == np.float32 else 1e-9
        np.testing.assert_allclose(np.cov(white, aweights=row_weights, bias=True), np.eye(3), atol=tolerance)
        singular = np.column_stack([x, x[:, 0], np.full(200, 7.0)]).astype(dtype)
        white = np.asarray(whitened_rows(Rows(jnp.asarray(singular), row_weights)))
        assert np.isfinite(white).all()
        assert np.abs(white[3:]).max() < 0.1


def test_kmeans_finds_clusters_stretched_across_their_difference(rng, key):
    labels = np.repeat([0, 1], 150)
    x = rng.normal(size=(300, 2)) * [20.0, 1.0] + np.outer(labels, [0.0, 8.0])
    x = x @ np.array([[1.0, 1.0], [-1.0, 1.0]])
    shares = [
        STARTS["kmeans"].responsibilities(as_rows(x, np.ones(300)), 2, key=one) for one in jax.random.split(key, 9)
    ]
    assert np.median([adjusted_rand_score(labels, each.argmax(1)) for each in shares]) > 0.95
    assert adjusted_rand_score(labels, KMeans(2, n_init=5, random_state=0).fit_predict(x)) < 0.5


@each_start
@each_representation
def test_each_start_is_usable_for_each_family(start, family, key):
    x = DATA["iris"]
    mixture = start_from(x, 3, family, 1e-6, start=start, key=key)
    assert {leaf.dtype for leaf in jax.tree.leaves(mixture)} == {np.dtype(np.float64)}
    assert mixture.means.shape == (3, 4)
    assert np.isfinite(mixture.log_prob(x)).all()
    again = start_from(as_rows(x, np.ones(150)), 3, family, np.full(4, 1e-6), start=start, key=key)
    assert_close(again, mixture, 1e-14)


@each_compiled_start
@each_representation
@pytest.mark.parametrize(
    ("at_once", "implementation"), [(2**17, "threefry2x32"), (2000, "threefry2x32"), (2**17, "rbg")]
)
def test_starts_made_together_are_those_made_one_by_one(start, family, at_once, implementation, rng, monkeypatch):
    """All at once, three at once with one left over, and by keys that NumPy cannot hash."""
    monkeypatch.setattr(named, "_NUMBERS_AT_ONCE", 3 * at_once if at_once < 2**17 else at_once)
    rows, key = Rows(DATA["iris"], rng.choice([0.5, 1.0, 3.0], size=150)), jax.random.key(0, impl=implementation)
    keys = number_key(in_numpy(key), np.arange(3, 10))
    made = starts_together(rows, 3, family, np.full(4, 1e-6), start=start, keys=keys)
    for place, number in enumerate(range(3, 10)):
        one = start_from(rows, 3, family, np.full(4, 1e-6), start=start, key=jax.random.fold_in(key, number))
        assert_close(jax.tree.map(lambda leaf, place=place: leaf[place], made), one, 1e-11)


@each_start
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_responsibilities_have_the_precision_of_the_rows(start, dtype, key):
    x = DATA["faithful"].astype(dtype)
    shares = STARTS[start].responsibilities(as_rows(x, np.ones(len(x), dtype)), 3, key=key)
    assert shares.dtype == dtype
    assert shares.shape == (len(x), 3)
    if start != "random_responsibilities":
        np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-6)


@each_start
def test_starts_do_not_depend_on_units_or_origin(start, key):
    x = DATA["iris"]
    moved = x * 2.0 ** np.array([10, -3, 0, 5]) + [64.0, -1.0, 0.0, 32.0]
    one, other = (STARTS[start].responsibilities(as_rows(rows, np.ones(150)), 3, key=key) for rows in (x, moved))
    np.testing.assert_array_equal(one, other)


@each_compiled_start
def test_starts_run_under_jit_and_vmap(start, key):
    x, keys = jnp.asarray(DATA["faithful"], jnp.float32), jax.random.split(key, 4)
    family, ones = FAMILIES["full"], jnp.ones(272)
    many = jax.jit(jax.vmap(lambda key: start_from(as_rows(x, ones), 2, family, 1e-4, start=start, key=key)))(keys)
    for index, key in enumerate(keys):
        assert_close(many[index], start_from(as_rows(x, ones), 2, family, 1e-4, start=start, key=key), 1e-4)


def test_random_responsibilities_draw_rows_by_weight_and_count_each_draw_once(key):
    """As repeated rows would be: a row of weight 3 is drawn as often as three rows together."""
    row_weights = np.array([1.0, 3.0, 0.0, 2.0, 0.5], np.float32)
    rows, draw = Rows(jnp.eye(5, 2), jnp.asarray(row_weights)), STARTS["random_responsibilities"].responsibilities
    keys = jax.random.split(key, 2000)
    # Rows are an argument, as masses are above.
    shares = jax.jit(jax.vmap(lambda rows, key: draw(rows, 3, key=key), (None, 0)))(rows, keys)
    draws = np.asarray(shares) * row_weights[:, None]
    np.testing.assert_allclose(draws.sum(1), 6.0, rtol=1e-5)
    counts = draws.sum((0, 2))
    positive = row_weights > 0
    assert not counts[~positive].any()
    assert stats.chisquare(counts[positive], counts.sum() * row_weights[positive] / 6.5).pvalue > 1e-4


def test_random_rows_are_never_equal(key):
    x = np.repeat(np.array([[0.0], [1.0], [5.0]]), [50, 2, 1], axis=0)
    for one in jax.random.split(key, 20):
        shares = STARTS["random_rows"].responsibilities(as_rows(x, np.ones(53)), 3, key=one)
        assert (shares.sum(0) > 0).all()


@each_start
@pytest.mark.parametrize("num_components", [1, 6])
def test_one_component_and_as_many_as_rows(start, num_components, rng, key):
    x = rng.normal(size=(6, 2))
    shares = STARTS[start].responsibilities(as_rows(x, np.ones(6)), num_components, key=key)
    if start != "random_responsibilities":
        assert sorted(shares.sum(0)) == [6 / num_components] * num_components


@each_start
def test_degenerate_rows_give_finite_responsibilities(start, rng, key):
    x = np.column_stack([rng.normal(size=40), np.full(40, 2.0), np.zeros(40)])
    x[:, 2] = -3.0 * x[:, 0]
    x[20:] = x[:20]
    shares = STARTS[start].responsibilities(as_rows(x, np.ones(40)), 3, key=key)
    assert np.isfinite(shares).all()
    assert (shares.sum(0) > 0).all()


def test_scikit_learn_names_are_understood():
    assert get_start("random").name == "random_responsibilities"
    assert get_start("random_from_data").name == "random_rows"
    assert get_start("k-means++").random
    assert not get_start("hierarchical").random


def test_unusable_names_and_keys_are_refused(key):
    x, family = DATA["faithful"], FAMILIES["full"]
    message = r"start='k_means' is not known; did you mean 'kmeans'\? choose one of k-means\+\+, drawn_rows, "
    with pytest.raises(InputError, match=message):
        start_from(x, 2, family, 0.0, start="k_means", key=key)
    with pytest.raises(InputError, match="key=None"):
        start_from(x, 2, family, 0.0, start="kmeans")
    with pytest.raises(InputError, match="'hierarchical' cannot be made inside jit"):
        jax.jit(lambda x: start_from(x, 2, family, 0.0, start="hierarchical"))(jnp.asarray(x, jnp.float32))


GIVEN_FAMILY_SHAPES = {"full": (2, 3, 3), "tied": (3, 3), "diag": (2, 3), "spherical": (2,)}


@pytest.mark.parametrize("kind", ["covariances", "precisions"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", GIVEN_FAMILY_SHAPES)
def test_given_parameters_are_the_start(name, kind, dtype, rng):
    family = FAMILIES[name]
    case = random_case(family, 2, 3, rng)
    matrices = np.linalg.inv(case.covariances) if kind == "precisions" else case.covariances
    matrices = own_shape(matrices, family)
    matrices = matrices[:, 0] if name == "spherical" else matrices
    x = case.rows(50, rng).astype(dtype)
    given = {"weights": case.weights, "means": case.means, kind: matrices.reshape(GIVEN_FAMILY_SHAPES[name])}
    mixture = mixture_from_start(given, x, 2, family, 0.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(mixture)} == {np.dtype(dtype)}
    assert mixture.precision_factor.shape == case.mixture.precision_factor.shape
    tolerance = 1e-12 if dtype == np.float64 else 1e-4
    assert_close(mixture.weights, case.weights.astype(dtype), tolerance)
    assert_close(mixture.covariances, case.covariances.astype(dtype), tolerance)
    np.testing.assert_array_equal(mixture.means, case.means.astype(dtype))


@each_representation
def test_means_alone_take_the_covariances_of_the_rows_nearest_to_them(family):
    x = DATA["faithful"]
    means = np.array([[2.0, 54.0], [4.3, 80.0]])
    nearest = np.square((x[:, None] - means) / x.std(0)).sum(2).argmin(1)
    mixture = mixture_from_start({"means": means}, x, 2, family, 0.0)
    of_labels = mixture_from_start(nearest, x, 2, family, 0.0)
    np.testing.assert_array_equal(mixture.means, means)
    assert_close(mixture.weights, np.full(2, 0.5), 1e-15)
    assert_close(mixture.covariances, of_labels.covariances, 1e-13)


@each_representation
def test_labels_and_responsibilities_are_followed_by_the_m_step(family, rng):
    x, labels = DATA["iris"].astype(np.float32), rng.integers(3, size=150)
    weights = rng.uniform(0.5, 2.0, size=150).astype(np.float32)
    one_hot = np.eye(3)[labels]
    of_labels = mixture_from_start(labels.tolist(), as_rows(x, weights), 3, family, 0.0)
    assert_close(mixture_from_start(one_hot, as_rows(x, weights), 3, family, 0.0), of_labels, 0.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(of_labels)} == {np.dtype(np.float32)}
    assert_close(of_labels.means, one_hot.T @ (weights[:, None] * x) / (one_hot.T @ weights)[:, None], 1e-5)


@each_factor_shape
def test_a_given_mixture_takes_the_precision_and_representation_of_the_fit(family, rng):
    case = random_case(FAMILIES["diag"], 2, 3, rng)
    x = case.rows(20, rng).astype(np.float32)
    if family.shared:
        with pytest.raises(InputError, match="start has 2 covariances, but the components of"):
            mixture_from_start(case.mixture, x, 2, family, 0.0)
        return
    mixture = mixture_from_start(case.mixture, x, 2, family, 0.0)
    assert mixture.is_diagonal == family.diagonal
    assert {leaf.dtype for leaf in jax.tree.leaves(mixture)} == {np.dtype(np.float32)}
    assert_close(mixture.covariances, case.covariances.astype(np.float32), 1e-5)


def test_given_starts_run_under_jit(rng):
    case, family = random_case(FAMILIES["full"], 2, 3, rng), FAMILIES["full"]
    x, labels = jnp.asarray(case.rows(40, rng), jnp.float32), np.arange(40) % 2
    given = {"means": case.means.astype(np.float32), "weights": case.weights.astype(np.float32)}
    for start in (
        given,
        labels,
        np.eye(2, dtype=np.float32)[labels],
        start_from(x, 2, family, 0.1, start="hierarchical"),
    ):
        expected = mixture_from_start(start, x, 2, family, 0.1)
        traced = jax.jit(lambda start, x: mixture_from_start(start, x, 2, family, 0.1))(start, x)
        assert_close(traced, expected, 1e-4)


X = np.random.default_rng(0).normal(size=(6, 2))
MEANS = np.array([[0.0, 0.0], [1.0, 1.0]])
HALVES = np.full((6, 2), 0.5)
MIXTURE = Mixture.from_covariances(np.array([0.5, 0.5]), MEANS, np.stack([np.eye(2)] * 2))


def changed(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


def test_responsibilities_and_labels_may_be_tables():
    labels = np.arange(6) % 2
    expected = mixture_from_start(labels, X, 2, FAMILIES["diag"], 1e-3)
    for table in (pd.Series(labels), pd.DataFrame(np.eye(2)[labels])):
        assert_close(mixture_from_start(table, X, 2, FAMILIES["diag"], 1e-3), expected, 1e-12)


@pytest.mark.parametrize("name", ["map", "vi", "gibbs", "nuts"])
def test_every_engine_checks_starts_alike(name, key):
    fit = functools.partial(getattr(bayesgmm, f"fit_{name}"), DATA["faithful"], 2, key=key)
    two = fits.em("faithful", 2).mixture
    refused = {
        "start has 2 covariances, but the components of family='tied' share one": {"family": "tied", "start": two},
        "start has covariances between features": {"family": "diag", "start": two},
        "start has variances that differ by feature": {
            "family": "spherical",
            "start": fits.em("faithful", 2, "diag").mixture,
        },
        r"start has means of shape \(3, 2\), but num_components=2": {"start": fits.em("faithful", 3).mixture},
        r"start has leading axes \(1,\)": {"start": jax.tree.map(lambda leaf: leaf[None], two)},
    }
    if name != "map":  # which reports such an end, and drops it where it has a better one
        refused["start.means has NaN"] = {"start": dataclasses.replace(two, means=np.nan * two.means)}
    for message, arguments in refused.items():
        with pytest.raises(InputError, match=message):
            fit(**arguments)


@pytest.mark.parametrize(
    ("start", "family", "message"),
    [
        ("kmeans", "full", "start must be a Mixture, a mapping .* got str"),
        (None, "full", "start must be a Mixture, .* got NoneType"),
        ([0.0, 1.0, 0.0, 1.0, 0.0, 1.0], "full", "integer labels"),
        ([[0.5, 0.5], [1.0]], "full", "start must be a Mixture, .* got list"),
        ([0, 1, 0], "full", r"labels must have shape \(6,\), one for each row; got \(3,\)"),
        ([0, 1, 2, 0, 1, 0], "full", r"start\[2\]=2 must be a label from 0 to 1"),
        ([0, 0, 0, 0, 0, 0], "full", "start leaves component 1 without rows"),
        (HALVES[:, :1], "full", r"responsibilities must have shape \(6, 2\); got \(6, 1\)"),
        (changed(HALVES, (3, 1), -0.5), "full", r"start\[3, 1\]=-0.5: responsibilities cannot be negative"),
        (changed(HALVES, (4, 0), 0.3), "full", r"start\[4\] sums to 0.8; the responsibilities of a row sum to 1"),
        (changed(HALVES, (4, 0), np.nan), "full", "responsibilities has NaN or infinite entries"),
        ({"weights": [0.5, 0.5]}, "full", "start has no 'means'"),
        ({"means": MEANS, "colour": 1}, "full", "start has an entry 'colour'"),
        ({"means": MEANS[:1]}, "full", r"means must have shape \(2, 2\); got \(1, 2\)"),
        ({"means": "here"}, "full", "means must be an array of numbers; got str"),
        ({"means": changed(MEANS, (0, 0), np.inf)}, "full", "means has NaN or infinite entries"),
        ({"means": changed(MEANS, (1, 0), 1e3)}, "full", "start leaves component 1 without rows"),
        ({"means": MEANS, "weights": [1.2, -0.2]}, "full", r"weights\[1\]=-0.2 must be positive"),
        ({"means": MEANS, "weights": [0.5, 0.4]}, "full", "weights sum to 0.9; they must sum to 1"),
        ({"means": MEANS, "weights": [0.5]}, "full", r"weights must have shape \(2,\); got \(1,\)"),
        ({"means": MEANS, "covariances": 1, "precisions": 1}, "full", "both covariances and precisions"),
        ({"means": MEANS, "precisions": np.eye(2)}, "full", r"precisions of family='full' must have shape \(2, 2, 2\)"),
        ({"means": MEANS, "precisions": np.ones((2, 2, 2))}, "full", r"precisions\[0\] is not positive definite"),
        (
            {"means": MEANS, "covariances": [np.eye(2), [[1.0, 0.5], [0.0, 1.0]]]},
            "full",
            r"covariances\[1\] is not symm",
        ),
        ({"means": MEANS, "precisions": -np.eye(2)}, "tied", "precisions is not positive definite"),
        ({"means": MEANS, "covariances": np.ones(2)}, "tied", r"must have shape \(2, 2\); got \(2,\)"),
        (
            {"means": MEANS, "precisions": [[1.0, 1.0], [1.0, 0.0]]},
            "diag",
            r"precisions\[1\]=\[1.0, 0.0\] must be positive",
        ),
        ({"means": MEANS, "precisions": [1.0, -1.0]}, "spherical", r"precisions\[1\]=.* must be positive"),
        (MIXTURE, "diag", "start has covariances between features"),
        (MIXTURE, "tied", "start has 2 covariances, but the components of family='tied' share one"),
        (
            dataclasses.replace(MIXTURE, means=MEANS[:1]),
            "full",
            r"start has means of shape \(1, 2\), but num_components=2",
        ),
        (dataclasses.replace(MIXTURE, means=np.nan * MEANS), "full", "start.means has NaN"),
        (jax.tree.map(lambda leaf: leaf[None], MIXTURE), "full", r"start has leading axes \(1,\)"),
    ],
)
def test_unusable_given_starts_are_refused(start, family, message):
    with pytest.raises(InputError, match=message) as caught:
        mixture_from_start(start, X, 2, FAMILIES[family], 1e-3)
    assert "\n" not in str(caught.value)
