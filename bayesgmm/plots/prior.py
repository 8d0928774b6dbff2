"""The rows beside data sets drawn from the prior: whether the prior allows for such data, and for how much else."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from scipy.ndimage import gaussian_filter, map_coordinates

from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike, KeyLike
from bayesgmm.numerics.validation import as_key, whole_number
from bayesgmm.plots import panels, shapes
from bayesgmm.plots.panels import DATA_GREY, INK, PALETTE, AxesLike
from bayesgmm.plots.view import Columns, Names, thinned_draws, view_rows
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.target.prior_predictive import prior_draws

_NUM_MIXTURES, _ROWS_OF_EACH = 4000, 10  # of which the prior predictive density is estimated
_SHOWN, _COVERED = (0.025, 0.975), (0.005, 0.995)  # quantiles of predictive rows: of the axes, and of the estimate
_NUM_BINS = 161
_BANDWIDTH = 0.15  # of a column's standard deviation, were it normal; blurs it by about 1%
_SHADES = (0.45, 0.18)


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
    draw_key, row_key = jax.random.split(as_key(key))
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
    spans = [_span(values, new_values) for values, new_values in zip(view.shown.T, new.T, strict=True)]
    few = thinned_draws(drawn[:, :num_draws], num_draws)
    grid = panels.make_panels(view, ax)
    if view.num_shown > 1:
        _label_regions(grid.first, masses)
    for (i, j), panel in grid.axes.items():
        if i == j:
            single = view.marginal(few, i)
            _draw_densities(panel, single, new[:, i], view.shown[:, i], spans[i])
            if view.num_shown == 1:
                shapes.draw_rug(panel, view.shown[:, 0], DATA_GREY)
                panel.set_ylabel("density")
        else:
            _draw_regions(panel, new[:, [j, i]], masses)
            _draw_components(panel, view.marginal(few, j, i), masses[1])
            shapes.draw_ground(panel, view.shown[:, [j, i]])
    drawn_axes = panels.finish_grid(grid, view)
    for (i, j), panel in grid.axes.items():
        panel.set_xlim(spans[j])
        if i != j:
            panel.set_ylim(spans[i])
    return drawn_axes


def predictive_density(
    new: Float[np.ndarray, "m c"],
) -> tuple[list[Float[np.ndarray, " b"]], Float[np.ndarray, "..."]]:
    """Centres of bins along one or two columns, and the density of the rows in them, smoothed by a normal kernel."""
    low, high = np.quantile(new, _COVERED, axis=0)
    edges = list(np.linspace(low, high, _NUM_BINS + 1).T)
    counts, _ = np.histogramdd(new, bins=edges)
    widths = np.array([edge[1] - edge[0] for edge in edges])
    spreads = np.array([np.diff(np.quantile(values, [0.16, 0.84]))[0] / 2 for values in new.T])
    smoothed = gaussian_filter(counts, _BANDWIDTH * spreads / widths)
    return [0.5 * (edge[1:] + edge[:-1]) for edge in edges], smoothed / len(new) / widths.prod()


def _span(values: Float[np.ndarray, " n"], new: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """Limits that hold all rows and most predictive ones."""
    low, high = np.quantile(new, _SHOWN)
    low, high = min(low, values.min()), max(high, values.max())
    pad = 0.04 * (high - low)
    return float(low - pad), float(high + pad)


def _draw_densities(
    ax: Axes,
    few: Mixture,
    new: Float[np.ndarray, " m"],
    values: Float[np.ndarray, " n"],
    span: tuple[float, float],
) -> None:
    shapes.draw_histogram(ax, values, label="rows, histogram")
    top = ax.dataLim.y1
    grid = np.linspace(*span, 801)
    curves = shapes.densities(few, grid)
    (centres,), density = predictive_density(new[:, None])
    ax.plot(centres, density, color=INK, linewidth=1.6, label="prior predictive density", gid="predictive")
    panels.add_label(ax, "density of a draw", color=PALETTE[0], linewidth=0.7)
    lines = shapes.lines_along(grid, curves)
    shapes.draw_lines(ax, lines, PALETTE[0], autolim=False, linewidths=0.7, alpha=0.5, gid="draws")
    # A narrow component of a draw may be a hundred times as high as the rows' histogram: it is cut off.
    ax.set_ylim(0.0, 1.2 * max(top, float(density.max())))


def _draw_regions(ax: Axes, new: Float[np.ndarray, "m 2"], levels: Sequence[float]) -> None:
    (horizontal, vertical), density = predictive_density(new)
    # The region of highest density that holds a part of the rows: its edge is that quantile of the rows' densities.
    origin = [horizontal[0], vertical[0]]
    steps = (new - origin) / [horizontal[1] - horizontal[0], vertical[1] - vertical[0]]
    of_rows = map_coordinates(density, steps.T, order=1, mode="constant")
    edges = np.quantile(of_rows, [1.0 - levels[1], 1.0 - levels[0]])
    colours = [to_rgba(PALETTE[0], shade) for shade in reversed(_SHADES)]
    ax.contourf(horizontal, vertical, density.T, levels=[*edges, np.inf], colors=colours, zorder=0)


def _draw_components(ax: Axes, pair: Mixture, level: float) -> None:
    outlines = shapes.ellipse_outlines(pair, level, num_points=73)
    outlines = outlines.reshape(-1, *outlines.shape[-2:])
    shapes.draw_lines(ax, outlines, PALETTE[0], autolim=False, linewidths=0.7, alpha=0.6, gid="draws")


def _label_regions(ax: Axes, levels: Sequence[float]) -> None:
    panels.label_rows(ax)
    for level, shade in zip(levels, _SHADES, strict=True):
        panels.add_swatch(ax, f"{100 * level:g}% of prior predictive", color=to_rgba(PALETTE[0], shade))
    panels.add_label(ax, f"component of a draw ({100 * levels[1]:g}%)", color=PALETTE[0], linewidth=0.7)
