"""Parameters by engine, with what each is sure of: a forest."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.special import ndtri

from bayesgmm.comparison.parameter_table import LEVEL, ParameterTable, with_uncertainty
from bayesgmm.errors import InputError
from bayesgmm.plots.panels import one_axes
from bayesgmm.plots.style import DATA_GREY, INK, MARKERS, cluster_colour, legend_beside, tidy

_MOST_LINES = 40
_ENGINE_HEIGHT, _GAP = 0.085, 1.2  # inches for an engine; between lines, in engines
_WIDTH, _LETTER = 4.8, 0.075  # inches of the axes with their legend, and of a letter of the longest name


def plot_parameter_forest(table: ParameterTable, *, ax: Any = None) -> Axes:
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
    ax = one_axes(ax, (_WIDTH + _LETTER * longest, _ENGINE_HEIGHT * step * len(lines) + 0.9))
    beyond = float(ndtri(0.5 + 0.5 * LEVEL))
    ax.axvline(0.0, color=DATA_GREY, linewidth=0.8, zorder=0)
    for side in (-beyond, beyond):
        ax.axvline(side, color=DATA_GREY, linewidth=0.8, linestyle=":", zorder=0)
    ticks = []
    for number, line in enumerate(lines):
        ticks.append(-number * step - 0.5 * (len(table.names) - 1))
        _draw_line(ax, table.names, line, base, -number * step)
        if number and line["cluster"] != lines[number - 1]["cluster"]:
            ax.axhline(-number * step + 0.5 * (_GAP + 1.0), color=DATA_GREY, linewidth=0.5, zorder=0)
    ax.set_yticks(ticks, labels)
    ax.set_ylim(-len(lines) * step + 0.5 * (_GAP + 1.0), 0.5 * (_GAP + 1.0))
    ax.set_xlabel(f"distance from {base}, in its {'standard errors' if base == 'em' else 'posterior sd'}")
    tidy(ax)
    for text, line in zip(ax.get_yticklabels(), lines, strict=True):
        text.set_color(_colour(line["cluster"]))
    legend_beside(ax, _handles(table, lines))
    return ax


def _lines(table: ParameterTable, base: str) -> list[dict[Any, Any]]:
    """The lines that have a measure, without correlations or standard deviations where they are too many."""
    lines = [line for line in table.frame.to_dict("records") if line[f"{base} sd"] > 0]
    for kind in ("corr ", "sd"):
        if len(lines) > _MOST_LINES:
            lines = [line for line in lines if not line["quantity"].startswith(kind)]
    return lines[:_MOST_LINES]


def _draw_line(ax: Axes, names: tuple[str, ...], line: dict[Any, Any], base: str, top: float) -> None:
    colour, centre, unit = _colour(line["cluster"]), line[base], line[f"{base} sd"]
    for position, name in enumerate(names):
        height = top - position
        limits = np.array([line.get(f"{name} {end}", math.nan) for end in ("low", "high")])
        if np.isfinite(limits).all():
            ax.plot((limits - centre) / unit, [height, height], color=colour, linewidth=1.2, gid=f"interval {name}")
        hollow = name in line["flagged"]
        ax.plot(
            (line[name] - centre) / unit,
            height,
            marker=MARKERS[position % len(MARKERS)],
            color=colour,
            markerfacecolor="white" if hollow else colour,
            markersize=4.5,
            linestyle="none",
            gid=f"{'flagged' if hollow else 'point'} {name}",
        )


def _colour(cluster: str) -> str:
    return cluster_colour(int(cluster)) if cluster.isdigit() else INK


def _handles(table: ParameterTable, lines: list[dict[Any, Any]]) -> list[Line2D]:
    """Clusters by their colours, then engines by their markers."""
    owners = dict.fromkeys(line["cluster"] for line in lines)
    handles = [
        Line2D([], [], color=_colour(name), linewidth=2.5, label=f"cluster {name}" if name.isdigit() else name)
        for name in owners
    ]
    for position, name in enumerate(table.names):
        marker = MARKERS[position % len(MARKERS)]
        handles.append(Line2D([], [], color=INK, marker=marker, markersize=4.5, linewidth=1.2, label=name))
    if any(line["flagged"] for line in lines):
        look = {"marker": MARKERS[0], "markersize": 4.5, "markerfacecolor": "white", "linewidth": 1.2}
        handles.append(Line2D([], [], color=INK, label=f"hollow: far from {table.reference}", **look))
    return handles
