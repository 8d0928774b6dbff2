r"""k-means by scikit-learn, for comparison: hard assignments to nearest centres, where a mixture has shares and shapes.

$$ \min_{m, l} \sum_i v_i \sum_f \left(\frac{x_{if} - m_{l(i) f}}{s_f}\right)^2. $$

It is what is left of EM for the family `spherical` with equal weights and one variance that goes to zero: clusters are
round, of one size, and part at straight lines half-way between their centres. Unlike a mixture's, its partition depends
on the units of the columns, unless these are standardised.
"""

import dataclasses
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int

from bayesgmm.engines.fit import ResultCode
from bayesgmm.engines.registry import Count, Flag, Number, engine
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import as_rows, enough_rows
from bayesgmm.mixtures.families import get_family
from bayesgmm.numerics.precision import ArrayLike, KeyLike
from bayesgmm.numerics.validation import as_key
from bayesgmm.posterior.matching import best_orders


@dataclass(frozen=True, eq=False)
class KMeansFit:
    r"""A partition of the rows around centres.

    Attributes:
        labels: cluster of every row, shape (n); of a row of weight 0 that of the nearest centre.
        shares: share of the weight of the rows in every cluster, to compare a mixture's weights with, shape (k).
        centres: means of the clusters, in the units of the data, shape (k, d).
        inertia: sum over rows of weight times squared distance from the cluster's centre.
        column_scale: what distances along each feature are divided by, shape (d); ones unless standardised.
        num_steps: rounds of Lloyd's algorithm in the best run.
        code: a `ResultCode`: whether the step limit was enough.
    """

    labels: Int[np.ndarray, " n"]
    shares: Float[np.ndarray, " k"]
    centres: Float[np.ndarray, "k d"]
    inertia: float
    column_scale: Float[np.ndarray, " d"]
    num_steps: int
    code: ResultCode

    @property
    def num_clusters(self) -> int:
        """k."""
        return len(self.centres)

    def predict(self, x: ArrayLike) -> Int[np.ndarray, " m"]:
        """The nearest centre of new rows (m, d).

        Raises:
            InputError: for rows of another number of features, and for NaN or infinite values.
        """
        x = np.asarray(as_rows(x).values)
        if x.shape[1] != self.centres.shape[1]:
            raise InputError(f"x must have shape (rows, {self.centres.shape[1]}) like the centres; got {x.shape}")
        return _squared_distances(x, self.centres, self.column_scale).argmin(1)

    def matched_to(self, labels: Int[np.ndarray, " n"]) -> "KMeansFit":
        """The same partition with its clusters in the order in which most rows have the labels given (exact)."""
        size = max(self.num_clusters, int(labels.max()) + 1)
        together = np.zeros((size, size))
        np.add.at(together, (self.labels, labels), 1.0)
        order = best_orders(together)
        order = order[order < self.num_clusters]
        labels = np.argsort(order)[self.labels]
        return dataclasses.replace(self, labels=labels, shares=self.shares[order], centres=self.centres[order])


@engine("kmeans", label="k-means", method="k-means", gives="partition", prior="none", streams=(11,))
def fit_kmeans(
    x: ArrayLike,
    num_components: Count,
    *,
    key: KeyLike,
    row_weights: ArrayLike | None = None,
    num_restarts: Count = 10,
    max_steps: Count = 300,
    tol: Number = 1e-4,
    standardise: Flag = False,
) -> KMeansFit:
    """Partition rows by k-means (scikit-learn's `KMeans`, with its defaults): the best of several starts by k-means++.

    Args:
        x: rows (n, d).
        num_components: number of clusters k.
        key: `jax.random.key(seed)`.
        row_weights: weight of every row (n); weight 2 is the row twice, but for the tolerance, which is relative to the
            variance of the rows each counted once.
        num_restarts: number of starts, of which the partition of smallest inertia is kept.
        max_steps: step limit of each.
        tol: stop when the centres move by less, squared and relative to the mean variance of the columns.
        standardise: whether columns are divided by their standard deviations first. If not, as by default, a column in
            smaller units counts for more.

    Raises:
        InputError: for arguments that cannot be fitted.
    """
    rows, key = as_rows(x, row_weights), as_key(key)
    enough_rows(rows, num_components, get_family("spherical"), takes_prior=False)
    x, weights = np.asarray(rows.values), np.asarray(rows.weights)
    used = weights > 0
    scale = np.ones(x.shape[1], x.dtype)
    if standardise:
        centred = x[used] - np.average(x[used], axis=0, weights=weights[used])
        scale = np.average(np.square(centred), axis=0, weights=weights[used]) ** 0.5

    from sklearn.cluster import KMeans  # on first use: it takes a second to import

    found = KMeans(
        num_components,
        n_init=num_restarts,  # pyright: ignore[reportArgumentType]
        max_iter=max_steps,
        tol=float(tol),
        random_state=int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max)),
    ).fit(x[used] / scale, sample_weight=weights[used])
    assert found.inertia_ is not None
    labels = np.asarray(found.predict(x / scale), np.int64)
    counts = np.bincount(labels, weights, minlength=num_components)
    return KMeansFit(
        labels=labels,
        shares=counts / counts.sum(),
        centres=np.asarray(found.cluster_centers_ * scale, x.dtype),
        inertia=float(found.inertia_),
        column_scale=scale,
        num_steps=int(found.n_iter_),
        code=ResultCode.successful if found.n_iter_ < max_steps else ResultCode.max_steps_reached,
    )


def inertia_of(
    x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], column_scale: float | Float[np.ndarray, " d"] = 1.0
) -> float:
    """Sum of squared distances of rows from the means of their clusters: what k-means makes small, of any partition."""
    total = 0.0
    for label in np.unique(labels):
        rows = x[labels == label]
        total += float(np.sum(((rows - rows.mean(0)) / column_scale) ** 2))
    return total


def _squared_distances(x: np.ndarray, centres: np.ndarray, scale: np.ndarray) -> Float[np.ndarray, "n k"]:
    """One centre after another: (n, k, d) numbers are never held."""
    return np.stack([np.sum(((x - centre) / scale) ** 2, axis=1) for centre in centres], axis=1)
