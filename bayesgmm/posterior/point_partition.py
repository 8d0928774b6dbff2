r"""One partition of the rows to stand for a posterior of partitions: the one of least expected loss.

Two losses, both metrics of partitions, with $n_c$ the sizes of the clusters of one and $n_{cg}$ those of its
intersections with the clusters of the other:

* Binder's, the part of all ordered pairs of rows on which two partitions disagree,
  $\frac{1}{n^2} \big( \sum_c n_c^2 + \sum_g n_g^2 - 2 \sum_{cg} n_{cg}^2 \big)$. Its posterior expectation follows from
  the similarity matrix alone, here that of responsibilities, so that it is exact given the draws.
* The variation of information, in bits,
  $\frac1n \big( \sum_c f(n_c) + \sum_g f(n_g) - 2 \sum_{cg} f(n_{cg}) \big)$ with $f(m) = m \log_2 m$.
  Its expectation is taken over allocations drawn from the posterior, one for each draw, and not replaced by the lower
  bound that Jensen's inequality gives.

Binder's loss tends to set single rows apart as clusters, the variation of information does so less.

The search: candidates are the draws' own hard partitions and cuts of trees by average and complete linkage of one
minus the similarity; then the rows of the best of them move, one at a time, to whichever cluster, or a new one, lowers
the expected loss most, until none does. It is no proof that no partition is better.

Sources: Binder (1978); Meilă (2007), Comparing clusterings; Wade & Ghahramani (2018), Bayesian cluster analysis: point
estimation and credible balls; Rastelli & Friel (2018), Optimal Bayesian estimators for latent variable cluster models.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform
from scipy.stats.contingency import crosstab

from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike, RandomKey
from bayesgmm.numerics.validation import as_key, one_of, refuse_masks
from bayesgmm.posterior import allocations
from bayesgmm.posterior.similarity import MAX_ROWS, check_num_rows, similarity_of_shares
from bayesgmm.runtime.progress import waited_for

LOSSES = ("vi", "binder")

_MAX_CUTS = 40  # clusters of a cut of a tree
_NUM_SCORED = 30  # candidates whose expected loss is computed, the best by their similarities
_MAX_SWEPT = 10  # of them from which rows move, and fewer of many rows and draws:
_SWEEPING = 5e7  # rows times draws times candidates from which rows move
_SCREENING = 1e11  # multiplications that candidates are screened by; of more of them an even part is taken
_BLOCK = 2**24  # numbers in the largest array of what is done in groups
_LEAST_GAIN = 1e-12  # of expected loss, times the number of rows: less is rounding, and could go round in circles


@dataclass(frozen=True)
class PointPartition:
    """A partition of the rows.

    Attributes:
        labels: cluster of every row, whole numbers from 0 in order of first appearance, shape (n).
        expected_loss: posterior expectation of the loss; that of `vi` in bits.
        num_clusters: how many clusters.
        loss: `vi` or `binder`.
    """

    labels: Int[np.ndarray, " n"]
    expected_loss: float
    num_clusters: int
    loss: str


@waited_for("partition of the rows")
def partition_rows(
    draws: Mixture, x: ArrayLike, *, loss: str = "vi", key: RandomKey | None = None, max_rows: int = MAX_ROWS
) -> PointPartition:
    """Find the partition of least posterior expected loss; label switching does not matter.

    Args:
        draws: a mixture with leading axes, such as (chain, draw).
        x: rows (n, d).
        loss: `vi`, the variation of information, or `binder`.
        key: random key of the drawn allocations, for `vi`.
        max_rows: what n may be: the similarity matrix takes 8 n² bytes.

    Raises:
        InputError: for an unknown loss, a missing key, more rows than `max_rows`, draws without leading axes or that
            are not finite, rows that cannot be used.
    """
    one_of("loss", loss, LOSSES)
    if loss == "vi":
        as_key(key)
    flat, rows = allocations.flat_draws(draws), allocations.rows_of_draws(draws, x)
    check_num_rows(rows, max_rows)
    similarity = similarity_of_shares(allocations.responsibility_blocks(flat, rows), len(rows))
    expected = ExpectedBinder(similarity)
    if loss == "vi":
        expected = ExpectedVariation(allocations.sampled_allocations(flat, rows, key=key), similarity)
    return least_expected_loss(expected, similarity, allocations.hard_allocations(flat, rows))


def binder_loss(labels: ArrayLike, other: ArrayLike) -> float:
    """Share of the ordered pairs of rows that are together in one partition (n) and apart in the other."""
    counts = _contingency(labels, other)
    squares = np.square(counts.sum(1)).sum() + np.square(counts.sum(0)).sum() - 2 * np.square(counts).sum()
    return float(squares) / float(counts.sum()) ** 2


def variation_of_information(labels: ArrayLike, other: ArrayLike) -> float:
    """Sum of the conditional entropies of two partitions (n), each given the other, in bits."""
    counts = _contingency(labels, other)
    terms = _times_log2(counts.sum(1)).sum() + _times_log2(counts.sum(0)).sum() - 2 * _times_log2(counts).sum()
    return max(0.0, float(terms) / float(counts.sum()))


def _contingency(labels: ArrayLike, other: ArrayLike) -> np.ndarray:
    refuse_masks(labels, "labels")
    refuse_masks(other, "other")
    first, second = np.asarray(labels), np.asarray(other)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise InputError(f"partitions have shapes {first.shape} and {second.shape}; give one label for each row, twice")
    return np.asarray(crosstab(first, second)[1])


def _times_log2(counts: np.ndarray) -> np.ndarray:
    return counts * np.log2(np.maximum(counts, 1))


class ExpectedBinder:
    """Binder's loss, expected under a similarity matrix."""

    name = "binder"

    def __init__(self, similarity: Float[np.ndarray, "n n"]):
        self.similarity = similarity
        self.total = similarity.sum()

    def of(self, labels: Int[np.ndarray, " n"]) -> float:
        """Expected loss of a partition."""
        together = _members(labels, int(labels.max()) + 1)
        within = ((self.similarity @ together) * together).sum()
        return float(np.square(together.sum(0)).sum() + self.total - 2 * within) / len(labels) ** 2

    def screen(self, within: np.ndarray, sizes: np.ndarray) -> float:
        """The expected loss from every row's similarity to its own cluster, summed, and that cluster's size."""
        return float(sizes.sum() + self.total - 2 * within.sum())

    def moves(self, labels: Int[np.ndarray, " n"]) -> "_BinderMoves":
        """The partition, ready to be changed."""
        return _BinderMoves(labels, self.similarity)


class ExpectedVariation:
    """The variation of information, expected over given partitions."""

    name = "vi"

    def __init__(self, partitions: Int[np.ndarray, "s n"], similarity: Float[np.ndarray, "n n"]):
        self.partitions = partitions
        self.num_labels = int(partitions.max()) + 1
        self.log_totals = np.log2(similarity.sum(1)).sum()
        counts = np.bincount((np.arange(len(partitions))[:, None] * self.num_labels + partitions).reshape(-1))
        self.mean_own = _times_log2(counts).sum() / len(partitions)

    def of(self, labels: Int[np.ndarray, " n"]) -> float:
        """Expected loss of a partition."""
        common = _times_log2(self.counts(labels)).sum() / len(self.partitions)
        return max(0.0, float(_times_log2(np.bincount(labels)).sum() + self.mean_own - 2 * common) / len(labels))

    def counts(self, labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, "cells c"]:
        """Sizes of the intersections with every cluster of every partition, a row for each of the latter."""
        together = _members(labels, int(labels.max()) + 1).astype(np.float32)
        counts = np.empty((len(self.partitions), self.num_labels, together.shape[1]), np.int32)
        size = max(1, _BLOCK // len(labels))
        for start in range(0, len(counts), size):
            block = self.partitions[start : start + size]
            for label in range(self.num_labels):
                counts[start : start + size, label] = (block == label).astype(np.float32) @ together
        return counts.reshape(-1, together.shape[1])

    def screen(self, within: np.ndarray, sizes: np.ndarray) -> float:
        """Jensen's lower bound of the expected loss, times the number of rows (Wade & Ghahramani 2018, section 3.2)."""
        return float(np.log2(sizes).sum() + self.log_totals - 2 * np.log2(within).sum())

    def moves(self, labels: Int[np.ndarray, " n"]) -> "_VariationMoves":
        """The partition, ready to be changed."""
        return _VariationMoves(labels, self.counts(labels), self.partitions, self.num_labels)


class _BinderMoves:
    """A partition that changes, and what changes cost: expected loss times n, relative to the row as a cluster alone.

    `joining` gives the cost for a row of being in each cluster (c), with `own` the one that it is in; `move` moves it,
    if need be to a new cluster.
    """

    def __init__(self, labels: np.ndarray, similarity: np.ndarray):
        self.costs = 2 * (1 - 2 * similarity) / len(labels)
        self.joined = self.costs @ _members(labels, int(labels.max()) + 2)

    def joining(self, row: int, own: int) -> np.ndarray:
        joined = self.joined[row].copy()
        joined[own] -= self.costs[row, row]
        return joined

    def move(self, row: int, old: int, new: int) -> None:
        self.joined[:, old] -= self.costs[:, row]
        self.joined[:, new] += self.costs[:, row]
        if new == self.joined.shape[1] - 1:
            self.joined = np.pad(self.joined, ((0, 0), (0, 1)))


class _VariationMoves:
    """The same for the variation of information."""

    def __init__(self, labels: np.ndarray, counts: np.ndarray, partitions: np.ndarray, num_labels: int):
        self.cells = np.arange(len(partitions))[:, None] * num_labels + partitions
        self.counts = np.pad(counts, ((0, 0), (0, 1)))
        self.sizes = np.bincount(labels, minlength=self.counts.shape[1])
        self.steps = np.diff(_times_log2(np.arange(len(labels) + 2)))  # of m log m, from m to m + 1

    def joining(self, row: int, own: int) -> np.ndarray:
        sizes, counts = self.sizes.copy(), self.counts[self.cells[:, row]]
        sizes[own] -= 1
        counts[:, own] -= 1
        return self.steps[sizes] - 2 * self.steps[counts].mean(0)

    def move(self, row: int, old: int, new: int) -> None:
        for cluster, by in ((old, -1), (new, 1)):
            self.sizes[cluster] += by
            self.counts[self.cells[:, row], cluster] += by
        if new == len(self.sizes) - 1:
            self.sizes, self.counts = np.pad(self.sizes, (0, 1)), np.pad(self.counts, ((0, 0), (0, 1)))


def least_expected_loss(
    expected: ExpectedBinder | ExpectedVariation, similarity: Float[np.ndarray, "n n"], hard: Int[np.ndarray, "s n"]
) -> PointPartition:
    """The search, from the draws' hard partitions and cuts of trees."""
    from_draws, from_trees = _candidates(similarity, hard)
    candidates = [*from_draws, *from_trees]
    # Trees apart: their cuts have many more clusters, and every group is as wide as its largest candidate.
    screened = np.concatenate([_screen(expected, similarity, part) for part in (from_draws, from_trees)])
    scored = [(expected.of(candidates[index]), index) for index in screened.argsort(kind="stable")[:_NUM_SCORED]]
    num_swept = min(_MAX_SWEPT, max(1, int(_SWEEPING // hard.size)))
    swept = [_sweep(expected, candidates[index]) for _, index in sorted(scored)[:num_swept]]
    value, labels = min(((expected.of(labels), labels) for labels in swept), key=lambda pair: pair[0])
    return PointPartition(labels, value, int(labels.max()) + 1, expected.name)


def _candidates(similarity: np.ndarray, hard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct partitions of the draws (m, n) and cuts of trees (m, n), labels in order of first appearance."""
    num_rows = len(similarity)
    most = max(1, int(_SCREENING // (num_rows**2 * (int(hard.max()) + 1))))
    hard = np.unique(_in_order(hard), axis=0)
    hard = hard[:: -(-len(hard) // most)]
    if num_rows == 1:
        return hard, hard
    distances = squareform(1.0 - similarity, checks=False)
    cuts = np.arange(1, min(num_rows, _MAX_CUTS) + 1)
    trees = [cut_tree(linkage(distances, how), cuts).T for how in ("average", "complete")]
    return hard, np.unique(_in_order(np.concatenate(trees)), axis=0)


def _in_order(partitions: np.ndarray) -> np.ndarray:
    """Partitions (m, n) with labels 0, 1, ... in order of first appearance."""
    import pandas as pd

    return np.stack([pd.factorize(labels)[0] for labels in partitions])


def _screen(expected: ExpectedBinder | ExpectedVariation, similarity: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """What `screen` gives of every candidate (m, n), in groups: one product with the similarity matrix for each."""
    num_clusters = int(candidates.max()) + 1
    size = max(1, _BLOCK // (candidates.shape[1] * num_clusters))
    values = []
    for start in range(0, len(candidates), size):
        group = candidates[start : start + size]
        together = np.concatenate([_members(labels, num_clusters) for labels in group], axis=1)
        own = np.arange(len(group))[:, None] * num_clusters + group
        within = np.take_along_axis(similarity @ together, own.T, 1)
        sizes = together.sum(0)[own]
        values += [expected.screen(*pair) for pair in zip(within.T, sizes, strict=True)]
    return np.array(values)


def _sweep(expected: ExpectedBinder | ExpectedVariation, labels: np.ndarray) -> np.ndarray:
    """Every row in turn to the cluster where the expected loss is least, until none moves."""
    labels = labels.copy()
    moves = expected.moves(labels)
    moved = True
    while moved:
        moved = False
        for row in range(len(labels)):
            old = int(labels[row])
            costs = moves.joining(row, old)
            new = int(costs.argmin())
            if costs[old] - costs[new] > _LEAST_GAIN:
                moves.move(row, old, new)
                labels[row] = new
                moved = True
    return _in_order(labels[None])[0]


def _members(labels: np.ndarray, num_clusters: int) -> np.ndarray:
    """1 where a row belongs to a cluster, (n, c)."""
    return (labels[:, None] == np.arange(num_clusters)).astype(np.float64)
