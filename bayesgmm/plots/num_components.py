"""How many components: what the rows say of it, by criteria over k and by the components that draws fill."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import RandomKey
from bayesgmm.numerics.validation import as_key
from bayesgmm.plots.panels import one_axes
from bayesgmm.plots.style import FONT_SIZE, INK, PALETTE, legend_beside, tidy
from bayesgmm.plots.view import posterior_draws
from bayesgmm.posterior.allocations import flat_draws, rows_of_draws, sampled_allocations

_WEIGHTS = {"bic": "by BIC: exp(−BIC/2)", "weight": "stacking by LOO"}


def plot_num_components(table: pd.DataFrame, *, ax: Any = None) -> Axes:
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
    _finish(ax, shown, "number of clusters k", "weight")
    if len(found) > 1:
        handles = [Patch(color=PALETTE[position], label=_WEIGHTS[name]) for position, name in enumerate(found)]
        legend_beside(ax, handles)
    else:
        ax.set_ylabel("posterior probability (BIC)" if found == ["bic"] else "stacking weight (LOO)")
    return ax


def plot_occupied_components(fit_or_draws: Fit | Mixture, x: Any, *, key: Any, ax: Any = None) -> Axes:
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
    _draw_bars(ax, np.arange(len(shown)), probabilities, 0.64, PALETTE[0], "occupied")
    _finish(ax, shown, f"occupied components, of {len(probabilities)}", "posterior probability")
    return ax


def occupied_probabilities(draws: Mixture, x: Any, key: RandomKey) -> Float[np.ndarray, " k"]:
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


def _draw_bars(ax: Axes, places: Any, heights: Float[np.ndarray, " m"], width: float, colour: str, gid: str) -> None:
    bars = ax.bar(places, heights, width=width, color=colour, linewidth=0.0)
    for bar, height in zip(bars, heights, strict=True):
        bar.set_gid(gid)
        text = "0" if height < 0.0005 else f"{height:.2f}" if height >= 0.005 else "<0.01"
        ax.annotate(
            text,
            (bar.get_x() + bar.get_width() / 2, height),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=FONT_SIZE - 1.5,
            color=INK,
        )


def _finish(ax: Axes, shown: Any, x_label: str, y_label: str) -> None:
    ax.set_xticks(range(len(shown)), [str(count) for count in shown])
    ax.set_xlim(-0.6, len(shown) - 0.4)
    ax.set_ylim(0.0, 1.08)
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    tidy(ax)
