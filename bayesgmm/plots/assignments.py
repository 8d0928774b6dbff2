"""The rows coloured by the cluster they are assigned to, by a mixture and, beside it, by k-means."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from bayesgmm.diagnostics.agreement import adjusted_rand_index
from bayesgmm.engines.fit import Fit
from bayesgmm.engines.kmeans import KMeansFit
from bayesgmm.engines.registry import ENGINES
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.numerics.words import counted
from bayesgmm.plots import panels, shapes
from bayesgmm.plots.panels import INK, AxesLike, Panels
from bayesgmm.plots.view import Columns, Drawable, Names, one_mixture, view_rows

_SIDE = 400  # pixels of the plane that is tinted by nearest centre


def plot_assignments(
    mixture_or_fit: Drawable,
    x: ArrayLike,
    *,
    ax: AxesLike = None,
    columns: Columns = None,
    feature_names: Names = None,
    levels: Sequence[float] = (0.5, 0.9),
) -> Axes | np.ndarray:
    """Draw the rows coloured by hard assignment, `Mixture.predict(x)`, and the components of the mixture.

    One column: histogram and rug, the density of the mixture and of every component times its weight. Two columns:
    scatter with the ellipses that hold given parts of each component's mass. More: a grid of all pairs, with marginal
    ellipses and, on the diagonal, marginal histograms and densities. Rows are assigned by all features, whatever
    columns are shown.

    Args:
        mixture_or_fit: one mixture, without leading axes, or a fit, of which the point is drawn.
        x: rows (n, d).
        ax: axes to draw on: one for one or two columns, an (m, m) array of them for m columns.
        columns: columns by number or name, up to twelve; by default all, of more than four those that separate the
            components best; or "pca", the first two principal components of the standardised columns, or
            "discriminant", the plane in which components differ most (Scrucca 2010).
        feature_names: names of all d features, by default those of a data frame.
        levels: probability masses of the ellipses.

    Returns:
        The axes drawn on: one, or an (m, m) array.

    Raises:
        InputError: for a mixture with leading axes or NaN parameters, or arguments that do not fit it.
    """
    mixture = one_mixture(mixture_or_fit)
    levels = shapes.check_levels(levels)
    view = view_rows(mixture, x, columns, feature_names)
    grid = panels.make_panels(view, ax)
    _draw_mixture(grid, mixture, np.asarray(mixture.predict(view.x)), levels)
    return grid.drawn


def _draw_rows(grid: Panels, labels: Int[np.ndarray, " n"], shares: Float[np.ndarray, " k"], word: str) -> None:
    """The rows in the colours of their clusters, with what these are called in the legend."""
    shown, colours = grid.view.shown, [panels.cluster_colour(cluster) for cluster in range(len(shares))]
    panels.label_clusters(grid.first, shares, word)
    for (i, j), panel in grid.axes.items():
        if i == j:
            parts = [shown[labels == cluster, i] for cluster in range(len(shares))]
            shapes.draw_histogram(panel, parts, colours, rug=grid.view.num_shown == 1, alpha=0.3)
        else:
            shapes.draw_points(panel, shown[:, [j, i]], labels, len(shares))


def _draw_mixture(grid: Panels, mixture: Mixture, labels: Int[np.ndarray, " n"], levels: Sequence[float]) -> None:
    view = grid.view
    _draw_rows(grid, labels, np.asarray(mixture.weights), "weight")
    for (i, j), panel in grid.axes.items():
        if i != j:
            shapes.draw_components(panel, view.marginal(mixture, j, i), levels)
            continue
        single = view.marginal(mixture, i)
        line = shapes.density_grid(single, view.shown[:, i])
        for cluster, density in enumerate(shapes.component_densities(single, line).T):
            panel.plot(line, density, color=panels.cluster_colour(cluster), linewidth=1.4, gid=f"component {cluster}")
        panel.plot(line, shapes.densities(single, line), color=INK, linewidth=1.6, label="mixture", gid="mixture")
        panel.set_ylim(0.0, 1.05 * panel.dataLim.y1)
        if view.num_shown == 1:
            means = np.asarray(single.means)
            heights = np.diagonal(shapes.component_densities(single, means[:, 0]))
            shapes.draw_centres(panel, np.column_stack([means, heights]), "mean")
            panel.set(xlim=line[[0, -1]], ylabel="density")
    if view.num_shown > 1:
        panels.label_masses(grid.first, levels)
    panels.finish_grid(grid)


def plot_partitions(
    mixture_or_fit: Drawable,
    x: ArrayLike,
    partition: KMeansFit,
    *,
    ax: AxesLike = None,
    columns: Columns = None,
    feature_names: Names = None,
    levels: Sequence[float] = (0.5, 0.9),
) -> np.ndarray:
    """Draw the rows twice: on the left as `plot_assignments` does, on the right with the partition of k-means.

    Clusters of k-means get the colours of the components with which they share most rows. Crosses are their centres;
    rows that are assigned otherwise than by the mixture are ringed. Where the picture shows all features, the plane is
    tinted by the nearest centre (one feature: dashed lines half-way between centres).

    Args:
        mixture_or_fit: one mixture, without leading axes, or a fit, of which the point is drawn.
        x: rows (n, d).
        partition: of the same rows, by `fit_kmeans`.
        ax: axes to draw on: two for one or two columns, an array of them (2, m, m) for m columns.
        columns: as in `plot_assignments`, but by default all of up to two, else "pca".
        feature_names: names of all d features, by default those of a data frame.
        levels: probability masses of the ellipses.

    Returns:
        The axes drawn on, an array (2) or (2, m, m).

    Raises:
        InputError: for a partition of other rows, a mixture with leading axes, or arguments that do not fit it.
    """
    mixture = one_mixture(mixture_or_fit)
    levels = shapes.check_levels(levels)
    view = view_rows(mixture, x, "pca" if columns is None and mixture.num_features > 2 else columns, feature_names)
    if partition.labels.shape != (len(view.x),) or partition.centres.shape[1] != mixture.num_features:
        raise InputError(
            f"partition is of {len(partition.labels)} rows of {partition.centres.shape[1]} features, and x has shape "
            f"{view.x.shape}; give the partition of these rows"
        )
    count, side = view.num_shown, 1.9 * view.num_shown + 0.6
    if count <= 2:
        pictures = panels.several_axes(ax, (2,), (12.4, 3.6 if count == 1 else 4.4), "two pictures need")
    else:
        what = f"two pictures of {count} columns need"
        pictures = panels.several_axes(ax, (2, count, count), (2.1 * side, side), what)
    left, right = (panels.make_panels(view, picture) for picture in pictures)
    labels = np.asarray(mixture.predict(view.x))
    partition = partition.matched_to(labels)
    _draw_mixture(left, mixture, labels, levels)
    _draw_partition(right, partition, partition.labels != labels)
    _share_limits(left, right)
    if view.num_shown == 2 and set(view.columns) == set(range(mixture.num_features)):
        _tint(right.first, partition, view.columns)
    by = f", {ENGINES[mixture_or_fit.engine].label}" if isinstance(mixture_or_fit, Fit) else ""
    agreement = adjusted_rand_index(labels, partition.labels)
    panels.tidy(left.first, title=f"mixture{by}")
    panels.tidy(right.first, title=f"k-means, adjusted Rand index {agreement:.2f}")
    return np.stack([np.asarray(left.drawn, object), np.asarray(right.drawn, object)])


def _draw_partition(grid: Panels, partition: KMeansFit, differs: Bool[np.ndarray, " n"]) -> None:
    _draw_rows(grid, partition.labels, partition.shares, "share")
    view, centres = grid.view, grid.view.coordinates(partition.centres)
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "linewidths": 0.9, "zorder": 3, "gid": "differs"}
    for (i, j), panel in grid.axes.items():
        if i != j:
            panel.scatter(*view.shown[differs][:, [j, i]].T, s=4.0 * shapes.point_size(len(view.x)), **ring)
            shapes.draw_centres(panel, centres[:, [j, i]], "centre")
    if view.num_shown > 1:
        panels.add_label(grid.first, "centre", marker="X", markersize=6.0, linestyle="none")
        rows = f"assigned otherwise\n({counted(int(differs.sum()), 'row')})"
        panels.add_label(grid.first, rows, marker="o", markersize=7.0, markerfacecolor="none", linestyle="none")
    else:
        _draw_cuts(grid.first, centres[:, 0], everything=partition.centres.shape[1] == 1)
    panels.finish_grid(grid)


def _draw_cuts(ax: Axes, centres: Float[np.ndarray, " k"], *, everything: bool) -> None:
    """Lines at the centres along a column, and half-way between them where that column is everything."""
    for cluster, centre in enumerate(centres):
        ax.axvline(centre, color=panels.cluster_colour(cluster), linewidth=1.4, gid=f"centre {cluster}")
    if everything:
        look = {"color": INK, "linewidth": 1.0, "linestyle": "--"}
        panels.add_label(ax, "half-way between centres", **look)
        for start, end in itertools.pairwise(np.sort(centres)):
            ax.axvline(0.5 * (start + end), gid="boundary", **look)
    ax.set_ylabel("density")


def _share_limits(left: Panels, right: Panels) -> None:
    """The same limits on both sides, which hold what is drawn on either."""
    for (i, j), ax in right.axes.items():
        pair = (left.axes[i, j], ax)
        limits = np.array([one.axis() for one in pair])
        (start, _, bottom, _), (_, end, _, top) = limits.min(0), limits.max(0)
        for one in pair:
            one.set_xlim(start, end)
            if i != j or len(right.axes) == 1:  # in a grid densities have no scale
                one.set_ylim(bottom, top)


def _tint(ax: Axes, partition: KMeansFit, columns: tuple[int, ...]) -> None:
    """The plane in pale colours of the nearest centre, with straight lines half-way between centres."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    across, up = np.linspace(left, right, _SIDE), np.linspace(low, high, _SIDE)
    plane = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)
    rows = np.empty_like(plane)
    rows[:, columns] = plane
    nearest = partition.predict(rows).reshape(_SIDE, _SIDE)
    colours = np.array([to_rgb(panels.cluster_colour(cluster)) for cluster in range(partition.num_clusters)])
    tinted = 1.0 - 0.14 * (1.0 - colours[nearest])
    look: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "origin": "lower", "zorder": 0}
    ax.imshow(tinted, extent=(left, right, low, high), gid="nearest centre", **look)
