"""Components of many posterior draws over the rows: how sure the posterior is of shape and place."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots.assignments import draw_components, mass_handle
from bayesgmm.plots.panels import finish, make_panels
from bayesgmm.plots.shapes import (
    check_levels,
    densities,
    density_grid,
    draw_histogram,
    draw_plain_points,
    draw_rug,
    ellipse_outlines,
)
from bayesgmm.plots.style import DATA_GREY, INK, PALETTE, cluster_colour, cluster_handles, engine_name
from bayesgmm.plots.view import one_mixture, posterior_draws, thinned_draws, view_rows

_BAND_DRAWS = 400  # quantiles of a band want more draws than the eye can tell apart as lines
_BAND = (0.05, 0.95)


def plot_posterior_ellipses(
    fit: Fit,
    x: Any,
    *,
    point: Mixture | Fit | None = None,
    num_draws: int = 60,
    level: float = 0.9,
    ax: Any = None,
    columns: Iterable[int | str] | str | None = None,
    feature_names: Iterable[str] | None = None,
) -> Any:
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
    if num_draws < 1:
        raise InputError(f"num_draws={num_draws} must be at least 1")
    check_levels((level,))
    view = view_rows(bold, x, columns, feature_names)
    view_rows(draws, x, columns, feature_names)
    shown = thinned_draws(draws, num_draws)
    banded = thinned_draws(draws, _BAND_DRAWS)
    panels = make_panels(view, ax)
    for (i, j), panel in panels.axes.items():
        if i == j:
            single, few, many = (view.marginal(mixture, i) for mixture in (bold, shown, banded))
            _draw_densities(panel, single, few, many, view.shown[:, i], is_alone=view.num_shown == 1)
        else:
            draw_plain_points(panel, view.shown[:, [j, i]])
            _draw_draws(panel, view.marginal(shown, j, i), level)
            draw_components(panel, view.marginal(bold, j, i), (level,))
    return finish(panels, view, _handles(bold, _name_of(fit if point is None else point), view.num_shown, level))


def _draw_draws(ax: Axes, pair: Mixture, level: float) -> None:
    outlines = ellipse_outlines(pair, level, num_points=73)
    for cluster in range(pair.num_components):
        lines = LineCollection(
            list(outlines[:, cluster]),
            colors=cluster_colour(cluster),
            linewidths=0.6,
            alpha=_alpha(len(outlines)),
            zorder=2,
            gid=f"draws {cluster}",
        )
        ax.add_collection(lines)
    ax.autoscale_view()


def _draw_densities(
    ax: Axes, point: Mixture, shown: Mixture, banded: Mixture, values: Float[np.ndarray, " n"], *, is_alone: bool
) -> None:
    draw_histogram(ax, values, None, point.num_components)
    grid = density_grid(point, values)
    low, high = np.quantile(densities(banded, grid), _BAND, axis=0)
    ax.fill_between(grid, low, high, color=PALETTE[0], alpha=0.2, linewidth=0.0, gid="band")
    curves = densities(shown, grid)
    lines = LineCollection(
        [np.stack([grid, curve], axis=1) for curve in curves],
        colors=PALETTE[0],
        linewidths=0.5,
        alpha=_alpha(len(curves)),
        gid="draws",
    )
    ax.add_collection(lines)
    ax.plot(grid, densities(point, grid), color=INK, linewidth=1.6, gid="mixture")
    ax.set_ylim(0.0, 1.05 * ax.dataLim.y1)
    if is_alone:
        draw_rug(ax, values, DATA_GREY)
        ax.set_ylabel("density")
        ax.set_xlim(float(grid[0]), float(grid[-1]))


def _name_of(point: Mixture | Fit) -> str:
    if isinstance(point, Mixture):
        return "the point"
    return "the posterior mean" if point.draws is not None else f"{engine_name(point.engine)} fit"


def _alpha(num_lines: int) -> float:
    """Faint enough that many lines do not fill in, plain enough that few can be seen."""
    return float(np.clip(15.0 / num_lines, 0.05, 0.6))


def _handles(mixture: Mixture, who: str, num_columns: int, level: float) -> list[Any]:
    density = [
        Line2D([], [], color=INK, linewidth=1.6, label=f"density of {who}"),
        Line2D([], [], color=PALETTE[0], linewidth=0.6, alpha=0.7, label="density of a draw"),
        Patch(color=PALETTE[0], alpha=0.2, linewidth=0.0, label="90% of draws"),
    ]
    if num_columns == 1:
        return density
    clusters = cluster_handles(mixture)
    for handle in clusters:
        handle.set_marker("")
    ellipses = [*clusters, mass_handle((level,), of=who)]
    return ellipses if num_columns == 2 else [*ellipses, *density]
