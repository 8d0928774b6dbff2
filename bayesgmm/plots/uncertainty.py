"""The uncertainty of assignments: of every row, and of a row that would lie anywhere in the plane."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.plots import panels, shapes
from bayesgmm.plots.panels import DATA_GREY, INK, AxesLike
from bayesgmm.plots.view import Columns, Names, View, point_and_draws, view_rows

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
    feature_names: Names = None,
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
    if view.num_shown == 1 and view.x.shape[1] > 1:
        raise InputError(f"columns={view.columns} is one of {view.x.shape[1]} features; give at least two")
    grid = panels.make_panels(view, ax, diagonal=False)
    if view.x.shape[1] == 1:
        _draw_responsibilities(grid.first, draws, view.x[:, 0])
        return panels.finish_grid(grid, view)
    uncertainty = 1.0 - shapes.mean_responsibilities(draws, view.x).max(1)
    highest = 1.0 - 1.0 / max(draws.num_components, 2)
    # The most uncertain rows last, on top.
    order = np.argsort(uncertainty, kind="stable")
    for (i, j), panel in grid.axes.items():
        _draw_points(panel, view.shown[order][:, [j, i]], uncertainty[order], highest)
        if point is not None:
            shapes.draw_outlines(panel, view.marginal(point, j, i), zorder=1)
    scale = ScalarMappable(Normalize(0.0, highest), _COLOURS)
    panels.add_colourbar(grid.first, scale, "uncertainty of the assignment", inside=grid.corner)
    return panels.finish_grid(grid, view)


def _draw_points(
    ax: Axes, points: Float[np.ndarray, "n 2"], uncertainty: Float[np.ndarray, " n"], highest: float
) -> None:
    area = shapes.point_size(len(points)) * (0.8 + 3.2 * uncertainty / highest)
    colour: dict[str, Any] = {"c": uncertainty, "cmap": _COLOURS, "norm": Normalize(0.0, highest)}
    edge: dict[str, Any] = {"linewidths": 0.3, "edgecolors": "white", "rasterized": len(points) > shapes.MANY_ROWS}
    ax.scatter(*points.T, s=area, zorder=2, gid="rows", **colour, **edge)


def _draw_responsibilities(ax: Axes, draws: Mixture, values: Float[np.ndarray, " n"]) -> None:
    """Curves of the responsibilities along x, bands of the draws, and the uncertainty itself."""
    grid = shapes.density_grid(draws, values)
    curves = np.asarray(draws.responsibilities(grid[:, None]))
    mean = curves.mean(0) if draws.draw_shape else curves
    labels = shapes.mean_responsibilities(draws, values[:, None]).argmax(1)
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
    mixture_or_fit: Mixture | Fit,
    x: ArrayLike,
    *,
    ax: AxesLike = None,
    columns: Columns = None,
    feature_names: Names = None,
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
    ax = panels.one_axes(ax, (6.4, 4.2) if view.num_shown == 2 else (6.4, 3.0))
    if view.num_shown == 2:
        _draw_plane(ax, point, draws, view, highest)
    else:
        _draw_line(ax, draws, view, highest)
    panels.tidy(ax, xlabel=view.names[0])
    return ax


def _draw_plane(ax: Axes, point: Mixture | None, draws: Mixture, view: View, highest: float) -> None:
    points = view.shown.astype(np.float64)
    horizontal, vertical, grid = shapes.grid_of(shapes.plane_around(points))
    entropy = shapes.assignment_entropy(shapes.mean_responsibilities(view.marginal(draws, 0, 1), grid))
    extent = (horizontal[0], horizontal[-1], vertical[0], vertical[-1])
    colours: dict[str, Any] = {"cmap": shapes.UNCERTAINTY, "norm": Normalize(0.0, highest)}
    look = {**colours, "interpolation": "bilinear", "origin": "lower"}
    image = shapes.fill_matrix(ax, entropy.reshape(len(horizontal), len(vertical)).T, extent, "entropy", look)
    shapes.draw_ground(ax, points)
    if point is not None:
        shapes.draw_outlines(ax, view.marginal(point, 0, 1), zorder=2)
    ax.set(xlim=horizontal[[0, -1]], ylim=vertical[[0, -1]], ylabel=view.names[1])
    panels.add_colourbar(ax, image, "entropy of the assignment (bits)")


def _draw_line(ax: Axes, draws: Mixture, view: View, highest: float) -> None:
    values = view.shown[:, 0]
    grid = shapes.density_grid(draws, values)
    entropy = shapes.assignment_entropy(shapes.mean_responsibilities(draws, grid[:, None]))
    ax.fill_between(grid, 0.0, entropy, color=shapes.UNCERTAINTY(0.5), alpha=0.3, linewidth=0.0)
    ax.plot(grid, entropy, color=INK, linewidth=1.6, gid="entropy")
    shapes.draw_rug(ax, values, DATA_GREY)
    limits = (-0.06 * highest, 1.02 * highest)
    ax.set(xlim=grid[[0, -1]], ylim=limits, ylabel="entropy of the\nassignment (bits)")
