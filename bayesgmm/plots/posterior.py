"""Components of many posterior draws over the rows: the uncertainty of their shapes and places."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from bayesgmm.engines.fit import Fit
from bayesgmm.engines.registry import ENGINES
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.numerics.validation import whole_number
from bayesgmm.plots import panels, shapes
from bayesgmm.plots.panels import INK, PALETTE, AxesLike
from bayesgmm.plots.view import Columns, Names, one_mixture, posterior_draws, thinned_draws, view_rows

_BAND_DRAWS = 400  # quantiles of a band want more draws than the eye can tell apart as lines


def plot_posterior_ellipses(
    fit: Fit,
    x: ArrayLike,
    *,
    point: Mixture | Fit | None = None,
    num_draws: int = 60,
    level: float = 0.9,
    ax: AxesLike = None,
    columns: Columns = None,
    feature_names: Names = None,
) -> Axes | np.ndarray:
    """Draw the components of posterior draws over the rows, and those of a point: how far the draws spread about it.

    Two columns: one thin ellipse for every draw and component. One column: the density of every draw, and the band
    that holds it with probability 0.9 at each point. More: a grid of both.

    Args:
        fit: a fit with draws, by VI, CAVI, Gibbs or NUTS.
        x: rows (n, d).
        point: what is drawn in bold over the draws: another fit of the same rows, such as that by EM, or a mixture; by
            default the posterior mean `fit.mixture`.
        num_draws: number of draws shown, evenly spaced over all chains.
        level: probability mass of the ellipses.
        ax, columns, feature_names: as in `plot_assignments`.

    Returns:
        The axes drawn on: one, or an (m, m) array.

    Raises:
        InputError: for a fit without draws, a point of another number of components, and as in `plot_assignments`.
    """
    draws = posterior_draws(fit)
    bold = one_mixture(fit if point is None else point)
    if bold.num_components != draws.num_components:
        raise InputError(
            f"point has {bold.num_components} components, but the draws have {draws.num_components}; give one alike"
        )
    num_draws = whole_number("num_draws", num_draws)
    shapes.check_levels((level,))
    view = view_rows(bold, x, columns, feature_names)
    view_rows(draws, x, columns, feature_names)
    shown = thinned_draws(draws, num_draws)
    banded = thinned_draws(draws, _BAND_DRAWS)
    grid = panels.make_panels(view, ax)
    who = _name_of(fit if point is None else point)
    if view.num_shown > 1:
        panels.label_clusters(grid.first, np.asarray(bold.weights), markers=False)
        panels.label_masses(grid.first, (level,), of=who)
    for (i, j), panel in grid.axes.items():
        if i == j:
            single, few, many = (view.marginal(mixture, i) for mixture in (bold, shown, banded))
            _draw_densities(panel, single, few, many, view.shown[:, i], who, is_alone=view.num_shown == 1)
        else:
            shapes.draw_plain_points(panel, view.shown[:, [j, i]])
            _draw_draws(panel, view.marginal(shown, j, i), level)
            shapes.draw_components(panel, view.marginal(bold, j, i), (level,))
    return panels.finish_grid(grid, view)


def _draw_draws(ax: Axes, pair: Mixture, level: float) -> None:
    outlines = shapes.ellipse_outlines(pair, level, num_points=73)
    look: dict[str, Any] = {"linewidths": 0.6, "alpha": _alpha(len(outlines)), "zorder": 2}
    for cluster in range(pair.num_components):
        shapes.draw_lines(ax, outlines[:, cluster], panels.cluster_colour(cluster), gid=f"draws {cluster}", **look)
    ax.autoscale_view()


def _draw_densities(
    ax: Axes,
    point: Mixture,
    shown: Mixture,
    banded: Mixture,
    values: Float[np.ndarray, " n"],
    who: str,
    *,
    is_alone: bool,
) -> None:
    shapes.draw_histogram(ax, values, rug=is_alone)
    grid = shapes.density_grid(point, values)
    panels.add_label(ax, f"density of {who}", linewidth=1.6)
    panels.add_label(ax, "density of a draw", color=PALETTE[0], linewidth=0.6, alpha=0.7)
    shapes.draw_band(ax, grid, shapes.densities(banded, grid), PALETTE[0], alpha=0.2, label="90% of draws", gid="band")
    curves = shapes.densities(shown, grid)
    shapes.draw_lines(
        ax, shapes.lines_along(grid, curves), PALETTE[0], linewidths=0.5, alpha=_alpha(len(curves)), gid="draws"
    )
    ax.plot(grid, shapes.densities(point, grid), color=INK, linewidth=1.6, gid="mixture")
    ax.set_ylim(0.0, 1.05 * ax.dataLim.y1)
    if is_alone:
        ax.set(xlim=grid[[0, -1]], ylabel="density")


def _name_of(point: Mixture | Fit) -> str:
    if isinstance(point, Mixture):
        return "the point"
    return "the posterior mean" if point.draws is not None else f"{ENGINES[point.engine].label} fit"


def _alpha(num_lines: int) -> float:
    """Faint enough that many lines do not fill in, plain enough that few can be seen."""
    return float(np.clip(15.0 / num_lines, 0.05, 0.6))
