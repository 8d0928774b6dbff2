"""How many components: criteria over k, weights of every k, and the components that draws fill."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.special import softmax

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike, KeyLike, RandomKey
from bayesgmm.numerics.validation import as_key, short_repr, whole_number
from bayesgmm.plots import panels
from bayesgmm.plots.panels import FONT_SIZE, INK, MARKERS, PALETTE, AxesLike
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
        raise InputError(f"table={short_repr(table)} must be a DataFrame, such as the candidates of a comparison")
    known = [name for name in CRITERIA if name in table.columns]
    if "num_components" not in table.columns or not known:
        raise InputError(f"table needs columns num_components and bic, aic or icl; got {', '.join(map(str, table))}")
    chosen = known if criteria is None else list(criteria)
    missing = [name for name in chosen if name not in known]
    if missing or not chosen:
        raise InputError(f"criteria has {missing or 'none'}; the table has {', '.join(known)}")
    table = table.assign(family=table["family"].astype(str) if "family" in table.columns else "")
    _check_once(table)
    families = list(dict.fromkeys(table["family"]))
    table = table.sort_values("num_components")
    lines = {family: table.loc[(table["family"] == family).to_numpy()] for family in families}
    picked = None if selected is None else _picked(selected, lines)
    if len(lines) == 1:
        single = panels.one_axes(ax, (5.4, 3.4))
        _draw_one_family(single, {name: _points(table, name) for name in chosen}, picked)
        return single
    axes = panels.wrapped_axes(ax, len(chosen), len(chosen), (2.7, 3.2), 1.4, f"{len(chosen)} criteria need")
    for criterion, panel in zip(chosen, axes, strict=True):
        _draw_families(panel, {family: _points(rows, criterion) for family, rows in lines.items()}, criterion, picked)
    panels.legend_beside(axes[-1])
    return axes


def _points(rows: pd.DataFrame, criterion: str) -> Float[np.ndarray, "m 2"]:
    """Numbers of components, and the criterion at each."""
    return rows[["num_components", criterion]].to_numpy(float)


def _check_once(table: pd.DataFrame) -> None:
    """Refuse a number of components that comes twice, for one family where the table has families."""
    if table.duplicated([name for name in ("family", "num_components") if name in table.columns]).any():
        raise InputError("table has some num_components more than once; give one row for each k and family")


def _picked(selected: int | tuple[str, int], lines: Mapping[str, pd.DataFrame]) -> tuple[str, int]:
    """The family and the number of components that are selected."""
    if len(lines) == 1:
        family, count = next(iter(lines)), selected[-1] if isinstance(selected, tuple) else selected
    elif isinstance(selected, tuple) and len(selected) == 2:
        family, count = str(selected[0]), selected[1]
    else:
        raise InputError(f'selected={selected!r} must be a pair such as ("full", 3), as the table has several families')
    if family not in lines:
        raise InputError(f"selected has family {family!r}, which is not among {', '.join(lines)}")
    counts = lines[family]["num_components"].astype(int).tolist()
    if whole_number("selected", count) not in counts:
        raise InputError(f"selected={count} is not among the num_components {counts} of the table")
    return family, int(count)


def _draw_one_family(ax: Axes, lines: Mapping[str, Float[np.ndarray, "_ 2"]], picked: tuple[str, int] | None) -> None:
    for name, points in lines.items():
        position = CRITERIA.index(name)
        _draw_line(ax, points, position, label=name.upper(), gid=name)
        _mark_smallest(ax, {position: points}, f"minimum {name}")
    _finish_criteria(ax, "criterion (smaller is better)", picked, "" if picked is None else f" k = {picked[1]}")
    panels.legend_beside(ax)


def _draw_families(
    ax: Axes, lines: Mapping[str, Float[np.ndarray, "_ 2"]], criterion: str, picked: tuple[str, int] | None
) -> None:
    for position, (family, points) in enumerate(lines.items()):
        _draw_line(ax, points, position, label=family, gid=family)
    _mark_smallest(ax, dict(enumerate(lines.values())), f"minimum {criterion}")
    _finish_criteria(ax, criterion.upper(), picked, "" if picked is None else f"\n{picked[0]}, k = {picked[1]}")


def _draw_line(ax: Axes, points: Float[np.ndarray, "m 2"], position: int, *, label: str, gid: str) -> None:
    marker, colour = MARKERS[position % len(MARKERS)], PALETTE[position % len(PALETTE)]
    ax.plot(*points.T, color=colour, linewidth=1.4, marker=marker, markersize=4.5, label=label, gid=gid)


def _mark_smallest(ax: Axes, lines: Mapping[int, Float[np.ndarray, "_ 2"]], gid: str) -> None:
    """A ring about the smallest finite value of some lines, if there is one."""
    finite = [(value, count, position)
              for position, points in lines.items() for count, value in points if np.isfinite(value)]  # fmt: skip
    if finite:
        value, count, position = min(finite)
        ring: dict[str, Any] = {"markersize": 12.0, "markeredgewidth": 1.6, **_RING}
        ax.plot(count, value, color=PALETTE[position % len(PALETTE)], gid=gid, **ring)


def _finish_criteria(ax: Axes, y_label: str, picked: tuple[str, int] | None, words: str) -> None:
    panels.add_label(ax, "minimum", markersize=10.0, markeredgewidth=1.2, **_RING)
    if picked is not None:
        low, high = picked[1] - 0.25, picked[1] + 0.25
        ax.axvspan(low, high, color="#E8E8E8", zorder=0, linewidth=0.0, label=f"selected:{words}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels.tidy(ax, "number of clusters k", y_label)


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
    _check_once(table)
    weights = {name: _WEIGHERS[name](table[name].to_numpy(float)) for name in found}
    shown, rows = np.unique(table["num_components"].to_numpy(int), return_inverse=True)
    ax = panels.one_axes(ax, (5.4, 3.0))
    width = 0.7 / len(found)
    for position, name in enumerate(found):
        places = np.arange(len(shown)) + (position - (len(found) - 1) / 2) * width
        _draw_bars(ax, places, np.bincount(rows, weights[name]), 0.92 * width, PALETTE[position], name)
    alone = "posterior probability (BIC)" if found == ["bic"] else "stacking weight (LOO)"
    _finish_bars(ax, shown, "number of clusters k", "weight" if len(found) > 1 else alone)
    if len(found) > 1:
        panels.legend_beside(ax)
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
    ax = panels.one_axes(ax, (5.4, 3.0))
    shown = np.arange(1, len(probabilities) + 1)
    _draw_bars(ax, np.arange(float(len(shown))), probabilities, 0.64, PALETTE[0], "occupied")
    _finish_bars(ax, shown, f"occupied components, of {len(probabilities)}", "posterior probability")
    return ax


def occupied_probabilities(draws: Mixture, x: AnyArray, key: RandomKey) -> Float[np.ndarray, " k"]:
    """Shares of draws (s) in which 1, 2, ..., k components have rows."""
    allocations = sampled_allocations(draws, x, key=key)
    k = draws.num_components
    occupied = np.sum([(allocations == component).any(1) for component in range(k)], axis=0, dtype=int)
    return np.bincount(occupied, minlength=k + 1)[1:] / len(allocations)


def _bic_weights(values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    finite = np.isfinite(values)
    if not finite.any():
        raise InputError("table has no finite bic; look at how the fits ended")
    return softmax(np.where(finite, -0.5 * values, -np.inf))


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
    panels.tidy(ax, x_label, y_label)
