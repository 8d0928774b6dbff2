r"""Model-based agglomerative clustering, the deterministic way to a first partition; NumPy, on the host.

Every row starts as a cluster of its own. The two clusters are merged again and again whose union costs least, where a
cluster of $n$ rows with scatter $W$ about its mean in $d$ dimensions counts

$$ T = n \log\left( |W / n| + \frac{\operatorname{tr} W + \alpha}{n} \right), \qquad
   \alpha = \frac{\operatorname{tr} W_\text{all}}{n_\text{all}\, d}, $$

twice its negative log-likelihood under a Gaussian of its own, but for constants; merging $i$ and $j$ costs
$T_{ij} - T_i - T_j$. The second summand, negligible for large clusters, makes the criterion finite for the small ones
whose scatter is singular; up to $n = d$ it stands alone. In one dimension trace and determinant are the same, and
only the second summand is kept.

Source: Banfield & Raftery (1993); Fraley (1998), "Algorithms for model-based Gaussian hierarchical clustering".
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int

from bayesgmm.errors import InputError
from bayesgmm.numerics.precision import RandomKey
from bayesgmm.numerics.validation import as_key

Table = Float[np.ndarray, "n d"]
Counts = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class MergeTree:
    """The course of an agglomeration, from which the partition into any number of clusters is read.

    Attributes:
        merges: the two clusters merged at every step, shape (n - 1, 2), as positions i < j in the list of clusters: the
            union takes position i, and the last cluster of the list moves to position j.
    """

    merges: Int[np.ndarray, "m 2"]

    def labels(self, num_components: int) -> Int[np.ndarray, " n"]:
        """The partition into `num_components` clusters, numbered from 0 by their first rows, shape (n).

        Raises:
            InputError: where there are fewer rows than that.
        """
        num_rows = len(self.merges) + 1
        if num_components > num_rows:
            raise InputError(f"num_components={num_components} needs at least as many rows; got {num_rows}")
        positions = np.arange(num_rows)
        for last, (i, j) in zip(range(num_rows - 1, num_components - 1, -1), self.merges, strict=False):
            positions[positions == j] = i
            positions[positions == last] = j
        _, first, labels = np.unique(positions, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[labels]


def agglomerate(x: Table, count: Counts) -> MergeTree:
    """The merge tree of rows x, of which each may stand for any positive count of equal rows merged beforehand.

    Memory grows as n², time as n² d² to n² d³. The trees of the last few data sets are remembered, because fits of many
    numbers of components and families to the same rows begin with the same tree.
    """
    x, count = np.asarray(x, np.float64), np.asarray(count, np.float64)
    return _remembered_tree(x.tobytes(), count.tobytes(), x.shape)


def cut_tree_of_rows(
    x: Table, num_components: int, row_weights: Counts, *, max_rows: int, key: RandomKey | None
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, "n k"]]:
    """Cut the tree of weighted rows, or of a random subset of `max_rows` of them where there are more.

    A row of a whole weight is that many rows, as long as they are few enough; other weights are the counts of rows
    merged beforehand.

    Returns:
        The rows used, in order, and the share of each row in every cluster: a row used once is in one cluster, a row of
        weight 2 may be in two, a row that is not used is in none.

    Raises:
        InputError: for fewer rows than clusters, or more than `max_rows` without a key.
    """
    used = np.flatnonzero(row_weights > 0)
    counts = row_weights[used]
    if (counts == np.round(counts)).all() and counts.sum() <= max_rows:
        used = np.repeat(used, counts.astype(np.int64))
        counts = np.ones(len(used))
    if len(used) > max_rows:
        chosen = jax.random.choice(as_key(key), len(used), (max_rows,), replace=False)
        chosen = np.sort(np.asarray(chosen))
        used, counts = used[chosen], counts[chosen]
    shares = np.zeros((len(x), num_components), x.dtype)
    np.add.at(shares, (used, agglomerate(x[used], counts).labels(num_components)), 1)
    return np.unique(used), shares / np.maximum(shares.sum(1, keepdims=True), 1)


@functools.lru_cache(maxsize=8)
def _remembered_tree(x: bytes, count: bytes, shape: tuple[int, int]) -> MergeTree:
    rows, counts = np.frombuffer(x).reshape(shape), np.frombuffer(count)
    return MergeTree(np.array(list(_merges(_scores(rows, counts), counts)), np.int64).reshape(-1, 2))


def _scores(x: Table, count: Counts) -> Float[np.ndarray, "n q"]:
    """Principal scores of the standardised columns, each divided by the root of its singular value.

    Directions without variance are dropped. Source: Scrucca & Raftery (2015), "Improved initialisation of model-based
    clustering using Gaussian hierarchical partitions", section 3.
    """
    total = count.sum()
    centred = x - count @ x / total
    # The divisor of a sample variance; weights that do not count rows may well sum to less than one.
    scale = np.sqrt(count @ np.square(centred) / max(total - 1, 0.5 * total))
    varies = scale > 100 * np.finfo(np.float64).eps * np.abs(x).max(0)
    standard = centred[:, varies] / scale[varies]
    _, singular, axes = np.linalg.svd(np.sqrt(count)[:, None] * standard, full_matrices=False)
    kept = singular > 1e-12 * singular.max(initial=0.0)
    return standard @ axes[kept].T / np.sqrt(singular[kept])


class _Clusters:
    """Count, mean, scatter and term $T$ of every cluster in the list."""

    def __init__(self, x: Table, count: Counts) -> None:
        num_rows, self.num_features = x.shape
        self.count = count.copy()
        self.mean = x.copy()
        self.trace = np.zeros(num_rows)
        self.scatter = np.zeros((num_rows, self.num_features, self.num_features))
        centred = x - count @ x / count.sum()
        spread = (count @ np.square(centred)).sum() / (count.sum() * max(self.num_features, 1))
        self.alpha = max(spread, np.finfo(np.float64).eps)
        self.term = self._terms(self.count, self.trace, self.scatter)

    def merge_costs(self, i: int, others: slice) -> Float[np.ndarray, " m"]:
        """What it costs to merge cluster i with each of the others."""
        return self._terms(*self._union(i, others)) - self.term[i] - self.term[others]

    def _union(self, i: int, others: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count, trace and scatter of the union of cluster i with each of the others."""
        count = self.count[i] + self.count[others]
        share = self.count[i] * self.count[others] / count
        difference = self.mean[others] - self.mean[i]
        trace = self.trace[i] + self.trace[others] + share * np.square(difference).sum(1)
        scatter = self.scatter[i] + self.scatter[others]
        scatter += (share[:, None] * difference)[:, :, None] * difference[:, None, :]
        return count, trace, scatter

    def merge(self, i: int, j: int, last: int) -> None:
        """Put the union of i and j at i, and the last cluster at j."""
        union = self._union(i, slice(j, j + 1))
        self.mean[i] += self.count[j] / union[0][0] * (self.mean[j] - self.mean[i])
        self.term[i] = self._terms(*union)[0]
        self.count[i], self.trace[i], self.scatter[i] = (part[0] for part in union)
        for field in (self.count, self.mean, self.trace, self.scatter, self.term):
            field[j] = field[last]

    def _terms(self, count: np.ndarray, trace: np.ndarray, scatter: np.ndarray) -> Float[np.ndarray, " m"]:
        log_density = np.log((trace + self.alpha) / count)
        large = np.flatnonzero(count > self.num_features) if self.num_features > 1 else np.array([], np.int64)
        log_determinant = np.linalg.slogdet(scatter[large] / count[large, None, None])[1]
        log_density[large] = np.logaddexp(log_density[large], log_determinant)
        return count * log_density


def _merges(x: Table, count: Counts) -> Iterator[tuple[int, int]]:
    """The cheapest merge, again and again until one cluster is left; of equal costs the last in the list.

    `costs[j, i]` with i < j is the cost of merging i and j, `cheapest[j]` the least of row j.
    """
    clusters, num_clusters = _Clusters(x, count), len(x)
    costs = np.full((num_clusters, num_clusters), np.inf)
    for j in range(1, num_clusters):
        costs[j, :j] = clusters.merge_costs(j, slice(0, j))
    cheapest = costs.min(1)
    for last in range(num_clusters - 1, 0, -1):
        j = last - int(cheapest[: last + 1][::-1].argmin())
        i = j - 1 - int(costs[j, :j][::-1].argmin())
        yield i, j
        clusters.merge(i, j, last)
        before = costs[:last, [i, j]]
        costs[j, :j] = costs[last, :j]
        costs[j + 1 : last, j] = costs[last, j + 1 : last]
        merged = clusters.merge_costs(i, slice(0, last))
        costs[i, :i], costs[i + 1 : last, i] = merged[:i], merged[i + 1 :]
        # A row whose cheapest merge has changed is searched again; in the others only the two new costs may be less.
        outdated = (before == cheapest[:last, None]).any(1)
        outdated[[i, min(j, last - 1)]] = True
        cheapest[:last] = np.minimum(cheapest[:last], costs[:last, [i, j]].min(1))
        cheapest[:last][outdated] = costs[:last, :last][outdated].min(1)
