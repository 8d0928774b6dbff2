"""Where over the plane an assignment would be in doubt."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots.fields import DOUBT, assignment_entropy, grid_of, mean_responsibilities, plane_around
from bayesgmm.plots.panels import one_axes
from bayesgmm.plots.responsibilities import add_colourbar
from bayesgmm.plots.shapes import density_grid, draw_ground, draw_rug, ellipse_outlines
from bayesgmm.plots.style import DATA_GREY, INK, tidy
from bayesgmm.plots.view import View, point_and_draws, view_rows

_MOST_DRAWS = 50  # whose responsibilities are averaged at every point of the grid


def plot_assignment_entropy(
    mixture_or_fit: Mixture | Fit,
    x: Any,
    *,
    ax: Any = None,
    columns: Iterable[int | str] | str | None = None,
    feature_names: Iterable[str] | None = None,
) -> Axes:
    r"""Draw the entropy of the assignment that a row at each point would have, $-\sum_j r_j \log_2 r_j$, in bits.

    It is 0 where one cluster is sure and log2 k where all are equally probable. Of a posterior the responsibilities are
    averaged over at most 50 draws, so that doubt about the parameters counts too; their labels have to be matched, as
    those of a `Fit` are. Where there are more columns than two the plane knows of those two alone: a row there may be
    surer by its others. One feature: the entropy along it.

    Args:
        mixture_or_fit: a mixture, draws as a mixture with leading axes, or a fit, whose draws are used if it has any.
        x: rows (n, d).
        ax: axes to draw on.
        columns: two columns, by number or name, by default the first two; or "pca", the first two principal components
            of the standardised columns.
        feature_names: names of all d features.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for one of several columns, for parameters that are NaN, and for arguments that do not fit the
            mixture.
    """
    point, draws = point_and_draws(mixture_or_fit, _MOST_DRAWS)
    view = view_rows(draws, x, columns, feature_names, at_most=2)
    if view.num_shown == 1 and view.x.shape[1] > 1:
        raise InputError(f"columns={view.columns} is one of {view.x.shape[1]} features; give two")
    highest = float(np.log2(max(draws.num_components, 2)))
    ax = one_axes(ax, (6.4, 4.2) if view.num_shown == 2 else (6.4, 3.0))
    if view.num_shown == 2:
        _draw_plane(ax, point, draws, view, highest)
    else:
        _draw_line(ax, draws, view, highest)
    ax.set_xlabel(view.names[0])
    tidy(ax)
    return ax


def _draw_plane(ax: Axes, point: Mixture | None, draws: Mixture, view: View, highest: float) -> None:
    points = view.shown.astype(np.float64)
    horizontal, vertical, grid = grid_of(plane_around(points))
    doubt = assignment_entropy(mean_responsibilities(view.marginal(draws, 0, 1), grid))
    image = ax.imshow(
        doubt.reshape(len(horizontal), len(vertical)).T,
        cmap=DOUBT,
        norm=Normalize(0.0, highest),
        origin="lower",
        aspect="auto",
        interpolation="bilinear",
        extent=(horizontal[0], horizontal[-1], vertical[0], vertical[-1]),
        gid="entropy",
    )
    draw_ground(ax, points)
    if point is not None:
        for outline in ellipse_outlines(view.marginal(point, 0, 1), 0.9):
            ax.plot(*outline.T, color=INK, linewidth=0.8, alpha=0.6, zorder=2, gid="ellipse")
    ax.set_xlim(horizontal[0], horizontal[-1])
    ax.set_ylim(vertical[0], vertical[-1])
    ax.set_ylabel(view.names[1])
    add_colourbar(ax, image, "entropy of the assignment (bits)")


def _draw_line(ax: Axes, draws: Mixture, view: View, highest: float) -> None:
    values = view.shown[:, 0]
    grid = density_grid(draws[0] if draws.draw_shape else draws, values)
    doubt = assignment_entropy(mean_responsibilities(draws, grid[:, None]))
    ax.fill_between(grid, 0.0, doubt, color=DOUBT(0.5), alpha=0.3, linewidth=0.0)
    ax.plot(grid, doubt, color=INK, linewidth=1.6, gid="entropy")
    draw_rug(ax, values, DATA_GREY)
    ax.set_xlim(float(grid[0]), float(grid[-1]))
    ax.set_ylim(-0.06 * highest, 1.02 * highest)
    ax.set_ylabel("entropy of the\nassignment (bits)")
