"""Information criteria against the number of clusters, for one covariance family or several."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bayesgmm.errors import InputError
from bayesgmm.numerics.validation import whole_number
from bayesgmm.plots.panels import new_axes, one_axes, several_axes
from bayesgmm.plots.style import INK, MARKERS, PALETTE, legend_beside, tidy

CRITERIA = ("bic", "aic", "icl")


def plot_criteria(
    table: pd.DataFrame, *, criteria: Sequence[str] | None = None, selected: Any = None, ax: Any = None
) -> Any:
    """Draw BIC, AIC and ICL (smaller is better) against the number of clusters, the smallest of each marked.

    One family: a line for each criterion, in one panel. Several families: a panel for each criterion, in it a line for
    each family; the mark is at the smallest over all of them.

    Args:
        table: columns `num_components` and any of `bic`, `aic`, `icl`, and `family` where there are several; one row
            for every k and family, NaN where a fit failed.
        criteria: those that are drawn, by default all that the table has.
        selected: the k to highlight; of several families the pair (family, k).
        ax: axes to draw on: one, or for several families one for every criterion.

    Returns:
        The axes drawn on: one, or an array with one for every criterion.

    Raises:
        InputError: for missing columns, a k that comes twice, or what is selected and is not in the table.
    """
    known = [name for name in CRITERIA if name in table.columns]
    if "num_components" not in table.columns or not known:
        raise InputError(f"table needs columns num_components and bic, aic or icl; got {', '.join(map(str, table))}")
    chosen = known if criteria is None else list(criteria)
    missing = [name for name in chosen if name not in known]
    if missing or not chosen:
        raise InputError(f"criteria has {missing or 'none'}; the table has {', '.join(known)}")
    families = [str(name) for name in dict.fromkeys(table["family"])] if "family" in table.columns else [""]
    lines = {name: _of_family(table, name).sort_values("num_components") for name in families}
    for family, rows in lines.items():
        if rows["num_components"].duplicated().any():
            of = f" for family {family}" if family else ""
            raise InputError(f"table has some num_components more than once{of}; give one row for each k and family")
    if len(families) == 1:
        picked = None if selected is None else (families[0], _picked_number(selected))
        _check_selected(picked, lines)
        single = one_axes(ax, (5.4, 3.4))
        _draw_one_family(single, lines[families[0]], chosen, picked)
        return single
    picked = None if selected is None else _picked_pair(selected)
    _check_selected(picked, lines)
    if ax is None:
        ax = new_axes((2.7 * len(chosen) + 1.4, 3.2), 1, len(chosen), squeeze=False)[0]
    axes = several_axes(ax, (len(chosen),), (0.0, 0.0), f"{len(chosen)} criteria need")
    for criterion, panel in zip(chosen, axes, strict=True):
        _draw_families(panel, lines, criterion, picked)
    legend_beside(axes[-1], _family_handles(lines, picked))
    return axes


def _of_family(table: pd.DataFrame, family: str) -> pd.DataFrame:
    return table.loc[(table["family"].astype(str) == family).to_numpy()] if family else table


def _picked_number(selected: Any) -> int:
    return whole_number("selected", selected[1] if isinstance(selected, tuple) else selected)


def _picked_pair(selected: Any) -> tuple[str, int]:
    if not isinstance(selected, tuple) or len(selected) != 2:
        raise InputError(f'selected={selected!r} must be a pair such as ("full", 3), as the table has several families')
    return str(selected[0]), whole_number("selected", selected[1])


def _check_selected(picked: tuple[str, int] | None, lines: dict[str, pd.DataFrame]) -> None:
    if picked is None:
        return
    family, count = picked
    if family not in lines:
        raise InputError(f"selected has family {family!r}, which is not among {', '.join(lines)}")
    counts = lines[family]["num_components"].astype(int).tolist()
    if count not in counts:
        raise InputError(f"selected={count} is not among the num_components {counts} of the table")


def _draw_one_family(ax: Axes, rows: pd.DataFrame, criteria: list[str], picked: tuple[str, int] | None) -> None:
    for name in criteria:
        position = CRITERIA.index(name)
        _draw_line(ax, rows, name, PALETTE[position], MARKERS[position], label=name.upper(), gid=name)
        smallest = _smallest(rows, name)
        if smallest is not None:
            _mark(ax, *smallest, PALETTE[position], f"minimum {name}")
    handles: list[Any] = [line for line in ax.get_lines() if line.get_gid() in criteria]
    handles.append(_minimum_handle())
    if picked is not None:
        _highlight(ax, picked[1])
        handles.append(Patch(color="#E8E8E8", linewidth=0.0, label=f"selected: k = {picked[1]}"))
    ax.set_ylabel("criterion (smaller is better)")
    _finish(ax)
    legend_beside(ax, handles)


def _draw_families(ax: Axes, lines: dict[str, pd.DataFrame], criterion: str, picked: tuple[str, int] | None) -> None:
    best: tuple[int, float, str] | None = None
    for position, (family, rows) in enumerate(lines.items()):
        colour = PALETTE[position % len(PALETTE)]
        _draw_line(ax, rows, criterion, colour, MARKERS[position % len(MARKERS)], label=family, gid=family)
        smallest = _smallest(rows, criterion)
        if smallest is not None and (best is None or smallest[1] < best[1]):
            best = (*smallest, colour)
    if best is not None:
        _mark(ax, *best, f"minimum {criterion}")
    if picked is not None:
        _highlight(ax, picked[1])
    ax.set_ylabel(criterion.upper())
    _finish(ax)


def _draw_line(ax: Axes, rows: pd.DataFrame, name: str, colour: str, marker: str, *, label: str, gid: str) -> None:
    counts, values = rows["num_components"].to_numpy(int), rows[name].to_numpy(float)
    ax.plot(counts, values, color=colour, linewidth=1.4, marker=marker, markersize=4.5, label=label, gid=gid)


def _smallest(rows: pd.DataFrame, name: str) -> tuple[int, float] | None:
    values = rows[name].to_numpy(float)
    if not np.isfinite(values).any():
        return None
    best = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
    return int(rows["num_components"].iloc[best]), float(values[best])


def _mark(ax: Axes, count: int, value: float, colour: str, gid: str) -> None:
    ax.plot(count, value, color=colour, gid=gid, **_RING)


_RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 12.0,
    "markerfacecolor": "none",
    "markeredgewidth": 1.6,
    "linestyle": "none",
}


def _minimum_handle() -> Line2D:
    return Line2D([], [], color=INK, label="minimum", **{**_RING, "markersize": 10.0, "markeredgewidth": 1.2})


def _highlight(ax: Axes, count: int) -> None:
    ax.axvspan(count - 0.25, count + 0.25, color="#E8E8E8", zorder=0, linewidth=0.0)


def _family_handles(lines: dict[str, pd.DataFrame], picked: tuple[str, int] | None) -> list[Any]:
    handles: list[Any] = [
        Line2D(
            [],
            [],
            color=PALETTE[position % len(PALETTE)],
            marker=MARKERS[position % len(MARKERS)],
            markersize=4.5,
            linewidth=1.4,
            label=family,
        )
        for position, family in enumerate(lines)
    ]
    handles.append(_minimum_handle())
    if picked is not None:
        handles.append(Patch(color="#E8E8E8", linewidth=0.0, label=f"selected:\n{picked[0]}, k = {picked[1]}"))
    return handles


def _finish(ax: Axes) -> None:
    ax.set_xlabel("number of clusters k")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(ax)
