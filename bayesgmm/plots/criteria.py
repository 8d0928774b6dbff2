"""Information criteria against the number of clusters."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bayesgmm.plots.panels import root_figure
from bayesgmm.plots.style import FONT_SIZE, PALETTE, tidy

_CRITERIA = {"bic": "o", "aic": "s", "icl": "^"}


def plot_criteria(table: pd.DataFrame, *, selected: int | None = None, ax: Axes | None = None) -> Figure:
    """Draw BIC, AIC and ICL (smaller is better) against the number of clusters, the smallest of each marked.

    Args:
        table: columns `num_components` and any of `bic`, `aic`, `icl`; one row for every k, NaN where a fit failed.
        selected: the k to highlight.
        ax: axes to draw on.

    Returns:
        The figure.

    Raises:
        ValueError: for missing columns, a k that comes twice, or a `selected` that is not in the table.
    """
    criteria = [name for name in _CRITERIA if name in table.columns]
    if "num_components" not in table.columns or not criteria:
        raise ValueError(f"table needs columns num_components and bic, aic or icl; got {', '.join(map(str, table))}")
    if table["num_components"].duplicated().any():
        raise ValueError("table has some num_components more than once; give the rows of one family")
    table = table.sort_values("num_components")
    counts = table["num_components"].to_numpy(int)
    if selected is not None and selected not in counts:
        raise ValueError(f"selected={selected} is not among the num_components {counts.tolist()} of the table")
    if ax is None:
        ax = Figure(figsize=(5.4, 3.4), layout="constrained").subplots()
    for name, colour in zip(criteria, PALETTE, strict=False):
        values = table[name].to_numpy(float)
        marker = _CRITERIA[name]
        ax.plot(
            counts, values, color=colour, linewidth=1.4, marker=marker, markersize=4.5, label=name.upper(), gid=name
        )
        if np.isfinite(values).any():
            best = int(np.nanargmin(np.where(np.isfinite(values), values, np.nan)))
            ax.plot(
                counts[best],
                values[best],
                marker="o",
                markersize=12.0,
                markerfacecolor="none",
                markeredgecolor=colour,
                markeredgewidth=1.6,
                linestyle="none",
                gid=f"minimum {name}",
            )
    ax.plot(
        [], [], marker="o", markersize=10.0, markerfacecolor="none", color="#444444", linestyle="none", label="minimum"
    )
    if selected is not None:
        ax.axvspan(
            selected - 0.25,
            selected + 0.25,
            color="#E8E8E8",
            zorder=0,
            linewidth=0.0,
            label=f"selected: k = {selected}",
        )
    ax.set_xlabel("number of clusters k")
    ax.set_ylabel("criterion (smaller is better)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(ax)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False, fontsize=FONT_SIZE)
    return root_figure(ax)
