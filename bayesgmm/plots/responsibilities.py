"""The certainty of assignments: responsibilities of every row and of every place, and similarities of rows."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.plots import panels, shapes
from bayesgmm.plots.panels import DATA_GREY, INK, VERMILION, AxesLike
from bayesgmm.plots.view import Columns, Drawable, Names, View, point_and_draws, posterior_draws, view_rows
from bayesgmm.posterior.allocations import mean_responsibilities
from bayesgmm.posterior.similarity import MAX_ROWS, similarity_matrix

_MOST_DRAWS = 200
_PLANE_DRAWS = 50  # whose responsibilities are averaged at every point of a grid
_OPTIMAL_ROWS = 600  # beyond which the best order of a tree's leaves takes too long
_ROUNDING = 1e-8
_LOOK: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}  # of an image
_PROBABILITY: dict[str, Any] = {**_LOOK, "cmap": shapes.PROBABILITY, "vmin": 0.0, "vmax": 1.0}
# From a grey that recedes to a dark red that does not.
_COLOURS = LinearSegmentedColormap.from_list("uncertainty", ["#B9BDC4", "#E69F00", "#B03A00", "#3D0C00"])


def plot_responsibility_bars(mixture_or_fit: Drawable, x: ArrayLike, *, ax: AxesLike = None) -> Axes:
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
    sorted_shares = _sorted_responsibilities(mixture_or_fit, x)
    ax = panels.one_axes(ax, (6.4, 2.8))
    num_rows, num_clusters = sorted_shares.shape
    tops = np.concatenate([np.zeros((num_rows, 1)), sorted_shares.cumsum(1)], axis=1)
    look: dict[str, Any] = {"linewidth": 0.0, "fill": True, "rasterized": num_rows > shapes.MANY_ROWS}
    for cluster in range(num_clusters):
        colour, name = panels.cluster_colour(cluster), f"cluster {cluster}"
        edges = {"edges": np.arange(num_rows + 1), "baseline": tops[:, cluster]}
        ax.stairs(tops[:, cluster + 1], color=colour, label=name, gid=name, **edges, **look)
    for start in _starts(sorted_shares.argmax(1))[1:]:
        ax.axvline(start, color="white", linewidth=1.2, gid="border")
    labels = {"xlabel": "rows, by cluster and responsibility", "ylabel": "responsibility"}
    return panels.finish(ax, xlim=(0, num_rows), ylim=(0.0, 1.0), **labels)


def plot_responsibility_heatmap(mixture_or_fit: Drawable, x: ArrayLike, *, ax: AxesLike = None) -> Axes:
    """Draw the matrix of responsibilities, a line for every row and a column for every cluster, sorted like the bars.

    Args:
        mixture_or_fit, x, ax: as in `plot_responsibility_bars`.

    Returns:
        The axes drawn on.

    Raises:
        InputError: as `plot_responsibility_bars`.
    """
    sorted_shares = _sorted_responsibilities(mixture_or_fit, x)
    num_rows, num_clusters = sorted_shares.shape
    ax = panels.one_axes(ax, (min(1.9 + 0.6 * num_clusters, 8.0), 4.2))
    extent = (-0.5, num_clusters - 0.5, float(num_rows), 0.0)
    image = ax.imshow(sorted_shares, extent=extent, gid="responsibilities", **_PROBABILITY)
    for start in _starts(sorted_shares.argmax(1))[1:]:
        ax.axhline(start, color=INK, linewidth=0.6, gid="border")
    panels.tidy(ax, xticks=range(num_clusters), xlabel="cluster", ylabel="rows, by cluster and responsibility")
    for cluster, label in enumerate(ax.get_xticklabels()):
        label.set(color=panels.cluster_colour(cluster), fontweight="bold")
    panels.add_colourbar(ax, image, "responsibility")
    return ax


def _sorted_responsibilities(mixture_or_fit: Drawable, x: ArrayLike) -> Float[np.ndarray, "n k"]:
    """Of every row, by cluster and then by falling responsibility of it; ties keep their order."""
    _, draws = point_and_draws(mixture_or_fit, _MOST_DRAWS)
    shares = mean_responsibilities(draws, view_rows(draws, x, None, None).x)
    return shares[np.lexsort((-shares.max(1), shares.argmax(1)))]


def _starts(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " c"]:
    """Where every run of equal labels begins."""
    return np.flatnonzero(np.diff(labels, prepend=-1))


def plot_similarity_matrix(
    similarity: Drawable | ArrayLike,
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
    num_rows, partition = len(matrix), None
    if labels is not None:
        if np.shape(labels) != (num_rows,):
            raise InputError(f"labels has shape {np.shape(labels)}; give one for each of {num_rows} rows")
        partition = np.unique(np.asarray(labels), return_inverse=True)[1]
    order = similarity_order(matrix, partition)
    ax = panels.one_axes(ax, (5.4, 4.4))
    sharp = "nearest" if num_rows < 400 else "antialiased"
    look: dict[str, Any] = {**_PROBABILITY, "aspect": "equal", "interpolation": sharp}
    extent = (0.0, float(num_rows), float(num_rows), 0.0)
    image = ax.imshow(matrix[np.ix_(order, order)], extent=extent, gid="similarity", **look)
    if partition is not None:
        starts = _starts(partition[order])
        look = {"fill": False, "edgecolor": VERMILION, "linewidth": 1.6, "clip_on": False}
        for start, size in zip(starts, np.diff(starts, append=num_rows), strict=True):
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
        leaves = leaves_list(linkage(distances, "average", optimal_ordering=len(matrix) <= _OPTIMAL_ROWS))
    if partition is None:
        return leaves
    sizes = np.bincount(partition)
    rank = np.argsort(np.argsort(-sizes, kind="stable"))
    return leaves[np.argsort(rank[partition[leaves]], kind="stable")]


def _matrix(similarity: Drawable | ArrayLike, x: ArrayLike | None, max_rows: int) -> Float[np.ndarray, "n n"]:
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


def plot_responsibility_uncertainty(
    mixture_or_fit: Drawable, x: ArrayLike, *, ax: AxesLike = None, columns: Columns = None, feature_names: Names = None
) -> Axes | np.ndarray:
    """Draw the uncertainty of the assignment of every row: 1 less the largest of its responsibilities.

    That is mclust's "uncertainty": 0 for a row that certainly belongs to one cluster, 1 - 1/k at most. For a posterior
    the responsibilities are averaged over at most 200 draws first, so that uncertain parameters count as well; the
    draws' labels have to be matched, as those of a `Fit` are.

    Two columns or more: scatters with size and colour by uncertainty, over the 90% ellipses of a point estimate. One
    feature: the responsibility of every cluster along x, with bands that hold 90% of the draws.

    Args:
        mixture_or_fit: a mixture, a posterior as a mixture with leading axes, or a fit, whose draws are used if it has
            any.
        x: rows (n, d).
        ax: axes to draw on: one for one or two columns, an (m - 1, m - 1) array of them for m columns.
        columns, feature_names: as in `plot_assignments`; at least two columns if there are several features.

    Returns:
        The axes drawn on: one, or an (m - 1, m - 1) array.

    Raises:
        InputError: for parameters that are NaN, or arguments that do not fit the mixture.
    """
    point, draws = point_and_draws(mixture_or_fit, _MOST_DRAWS)
    view = view_rows(draws, x, columns, feature_names)
    _check_not_one(view, "at least two")
    grid = panels.make_panels(view, ax, diagonal=False)
    if view.num_shown == 1:
        _draw_responsibilities(grid.first, draws, view.x[:, 0])
        return panels.finish_grid(grid)
    uncertainty = 1.0 - mean_responsibilities(draws, view.x).max(1)
    highest = 1.0 - 1.0 / max(draws.num_components, 2)
    order = np.argsort(uncertainty, kind="stable")  # the most uncertain rows last, on top
    uncertainty, colours = uncertainty[order], Normalize(0.0, highest)
    look: dict[str, Any] = {"c": uncertainty, "cmap": _COLOURS, "norm": colours, "linewidths": 0.3}
    look |= {"edgecolors": "white", "rasterized": len(order) > shapes.MANY_ROWS, "zorder": 2, "gid": "rows"}
    area = shapes.point_size(len(order)) * (0.8 + 3.2 * uncertainty / highest)
    for (i, j), panel in grid.axes.items():
        panel.scatter(*view.shown[order][:, [j, i]].T, s=area, **look)
        if point is not None:
            shapes.draw_outlines(panel, view.marginal(point, j, i), zorder=1)
    title = "uncertainty of the assignment"
    panels.add_colourbar(grid.first, ScalarMappable(colours, _COLOURS), title, inside=grid.corner)
    return panels.finish_grid(grid)


def _check_not_one(view: View, wanted: str) -> None:
    """Refuse one of several features."""
    if view.num_shown == 1 and view.x.shape[1] > 1:
        raise InputError(f"columns={view.columns} is one of {view.x.shape[1]} features; give {wanted}")


def _draw_responsibilities(ax: Axes, draws: Mixture, values: Float[np.ndarray, " n"]) -> None:
    """Curves of the responsibilities along x, bands of the draws, and the uncertainty itself."""
    grid = shapes.density_grid(draws, values)
    curves = np.asarray(draws.responsibilities(grid[:, None]))
    mean = curves.mean(0) if draws.draw_shape else curves
    labels = mean_responsibilities(draws, values[:, None]).argmax(1)
    for cluster in range(draws.num_components):
        colour, name = panels.cluster_colour(cluster), f"cluster {cluster}"
        if draws.draw_shape:
            shapes.draw_band(ax, grid, curves[..., cluster], colour, alpha=0.2, gid=f"band {cluster}")
        ax.plot(grid, mean[:, cluster], color=colour, linewidth=1.6, label=name, gid=name)
        shapes.draw_rug(ax, values[labels == cluster], colour)
    uncertainty = 1.0 - mean.max(1)
    ax.plot(grid, uncertainty, color=INK, linewidth=1.2, linestyle="--", label="uncertainty", gid="uncertainty")
    if draws.draw_shape:
        panels.add_swatch(ax, "90% of draws", color=INK, alpha=0.2)
    ax.set(xlim=grid[[0, -1]], ylim=(-0.06, 1.02), ylabel="responsibility")


def plot_assignment_entropy(
    mixture_or_fit: Drawable, x: ArrayLike, *, ax: AxesLike = None, columns: Columns = None, feature_names: Names = None
) -> Axes:
    r"""Draw the entropy of the assignment that a row at each point would have, $-\sum_j r_j \log_2 r_j$, in bits.

    It is 0 where one cluster is certain and log2 k where all are equally probable. Of a posterior the responsibilities
    are averaged over at most 50 draws, so that uncertain parameters count too; their labels have to be matched, as
    those of a `Fit` are. Where there are more columns than two the plane shows those two alone: by its others a row may
    be more certain. One feature: the entropy along it.

    Args:
        mixture_or_fit: a mixture, draws as a mixture with leading axes, or a fit, whose draws are used if it has any.
        x: rows (n, d).
        ax: axes to draw on.
        columns: two columns, by number or name, by default those that separate the components best; or "pca", the
            first two principal components of the standardised columns, or "discriminant" (see `plot_assignments`).
        feature_names: names of all d features.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for one of several columns, for parameters that are NaN, and for arguments that do not fit the
            mixture.
    """
    point, draws = point_and_draws(mixture_or_fit, _PLANE_DRAWS)
    view = view_rows(draws, x, columns, feature_names, at_most=2)
    _check_not_one(view, "two")
    highest = float(np.log2(max(draws.num_components, 2)))
    ax = panels.one_axes(ax, (6.4, 4.2 if view.num_shown == 2 else 3.0))
    if view.num_shown == 2:
        _draw_plane(ax, point, draws, view, highest)
    else:
        values = view.shown[:, 0]
        grid = shapes.density_grid(draws, values)
        entropy = shapes.assignment_entropy(mean_responsibilities(draws, grid[:, None]))
        ax.fill_between(grid, 0.0, entropy, color=shapes.UNCERTAINTY(0.5), alpha=0.3, linewidth=0.0)
        ax.plot(grid, entropy, color=INK, linewidth=1.6, gid="entropy")
        shapes.draw_rug(ax, values, DATA_GREY)
        limits = (-0.06 * highest, 1.02 * highest)
        ax.set(xlim=grid[[0, -1]], ylim=limits, ylabel="entropy of the\nassignment (bits)")
    panels.tidy(ax, xlabel=view.names[0])
    return ax


def _draw_plane(ax: Axes, point: Mixture | None, draws: Mixture, view: View, highest: float) -> None:
    points = view.shown.astype(np.float64)
    horizontal, vertical, grid = shapes.grid_of(shapes.plane_around(points))
    entropy = shapes.assignment_entropy(mean_responsibilities(view.marginal(draws, 0, 1), grid))
    extent = (horizontal[0], horizontal[-1], vertical[0], vertical[-1])
    entropy = entropy.reshape(len(horizontal), len(vertical)).T
    look: dict[str, Any] = {"cmap": shapes.UNCERTAINTY, "norm": Normalize(0.0, highest), "origin": "lower"}
    image = ax.imshow(entropy, extent=extent, gid="entropy", **{**_LOOK, "interpolation": "bilinear", **look})
    shapes.draw_ground(ax, points)
    if point is not None:
        shapes.draw_outlines(ax, view.marginal(point, 0, 1), zorder=2)
    ax.set(xlim=horizontal[[0, -1]], ylim=vertical[[0, -1]], ylabel=view.names[1])
    panels.add_colourbar(ax, image, "entropy of the assignment (bits)")
