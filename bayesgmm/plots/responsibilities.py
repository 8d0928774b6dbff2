"""Responsibilities of every row: as bars that add up to one, and as a heat map."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from bayesgmm.engines.fit import Fit
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots.fields import PROBABILITY, mean_responsibilities
from bayesgmm.plots.panels import one_axes, root_figure
from bayesgmm.plots.style import FONT_SIZE, INK, cluster_colour, legend_beside, tidy
from bayesgmm.plots.view import point_and_draws, view_rows

_MOST_DRAWS = 200


def plot_responsibility_bars(mixture_or_fit: Mixture | Fit, x: Any, *, ax: Any = None) -> Axes:
    """Draw a bar for every row, divided by its responsibilities, sorted by cluster and by how sure the assignment is.

    Rows of cluster 0 come first, the surest foremost; a white line parts the clusters. Of a posterior the
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
    ax = one_axes(ax, (6.4, 2.8))
    num_rows, num_clusters = sorted_shares.shape
    edges = np.arange(num_rows + 1)
    tops = np.concatenate([np.zeros((num_rows, 1)), sorted_shares.cumsum(1)], axis=1)
    for cluster in range(num_clusters):
        ax.stairs(
            tops[:, cluster + 1],
            edges,
            baseline=tops[:, cluster],
            fill=True,
            color=cluster_colour(cluster),
            linewidth=0.0,
            rasterized=num_rows > 5000,
            gid=f"cluster {cluster}",
        )
    for start in starts[1:]:
        ax.axvline(start, color="white", linewidth=1.2, gid="border")
    ax.set_xlim(0, num_rows)
    ax.set_ylim(0.0, 1.0)
    ax.set_xlabel("rows, by cluster and responsibility")
    ax.set_ylabel("responsibility")
    tidy(ax)
    legend_beside(ax, _handles(num_clusters))
    return ax


def plot_responsibility_heatmap(mixture_or_fit: Mixture | Fit, x: Any, *, ax: Any = None) -> Axes:
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
    ax = one_axes(ax, (min(1.9 + 0.6 * num_clusters, 8.0), 4.2))
    image = ax.imshow(
        sorted_shares,
        cmap=PROBABILITY,
        vmin=0.0,
        vmax=1.0,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, num_clusters - 0.5, num_rows, 0.0),
        gid="responsibilities",
    )
    for start in starts[1:]:
        ax.axhline(start, color=INK, linewidth=0.6, gid="border")
    ax.set_xticks(range(num_clusters))
    ax.set_xlabel("cluster")
    ax.set_ylabel("rows, by cluster and responsibility")
    tidy(ax)
    for cluster, label in enumerate(ax.get_xticklabels()):
        label.set_color(cluster_colour(cluster))
        label.set_fontweight("bold")
    add_colourbar(ax, image, "responsibility")
    return ax


def add_colourbar(ax: Axes, image: Any, label: str) -> None:
    """A thin bar of the colours beside the axes."""
    bar = root_figure(ax).colorbar(image, ax=ax, aspect=30, pad=0.02)
    bar.set_label(label, fontsize=FONT_SIZE)
    bar.ax.tick_params(labelsize=FONT_SIZE)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def sorted_rows(responsibilities: Float[np.ndarray, "n k"]) -> Int[np.ndarray, " n"]:
    """The order of rows by cluster, then by falling responsibility of that cluster; ties keep their order."""
    labels = responsibilities.argmax(1)
    return np.lexsort((-responsibilities.max(1), labels))


def _sorted_responsibilities(
    mixture_or_fit: Mixture | Fit, x: Any
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, " c"]]:
    """The sorted matrix, and the place of the first row of every cluster that has one."""
    _, draws = point_and_draws(mixture_or_fit, _MOST_DRAWS)
    rows = view_rows(draws, x, None, None).x
    responsibilities = mean_responsibilities(draws, rows)
    shown = responsibilities[sorted_rows(responsibilities)]
    labels = shown.argmax(1)
    return shown, np.flatnonzero(np.diff(labels, prepend=-1))


def _handles(num_clusters: int) -> list[Any]:
    return [
        Patch(color=cluster_colour(cluster), linewidth=0.0, label=f"cluster {cluster}")
        for cluster in range(num_clusters)
    ]
