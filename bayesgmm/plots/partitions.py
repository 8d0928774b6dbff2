"""A mixture's hard assignments beside those of k-means."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from bayesgmm.comparison.agreement import adjusted_rand_index
from bayesgmm.engines.fit import Fit
from bayesgmm.engines.kmeans import KMeansFit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots.assignments import draw_centres, plot_assignments
from bayesgmm.plots.panels import Panels, finish, make_panels, new_axes, several_axes
from bayesgmm.plots.shapes import draw_histogram, draw_points, draw_rug, point_size
from bayesgmm.plots.style import FONT_SIZE, INK, cluster_colour, cluster_marker, engine_name
from bayesgmm.plots.view import View, one_mixture, view_rows

_SIDE = 400  # pixels of the plane that is tinted by nearest centre


def plot_partitions(
    mixture_or_fit: Mixture | Fit,
    x: Any,
    partition: KMeansFit,
    *,
    ax: Any = None,
    columns: Iterable[int | str] | str | None = None,
    feature_names: Iterable[str] | None = None,
    levels: Sequence[float] = (0.5, 0.9),
) -> Any:
    """Draw the rows twice: on the left as `plot_assignments` does, on the right with the partition of k-means.

    Clusters of k-means get the colours of the components with which they share most rows. Crosses are their centres;
    rows that are assigned otherwise than by the mixture are ringed. Where the picture shows all features, the plane is
    tinted by the nearest centre (one feature: dashed lines half-way between centres).

    Args:
        mixture_or_fit: one mixture, without leading axes, or a fit, of which the point is drawn.
        x: rows (n, d).
        partition: of the same rows, by `fit_kmeans`.
        ax: axes to draw on: two for one or two columns, an array of them (2, m, m) for m columns.
        columns: one to four columns, by number or name; by default all of up to two, else "pca", the first two
            principal components of the standardised columns.
        feature_names: names of all d features, by default those of a data frame.
        levels: probability masses of the ellipses.

    Returns:
        The axes drawn on, an array (2) or (2, m, m).

    Raises:
        InputError: for a partition of other rows, a mixture with leading axes, or arguments that do not fit it.
    """
    mixture = one_mixture(mixture_or_fit)
    if columns is None and mixture.num_features > 2:
        columns = "pca"
    columns = columns if columns is None or isinstance(columns, str) else list(columns)
    feature_names = None if feature_names is None else list(feature_names)
    view = view_rows(mixture, x, columns, feature_names)
    if partition.labels.shape != (len(view.x),) or partition.centres.shape[1] != mixture.num_features:
        raise InputError(
            f"partition is of {len(partition.labels)} rows of {partition.centres.shape[1]} features, and x has shape "
            f"{view.x.shape}; give the partition of these rows"
        )
    left, right = _two_pictures(ax, view.num_shown)
    plot_assignments(mixture_or_fit, x, ax=left, columns=columns, feature_names=feature_names, levels=levels)
    labels = np.asarray(mixture.predict(view.x))
    partition = partition.matched_to(labels)
    panels = make_panels(view, right)
    first = next(iter(panels.axes.values()))
    for (i, j), panel in panels.axes.items():
        if i == j:
            _draw_column(panel, partition, view, i)
        else:
            _draw_pair(panel, partition, view, (j, i), partition.labels != labels)
    finish(panels, view, _handles(partition, int((partition.labels != labels).sum()), view))
    _share_limits(left, panels)
    if view.num_shown == 2 and set(view.columns) == set(range(mixture.num_features)):
        _tint(first, partition, view)
    of_mixture = engine_name(mixture_or_fit.engine) if isinstance(mixture_or_fit, Fit) else ""
    agreement = adjusted_rand_index(labels, partition.labels)
    np.ravel(left)[0].set_title(f"mixture{f', {of_mixture}' if of_mixture else ''}", fontsize=FONT_SIZE + 1)
    first.set_title(f"k-means, adjusted Rand index {agreement:.2f}", fontsize=FONT_SIZE + 1)
    return np.stack([np.asarray(left, object), np.asarray(right, object)])


def _two_pictures(ax: Any, num_shown: int) -> tuple[Any, Any]:
    if num_shown <= 2:
        pair = several_axes(ax, (2,), (12.4, 3.6 if num_shown == 1 else 4.4), "two pictures need")
        return pair[0], pair[1]
    if ax is None:
        size = 1.9 * num_shown + 0.6
        grid = new_axes((2.1 * size, size), num_shown, 2 * num_shown)
        return grid[:, :num_shown], grid[:, num_shown:]
    pair = several_axes(ax, (2, num_shown, num_shown), (0.0, 0.0), f"two pictures of {num_shown} columns need")
    return pair[0], pair[1]


def _draw_column(ax: Axes, partition: KMeansFit, view: View, column: int) -> None:
    values, k = view.shown[:, column], partition.num_clusters
    draw_histogram(ax, values, partition.labels, k)
    centres = view.coordinates(partition.centres)[:, column]
    if view.num_shown > 1:
        return
    for cluster, centre in enumerate(centres):
        draw_rug(ax, values[partition.labels == cluster], cluster_colour(cluster))
        ax.axvline(centre, color=cluster_colour(cluster), linewidth=1.4, gid=f"centre {cluster}")
    if partition.centres.shape[1] == 1:
        ordered = np.sort(centres)
        for between in 0.5 * (ordered[1:] + ordered[:-1]):
            ax.axvline(between, color=INK, linewidth=1.0, linestyle="--", gid="boundary")
    ax.set_ylabel("density")


def _draw_pair(
    ax: Axes, partition: KMeansFit, view: View, pair: tuple[int, int], differs: Int[np.ndarray, " n"] | np.ndarray
) -> None:
    points = view.shown[:, list(pair)]
    draw_points(ax, points, partition.labels, partition.num_clusters)
    ax.scatter(
        *points[differs].T,
        s=4.0 * point_size(len(points)),
        facecolors="none",
        edgecolors=INK,
        linewidths=0.9,
        zorder=3,
        gid="differs",
    )
    draw_centres(ax, view.coordinates(partition.centres)[:, list(pair)], "centre")


def _share_limits(left: Any, panels: Panels) -> None:
    """The same limits on both sides, which hold what is drawn on either."""
    ours = list(panels.axes.items())
    theirs = [np.asarray(left, object)[i, j] for (i, j), _ in ours] if len(ours) > 1 else [np.ravel(left)[0]]
    for ((i, j), ax), other in zip(ours, theirs, strict=True):
        both = np.array([ax.get_xlim(), other.get_xlim()])
        for one in (ax, other):
            one.set_xlim(both[:, 0].min(), both[:, 1].max())
        if i == j and len(ours) > 1:
            continue  # a density without a scale
        both = np.array([ax.get_ylim(), other.get_ylim()])
        for one in (ax, other):
            one.set_ylim(both[:, 0].min(), both[:, 1].max())


def _tint(ax: Axes, partition: KMeansFit, view: View) -> None:
    """The plane in pale colours of the nearest centre, with straight lines half-way between centres."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    across, up = np.linspace(left, right, _SIDE), np.linspace(low, high, _SIDE)
    plane = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)
    rows: Float[np.ndarray, "m 2"] = np.empty_like(plane)
    rows[:, list(view.columns)] = plane
    nearest = partition.predict(rows).reshape(_SIDE, _SIDE)
    colours = np.array([to_rgb(cluster_colour(cluster)) for cluster in range(partition.num_clusters)])
    ax.imshow(
        1.0 - 0.14 * (1.0 - colours[nearest]),
        extent=(left, right, low, high),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        zorder=0,
        gid="nearest centre",
    )


def _handles(partition: KMeansFit, num_different: int, view: View) -> list[Any]:
    handles = [
        Line2D(
            [],
            [],
            color=cluster_colour(cluster),
            marker=cluster_marker(cluster),
            markersize=5.0,
            linewidth=1.6,
            label=f"cluster {cluster} (share {share:.2f})",
        )
        for cluster, share in enumerate(partition.shares)
    ]
    if view.num_shown == 1:
        if partition.centres.shape[1] == 1:
            handles.append(Line2D([], [], color=INK, linewidth=1.0, linestyle="--", label="half-way between centres"))
        return handles
    rows = "row" if num_different == 1 else "rows"
    handles.append(Line2D([], [], color=INK, marker="X", markersize=6.0, linestyle="none", label="centre"))
    handles.append(
        Line2D(
            [],
            [],
            color=INK,
            marker="o",
            markersize=7.0,
            markerfacecolor="none",
            linestyle="none",
            label=f"assigned otherwise\n({num_different} {rows})",
        )
    )
    return handles
