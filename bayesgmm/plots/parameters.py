"""Parameters by engine: posterior densities with the point estimates marked in them, and a forest of intervals."""

import itertools
import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from scipy.special import ndtri
from scipy.stats import gaussian_kde

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.presentation import LEVEL
from bayesgmm.plots import panels
from bayesgmm.plots.panels import DATA_GREY, INK, MARKERS, AxesLike
from bayesgmm.plots.shapes import Grid
from bayesgmm.plots.view import Names, engines_giving, name_columns
from bayesgmm.runtime.printing import with_uncertainty
from bayesgmm.standard_errors.parameters import ParameterTable

_MOST_FEATURES = 8
# How the values of fits without draws look.
_POINT_LOOKS: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "marker": marker, "linewidth": 0.9, "markersize": 5.0}
    for colour, marker in zip((INK, DATA_GREY) * 2, "v^Ds", strict=True)
)
_MOST_LINES = 40
_ENGINE_HEIGHT, _GAP = 0.085, 1.2  # inches for an engine; between lines, in engines
_WIDTH, _LETTER = 4.8, 0.075  # inches of the axes with their legend, and of a letter of the longest name


def plot_posterior_parameters(
    fits: Mapping[str, Fit], *, feature_names: Names = None, ax: AxesLike = None
) -> np.ndarray:
    """Draw the posterior densities of the weights (first row) and of the means along every feature (a row for each).

    There is one column of panels, and one colour, for every cluster; one line style for every fit with draws; and a
    marked vertical line for the value of every fit without. The curves are kernel density estimates. Labels have to
    agree between the fits, as those of `compare` do. At most the first eight features are shown.

    Args:
        fits: fits by name, at least one with draws.
        feature_names: names of all d features.
        ax: axes to draw on, of shape (1 + features, k).

    Returns:
        The axes drawn on, an array of that shape.

    Raises:
        InputError: when no fit has draws, or the fits differ in the number of clusters or features.
    """
    posteriors = {name: fit for name, fit in fits.items() if fit.draws is not None}
    points = {name: fit for name, fit in fits.items() if fit.draws is None}
    if not posteriors:
        raise InputError(
            f"none of the fits ({', '.join(fits) or 'there are none'}) has draws; give one by {engines_giving()}"
        )
    shapes = {name: fit.mixture.means.shape for name, fit in fits.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"fits must agree in clusters and features; means have shapes {shapes}")
    num_clusters, num_features = next(iter(shapes.values()))
    names = name_columns(feature_names, num_features, *fits.values())[:_MOST_FEATURES]
    num_rows = 1 + len(names)
    size = (max(2.3 * num_clusters, 4.0) + 0.4, 1.7 * num_rows + 0.5)
    axes = panels.several_axes(ax, (num_rows, num_clusters), size, "weights and means need")
    lines = {name: {"linestyle": style, "linewidth": 1.6} for name, style in panels.line_styles(posteriors).items()}
    marks = {name: _POINT_LOOKS[position % len(_POINT_LOOKS)] for position, name in enumerate(points)}
    for name, look in {**lines, **marks}.items():
        panels.add_label(axes[0, 0], name, **look)
    for (row, cluster), panel in np.ndenumerate(axes):
        colour = panels.cluster_colour(cluster)
        values = {name: _values(fit, row)[:, cluster] for name, fit in fits.items()}
        for name, look in lines.items():
            curve = density_of_draws(values[name], (0.0, 1.0) if row == 0 else (-np.inf, np.inf))
            if curve is None:
                panel.axvline(float(values[name][0]), color=colour, gid=f"constant {name}", **look)
            else:
                panel.plot(*curve, color=colour, gid=f"density {name}", **look)
                panel.fill_between(*curve, color=colour, alpha=0.07, linewidth=0.0)
        # Markers of points that nearly agree are one below another.
        for height, (name, mark) in zip(0.96 - 0.1 * np.arange(len(marks)), marks.items(), strict=True):
            value = float(values[name][0])
            panel.axvline(value, color=mark["color"], linewidth=mark["linewidth"], zorder=1, gid=f"mark {name}")
            place = {"transform": panel.get_xaxis_transform(), "clip_on": False, "linestyle": "none"}
            panel.plot(value, height, **mark, **place)
        panel.set_ylim(bottom=0.0)
        panel.margins(y=0.15)
        if row == 0:
            panel.set_title(f"cluster {cluster}", color=colour)
        label = f"mean of {names[row - 1]}" if row else "weight"
        panels.tidy(panel, xlabel=label, ylabel="" if cluster else "density", yticks=[])
    if ax is not None:
        panels.legend_beside(axes[0, -1], axes[0, 0])
    else:
        place = {"loc": "outside lower center", "ncols": min(len(fits), max(int(size[0] / 1.4), 1))}
        panels.add_legend(panels.root_figure(axes), axes[0, 0], handlelength=2.6, **place)
    return axes


def _values(fit: Fit, row: int) -> Float[np.ndarray, "s k"]:
    """Weights of the clusters (row 0) or their means along feature row - 1, in all draws or in the one point."""
    mixture = fit.mixture if fit.draws is None else fit.draws
    values = np.asarray(mixture.weights) if row == 0 else np.asarray(mixture.means)[..., row - 1]
    return values.reshape(-1, mixture.num_components).astype(np.float64)


def density_of_draws(values: Float[np.ndarray, " s"], support: tuple[float, float]) -> tuple[Grid, Grid] | None:
    """A kernel density estimate along the range of the draws, or None where they are all equal."""
    if np.ptp(values) <= 1e-12 * np.abs(values).max() or len(values) < 2:
        return None
    low, high = np.quantile(values, [0.001, 0.999])
    pad = 0.15 * (high - low)
    grid = np.linspace(max(low - pad, support[0]), min(high + pad, support[1]), 256)
    return grid, gaussian_kde(values)(grid)


def plot_parameter_forest(table: ParameterTable, *, ax: AxesLike = None) -> Axes:
    """Draw every parameter as a line of a forest: a point and its 95 % interval for every engine, one below another.

    Parameters have different units, so each is drawn by its distance from one fit's value in that fit's standard
    deviations: the sampler's where one was run, else those of maximum likelihood. Dotted lines hold 95 % of a normal.
    The value itself stands beside the parameter's name.

    One colour for each cluster (ink for what all share), one marker for each engine. Points are estimates and posterior
    means. Bars are 95 % limits: of maximum likelihood by its standard errors, of posteriors quantiles; MAP has none. A
    hollow marker is an engine that the table calls overconfident or underconfident. At most 40 lines are drawn; of more
    the correlations and then the standard deviations are left out.

    Args:
        table: of `parameter_table`, such as the `parameters` of a comparison.
        ax: axes to draw on.

    Returns:
        The axes drawn on.

    Raises:
        InputError: where no fit of the table has standard deviations.
    """
    base = table.measured_by
    if base is None:
        raise InputError(f"none of the fits ({', '.join(table.names)}) has standard errors or draws; give one that has")
    lines = _lines(table, base)
    step = len(table.names) + _GAP
    labels = [f"{line['quantity']}  {with_uncertainty(line[base], line[f'{base} sd'])}" for line in lines]
    longest = max(len(label) for label in labels)
    ax = panels.one_axes(ax, (_WIDTH + _LETTER * longest, _ENGINE_HEIGHT * step * len(lines) + 0.9))
    beyond = float(ndtri(0.5 + 0.5 * LEVEL))
    ax.axvline(0.0, color=DATA_GREY, linewidth=0.8, zorder=0)
    for side in (-beyond, beyond):
        ax.axvline(side, color=DATA_GREY, linewidth=0.8, linestyle=":", zorder=0)
    tops, markers = -step * np.arange(len(lines)), itertools.cycle(MARKERS)
    marks = {name: {"marker": next(markers), "markersize": 4.5} for name in table.names}
    for top, line, before in zip(tops, lines, [lines[0], *lines], strict=False):
        if line["cluster"] != before["cluster"]:
            ax.axhline(top + 0.5 * (_GAP + 1.0), color=DATA_GREY, linewidth=0.5, zorder=0)
        for height, (name, mark) in zip(top - np.arange(len(marks)), marks.items(), strict=True):
            _draw_estimate(ax, line, name, base, height, mark)
    ax.set_yticks(tops - 0.5 * (len(marks) - 1), labels)
    for text, line in zip(ax.get_yticklabels(), lines, strict=True):
        text.set_color(_colour(line["cluster"]))
    for name in dict.fromkeys(line["cluster"] for line in lines):
        panels.add_label(ax, f"cluster {name}" if name.isdigit() else name, color=_colour(name), linewidth=2.5)
    for name, mark in marks.items():
        panels.add_label(ax, name, linewidth=1.2, **mark)
    if any(line["flagged"] for line in lines):
        hollow = f"hollow: far from {table.reference}"
        panels.add_label(ax, hollow, markerfacecolor="white", linewidth=1.2, **marks[table.names[0]])
    units = "posterior sd" if base == table.reference else "standard errors"
    limits = (tops[-1] - step + 0.5 * (_GAP + 1.0), 0.5 * (_GAP + 1.0))
    return panels.finish(ax, ylim=limits, xlabel=f"distance from {base}, in its {units}")


def _lines(table: ParameterTable, base: str) -> list[dict[Hashable, Any]]:
    """The lines that have a measure, without correlations or standard deviations where they are too many."""
    lines = [line for line in table.frame.to_dict("records") if line[f"{base} sd"] > 0]
    for kind in ("corr ", "sd"):
        if len(lines) > _MOST_LINES:
            lines = [line for line in lines if not line["quantity"].startswith(kind)]
    return lines[:_MOST_LINES]


def _draw_estimate(
    ax: Axes, line: Mapping[Hashable, Any], name: str, base: str, height: float, mark: Mapping[str, Any]
) -> None:
    colour, centre, unit = _colour(line["cluster"]), line[base], line[f"{base} sd"]
    limits = np.array([line.get(f"{name} {end}", math.nan) for end in ("low", "high")])
    if np.isfinite(limits).all():
        ax.plot((limits - centre) / unit, [height, height], color=colour, linewidth=1.2, gid=f"interval {name}")
    kind, face = ("flagged", "white") if name in line["flagged"] else ("point", colour)
    look = {"color": colour, "markerfacecolor": face, "linestyle": "none", **mark}
    ax.plot((line[name] - centre) / unit, height, gid=f"{kind} {name}", **look)


def _colour(cluster: str) -> str:
    return panels.cluster_colour(int(cluster)) if cluster.isdigit() else INK
