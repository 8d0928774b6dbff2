"""The rows coloured by the cluster they are assigned to, with the components that claim them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bayesgmm.engines.fit import Fit
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots.panels import finish, make_panels
from bayesgmm.plots.shapes import (
    check_levels,
    component_densities,
    densities,
    density_grid,
    draw_histogram,
    draw_points,
    draw_rug,
    ellipse_outlines,
)
from bayesgmm.plots.style import INK, cluster_colour, cluster_handles
from bayesgmm.plots.view import one_mixture, view_rows


def plot_assignments(
    mixture_or_fit: Mixture | Fit,
    x: Any,
    *,
    ax: Any = None,
    columns: Iterable[int | str] | str | None = None,
    feature_names: Iterable[str] | None = None,
    levels: Sequence[float] = (0.5, 0.9),
) -> Any:
    """Draw the rows coloured by hard assignment, `Mixture.predict(x)`, and the components of the mixture.

    One column: histogram and rug, the density of the mixture and of every component times its weight. Two columns:
    scatter with the ellipses that hold given parts of each component's mass. More: a grid of all pairs, with marginal
    ellipses and, on the diagonal, marginal histograms and densities. Rows are assigned by all features, whatever
    columns are shown.

    Args:
        mixture_or_fit: one mixture, without leading axes, or a fit, of which the point is drawn.
        x: rows (n, d).
        ax: axes to draw on: one for one or two columns, an (m, m) array of them for m columns.
        columns: one to four columns, by number or name, by default the first four; or "pca", the first two principal
            components of the standardised columns.
        feature_names: names of all d features, by default those of a data frame.
        levels: probability masses of the ellipses.

    Returns:
        The axes drawn on: one, or an (m, m) array.

    Raises:
        InputError: for a mixture with leading axes or NaN parameters, or arguments that do not fit it.
    """
    mixture = one_mixture(mixture_or_fit)
    levels = tuple(sorted(levels))
    check_levels(levels)
    view = view_rows(mixture, x, columns, feature_names)
    labels = np.asarray(mixture.predict(view.x))
    panels = make_panels(view, ax)
    for (i, j), panel in panels.axes.items():
        if i == j:
            single = view.marginal(mixture, i)
            _draw_densities(panel, single, view.shown[:, i], labels, is_alone=view.num_shown == 1)
        else:
            draw_points(panel, view.shown[:, [j, i]], labels, mixture.num_components)
            draw_components(panel, view.marginal(mixture, j, i), levels)
    handles = cluster_handles(mixture)
    if view.num_shown != 2:
        handles.append(Line2D([], [], color=INK, linewidth=1.6, label="mixture"))
    if view.num_shown > 1:
        handles.append(mass_handle(levels))
    return finish(panels, view, handles)


def draw_components(ax: Axes, pair: Mixture, levels: Sequence[float]) -> None:
    """Ellipses and means of the components of a two-dimensional mixture, the smallest mass in the strongest line."""
    for level, width in zip(levels, np.linspace(1.8, 1.0, len(levels)), strict=True):
        for cluster, outline in enumerate(ellipse_outlines(pair, level)):
            colour = cluster_colour(cluster)
            # A white edge keeps the line apart from points of its own colour.
            ax.plot(*outline.T, color="white", linewidth=width + 1.6, alpha=0.7, zorder=3, gid="halo")
            ax.plot(*outline.T, color=colour, linewidth=width, zorder=4, gid=f"ellipse {cluster} {level:g}")
    draw_centres(ax, pair.means, "mean")


def draw_centres(ax: Axes, places: Any, name: str) -> None:
    """A mark at every one of some places (k, 2), such as the means of components."""
    for cluster, place in enumerate(np.asarray(places)):
        ax.plot(
            *place[:, None],
            marker="X",
            markersize=8.0,
            markeredgecolor="white",
            markeredgewidth=1.0,
            color=INK,
            linestyle="none",
            zorder=5,
            gid=f"{name} {cluster}",
        )


def mass_handle(levels: Sequence[float], of: str = "") -> Line2D:
    """The legend entry that says what ellipses hold, and whose they are."""
    masses = ", ".join(f"{100 * level:g}%" for level in levels)
    return Line2D(
        [],
        [],
        color=INK,
        linewidth=1.0,
        marker="X",
        markersize=6.0,
        markeredgecolor="white",
        label=f"{of + ': ' if of else ''}mean, ellipse{'s' if len(levels) > 1 else ''} of {masses}",
    )


def _draw_densities(
    ax: Axes, single: Mixture, values: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], *, is_alone: bool
) -> None:
    draw_histogram(ax, values, labels, single.num_components)
    grid = density_grid(single, values)
    for cluster, density in enumerate(component_densities(single, grid).T):
        ax.plot(grid, density, color=cluster_colour(cluster), linewidth=1.4, gid=f"component {cluster}")
    ax.plot(grid, densities(single, grid), color=INK, linewidth=1.6, gid="mixture")
    ax.set_ylim(0.0, 1.05 * ax.dataLim.y1)
    if not is_alone:
        return
    means = np.asarray(single.means)[:, 0]
    for cluster, height in enumerate(np.diagonal(component_densities(single, means))):
        draw_rug(ax, values[labels == cluster], cluster_colour(cluster))
        ax.plot(
            means[cluster],
            height,
            marker="X",
            markersize=7.0,
            markeredgecolor="white",
            color=INK,
            gid=f"mean {cluster}",
        )
    ax.set_ylabel("density")
    ax.set_xlim(float(grid[0]), float(grid[-1]))
