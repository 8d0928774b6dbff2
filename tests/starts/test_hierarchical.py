"""Model-based agglomeration: mclust's partitions, the criterion by brute force, weights, and subsets of many rows."""

import itertools

import jax
import numpy as np
import pytest
from helpers import DATA
from sklearn.metrics import adjusted_rand_score

from bayesgmm.engines.em import fit_em
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.starts import hierarchical
from bayesgmm.starts import named as starts
from bayesgmm.starts.hierarchical import agglomerate
from bayesgmm.starts.named import STARTS, start_from

pytestmark = pytest.mark.usefixtures("strict")

# Partitions of R's mclust 6.0.0, hc(modelName = "VVV", use = "SVD"), into 3 and 9 clusters.
MCLUST_LABELS = {
    ("faithful", 3): (
        "1232323123213232232322123123333333322321323231323231232332332323213323123323233133323333212123233323"
        "2123323231323323232123321123212321232321323332321233233331212123332321223333321323312312323231331323"
        "231232312323233321232323333333321212233232333123232333113323332322332123"
    ),
    ("faithful", 9): (
        "1234567125215656472526148125358835326849545481325489282734854567495848125348483135343735614928485327"
        "4965565271847545654963529165296569652721545884869285453351216143384729628355861328512516528481551868"
        "451286816548633369252528555535361692255436735125482538113525854564856968"
    ),
    ("iris", 3): (
        "1111111111111111111111111111111111111111121111111132323222322222232222232233332222222232222222222322"
        "32322323233232232332323233222333222332233323332332"
    ),
    ("iris", 9): (
        "1222131122312233313313111211122133221121142132323156545664574646656444656655556444466654647644766546"
        "87866979688687786994879689666999666986688878886886"
    ),
}
# Log-likelihood of its VVV model after EM from those partitions, run to a relative change below 1e-12.
MCLUST_LOG_LIKELIHOODS = {
    ("faithful", 3): -1127.07166741692,
    ("faithful", 9): -1075.30661354624,
    ("iris", 3): -180.185477131345,
    ("iris", 9): -106.13226806183,
}
each_partition = pytest.mark.parametrize(("name", "num_components"), MCLUST_LABELS, ids=str)


def responsibilities(x, num_components, row_weights=None, key=None):
    row_weights = np.ones(len(x), x.dtype) if row_weights is None else row_weights
    return STARTS["hierarchical"].responsibilities(as_rows(x, row_weights), num_components, key=key)


@each_partition
def test_partitions_are_those_of_mclust(name, num_components):
    x = DATA[name]
    labels = agglomerate(x, np.ones(len(x))).labels(num_components)
    np.testing.assert_array_equal(labels, [int(digit) - 1 for digit in MCLUST_LABELS[name, num_components]])


@each_partition
def test_em_from_the_start_ends_where_that_of_mclust_ends(name, num_components):
    x = DATA[name]
    start = start_from(x, num_components, FAMILIES["full"], 0.0, start="hierarchical")
    fit = fit_em(x, num_components, start=start, reg_covar=0.0, tol=1e-12, max_steps=5000, on_failure="ignore")
    assert fit.log_likelihood == pytest.approx(MCLUST_LOG_LIKELIHOODS[name, num_components], abs=1e-4)


def criterion(x, counts, labels):
    """The sum of the terms of all clusters, written down from the definition."""
    num_features = x.shape[1]
    alpha = counts @ np.square(x - counts @ x / counts.sum()).sum(1) / (counts.sum() * num_features)
    total = 0.0
    for label in set(labels):
        cluster, count = x[labels == label], counts[labels == label]
        centred = cluster - count @ cluster / count.sum()
        spread = (count @ np.square(centred).sum(1) + alpha) / count.sum()
        if count.sum() > num_features > 1:
            spread += np.linalg.det((count * centred.T) @ centred / count.sum())
        total += count.sum() * np.log(spread)
    return total


@pytest.mark.parametrize("counted", [False, True], ids=["equal", "counted"])
@pytest.mark.parametrize("num_features", [1, 2, 3])
def test_every_merge_is_the_cheapest(num_features, counted, rng):
    x = rng.normal(size=(12, num_features))
    counts = rng.uniform(0.5, 5.0, size=12) if counted else np.ones(12)
    scores = hierarchical._scores(x, counts)
    tree = agglomerate(x, counts)
    for num_clusters in range(12, 1, -1):
        before, after = tree.labels(num_clusters), tree.labels(num_clusters - 1)
        costs = [
            criterion(scores, counts, np.where(before == one, other, before))
            for one, other in itertools.combinations(range(num_clusters), 2)
        ]
        assert criterion(scores, counts, after) == pytest.approx(min(costs), rel=1e-10)


def test_scores_are_those_of_the_definition(rng):
    x = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 3)) + 5.0
    standard = (x - x.mean(0)) / x.std(0, ddof=1)
    left, singular, _ = np.linalg.svd(standard, full_matrices=False)
    scores = hierarchical._scores(x, np.ones(40))
    np.testing.assert_allclose(np.abs(scores), np.abs(left * np.sqrt(singular)), rtol=1e-9)


@pytest.mark.parametrize("family", [FAMILIES["full"], FAMILIES["tied"]], ids=["full", "tied"])
def test_a_row_of_whole_weight_is_repeated_rows(family, rng):
    x, row_weights = DATA["iris"], rng.integers(0, 4, size=150)
    weighted = start_from(as_rows(x, row_weights.astype(float)), 3, family, 1e-8, start="hierarchical")
    repeated = start_from(np.repeat(x, row_weights, axis=0), 3, family, 1e-8, start="hierarchical")
    np.testing.assert_allclose(weighted.means, repeated.means, rtol=1e-12)
    np.testing.assert_allclose(weighted.covariances, repeated.covariances, rtol=1e-9, atol=1e-12)


def test_a_row_of_weight_zero_does_not_count():
    x = DATA["faithful"]
    outlier = np.concatenate([x, [[1e4, -1e4]]])
    row_weights = np.r_[np.ones(272), 0.0]
    with_outlier = responsibilities(outlier, 2, row_weights)
    np.testing.assert_array_equal(with_outlier[:272], responsibilities(x, 2))
    np.testing.assert_array_equal(with_outlier[272], 0.5)


def test_many_rows_are_assigned_by_the_mixture_of_a_subset(monkeypatch, rng, key):
    monkeypatch.setattr(starts, "MAX_HIERARCHICAL_ROWS", 100)
    monkeypatch.setattr(starts, "_ASSIGNED_AT_ONCE", 150)
    truth = np.repeat([0, 1, 2], 120)
    x = (rng.normal(size=(360, 2)) + 8.0 * np.eye(3, 2)[truth]).astype(np.float32)
    shares = responsibilities(x, 3, key=key)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-5)
    assert adjusted_rand_score(truth, shares.argmax(1)) > 0.95
    np.testing.assert_array_equal(shares, responsibilities(x, 3, key=key))
    assert (shares != responsibilities(x, 3, key=jax.random.key(1))).any()
    with pytest.raises(InputError, match="key=None is not a random key"):
        responsibilities(x, 3)


def test_too_few_rows_are_refused(rng):
    with pytest.raises(InputError, match="num_components=5 needs at least as many rows; got 4"):
        responsibilities(rng.normal(size=(4, 2)), 5)


@pytest.mark.parametrize("x", [np.ones((4, 2)), np.array([[3.0]])], ids=["equal rows", "one row"])
def test_rows_without_variance_are_partitioned_too(x):
    for num_components in range(1, len(x) + 1):
        assert set(agglomerate(x, np.ones(len(x))).labels(num_components)) == set(range(num_components))
