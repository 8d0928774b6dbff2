"""Parameters by engine, with what each is sure of: a forest."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bayesgmm.parameter_table import ParameterTable
from bayesgmm.plots.panels import root_figure, several_axes
from bayesgmm.plots.style import FONT_SIZE, INK, MARKERS, cluster_colour, tidy

_MOST_PANELS = 12
_PANEL_WIDTH, _LINE_HEIGHT = 2.6, 0.17  # inches
_MOST_COLUMNS = 3


def plot_parameter_forest(table: ParameterTable, *, ax: Any = None) -> Any:
    """Draw every parameter as a forest: a point and its 95 % interval for every engine, clusters one below another.

    One panel for each quantity (weights first, then means, standard deviations and correlations; at most the first
    twelve), one colour for each cluster (ink for what all share), one marker for each engine. Points are estimates and
    posterior means. Bars are 95 % limits: of maximum likelihood by its standard errors, of posteriors quantiles; MAP
    has none. A hollow marker is an interval that the table calls too sure or too unsure.

    Args:
        table: of `parameter_table`, such as the `parameters` of a comparison.
        ax: axes to draw on, as many as there are panels, of any shape.

    Returns:
        The axes drawn on, an array (panels).

    Raises:
        InputError: for another number of axes.
    """
    quantities = list(dict.fromkeys(table.frame["quantity"]))[:_MOST_PANELS]
    clusters = list(dict.fromkeys(table.frame["cluster"]))
    num_columns = min(_MOST_COLUMNS, len(quantities))
    num_rows = math.ceil(len(quantities) / num_columns)
    height = _LINE_HEIGHT * max(4, (len(table.names) + 1) * len(clusters)) + 0.6
    size = (_PANEL_WIDTH * num_columns + 0.4, height * num_rows + 0.4)
    if ax is None:
        axes = several_axes(None, (num_rows, num_columns), size, "")
        spare = axes.ravel()[len(quantities) :]
        for panel in spare:
            panel.remove()
        axes = axes.ravel()[: len(quantities)]
    else:
        axes = np.asarray(ax, object).ravel()
        axes = several_axes(axes, (len(quantities),), size, "a panel for each quantity needs")
    lines = table.frame.to_dict("records")
    for panel, quantity in zip(axes, quantities, strict=True):
        _draw_panel(panel, table, [line for line in lines if line["quantity"] == quantity])
        panel.set_xlabel(quantity)
        tidy(panel)
    handles = _handles(table)
    if ax is None:
        root_figure(axes).legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 2 * num_columns), frameon=False,
            fontsize=FONT_SIZE,
        )  # fmt: skip
    else:
        axes[-1].legend(handles=handles, frameon=False, fontsize=FONT_SIZE)
    return axes


def _draw_panel(ax: Axes, table: ParameterTable, lines: list[dict[Any, Any]]) -> None:
    """Clusters from top to bottom, and in each the engines."""
    step = len(table.names) + 1.0
    ticks = []
    for block, line in enumerate(lines):
        colour = _colour(line["cluster"])
        ticks.append(-block * step - 0.5 * (len(table.names) - 1))
        for position, name in enumerate(table.names):
            height = -block * step - position
            hollow = name in line["flagged"]
            low, high = (line.get(f"{name} {end}", math.nan) for end in ("low", "high"))
            if np.isfinite([low, high]).all():
                ax.plot([low, high], [height, height], color=colour, linewidth=1.3, gid=f"interval {name}")
            ax.plot(
                line[name],
                height,
                marker=MARKERS[position % len(MARKERS)],
                color=colour,
                markerfacecolor="white" if hollow else colour,
                markersize=4.5,
                linestyle="none",
                gid=f"{'flagged' if hollow else 'point'} {name}",
            )
    ax.set_yticks(ticks, [_name(line["cluster"]) for line in lines])
    ax.set_ylim(-len(lines) * step + 1.3, 0.7)
    ax.margins(x=0.08)


def _colour(cluster: str) -> str:
    return cluster_colour(int(cluster)) if cluster.isdigit() else INK


def _name(cluster: str) -> str:
    return f"cluster {cluster}" if cluster.isdigit() else cluster


def _handles(table: ParameterTable) -> list[Line2D]:
    def handle(name: str, position: int, *, hollow: bool = False) -> Line2D:
        marker = MARKERS[position % len(MARKERS)]
        face = "white" if hollow else INK
        return Line2D([], [], color=INK, marker=marker, markersize=4.5, markerfacecolor=face, linewidth=1.3, label=name)

    handles = [handle(name, position) for position, name in enumerate(table.names)]
    if any(table.frame["flagged"]):
        handles.append(handle(f"hollow: far from {table.reference}", 0, hollow=True))
    return handles
