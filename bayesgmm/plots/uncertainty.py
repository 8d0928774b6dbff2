"""How unsure the assignment of every row is."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots.fields import mean_responsibilities
from bayesgmm.plots.panels import Panels, finish, make_panels, root_figure
from bayesgmm.plots.shapes import density_grid, draw_rug, ellipse_outlines, point_size
from bayesgmm.plots.style import FONT_SIZE, INK, cluster_colour
from bayesgmm.plots.view import point_and_draws, view_rows

_MOST_DRAWS = 200
_BAND = (0.05, 0.95)
# From a grey that recedes to a dark red that does not.
_COLOURS = LinearSegmentedColormap.from_list("uncertainty", ["#B9BDC4", "#E69F00", "#B03A00", "#3D0C00"])


def plot_responsibility_uncertainty(
    mixture_or_fit: Mixture | Fit,
    x: Any,
    *,
    ax: Any = None,
    columns: Iterable[int | str] | str | None = None,
    feature_names: Iterable[str] | None = None,
) -> Any:
    """Draw how unsure the assignment of every row is: 1 less the largest of its responsibilities.

    That is mclust's "uncertainty": 0 for a row that surely belongs to one cluster, 1 - 1/k at most. For a posterior the
    responsibilities are averaged over at most 200 draws first, so that doubt about the parameters counts as well; the
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
    if view.num_shown == 1 and view.x.shape[1] > 1:
        raise InputError(f"columns={view.columns} is one of {view.x.shape[1]} features; give at least two")
    panels = make_panels(view, ax, diagonal=False)
    if view.x.shape[1] == 1:
        handles = _draw_responsibilities(next(iter(panels.axes.values())), draws, view.x[:, 0])
        return finish(panels, view, handles)
    uncertainty = 1.0 - mean_responsibilities(draws, view.x).max(1)
    highest = 1.0 - 1.0 / max(draws.num_components, 2)
    # The doubtful rows last, on top.
    order = np.argsort(uncertainty, kind="stable")
    for (i, j), panel in panels.axes.items():
        _draw_points(panel, view.shown[order][:, [j, i]], uncertainty[order], highest)
        if point is not None:
            pair = view.marginal(point, j, i)
            for outline in ellipse_outlines(pair, 0.9):
                panel.plot(*outline.T, color=INK, linewidth=0.8, alpha=0.6, zorder=1, gid="ellipse")
    _add_colourbar(panels, highest)
    return finish(panels, view, [])


def _draw_points(
    ax: Axes, points: Float[np.ndarray, "n 2"], uncertainty: Float[np.ndarray, " n"], highest: float
) -> None:
    ax.scatter(
        points[:, 0],
        points[:, 1],
        s=point_size(len(points)) * (0.8 + 3.2 * uncertainty / highest),
        c=uncertainty,
        cmap=_COLOURS,
        norm=Normalize(0.0, highest),
        linewidths=0.3,
        edgecolors="white",
        zorder=2,
        rasterized=len(points) > 5000,
        gid="rows",
    )


def _add_colourbar(panels: Panels, highest: float) -> None:
    scale = ScalarMappable(Normalize(0.0, highest), _COLOURS)
    if panels.corner is None:
        bar = root_figure(panels.drawn).colorbar(scale, ax=next(iter(panels.axes.values())), aspect=30, pad=0.02)
    else:
        bar = root_figure(panels.drawn).colorbar(
            scale, cax=panels.corner.inset_axes((0.05, 0.8, 0.9, 0.07)), orientation="horizontal"
        )
    bar.set_label("uncertainty of the assignment", fontsize=FONT_SIZE)
    bar.ax.tick_params(labelsize=FONT_SIZE)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _draw_responsibilities(ax: Axes, draws: Mixture, values: Float[np.ndarray, " n"]) -> list[Any]:
    """Curves of the responsibilities along x, bands of the draws, and the uncertainty itself; their legend entries."""
    first = draws[0] if draws.draw_shape else draws
    grid = density_grid(first, values)
    curves = np.asarray(draws.responsibilities(grid[:, None]))
    if draws.draw_shape:
        for cluster, band in enumerate(np.moveaxis(np.quantile(curves, _BAND, axis=0), -1, 0)):
            colour = cluster_colour(cluster)
            ax.fill_between(grid, *band, color=colour, alpha=0.2, linewidth=0.0, gid=f"band {cluster}")
        curves = curves.mean(0)
    for cluster, curve in enumerate(curves.T):
        ax.plot(grid, curve, color=cluster_colour(cluster), linewidth=1.6, gid=f"cluster {cluster}")
    ax.plot(grid, 1.0 - curves.max(1), color=INK, linewidth=1.2, linestyle="--", gid="uncertainty")
    labels = mean_responsibilities(draws, values[:, None]).argmax(1)
    for cluster in range(draws.num_components):
        draw_rug(ax, values[labels == cluster], cluster_colour(cluster))
    ax.set_ylim(-0.06, 1.02)
    ax.set_xlim(float(grid[0]), float(grid[-1]))
    ax.set_ylabel("responsibility")
    handles: list[Any] = [
        Line2D([], [], color=cluster_colour(cluster), linewidth=1.6, label=f"cluster {cluster}")
        for cluster in range(draws.num_components)
    ]
    handles.append(Line2D([], [], color=INK, linewidth=1.2, linestyle="--", label="uncertainty"))
    if draws.draw_shape:
        handles.append(Patch(color=INK, alpha=0.2, linewidth=0.0, label="90% of draws"))
    return handles
