"""Where EM went from each of several starts, and how many starts reached the best."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import LineStyleType

from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.errors import InputError
from bayesgmm.numerics.validation import finite_number
from bayesgmm.plots.panels import one_axes
from bayesgmm.plots.style import DATA_GREY, PALETTE, legend_beside, tidy

_NAMED = 4  # optima that have a colour of their own
_DASHES: LineStyleType = (0.0, (3.0, 2.0))
_FAILED = (ResultCode.nonfinite, ResultCode.collapsed)


def plot_restarts(fits: Fit | Sequence[Fit], *, same_within: float = 0.1, ax: Any = None) -> Axes:
    """Draw the log-likelihood after every step of EM from several starts, coloured by the optimum that was reached.

    `fit_em` keeps the trace of its best run alone. The runs of single starts, side by side in one program:

        keys = jax.random.split(jax.random.key(0), 20)
        with jax.enable_x64(True):  # inside vmap, JAX's own setting decides the precision
            fits = jax.vmap(lambda key: fit_em(x, 3, key=key, num_restarts=1, on_failure="ignore"))(keys)
        plot_restarts(fits)

    A dot marks the end of a run. The axis begins a little below the lowest end. Runs that collapsed or became infinite
    are dashed and belong to no optimum.

    Args:
        fits: fits by EM (or MAP) of the same rows: one with a leading axis, as `vmap` makes it, or several.
        same_within: ends that differ by less, in units of the objective, count as the same optimum.
        ax: axes to draw on.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for no fits, fits of several engines, or without a trace of steps, and where no run has a finite
            end.
    """
    tolerance = float(finite_number("same_within", same_within))
    traces, results = _runs(fits)
    ends = np.array([trace[-1] if len(trace) else np.nan for trace in traces])
    failed = np.isin(results, [int(code) for code in _FAILED]) | ~np.isfinite(ends)
    if failed.all():
        raise InputError("none of the fits has a finite end, so there is nothing to draw; look at their codes")
    optima = group_ends(np.where(failed, np.nan, ends), tolerance)
    ax = one_axes(ax, (6.4, 3.6))
    # The best last, on top.
    for run in np.argsort(np.where(failed, -np.inf, ends), kind="stable"):
        _draw_run(ax, traces[run], int(optima[run]), int(run))
    low, high = _limits(traces, ends, failed)
    ax.set_ylim(low, high)
    # Runs that failed may have gone on for long.
    longest = max(len(trace) for trace, bad in zip(traces, failed, strict=True) if not bad) - 1
    ax.set_xlim(0.0, 1.04 * max(longest, 1))
    ax.set_xlabel("step")
    ax.set_ylabel(_objective(fits))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    ax.ticklabel_format(axis="y", useOffset=False)
    tidy(ax)
    legend_beside(ax, _handles(ends, optima), title="ended at")
    return ax


def group_ends(ends: Float[np.ndarray, " r"], same_within: float) -> Int[np.ndarray, " r"]:
    """Number of the optimum that every run ended at, 0 for the best; -1 for NaN.

    Ends in falling order are one optimum as long as each is within `same_within` of the first of them.
    """
    groups = np.full(len(ends), -1)
    first, group = np.inf, -1
    for run in np.argsort(-ends, kind="stable"):  # NaN comes last
        if np.isnan(ends[run]):
            break
        if group < 0 or first - ends[run] > same_within:
            first, group = ends[run], group + 1
        groups[run] = group
    return groups


def _runs(fits: Any) -> tuple[list[Float[np.ndarray, "_"]], Int[np.ndarray, " r"]]:
    """The trace of every run without its padding, and its result."""
    several = [fits] if isinstance(fits, Fit) else list(fits)
    if not several or not all(isinstance(fit, Fit) for fit in several):
        raise InputError("fits must be a Fit with a leading axis, as vmap over keys makes it, or several fits")
    engines = {fit.engine for fit in several}
    if len(engines) > 1 or engines - {"em", "map"}:
        raise InputError(f"fits are by {', '.join(sorted(engines))}; give the runs of one engine, EM or MAP")
    traces, results = [], []
    for fit in several:
        trace = np.asarray(fit.trace, np.float64)
        lines = trace.reshape(-1, trace.shape[-1])
        steps = np.broadcast_to(np.asarray(fit.num_steps), trace.shape[:-1]).reshape(-1)
        for line, last in zip(lines, steps, strict=True):
            traces.append(line[: int(last) + 1])
        results += np.broadcast_to(np.asarray(fit.result), trace.shape[:-1]).reshape(-1).tolist()
    return traces, np.asarray(results, int)


def _objective(fits: Any) -> str:
    first = fits if isinstance(fits, Fit) else next(iter(fits))
    return "log-likelihood" if first.engine == "em" else "log posterior density"


def _colour(optimum: int) -> str:
    return PALETTE[optimum] if 0 <= optimum < _NAMED else DATA_GREY


def _draw_run(ax: Axes, trace: Float[np.ndarray, " steps"], optimum: int, run: int) -> None:
    colour = _colour(optimum)
    values = np.where(np.isfinite(trace), trace, np.nan)
    style = "-" if optimum >= 0 else _DASHES
    width = 1.6 if optimum == 0 else 1.1
    steps = np.arange(len(values))
    ax.plot(steps, values, color=colour, linestyle=style, linewidth=width, alpha=0.8, gid=f"run {run}")
    if optimum >= 0:
        ax.plot(steps[-1], values[-1], marker="o", markersize=4.0, color=colour, linestyle="none", gid=f"end {run}")


def _limits(
    traces: list[Float[np.ndarray, "_"]], ends: Float[np.ndarray, " r"], failed: np.ndarray
) -> tuple[float, float]:
    """Limits that hold the ends, and as much of the way there as leaves them apart."""
    kept = ends[~failed]
    starts = np.array([trace[0] for trace, bad in zip(traces, failed, strict=True) if not bad])
    top, bottom = float(kept.max()), float(kept.min())
    climb = top - float(np.nanmedian(np.where(np.isfinite(starts), starts, np.nan)))
    depth = max(top - bottom, 0.3 * climb, 1e-6 * max(abs(top), 1.0))
    return bottom - 0.7 * depth, top + 0.15 * depth


def _handles(ends: Float[np.ndarray, " r"], optima: Int[np.ndarray, " r"]) -> list[Line2D]:
    handles = []
    for optimum in range(min(int(optima.max()) + 1, _NAMED)):
        members = ends[optima == optimum]
        label = f"{members.max():.1f}: {_starts(len(members))}".replace("-", "−")
        width = 1.6 if optimum == 0 else 1.1
        handles.append(Line2D([], [], color=_colour(optimum), linewidth=width, marker="o", markersize=4.0, label=label))
    num_other, num_failed = int((optima >= _NAMED).sum()), int((optima < 0).sum())
    grey: dict[str, Any] = {"color": DATA_GREY, "linewidth": 1.1}
    if num_other:
        handles.append(Line2D([], [], marker="o", markersize=4.0, label=f"lower: {_starts(num_other)}", **grey))
    if num_failed:
        handles.append(Line2D([], [], linestyle=_DASHES, label=f"failed: {_starts(num_failed)}", **grey))
    return handles


def _starts(count: int) -> str:
    return f"{count} start{'s' if count > 1 else ''}"
