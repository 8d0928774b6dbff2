"""How many components: criteria over k, weights of every k, and the components that draws fill."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.special import softmax

from bayesgmm.engines.fit import ResultCode
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike, KeyLike, RandomKey
from bayesgmm.numerics.validation import as_key, short_repr, whole_number
from bayesgmm.plots import panels
from bayesgmm.plots.panels import FONT_SIZE, INK, MARKERS, PALETTE, AxesLike
from bayesgmm.plots.view import Drawable, posterior_draws
from bayesgmm.posterior.allocations import flat_draws, rows_of_draws, sampled_allocations

CRITERIA = ("bic", "aic", "icl")
_RING: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "linestyle": "none"}


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
            for every k and family, NaN where a fit failed. With a column `result` the smallest is that of the fits that
            were successful, if any was.
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
    _check_counts(table, known, "bic, aic or icl")
    chosen = known if criteria is None else list(criteria)
    missing = [name for name in chosen if name not in known]
    if missing or not chosen:
        raise InputError(f"criteria has {missing or 'none'}; the table has {', '.join(known)}")
    table = table.assign(family=table["family"].astype(str) if "family" in table.columns else "")
    families = list(dict.fromkeys(table["family"]))
    table = table.sort_values("num_components", ignore_index=True)
    picked = None if selected is None else _picked(selected, table, families)
    if len(families) == 1:
        axes, titles = np.full(len(chosen), panels.one_axes(ax, (5.4, 3.4)), object), ["criterion (smaller is better)"]
    else:
        axes = panels.wrapped_axes(ax, len(chosen), len(chosen), (2.7, 3.2), 1.4, f"{len(chosen)} criteria need")
        titles = [name.upper() for name in chosen]
    for criterion, panel in zip(chosen, axes, strict=True):
        _draw_criterion(panel, table, criterion, families)
    for panel, title in zip(dict.fromkeys(axes), titles, strict=True):
        panels.add_label(panel, "minimum", markersize=10.0, markeredgewidth=1.2, **_RING)
        if picked is not None:
            words = f" k = {picked[1]}" if len(families) == 1 else f"\n{picked[0]}, k = {picked[1]}"
            look = {"color": "#E8E8E8", "zorder": 0, "linewidth": 0.0, "label": f"selected:{words}"}
            panel.axvspan(picked[1] - 0.25, picked[1] + 0.25, **look)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels.tidy(panel, xlabel="number of clusters k", ylabel=title)
    panels.legend_beside(axes[-1])
    return axes[0] if len(families) == 1 else axes


def plot_loo_over_k(table: pd.DataFrame, *, selected: int | None = None, ax: AxesLike = None) -> Axes:
    """Draw leave-one-out against the number of clusters, as differences from the best with their standard errors.

    The bar of a difference that reaches the line at 0 is one that the rows do not tell from nothing. Hollow are fits
    that failed, or whose Pareto k is too large for some rows: their numbers are unreliable.

    Args:
        table: of `compare_loo`, such as `loo_over_k` of a comparison.
        selected: the k to highlight.
        ax: axes to draw on.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for missing columns, a k that comes twice, or a k to highlight that is not in the table.

    Source: Vehtari, Gelman & Gabry (2017).
    """
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"table={short_repr(table)} must be a DataFrame of compare_loo")
    _check_counts(table, [name for name in ("elpd_diff",) if {name, "dse"} <= {*table.columns}], "elpd_diff and dse")
    table = table.sort_values("num_components", ignore_index=True)
    picked = None if selected is None else _picked(selected, table.assign(family=""), [""])
    counts, behind, errors = (table[name].to_numpy(float) for name in ("num_components", "elpd_diff", "dse"))
    ax = panels.one_axes(ax, (5.4, 3.0))
    doubtful = np.zeros(len(table), bool)
    if "num_bad" in table.columns:
        doubtful |= table["num_bad"].to_numpy(float) > 0
    if "result" in table.columns:
        doubtful |= (table["result"] != ResultCode.successful.name).to_numpy()
    look: dict[str, Any] = {"color": PALETTE[0], "linewidth": 1.4}
    ax.plot(counts, behind, label="difference ± standard error", **look)
    ax.errorbar(counts, behind, yerr=errors, fmt="none", ecolor=PALETTE[0], elinewidth=1.2, capsize=3.0)
    for hollow, words in ((False, "_reliable"), (True, "unreliable")):
        chosen = doubtful == hollow
        if chosen.any():
            face = "white" if hollow else PALETTE[0]
            dots: dict[str, Any] = {"color": PALETTE[0], "markerfacecolor": face, "marker": "o", "linestyle": "none"}
            ax.plot(counts[chosen], behind[chosen], markersize=5.0, label=words, zorder=3.0, **dots)
    ax.axhline(0.0, color=INK, linewidth=0.8, linestyle=(0.0, (4.0, 3.0)), zorder=1.0)
    if picked is not None:
        shade: dict[str, Any] = {
            "color": "#E8E8E8",
            "zorder": 0,
            "linewidth": 0.0,
            "label": f"selected: k = {picked[1]}",
        }
        ax.axvspan(picked[1] - 0.25, picked[1] + 0.25, **shade)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels.tidy(ax, xlabel="number of clusters k", ylabel="ELPD-LOO less the best")
    panels.legend_beside(ax)
    return ax


def _check_counts(table: pd.DataFrame, found: Sequence[str], wanted: str) -> None:
    """Refuse a table without numbers of components, or where one comes twice for a family."""
    if "num_components" not in table.columns or not found:
        raise InputError(f"table needs columns num_components and {wanted}; got {', '.join(map(str, table))}")
    if table.duplicated([name for name in ("family", "num_components") if name in table.columns]).any():
        raise InputError("table has some num_components more than once; give one row for each k and family")


def _picked(selected: int | tuple[str, int], table: pd.DataFrame, families: Sequence[str]) -> tuple[str, int]:
    """The family and the number of components that are selected."""
    if len(families) == 1:
        family, count = families[0], selected[-1] if isinstance(selected, tuple) else selected
    elif isinstance(selected, tuple) and len(selected) == 2:
        family, count = str(selected[0]), selected[1]
    else:
        raise InputError(f'selected={selected!r} must be a pair such as ("full", 3), as the table has several families')
    if family not in families:
        raise InputError(f"selected has family {family!r}, which is not among {', '.join(families)}")
    counts = table.loc[(table["family"] == family).to_numpy(), "num_components"].astype(int).tolist()
    if whole_number("selected", count) not in counts:
        raise InputError(f"selected={count} is not among the num_components {counts} of the table")
    return family, int(count)


def _draw_criterion(ax: Axes, table: pd.DataFrame, criterion: str, families: Sequence[str]) -> None:
    """A line for every family, of one family that of the criterion, and a ring about the smallest finite value."""
    values = table[criterion].to_numpy(float)
    usable = np.isfinite(values)
    if "result" in table.columns:  # of a collapsed fit the likelihood has no maximum, and the criterion no minimum
        converged = (table["result"] == ResultCode.successful.name).to_numpy()
        usable = usable & converged if (usable & converged).any() else usable
    best = int(np.argmin(np.where(usable, values, np.inf)))
    for position, family in enumerate(families):
        name, label, number = family, family, position
        if len(families) == 1:
            name, label, number = criterion, criterion.upper(), CRITERIA.index(criterion)
        look: dict[str, Any] = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}
        rows = (table["family"] == family).to_numpy()
        counts = table["num_components"].to_numpy()
        ax.plot(counts[rows], values[rows], linewidth=1.4, markersize=4.5, label=label, gid=name, **look)
        if rows[best] and np.isfinite(values[best]):
            ring = {"color": look["color"], "markersize": 12.0, "markeredgewidth": 1.6, "zorder": 2.1, **_RING}
            ax.plot(counts[best], values[best], gid=f"minimum {criterion}", **ring)


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
    _check_counts(table, found, "bic or weight")
    shown, rows = np.unique(table["num_components"].to_numpy(int), return_inverse=True)
    heights = {name: np.bincount(rows, _WEIGHTS[name](table[name].to_numpy(float))) for name in found}
    title = "weight" if len(found) > 1 else _TITLES[found[0]]
    return _draw_bars(panels.one_axes(ax, (5.4, 3.0)), shown, heights, "number of clusters k", title)


def plot_occupied_components(fit_or_draws: Drawable, x: ArrayLike, *, key: KeyLike, ax: AxesLike = None) -> Axes:
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
    shown, title = np.arange(1, len(probabilities) + 1), f"occupied components, of {len(probabilities)}"
    bars = {"occupied": probabilities}
    return _draw_bars(panels.one_axes(ax, (5.4, 3.0)), shown, bars, title, "posterior probability")


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


# Weights of the numbers of components by the column of a table that gives them, what they are called, and what alone.
_WEIGHTS = {"bic": _bic_weights, "weight": _given_weights}
_LABELS = {"bic": "by BIC: exp(−BIC/2)", "weight": "stacking by LOO"}
_TITLES = {"bic": "posterior probability (BIC)", "weight": "stacking weight (LOO)"}


def _draw_bars(
    ax: Axes, shown: Int[np.ndarray, " m"], heights: Mapping[str, Float[np.ndarray, " m"]], x_label: str, y_label: str
) -> Axes:
    """Bars side by side at every number that is shown, with their heights above them."""
    width = 0.7 / len(heights)
    for position, (name, values) in enumerate(heights.items()):
        places = np.arange(len(shown)) + (position - (len(heights) - 1) / 2) * width
        look = {"color": PALETTE[position], "label": _LABELS[name] if len(heights) > 1 else None, "gid": name}
        bars = ax.bar(places, values, 0.92 * width, linewidth=0.0, **look)
        texts = ["0" if value < 0.0005 else f"{value:.2f}" if value >= 0.005 else "<0.01" for value in values]
        ax.bar_label(bars, texts, fontsize=FONT_SIZE - 1.5, color=INK)
    ax.set(xticks=range(len(shown)), xticklabels=shown, xlabel=x_label, ylabel=y_label)
    return panels.finish(ax, xlim=(-0.6, len(shown) - 0.4), ylim=(0.0, 1.08))
