"""Posterior similarity and point partitions: against direct counting, every set partition, and losses written anew."""

import itertools

import jax
import numpy as np
import pytest
from helpers import DATA, each_factor_shape, each_representation, random_case, random_draws, to_float32, to_jax
from scipy.stats import entropy
from sklearn.metrics import adjusted_rand_score, mutual_info_score
from sklearn.metrics.cluster import pair_confusion_matrix

import bayesgmm
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.posterior import allocations, point_partition, similarity
from bayesgmm.posterior.allocations import flat_draws, hard_allocations, mean_responsibilities, sampled_allocations
from bayesgmm.posterior.point_partition import binder_loss, partition_rows, variation_of_information
from bayesgmm.posterior.similarity import ALLOCATIONS, similarity_matrix

each_loss = pytest.mark.parametrize("loss", point_partition.LOSSES)
each_kind = pytest.mark.parametrize("kind", ALLOCATIONS)
FULL = bayesgmm.FAMILIES["full"]


def posterior(rng, *, num_components=3, draw_shape=(2, 15), num_rows=9, family=FULL, spread=1.5):
    """Draws that have little in common, and rows."""
    return random_draws(family, num_components, 2, draw_shape, rng), spread * rng.normal(size=(num_rows, 2))


def permuted(draws, rng):
    orders = [rng.permutation(draws.num_components) for _ in range(int(np.prod(draws.draw_shape)))]
    return draws.permute(np.stack(orders).reshape(*draws.draw_shape, -1))


def set_partitions(num_rows):
    """Every partition of the rows, each once."""
    partitions = [[0]]
    for _ in range(num_rows - 1):
        partitions = [[*one, label] for one in partitions for label in range(max(one) + 2)]
    return np.array(partitions)


def together(partitions):
    """Whether two rows share a cluster, (..., n, n)."""
    return partitions[..., :, None] == partitions[..., None, :]


def variation_by_pairs(first, second):
    """The variation of information of partitions (..., n) from what each row shares its clusters with."""
    one, other = together(first), together(second)
    sizes = one.sum(-1) * other.sum(-1) / np.square((one & other).sum(-1))
    return np.log2(sizes).mean(-1)


# The similarity matrix.


@each_factor_shape
def test_similarity_is_the_mean_of_the_probabilities(family, rng):
    draws, x = posterior(rng, family=family)
    shares = np.asarray(draws.responsibilities(x)).reshape(30, 9, 3)
    expected = np.array([[np.mean([one[i] @ one[j] for one in shares]) for j in range(9)] for i in range(9)])
    np.fill_diagonal(expected, 1.0)
    found = similarity_matrix(draws, x)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert found.dtype == np.float64


def test_hard_similarity_counts_draws_that_put_rows_together(rng):
    draws, x = posterior(rng)
    labels = np.asarray(draws.predict(x)).reshape(30, 9)
    expected = [[np.mean([one[i] == one[j] for one in labels]) for j in range(9)] for i in range(9)]
    np.testing.assert_allclose(similarity_matrix(draws, x, allocations="hard"), expected, rtol=1e-14)
    np.testing.assert_array_equal(hard_allocations(flat_draws(draws), x), labels)


def test_sampled_similarity_counts_its_allocations(rng, key):
    draws, x = posterior(rng)
    labels = sampled_allocations(flat_draws(draws), x, key=key)
    assert labels.shape == (30, 9)
    expected = [[np.mean([one[i] == one[j] for one in labels]) for j in range(9)] for i in range(9)]
    np.testing.assert_allclose(similarity_matrix(draws, x, allocations="sampled", key=key), expected, rtol=1e-14)


def test_sampled_allocations_have_the_probabilities_of_the_draw(rng, key):
    """One mixture many times: frequencies of components, and of rows together, within five standard errors."""
    case, num_draws = random_case(FULL, 4, 2, rng), 20_000
    x = 1.5 * rng.normal(size=(6, 2))
    draws = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (num_draws, *leaf.shape)), case.mixture)
    labels = sampled_allocations(draws, x, key=key)
    shares = np.asarray(case.mixture.responsibilities(x))
    frequencies = (labels[..., None] == np.arange(4)).mean(0)
    assert (np.abs(frequencies - shares) <= 5 * np.sqrt(shares * (1 - shares) / num_draws) + 1e-3).all()
    soft = similarity_matrix(draws, x)
    sampled = similarity_matrix(draws, x, allocations="sampled", key=key)
    assert (np.abs(sampled - soft) <= 5 * np.sqrt(soft * (1 - soft) / num_draws) + 1e-12).all()
    assert (labels != sampled_allocations(draws, x, key=jax.random.key(1))).any()


@each_kind
def test_similarity_does_not_depend_on_labels(kind, rng, key):
    draws, x = posterior(rng, num_components=4)
    first, second = (similarity_matrix(one, x, allocations=kind, key=key) for one in (draws, permuted(draws, rng)))
    np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-14)


@each_kind
def test_similarity_is_a_similarity(kind, rng, key):
    draws, x = posterior(rng, num_rows=30)
    found = similarity_matrix(draws, x, allocations=kind, key=key)
    np.testing.assert_array_equal(np.diagonal(found), 1.0)
    np.testing.assert_allclose(found, found.T, rtol=1e-14)
    assert ((found >= 0) & (found <= 1)).all()
    assert np.linalg.eigvalsh(found).min() > -1e-12


@each_kind
def test_blocks_of_draws_change_nothing(kind, rng, key, monkeypatch):
    draws, x = posterior(rng, draw_shape=(50,))
    whole = similarity_matrix(draws, x, allocations=kind, key=key)
    monkeypatch.setattr(allocations, "_BLOCK_BYTES", 7 * 9 * 3 * 2 * 8)  # 7 of 50 draws
    monkeypatch.setattr(similarity, "_FEATURE_BYTES", 7 * 9 * 3 * 4)
    np.testing.assert_allclose(similarity_matrix(draws, x, allocations=kind, key=key), whole, rtol=1e-12, atol=1e-15)


def test_float32_draws_give_the_same_similarity(rng):
    draws, x = posterior(rng)
    found = similarity_matrix(to_jax(to_float32(draws)), np.float32(x))
    np.testing.assert_allclose(found, similarity_matrix(draws, x), atol=2e-5)


# The losses.


def test_losses_agree_with_independent_formulas(rng):
    for _ in range(30):
        first, second = rng.integers(0, 4, size=12), rng.integers(0, 5, size=12) - 7
        entropies = sum(entropy(np.unique(one, return_counts=True)[1]) for one in (first, second))
        expected = (entropies - 2 * mutual_info_score(first, second)) / np.log(2)
        assert variation_of_information(first, second) == pytest.approx(expected, abs=1e-12)
        assert variation_by_pairs(first, second) == pytest.approx(expected, abs=1e-12)
        confusion = pair_confusion_matrix(first, second)
        assert binder_loss(first, second) == pytest.approx((confusion[0, 1] + confusion[1, 0]) / 144, abs=1e-15)


@pytest.mark.parametrize("function", [binder_loss, variation_of_information])
def test_losses_are_metrics(function):
    """On all partitions of five rows: zero for equal ones alone, symmetric, and no detour is shorter."""
    partitions = set_partitions(5)
    assert len(partitions) == 52
    distances = np.array([[function(a, b) for b in partitions] for a in partitions])
    assert ((distances == 0) == np.eye(52, dtype=bool)).all()
    np.testing.assert_array_equal(distances, distances.T)
    assert (distances[:, None] <= distances[:, :, None] + distances[None] + 1e-12).all()
    for one in partitions[:10]:
        assert function(one, 3 - one) == 0  # other names of the same clusters


def test_known_values_of_the_losses():
    """All in one against each by itself: log₂ n bits, and all pairs but those of a row with itself."""
    one, each = np.zeros(8, int), np.arange(8)
    assert variation_of_information(one, each) == pytest.approx(3.0, abs=1e-15)
    assert binder_loss(one, each) == pytest.approx(56 / 64, abs=1e-15)


def test_partitions_of_other_lengths_are_refused():
    for function in (binder_loss, variation_of_information):
        with pytest.raises(bayesgmm.InputError, match=r"shapes \(3,\) and \(4,\); give one label for each row"):
            function([0, 0, 1], [0, 0, 1, 1])


# The point partition.


def expected_loss(partitions, draws, x, loss, key):
    """Of every partition (m, n), from the definition."""
    if loss == "vi":
        drawn = sampled_allocations(flat_draws(draws), x, key=key)
        return variation_by_pairs(partitions[:, None], drawn[None]).mean(1)
    probability = similarity_matrix(draws, x)
    same = together(partitions)
    return (same * (1 - probability) + ~same * probability).mean((-1, -2))


@each_loss
@pytest.mark.parametrize("num_rows", range(1, 8))
def test_no_set_partition_is_better(num_rows, loss, rng, key):
    everything = set_partitions(num_rows)
    assert len(everything) == [1, 2, 5, 15, 52, 203, 877][num_rows - 1]
    for num_components, spread in itertools.product((2, 3), (1.0, 3.0)):
        draws, x = posterior(rng, num_components=num_components, draw_shape=(1, 20), num_rows=num_rows, spread=spread)
        found = partition_rows(draws, x, loss=loss, key=key)
        losses = expected_loss(everything, draws, x, loss, key)
        own = expected_loss(found.labels[None], draws, x, loss, key)[0]
        assert found.expected_loss == pytest.approx(own, abs=1e-12)
        assert own == pytest.approx(losses.min(), abs=1e-12)


@each_loss
def test_no_move_of_a_row_is_better(loss, rng, key):
    draws, x = posterior(rng, num_rows=40, num_components=4)
    found = partition_rows(draws, x, loss=loss, key=key)
    moved = np.repeat(found.labels[None], 40 * (found.num_clusters + 1), axis=0)
    moved[np.arange(len(moved)), np.arange(len(moved)) % 40] = np.arange(len(moved)) // 40
    assert expected_loss(moved, draws, x, loss, key).min() >= found.expected_loss - 1e-12


@each_loss
def test_no_candidate_is_better(loss, rng, key):
    draws, x = posterior(rng, num_rows=25)
    found = partition_rows(draws, x, loss=loss, key=key)
    hard = hard_allocations(flat_draws(draws), x).astype(int)
    assert expected_loss(hard, draws, x, loss, key).min() >= found.expected_loss - 1e-12


@each_loss
def test_labels_are_consecutive_in_order_of_appearance(loss, rng, key):
    draws, x = posterior(rng, num_rows=30)
    found = partition_rows(draws, x, loss=loss, key=key)
    assert found.loss == loss
    labels, first = np.unique(found.labels, return_index=True)
    np.testing.assert_array_equal(labels, np.arange(found.num_clusters))
    assert (np.diff(first) > 0).all()


@each_loss
def test_the_partition_does_not_depend_on_labels(loss, rng, key):
    draws, x = posterior(rng, num_rows=30, num_components=4)
    first, second = (partition_rows(one, x, loss=loss, key=key) for one in (draws, permuted(draws, rng)))
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.expected_loss == pytest.approx(second.expected_loss, abs=1e-12)


@each_loss
@each_representation
def test_separated_clusters_are_found(family, loss, rng, key):
    """Whatever the order of components in each draw."""
    truth = np.repeat([0, 1, 2], [20, 10, 5])
    means = 20.0 * np.eye(3, 2)
    x = means[truth] + rng.normal(size=(35, 2))
    covariances = np.ones((3, 2)) if family.diagonal else np.tile(np.eye(2), (3, 1, 1))
    covariances = covariances[:1] if family.shared else covariances
    mixture = bayesgmm.Mixture.from_covariances([0.5, 0.3, 0.2], means, covariances)
    draws = permuted(jax.tree.map(lambda leaf: np.broadcast_to(leaf, (2, 20, *leaf.shape)), mixture), rng)
    found = partition_rows(draws, x, loss=loss, key=key)
    np.testing.assert_array_equal(found.labels, truth)
    assert found.expected_loss == pytest.approx(0.0, abs=1e-12)
    assert found.num_clusters == 3


@each_loss
def test_old_faithful_falls_into_two(loss, key):
    x = DATA["faithful"]
    em = bayesgmm.fit_em(x, 2, key=jax.random.key(0)).mixture
    rng = np.random.default_rng(2)
    draws = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (1, 200, *leaf.shape)), em)
    draws = permuted(
        bayesgmm.Mixture(
            draws.log_weights, draws.means + 0.05 * rng.normal(size=draws.means.shape), draws.precision_factor
        ),
        rng,
    )
    found = partition_rows(draws, x, loss=loss, key=key)
    assert found.num_clusters == 2
    assert adjusted_rand_score(found.labels, em.predict(x)) > 0.95


@each_loss
def test_many_candidates_are_thinned(loss, rng, key, monkeypatch):
    monkeypatch.setattr(point_partition, "_SCREENING", 5 * 25**2 * 3)
    monkeypatch.setattr(point_partition, "_BLOCK", 60)
    draws, x = posterior(rng, num_rows=25)
    found = partition_rows(draws, x, loss=loss, key=key)
    assert found.expected_loss == pytest.approx(expected_loss(found.labels[None], draws, x, loss, key)[0], abs=1e-12)


# What cannot be done.


@pytest.mark.parametrize("function", [similarity_matrix, partition_rows])
def test_errors_say_what_to_do(function, rng, key):
    draws, x = posterior(rng)

    def refused(message, *arguments, **options):
        with pytest.raises(bayesgmm.InputError, match=message) as refusal:
            function(*arguments, **options)
        assert "\n" not in str(refusal.value)

    many = "x has 9 rows, whose similarity matrix takes 0.0 GB; give a part .* such as x\\[::3\\], or max_rows=9"
    refused(many, draws, x, key=key, max_rows=4)
    refused("max_rows=0 must be a whole number of at least 1", draws, x, key=key, max_rows=0)
    refused("x has 20000 rows, whose similarity matrix takes 3.2 GB", draws, np.zeros((20_000, 2)), key=key)
    refused("are a single mixture; give the draws of a posterior", draws[0, 0], x, key=key)
    refused(r"x must have shape \(rows, 2\)", draws, x[:, :1], key=key)
    refused("x has NaN or infinite values in 1 of 9 rows", draws, np.where(x == x[2], np.nan, x), key=key)
    if function is partition_rows:
        refused("loss='f1' is not known; choose one of vi, binder", draws, x, loss="f1")
        refused("key=None is not a random key; pass key=", draws, x)
    else:
        refused("allocations='mean' is not known; choose one of soft, sampled, hard", draws, x, allocations="mean")
        refused("key=None is not a random key; pass key=", draws, x, allocations="sampled")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_responsibilities_are_averages_in_the_precision_of_the_draws(dtype, rng):
    draws = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), random_draws(FAMILIES["full"], 3, 2, (5,), rng))
    x = rng.normal(size=(7, 2)).astype(dtype)
    found = mean_responsibilities(draws, x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.asarray(draws.responsibilities(x)).mean(0), rtol=10 * np.finfo(dtype).eps)
