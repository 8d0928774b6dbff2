"""Who belongs with whom: responsibilities of every row, as bars and as a heat map, and similarities of rows."""

from collections.abc import Mapping
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
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.plots import panels, shapes
from bayesgmm.plots.panels import INK, VERMILION, AxesLike
from bayesgmm.plots.view import point_and_draws, posterior_draws, view_rows
from bayesgmm.posterior.similarity import MAX_ROWS, similarity_matrix

_MOST_DRAWS = 200
_OPTIMAL_ROWS = 600  # beyond which the best order of a tree's leaves takes too long
_ROUNDING = 1e-8
_PROBABILITY: Mapping[str, Any] = {"cmap": shapes.PROBABILITY, "vmin": 0.0, "vmax": 1.0}


def plot_responsibility_bars(mixture_or_fit: Mixture | Fit, x: ArrayLike, *, ax: AxesLike = None) -> Axes:
    """Draw a bar for every row, divided by its responsibilities, sorted by cluster and by how certain it is.

    Rows of cluster 0 come first, the most certain foremost; a white line parts the clusters. Of a posterior the
    responsibilities are averaged over at most 200 draws, whose labels have to be matched, as those of a `Fit` are.

    Args:
        mixture_or_fit: a mixture, draws as a mixture with leading axes, or a fit, whose draws are used if it has any.
        x: rows (n, d).
        ax: axes to draw on.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for rows of another number of features than the mixture's, and parameters that are NaN.
    """
    sorted_shares, starts = _sorted_responsibilities(mixture_or_fit, x)
    ax = panels.one_axes(ax, (6.4, 2.8))
    num_rows, num_clusters = sorted_shares.shape
    edges = np.arange(num_rows + 1)
    tops = np.concatenate([np.zeros((num_rows, 1)), sorted_shares.cumsum(1)], axis=1)
    many = num_rows > shapes.MANY_ROWS
    for cluster in range(num_clusters):
        look: dict[str, Any] = {"color": panels.cluster_colour(cluster), "linewidth": 0.0, "fill": True}
        name = f"cluster {cluster}"
        ax.stairs(tops[:, cluster + 1], edges, baseline=tops[:, cluster], label=name, gid=name, rasterized=many, **look)
    for start in starts[1:]:
        ax.axvline(start, color="white", linewidth=1.2, gid="border")
    labels = {"xlabel": "rows, by cluster and responsibility", "ylabel": "responsibility"}
    return panels.finish(ax, xlim=(0, num_rows), ylim=(0.0, 1.0), **labels)


def plot_responsibility_heatmap(mixture_or_fit: Mixture | Fit, x: ArrayLike, *, ax: AxesLike = None) -> Axes:
    """Draw the matrix of responsibilities, a line for every row and a column for every cluster, sorted like the bars.

    Args:
        mixture_or_fit, x, ax: as in `plot_responsibility_bars`.

    Returns:
        The axes drawn on.

    Raises:
        InputError: as `plot_responsibility_bars`.
    """
    sorted_shares, starts = _sorted_responsibilities(mixture_or_fit, x)
    num_rows, num_clusters = sorted_shares.shape
    ax = panels.one_axes(ax, (min(1.9 + 0.6 * num_clusters, 8.0), 4.2))
    extent = (-0.5, num_clusters - 0.5, float(num_rows), 0.0)
    image = shapes.fill_matrix(ax, sorted_shares, extent, "responsibilities", _PROBABILITY)
    for start in starts[1:]:
        ax.axhline(start, color=INK, linewidth=0.6, gid="border")
    ax.set_xticks(range(num_clusters))
    panels.tidy(ax, xlabel="cluster", ylabel="rows, by cluster and responsibility")
    for cluster, label in enumerate(ax.get_xticklabels()):
        label.set_color(panels.cluster_colour(cluster))
        label.set_fontweight("bold")
    panels.add_colourbar(ax, image, "responsibility")
    return ax


def sorted_rows(responsibilities: Float[np.ndarray, "n k"]) -> Int[np.ndarray, " n"]:
    """The order of rows by cluster, then by falling responsibility of that cluster; ties keep their order."""
    labels = responsibilities.argmax(1)
    return np.lexsort((-responsibilities.max(1), labels))


def _sorted_responsibilities(
    mixture_or_fit: Mixture | Fit, x: ArrayLike
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, " c"]]:
    """The sorted matrix, and the place of the first row of every cluster that has one."""
    _, draws = point_and_draws(mixture_or_fit, _MOST_DRAWS)
    rows = view_rows(draws, x, None, None).x
    responsibilities = shapes.mean_responsibilities(draws, rows)
    shown = responsibilities[sorted_rows(responsibilities)]
    labels = shown.argmax(1)
    return shown, np.flatnonzero(np.diff(labels, prepend=-1))


def plot_similarity_matrix(
    similarity: Fit | Mixture | ArrayLike,
    x: ArrayLike | None = None,
    *,
    labels: ArrayLike | None = None,
    max_rows: int = MAX_ROWS,
    ax: AxesLike = None,
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
    ax = panels.one_axes(ax, (5.4, 4.4))
    num_rows = len(matrix)
    sharp = "nearest" if num_rows < 400 else "antialiased"
    look: dict[str, Any] = {"aspect": "equal", "interpolation": sharp, **_PROBABILITY}
    extent = (0.0, float(num_rows), float(num_rows), 0.0)
    image = shapes.fill_matrix(ax, matrix[np.ix_(order, order)], extent, "similarity", look)
    if partition is not None:
        for start, size in _runs(partition[order]):
            look = {"fill": False, "edgecolor": VERMILION, "linewidth": 1.6, "clip_on": False}
            ax.add_patch(Rectangle((start, start), size, size, gid="cluster", **look))
    panels.tidy(ax, xlabel="rows, ordered", ylabel="rows, ordered")
    panels.add_colourbar(ax, image, "probability of a common cluster")
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


def _matrix(similarity: Fit | Mixture | ArrayLike, x: ArrayLike | None, max_rows: int) -> Float[np.ndarray, "n n"]:
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


def _partition(labels: ArrayLike, num_rows: int) -> Int[np.ndarray, " n"]:
    given = np.asarray(labels)
    if given.shape != (num_rows,):
        raise InputError(f"labels has shape {given.shape}; give one for each of {num_rows} rows")
    return np.unique(given, return_inverse=True)[1]


def _runs(labels: Int[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Start and length of every run of equal labels."""
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    return list(zip(starts.tolist(), np.diff(starts, append=len(labels)).tolist(), strict=True))
