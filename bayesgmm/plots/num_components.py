"""How many components: criteria over k, weights of every k, and the components that draws fill."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike, KeyLike, RandomKey
from bayesgmm.numerics.validation import as_key, shown, whole_number
from bayesgmm.plots.panels import (
    FONT_SIZE,
    INK,
    MARKERS,
    PALETTE,
    AxesLike,
    add_label,
    legend_beside,
    one_axes,
    tidy,
    wrapped_axes,
)
from bayesgmm.plots.view import posterior_draws
from bayesgmm.posterior.allocations import flat_draws, rows_of_draws, sampled_allocations

CRITERIA = ("bic", "aic", "icl")
_WEIGHTS = {"bic": "by BIC: exp(−BIC/2)", "weight": "stacking by LOO"}


def plot_criteria(
    table: pd.DataFrame,
    *,
    criteria: Sequence[str] | None = None,
    selected: int | tuple[str, int] | None = None,
    ax: AxesLike = None,
) -> Axes | np.ndarray:
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
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"table={shown(table)} must be a DataFrame, such as the candidates of a comparison")
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
    axes = wrapped_axes(ax, len(chosen), len(chosen), (2.7, 3.2), 1.4, f"{len(chosen)} criteria need")
    for criterion, panel in zip(chosen, axes, strict=True):
        _draw_families(panel, lines, criterion, picked)
    legend_beside(axes[-1])
    return axes


def _of_family(table: pd.DataFrame, family: str) -> pd.DataFrame:
    return table.loc[(table["family"].astype(str) == family).to_numpy()] if family else table


def _picked_number(selected: object) -> int:
    return whole_number("selected", selected[1] if isinstance(selected, tuple) else selected)


def _picked_pair(selected: object) -> tuple[str, int]:
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
        _draw_criterion(ax, rows, name, PALETTE[position], MARKERS[position], label=name.upper(), gid=name)
        smallest = _smallest(rows, name)
        if smallest is not None:
            _mark(ax, *smallest, PALETTE[position], f"minimum {name}")
    _finish_criteria(ax, "criterion (smaller is better)", picked, "" if picked is None else f" k = {picked[1]}")
    legend_beside(ax)


def _draw_families(ax: Axes, lines: dict[str, pd.DataFrame], criterion: str, picked: tuple[str, int] | None) -> None:
    best: tuple[int, float, str] | None = None
    for position, (family, rows) in enumerate(lines.items()):
        colour = PALETTE[position % len(PALETTE)]
        _draw_criterion(ax, rows, criterion, colour, MARKERS[position % len(MARKERS)], label=family, gid=family)
        smallest = _smallest(rows, criterion)
        if smallest is not None and (best is None or smallest[1] < best[1]):
            best = (*smallest, colour)
    if best is not None:
        _mark(ax, *best, f"minimum {criterion}")
    _finish_criteria(ax, criterion.upper(), picked, "" if picked is None else f"\n{picked[0]}, k = {picked[1]}")


def _draw_criterion(ax: Axes, rows: pd.DataFrame, name: str, colour: str, marker: str, *, label: str, gid: str) -> None:
    counts, values = rows["num_components"].to_numpy(int), rows[name].to_numpy(float)
    ax.plot(counts, values, color=colour, linewidth=1.4, marker=marker, markersize=4.5, label=label, gid=gid)


def _smallest(rows: pd.DataFrame, name: str) -> tuple[int, float] | None:
    values = rows[name].to_numpy(float)
    if not np.isfinite(values).any():
        return None
    best = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
    return int(rows["num_components"].iloc[best]), float(values[best])


def _mark(ax: Axes, count: int, value: float, colour: str, gid: str) -> None:
    ax.plot(count, value, color=colour, gid=gid, markersize=12.0, markeredgewidth=1.6, **_RING)


def _finish_criteria(ax: Axes, y_label: str, picked: tuple[str, int] | None, words: str) -> None:
    add_label(ax, "minimum", markersize=10.0, markeredgewidth=1.2, **_RING)
    if picked is not None:
        low, high = picked[1] - 0.25, picked[1] + 0.25
        ax.axvspan(low, high, color="#E8E8E8", zorder=0, linewidth=0.0, label=f"selected:{words}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(ax, "number of clusters k", y_label)


_RING: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "linestyle": "none"}


def plot_num_components(table: pd.DataFrame, *, ax: AxesLike = None) -> Axes:
    r"""Draw the weight of every number of clusters k: its approximate posterior probability, and its stacking weight.

    From a column `bic` the probabilities $\propto \exp(-\mathrm{BIC}_k / 2)$, the large-sample approximation of the
    posterior of k where all k are equally probable beforehand (Schwarz 1978; Kass & Raftery 1995). From a column
    `weight` the stacking weights of `compare_loo`, which are no probabilities: they say how much each k adds to the
    best combined prediction (Yao et al. 2018). Where there are several families their weights are added up for each k.

    Args:
        table: a column `num_components` and one or both of `bic` and `weight`; BIC is NaN where a fit failed.
        ax: axes to draw on.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for missing columns, a k that comes twice for one family, no finite BIC, and weights that are
            negative or do not add up to one.
    """
    found = [name for name in _WEIGHTS if name in table.columns]
    if "num_components" not in table.columns or not found:
        raise InputError(f"table needs columns num_components and bic or weight; got {', '.join(map(str, table))}")
    keys = ["num_components", "family"] if "family" in table.columns else ["num_components"]
    if table.duplicated(keys).any():
        raise InputError("table has some num_components more than once; give one row for each k and family")
    weights = {name: _WEIGHERS[name](table[name].to_numpy(float)) for name in found}
    counts = table["num_components"].to_numpy(int)
    shown = np.unique(counts)
    ax = one_axes(ax, (5.4, 3.0))
    width = 0.7 / len(found)
    for position, name in enumerate(found):
        heights = np.array([weights[name][counts == count].sum() for count in shown])
        offset = (position - (len(found) - 1) / 2) * width
        _draw_bars(ax, np.arange(len(shown)) + offset, heights, 0.92 * width, PALETTE[position], name)
    alone = "posterior probability (BIC)" if found == ["bic"] else "stacking weight (LOO)"
    _finish_bars(ax, shown, "number of clusters k", "weight" if len(found) > 1 else alone)
    if len(found) > 1:
        legend_beside(ax)
    return ax


def plot_occupied_components(fit_or_draws: Fit | Mixture, x: ArrayLike, *, key: KeyLike, ax: AxesLike = None) -> Axes:
    """Draw the posterior probability of how many of a mixture's k components have rows at all.

    One allocation of the rows is drawn from every draw, and its occupied components are counted; labels do not matter.
    It answers "how many clusters, given at most k" under a prior that lets components be empty, such as a Dirichlet
    with a small concentration (Rousseau & Mengersen 2011); it is no posterior of k itself.

    Args:
        fit_or_draws: a fit with draws, or draws as a mixture with leading axes.
        x: rows (n, d).
        key: random key of the allocations.
        ax: axes to draw on.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for a fit without draws, a missing key, rows that cannot be used.
    """
    draws = flat_draws(posterior_draws(fit_or_draws))
    probabilities = occupied_probabilities(draws, rows_of_draws(draws, x), as_key(key))
    ax = one_axes(ax, (5.4, 3.0))
    shown = np.arange(1, len(probabilities) + 1)
    _draw_bars(ax, np.arange(float(len(shown))), probabilities, 0.64, PALETTE[0], "occupied")
    _finish_bars(ax, shown, f"occupied components, of {len(probabilities)}", "posterior probability")
    return ax


def occupied_probabilities(draws: Mixture, x: AnyArray, key: RandomKey) -> Float[np.ndarray, " k"]:
    """Shares of draws (s) in which 1, 2, ..., k components have rows."""
    allocations = sampled_allocations(draws, x, key=key)
    k = draws.num_components
    occupied = np.zeros(len(allocations), int)
    for component in range(k):
        occupied += (allocations == component).any(1)
    return np.bincount(occupied, minlength=k + 1)[1:] / len(allocations)


def _bic_weights(values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    finite = np.isfinite(values)
    if not finite.any():
        raise InputError("table has no finite bic; look at how the fits ended")
    relative = np.where(finite, np.exp(-0.5 * (np.where(finite, values, np.inf) - values[finite].min())), 0.0)
    return relative / relative.sum()


def _given_weights(values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    if not np.isfinite(values).all() or (values < -1e-6).any() or abs(values.sum() - 1.0) > 1e-3:
        raise InputError(f"table has weights {values.round(3).tolist()}; they must be at least 0 and add up to 1")
    return values


_WEIGHERS = {"bic": _bic_weights, "weight": _given_weights}


def _draw_bars(
    ax: Axes, places: Float[np.ndarray, " m"], heights: Float[np.ndarray, " m"], width: float, colour: str, gid: str
) -> None:
    bars = ax.bar(places, heights, width=width, color=colour, linewidth=0.0, label=_WEIGHTS.get(gid))
    for bar, height in zip(bars, heights, strict=True):
        bar.set_gid(gid)
        text = "0" if height < 0.0005 else f"{height:.2f}" if height >= 0.005 else "<0.01"
        place, look = (bar.get_x() + bar.get_width() / 2, height), {"fontsize": FONT_SIZE - 1.5, "color": INK}
        ax.annotate(text, place, xytext=(0, 2), textcoords="offset points", ha="center", **look)


def _finish_bars(ax: Axes, shown: Int[np.ndarray, " m"], x_label: str, y_label: str) -> None:
    ax.set_xticks(range(len(shown)), [str(count) for count in shown])
    ax.set_xlim(-0.6, len(shown) - 0.4)
    ax.set_ylim(0.0, 1.08)
    tidy(ax, x_label, y_label)
