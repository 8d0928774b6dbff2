"""Mixtures of many draws over the rows: how unsure their shapes and places are, under the posterior and the prior."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from scipy.ndimage import gaussian_filter, map_coordinates

from bayesgmm.engines.fit import Fit
from bayesgmm.engines.registry import ENGINES
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.keys import split_key
from bayesgmm.numerics.precision import ArrayLike, KeyLike
from bayesgmm.numerics.validation import as_key, whole_number
from bayesgmm.plots import panels, shapes
from bayesgmm.plots.panels import BLUE, DATA_GREY, INK, AxesLike
from bayesgmm.plots.view import Columns, Drawable, Names, View, one_mixture, posterior_draws, thinned_draws, view_rows
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.target.prior_simulation import prior_draws

_BAND_DRAWS = 400  # quantiles of a band want more draws than the eye can tell apart as lines
_NUM_MIXTURES, _ROWS_OF_EACH = 4000, 10  # of which the prior predictive density is estimated
_SHOWN, _COVERED = (0.025, 0.975), (0.005, 0.995)  # quantiles of predictive rows: of the axes, and of the estimate
_NUM_BINS = 161
_BANDWIDTH = 0.15  # of a column's standard deviation, were it normal; blurs it by about 1%
_SHADES = (0.45, 0.18)
_NUM_POINTS = 73  # of the outline of a draw


def plot_posterior_ellipses(
    fit: Fit,
    x: ArrayLike,
    *,
    point: Drawable | None = None,
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
    subject = fit if point is None else point
    bold, who = one_mixture(subject), "the point"
    if isinstance(subject, Fit):
        who = f"{ENGINES[subject.engine].label} fit" if subject.draws is None else "the posterior mean"
    if bold.num_components != draws.num_components:
        raise InputError(
            f"point has {bold.num_components} components, but the draws have {draws.num_components}; give one alike"
        )
    num_draws = whole_number("num_draws", num_draws)
    shapes.check_levels((level,))
    view = view_rows(bold, x, columns, feature_names)
    view_rows(draws, x, columns, feature_names)
    shown, banded = thinned_draws(draws, num_draws), thinned_draws(draws, _BAND_DRAWS)
    grid = panels.make_panels(view, ax)
    if view.num_shown > 1:
        panels.label_clusters(grid.first, np.asarray(bold.weights), markers=False)
        panels.label_masses(grid.first, (level,), of=who)
    # Faint enough that many lines do not fill in, plain enough that few can be seen.
    alpha = float(np.clip(15.0 / shown.draw_shape[0], 0.05, 0.6))
    for (i, j), panel in grid.axes.items():
        if i == j:
            _draw_densities(panel, view, i, (bold, shown, banded), who, alpha)
            continue
        shapes.draw_ground(panel, view.shown[:, [j, i]], size=0.6, color=DATA_GREY, zorder=1)
        outlines = shapes.ellipse_outlines(view.marginal(shown, j, i), level, _NUM_POINTS)
        look: dict[str, Any] = {"linewidths": 0.6, "alpha": alpha, "zorder": 2}
        for cluster in range(draws.num_components):
            colour = panels.cluster_colour(cluster)
            shapes.draw_lines(panel, outlines[:, cluster], colour, gid=f"draws {cluster}", **look)
        panel.autoscale_view()
        shapes.draw_components(panel, view.marginal(bold, j, i), (level,))
    return panels.finish_grid(grid)


def _draw_densities(
    ax: Axes, view: View, column: int, mixtures: tuple[Mixture, Mixture, Mixture], who: str, alpha: float
) -> None:
    point, shown, banded = (view.marginal(mixture, column) for mixture in mixtures)
    values = view.shown[:, column]
    shapes.draw_histogram(ax, [values], rug=view.num_shown == 1)
    grid = shapes.density_grid(point, values)
    panels.add_label(ax, f"density of {who}", linewidth=1.6)
    panels.add_label(ax, "density of a draw", color=BLUE, linewidth=0.6, alpha=0.7)
    shapes.draw_band(ax, grid, shapes.densities(banded, grid), BLUE, alpha=0.2, label="90% of draws", gid="band")
    shapes.draw_curves(ax, grid, shapes.densities(shown, grid), BLUE, linewidths=0.5, alpha=alpha, gid="draws")
    ax.plot(grid, shapes.densities(point, grid), color=INK, linewidth=1.6, gid="mixture")
    ax.set_ylim(0.0, 1.05 * ax.dataLim.y1)
    if view.num_shown == 1:
        ax.set(xlim=grid[[0, -1]], ylabel="density")


def plot_prior_predictive(
    prior: AnyPrior,
    x: ArrayLike,
    *,
    family: str | Family = "full",
    key: KeyLike,
    num_draws: int = 6,
    levels: tuple[float, float] = (0.5, 0.9),
    ax: AxesLike = None,
    columns: Columns = None,
    feature_names: Names = None,
) -> Axes | np.ndarray:
    """Draw the rows over the prior predictive density, and the components of some mixtures drawn from the prior.

    One column: a histogram of the rows, the prior predictive density, and the densities of single mixtures. Two
    columns: the rows, the regions of highest prior predictive density that hold given parts of it, and one ellipse for
    every component of single mixtures. More: a grid of both. The axes hold all rows and 95% of predictive ones.

    Args:
        prior: of `default_prior` or `conjugate_prior`.
        x: rows (n, d).
        family: covariance family.
        key: `jax.random.key(seed)`.
        num_draws: number of single mixtures shown.
        levels: two probability masses of the regions; ellipses of components hold the larger one.
        ax, columns, feature_names: as in `plot_assignments`.

    Returns:
        The axes drawn on: one, or an (m, m) array.

    Raises:
        InputError: for what is no prior, for a prior of another family or number of features, for `num_draws` below 1,
            and as in `plot_assignments`.
    """
    masses = shapes.check_levels(levels)
    if len(masses) != 2 or masses[0] == masses[1]:
        raise InputError(f"levels={levels} must be two different probability masses, such as (0.5, 0.9)")
    num_draws = whole_number("num_draws", num_draws)
    draw_key, row_key = split_key(as_key(key))
    num_components = len(getattr(prior, "concentration", [0.0]))
    drawn = prior_draws(prior, family, num_components, _NUM_MIXTURES, key=draw_key)
    num_features = np.shape(x)[1] if np.ndim(x) == 2 else 1
    if num_features != drawn.num_features:
        raise InputError(
            f"prior is for {drawn.num_features} features, and x has {num_features}; make it of the same columns"
        )
    view = view_rows(drawn, x, columns, feature_names)
    new = np.asarray(drawn.sample(_ROWS_OF_EACH, key=row_key), np.float64)
    new = view.coordinates(new.reshape(-1, num_features))
    # Limits that hold all rows and most predictive ones.
    low, high = np.quantile(new, _SHOWN, axis=0)
    low, high = np.minimum(low, view.shown.min(0)), np.maximum(high, view.shown.max(0))
    spans = np.column_stack([low - 0.04 * (high - low), high + 0.04 * (high - low)])
    few = thinned_draws(drawn[:, :num_draws], num_draws)
    grid = panels.make_panels(view, ax)
    if view.num_shown > 1:
        panels.label_rows(grid.first)
        for level, shade in zip(masses, _SHADES, strict=True):
            panels.add_swatch(grid.first, f"{100 * level:g}% of prior predictive", color=to_rgba(BLUE, shade))
        panels.add_label(grid.first, f"component of a draw ({100 * masses[1]:g}%)", color=BLUE, linewidth=0.7)
    look: dict[str, Any] = {"autolim": False, "linewidths": 0.7, "gid": "draws"}
    for (i, j), panel in grid.axes.items():
        if i != j:
            _draw_regions(panel, new[:, [j, i]], masses)
            outlines = shapes.ellipse_outlines(view.marginal(few, j, i), masses[1], _NUM_POINTS)
            shapes.draw_lines(panel, outlines.reshape(-1, _NUM_POINTS, 2), BLUE, alpha=0.6, **look)
            shapes.draw_ground(panel, view.shown[:, [j, i]])
            continue
        shapes.draw_histogram(panel, [view.shown[:, i]], rug=view.num_shown == 1, label="rows, histogram")
        (centres,), density = predictive_density(new[:, [i]])
        # A narrow component of a draw may be a hundred times as high as the rows' histogram: it is cut off.
        top = 1.2 * max(panel.dataLim.y1, float(density.max()))
        panel.plot(centres, density, color=INK, linewidth=1.6, label="prior predictive density", gid="predictive")
        panels.add_label(panel, "density of a draw", color=BLUE, linewidth=0.7)
        line = np.linspace(spans[i, 0], spans[i, 1], 801)
        shapes.draw_curves(panel, line, shapes.densities(view.marginal(few, i), line), BLUE, alpha=0.5, **look)
        panel.set(ylim=(0.0, top), ylabel="density" if view.num_shown == 1 else "")
    panels.finish_grid(grid)
    for (i, j), panel in grid.axes.items():
        panel.set_xlim(spans[j])
        if i != j:
            panel.set_ylim(spans[i])
    return grid.drawn


def predictive_density(new: Float[np.ndarray, "m c"]) -> tuple[list[Float[np.ndarray, " b"]], Float[np.ndarray, "..."]]:
    """Centres of bins along one or two columns, and the density of the rows in them, smoothed by a normal kernel."""
    low, high = np.quantile(new, _COVERED, axis=0)
    edges = list(np.linspace(low, high, _NUM_BINS + 1).T)
    counts, _ = np.histogramdd(new, bins=edges)
    widths = np.array([edge[1] - edge[0] for edge in edges])
    spreads = np.array([np.diff(np.quantile(values, [0.16, 0.84]))[0] / 2 for values in new.T])
    smoothed = gaussian_filter(counts, _BANDWIDTH * spreads / widths)
    return [0.5 * (edge[1:] + edge[:-1]) for edge in edges], smoothed / len(new) / widths.prod()


def _draw_regions(ax: Axes, new: Float[np.ndarray, "m 2"], levels: Sequence[float]) -> None:
    (horizontal, vertical), density = predictive_density(new)
    # The region of highest density that holds a part of the rows: its edge is that quantile of the rows' densities.
    origin = [horizontal[0], vertical[0]]
    steps = (new - origin) / [horizontal[1] - horizontal[0], vertical[1] - vertical[0]]
    of_rows = map_coordinates(density, steps.T, order=1, mode="constant")
    edges = np.quantile(of_rows, [1.0 - levels[1], 1.0 - levels[0]])
    colours = [to_rgba(BLUE, shade) for shade in reversed(_SHADES)]
    ax.contourf(horizontal, vertical, density.T, levels=[*edges, np.inf], colors=colours, zorder=0)
