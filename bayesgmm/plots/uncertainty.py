"""How unsure assignments are: of every row, and of a row that would lie anywhere in the plane."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.plots.panels import (
    DATA_GREY,
    INK,
    AxesLike,
    add_colourbar,
    add_swatch,
    cluster_colour,
    finish,
    make_panels,
    one_axes,
    tidy,
)
from bayesgmm.plots.shapes import (
    DOUBT,
    MANY_ROWS,
    assignment_entropy,
    density_grid,
    draw_band,
    draw_ground,
    draw_outlines,
    draw_rug,
    grid_of,
    mean_responsibilities,
    plane_around,
    point_size,
)
from bayesgmm.plots.view import Columns, View, point_and_draws, view_rows

_MOST_DRAWS = 200
_PLANE_DRAWS = 50  # whose responsibilities are averaged at every point of a grid
# From a grey that recedes to a dark red that does not.
_COLOURS = LinearSegmentedColormap.from_list("uncertainty", ["#B9BDC4", "#E69F00", "#B03A00", "#3D0C00"])


def plot_responsibility_uncertainty(
    mixture_or_fit: Mixture | Fit,
    x: ArrayLike,
    *,
    ax: AxesLike = None,
    columns: Columns = None,
    feature_names: Iterable[str] | None = None,
) -> Axes | np.ndarray:
    """Draw how unsure the assignment of every row is: 1 less the largest of its responsibilities.

    That is mclust's "uncertainty": 0 for a row that surely belongs to one cluster, 1 - 1/k at most. For a posterior the
    responsibilities are averaged over at most 200 draws first, so that uncertain parameters count as well; the
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
        _draw_responsibilities(panels.first, draws, view.x[:, 0])
        return finish(panels, view)
    uncertainty = 1.0 - mean_responsibilities(draws, view.x).max(1)
    highest = 1.0 - 1.0 / max(draws.num_components, 2)
    # The most uncertain rows last, on top.
    order = np.argsort(uncertainty, kind="stable")
    for (i, j), panel in panels.axes.items():
        _draw_points(panel, view.shown[order][:, [j, i]], uncertainty[order], highest)
        if point is not None:
            draw_outlines(panel, view.marginal(point, j, i), zorder=1)
    scale = ScalarMappable(Normalize(0.0, highest), _COLOURS)
    add_colourbar(panels.first, scale, "uncertainty of the assignment", inside=panels.corner)
    return finish(panels, view)


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
        rasterized=len(points) > MANY_ROWS,
        gid="rows",
    )


def _draw_responsibilities(ax: Axes, draws: Mixture, values: Float[np.ndarray, " n"]) -> None:
    """Curves of the responsibilities along x, bands of the draws, and the uncertainty itself."""
    grid = density_grid(draws[0] if draws.draw_shape else draws, values)
    curves = np.asarray(draws.responsibilities(grid[:, None]))
    labels = mean_responsibilities(draws, values[:, None]).argmax(1)
    for cluster, every in enumerate(np.moveaxis(curves, -1, 0)):
        colour = cluster_colour(cluster)
        if draws.draw_shape:
            draw_band(ax, grid, every, colour, alpha=0.2, gid=f"band {cluster}")
        mean = every.mean(0) if draws.draw_shape else every
        ax.plot(grid, mean, color=colour, linewidth=1.6, label=f"cluster {cluster}", gid=f"cluster {cluster}")
        draw_rug(ax, values[labels == cluster], colour)
    shown = 1.0 - (curves.mean(0) if draws.draw_shape else curves).max(1)
    ax.plot(grid, shown, color=INK, linewidth=1.2, linestyle="--", label="uncertainty", gid="uncertainty")
    if draws.draw_shape:
        add_swatch(ax, "90% of draws", color=INK, alpha=0.2)
    ax.set_ylim(-0.06, 1.02)
    ax.set_xlim(float(grid[0]), float(grid[-1]))
    ax.set_ylabel("responsibility")


def plot_assignment_entropy(
    mixture_or_fit: Mixture | Fit,
    x: ArrayLike,
    *,
    ax: AxesLike = None,
    columns: Columns = None,
    feature_names: Iterable[str] | None = None,
) -> Axes:
    r"""Draw the entropy of the assignment that a row at each point would have, $-\sum_j r_j \log_2 r_j$, in bits.

    It is 0 where one cluster is sure and log2 k where all are equally probable. Of a posterior the responsibilities are
    averaged over at most 50 draws, so that uncertain parameters count too; their labels have to be matched, as
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
    point, draws = point_and_draws(mixture_or_fit, _PLANE_DRAWS)
    view = view_rows(draws, x, columns, feature_names, at_most=2)
    if view.num_shown == 1 and view.x.shape[1] > 1:
        raise InputError(f"columns={view.columns} is one of {view.x.shape[1]} features; give two")
    highest = float(np.log2(max(draws.num_components, 2)))
    ax = one_axes(ax, (6.4, 4.2) if view.num_shown == 2 else (6.4, 3.0))
    if view.num_shown == 2:
        _draw_plane(ax, point, draws, view, highest)
    else:
        _draw_line(ax, draws, view, highest)
    tidy(ax, view.names[0])
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
        draw_outlines(ax, view.marginal(point, 0, 1), zorder=2)
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
