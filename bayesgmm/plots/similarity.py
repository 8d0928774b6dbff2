"""Which rows go together, by the posterior, whatever the labels."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots.fields import PROBABILITY
from bayesgmm.plots.panels import one_axes
from bayesgmm.plots.responsibilities import add_colourbar
from bayesgmm.plots.style import VERMILION, tidy
from bayesgmm.plots.view import posterior_draws
from bayesgmm.posterior.similarity import MAX_ROWS, similarity_matrix

_OPTIMAL_ROWS = 600  # beyond which the best order of a tree's leaves takes too long
_ROUNDING = 1e-8


def plot_similarity_matrix(
    similarity: Any,
    x: Any = None,
    *,
    labels: Any = None,
    max_rows: int = MAX_ROWS,
    ax: Any = None,
) -> Axes:
    """Draw the posterior probability that two rows share a component, rows ordered so that those alike stand together.

    The order is that of the leaves of a tree by average linkage of one minus the similarity, and within it the clusters
    of `labels`, if given, whose squares are outlined.

    Args:
        similarity: a fit with draws, draws as a mixture with leading axes, or a matrix of `similarity_matrix`.
        x: rows (n, d), for the first two.
        labels: a partition (n) to order by and to outline, such as `partition_rows(fit.draws, x).labels`.
        max_rows: what n may be, for the first two.
        ax: axes to draw on.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for a fit without draws, missing rows, more rows than `max_rows`, a matrix that is not square,
            symmetric and between 0 and 1, and labels of another length.
    """
    matrix = _matrix(similarity, x, max_rows)
    partition = None if labels is None else _partition(labels, len(matrix))
    order = similarity_order(matrix, partition)
    ax = one_axes(ax, (5.4, 4.4))
    num_rows = len(matrix)
    image = ax.imshow(
        matrix[np.ix_(order, order)],
        cmap=PROBABILITY,
        vmin=0.0,
        vmax=1.0,
        interpolation="nearest" if num_rows < 400 else "antialiased",
        extent=(0.0, num_rows, num_rows, 0.0),
        gid="similarity",
    )
    if partition is not None:
        for start, size in _runs(partition[order]):
            look: dict[str, Any] = {"fill": False, "edgecolor": VERMILION, "linewidth": 1.6, "clip_on": False}
            ax.add_patch(Rectangle((start, start), size, size, gid="cluster", **look))
    ax.set_xlabel("rows, ordered")
    ax.set_ylabel("rows, ordered")
    tidy(ax)
    add_colourbar(ax, image, "probability of a common cluster")
    return ax


def similarity_order(
    matrix: Float[np.ndarray, "n n"], partition: Int[np.ndarray, " n"] | None = None
) -> Int[np.ndarray, " n"]:
    """The order of the rows: by the tree, and before that by cluster, the largest first."""
    if len(matrix) < 3:
        leaves = np.arange(len(matrix))
    else:
        distances = squareform(np.clip(1.0 - matrix, 0.0, None) * (1.0 - np.eye(len(matrix))), checks=False)
        tree = linkage(distances, "average")
        leaves = leaves_list(optimal_leaf_ordering(tree, distances) if len(matrix) <= _OPTIMAL_ROWS else tree)
    if partition is None:
        return leaves
    sizes = np.bincount(partition)
    rank = np.argsort(np.argsort(-sizes, kind="stable"))
    return leaves[np.argsort(rank[partition[leaves]], kind="stable")]


def _matrix(similarity: Any, x: Any, max_rows: int) -> Float[np.ndarray, "n n"]:
    if isinstance(similarity, Fit | Mixture):
        draws = posterior_draws(similarity)
        if x is None:
            raise InputError("x is missing: the rows whose similarity is drawn; or give the matrix itself")
        return similarity_matrix(draws, x, max_rows=max_rows)
    matrix = np.asarray(similarity, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise InputError(f"similarity has shape {matrix.shape}; give a fit with draws or a square matrix")
    inside = (matrix >= -_ROUNDING) & (matrix <= 1 + _ROUNDING)
    if not inside.all() or not np.allclose(matrix, matrix.T, atol=_ROUNDING):
        raise InputError("similarity must be symmetric and between 0 and 1, as similarity_matrix makes it")
    return matrix


def _partition(labels: Any, num_rows: int) -> Int[np.ndarray, " n"]:
    given = np.asarray(labels)
    if given.shape != (num_rows,):
        raise InputError(f"labels has shape {given.shape}; give one for each of {num_rows} rows")
    return np.unique(given, return_inverse=True)[1]


def _runs(labels: Int[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Start and length of every run of equal labels."""
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    return list(zip(starts.tolist(), np.diff(starts, append=len(labels)).tolist(), strict=True))
