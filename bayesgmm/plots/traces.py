"""What every engine watched while it ran, and where EM went from each of several starts."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import LineStyleType

from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.engines.registry import ENGINES, Engine
from bayesgmm.errors import InputError
from bayesgmm.numerics.validation import nonnegative
from bayesgmm.numerics.words import counted
from bayesgmm.plots import panels, shapes
from bayesgmm.plots.panels import DATA_GREY, FONT_SIZE, INK, PALETTE, AxesLike
from bayesgmm.plots.view import engines_giving

_LONG = 50  # steps from which the first ones may leave the panel, so that the end can be seen
_SMOOTHED = 25  # the smoothed ELBO averages a window of this fraction of the steps
_NOISY = 0.1  # share of steps that fall, from which an ELBO is an estimate that is smoothed
_NAMED = 4  # optima that have a colour of their own
_LEGEND_COLUMNS = 2  # under draws: the names of four chains in a line are wider than a panel
_DASHES: LineStyleType = (0.0, (3.0, 2.0))
_FAILED = (ResultCode.nonfinite, ResultCode.collapsed)
_BY_CHANCE = -2  # in place of the number of an optimum


def plot_traces(fits: Mapping[str, Fit], *, ax: AxesLike = None) -> np.ndarray:
    """Draw what each engine watched, one panel for every engine among the fits.

    EM: the log-likelihood at every step. MAP: the log posterior density at every step. VI and CAVI: the ELBO at
    every step, where it is noisy with its average over a moving window of 1/25 of the steps. Gibbs and NUTS: the log
    posterior density of every draw, by chain. Where a trace is long, the limits show where it settled rather than
    where it started.

    Args:
        fits: fits by name; fits of the same engine share a panel.
        ax: axes to draw on, one for every engine, in the order in which engines first occur.

    Returns:
        The axes drawn on, an array with one for every engine.

    Raises:
        InputError: for no fits, a trace without a finite value, or the wrong number of axes.
    """
    if not fits:
        raise InputError("fits is empty; give at least one, such as {'EM': fit}")
    engines = list(dict.fromkeys(fit.engine for fit in fits.values()))
    axes = panels.wrapped_axes(ax, len(engines), 2, (3.8, 2.7), 0.2, f"{len(engines)} engines need")
    for engine, panel in zip(engines, axes, strict=True):
        _draw_panel(panel, ENGINES[engine], {name: fit for name, fit in fits.items() if fit.engine == engine})
    return axes


def plot_elbo(fits: Fit | Mapping[str, Fit], *, ax: AxesLike = None) -> Axes:
    """Draw the evidence lower bound at every step of variational fits: smoothed too where it is noisy.

    Where a trace is long, the limits show where it settled rather than where it started.

    Args:
        fits: one fit by VI or CAVI, or several of one engine by name.
        ax: axes to draw on.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for no fits, fits by another engine or by both, a trace without a finite value.
    """
    named = {fits.engine: fits} if isinstance(fits, Fit) else dict(fits)
    engines = sorted({fit.engine for fit in named.values()})
    if len(engines) != 1 or ENGINES[engines[0]].gives != "approximation":
        raise InputError(
            f"fits are by {', '.join(engines) or 'no engine'}; give fits by {engines_giving('approximation')}"
        )
    ax = panels.one_axes(ax, (5.4, 3.2))
    _draw_panel(ax, ENGINES[engines[0]], named)
    ax.set_title("")
    return ax


def trace_lines(name: str, fit: Fit) -> Float[np.ndarray, "lines steps"]:
    """The trace as one line for every chain or restart, without the padding at its end.

    Raises:
        InputError: when no value is finite.
    """
    trace = np.asarray(fit.trace, np.float64)
    lines = trace.reshape(-1, trace.shape[-1])
    used = np.flatnonzero(np.isfinite(lines).any(0))
    if not used.size:
        raise InputError(f"the trace of fit {name!r} has no finite value; look at fit.code")
    lines = lines[:, : used[-1] + 1]
    # An infinite objective has no place on the axis: a gap.
    return np.where(np.isfinite(lines), lines, np.nan)


def _draw_panel(ax: Axes, engine: Engine, fits: Mapping[str, Fit]) -> None:
    traces = {name: trace_lines(name, fit) for name, fit in fits.items()}
    is_sampler = engine.gives == "draws"
    drawn, colours = sum(map(len, traces.values())), itertools.cycle(PALETTE)
    for name, lines in traces.items():
        for row, values in enumerate(lines):
            label = f"chain {row}" if is_sampler else f"run {row}" if len(lines) > 1 else name
            label = f"{name}, {label}" if len(traces) > 1 and len(lines) > 1 else label
            _draw_line(ax, engine, values, label, next(colours))
    # The density of draws has no start to leave behind, and maximum likelihood takes few steps, all of interest.
    if not is_sampler and engine.prior != "none" and max(lines.shape[1] for lines in traces.values()) > _LONG:
        ax.set_ylim(settled_limits(list(traces.values())))
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.ticklabel_format(axis="y", useOffset=False)
    panels.tidy(ax, title=engine.method, xlabel="draw" if is_sampler else "step", ylabel=engine.trace)
    if not 1 < drawn <= 8:
        return
    # Rising traces leave the lower right free; draws leave nothing free, so room is made below them.
    place: dict[str, object] = {"loc": "lower right"}
    if is_sampler:
        place = {"loc": "lower center", "ncols": _LEGEND_COLUMNS}
        low, high = ax.get_ylim()
        ax.set_ylim(low - 0.1 * (high - low) * -(-drawn // _LEGEND_COLUMNS), high)
    legend = panels.add_legend(ax, ax, fontsize=FONT_SIZE - 1, handlelength=1.2, columnspacing=1.0, **place)
    assert legend is not None
    for line in legend.get_lines():
        line.set(linewidth=1.6, alpha=1.0)


def _draw_line(ax: Axes, engine: Engine, values: Float[np.ndarray, " steps"], label: str, colour: str) -> None:
    steps, look = np.arange(len(values)), {"color": colour, "rasterized": len(values) > shapes.MANY_ROWS}
    if engine.gives == "approximation" and (np.diff(values, prepend=values[:1]) < 0).mean() > _NOISY:
        ax.plot(steps, values, linewidth=0.5, alpha=0.3, gid="raw", **look)
        smoothed = smooth(values, max(len(values) // _SMOOTHED, 1))
        ax.plot(*smoothed, color=colour, linewidth=1.6, label=label, zorder=3, gid="smooth")
    elif engine.gives == "draws":
        ax.plot(steps, values, linewidth=0.6, alpha=0.75, label=label, **look)
    else:
        marker = "o" if len(values) <= _LONG else ""
        ax.plot(steps, values, color=colour, linewidth=1.4, marker=marker, markersize=3.0, label=label)


def smooth(values: Float[np.ndarray, " steps"], window: int) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Centres and means of a moving window, over the values in it that are not NaN."""
    means = np.asarray(pd.Series(values).rolling(window, min_periods=1).mean())[window - 1 :]
    centres = np.arange(len(means)) + (window - 1) / 2
    return centres[~np.isnan(means)], means[~np.isnan(means)]


def settled_limits(traces: list[Float[np.ndarray, "_ _"]]) -> tuple[float, float]:
    """Limits that hold nearly all of the second half of every trace, and as much again below for the way there."""
    ends = np.array([np.nanquantile(lines[:, lines.shape[1] // 2 :], [0.02, 0.998]) for lines in traces])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    span = high - low or max(abs(high), 1.0) * 1e-3
    return low - 1.2 * span, high + 0.2 * span


def plot_restarts(fits: Fit | Sequence[Fit], *, same_within: float = 0.1, ax: AxesLike = None) -> Axes:
    """Draw the log-likelihood after every step of EM from several starts, coloured by the optimum that was reached.

    `fit_em` keeps the trace of its best run alone. The runs of single starts, side by side in one program:

        keys = jax.random.split(jax.random.key(0), 20)
        with jax.enable_x64(True):  # inside vmap, JAX's own setting decides the precision
            fits = jax.vmap(lambda key: fit_em(x, 3, key=key, num_restarts=1, on_failure="ignore"))(keys)
        plot_restarts(fits)

    A dot marks the end of a run. The axis begins a little below the lowest end. Runs that collapsed or became infinite,
    and those with a component that chance makes, are dashed and belong to no optimum.

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
    tolerance = float(nonnegative("same_within", same_within))
    traces, results, objective = _runs(fits)
    ends = np.array([trace[-1] for trace in traces])
    failed, by_chance = np.isin(results, _FAILED) | np.isnan(ends), results == ResultCode.spurious
    if failed.all():
        raise InputError("none of the fits has a finite end, so there is nothing to draw; look at their codes")
    optima = group_ends(np.where(failed | by_chance, np.nan, ends), tolerance)
    optima[by_chance & ~failed] = _BY_CHANCE
    ax = panels.one_axes(ax, (6.4, 3.6))
    # The best last, on top.
    for run in np.argsort(np.where(failed, -np.inf, ends), kind="stable"):
        steps, look = np.arange(len(traces[run])), _look(int(optima[run]))
        ax.plot(steps, traces[run], alpha=0.8, gid=f"run {run}", **{**look, "marker": ""})
        if not failed[run]:
            ax.plot(steps[-1], traces[run][-1], gid=f"end {run}", **{**look, "linestyle": "none"})
    named = np.minimum(optima, _NAMED)
    for optimum in (*range(_NAMED + 1), _BY_CHANCE, -1):
        if len(members := ends[named == optimum]):
            words = {_NAMED: "lower", _BY_CHANCE: "made by chance", -1: "failed"}
            words = words.get(optimum, f"{members.max():.1f}".replace("-", "−"))
            panels.add_label(ax, f"{words}: {counted(len(members), 'start')}", **_look(optimum))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    ax.ticklabel_format(axis="y", useOffset=False)
    # The limits hold the ends, and as much of the way there as leaves them apart. Runs that failed may be far longer.
    kept = [trace for trace, bad in zip(traces, failed, strict=True) if not bad]
    top, bottom = float(ends[~failed].max()), float(ends[~failed].min())
    climb = top - float(np.nanmedian([trace[0] for trace in kept]))
    depth = max(top - bottom, 0.3 * climb, 1e-6 * max(abs(top), 1.0))
    longest = max(len(trace) for trace in kept) - 1
    ax.set(xlim=(0.0, 1.04 * max(longest, 1)), ylim=(bottom - 0.7 * depth, top + 0.15 * depth))
    return panels.finish(ax, title="ended at", xlabel="step", ylabel=objective)


def _look(optimum: int) -> dict[str, Any]:
    """How runs look that ended at an optimum, failed (-1), or found what chance makes (-2)."""
    colour = PALETTE[optimum] if 0 <= optimum < _NAMED else INK if optimum == _BY_CHANCE else DATA_GREY
    dot: dict[str, Any] = {} if optimum == -1 else {"marker": "o", "markersize": 4.0}
    style = {"linestyle": "-" if optimum >= 0 else _DASHES, **dot}
    return {"color": colour, "linewidth": 1.6 if optimum == 0 else 1.1, **style}


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


def _runs(fits: Fit | Sequence[Fit]) -> tuple[list[Float[np.ndarray, "_"]], Int[np.ndarray, " r"], str]:
    """The trace of every run without its padding, its result, and what the traces are of."""
    several = [fits] if isinstance(fits, Fit) else list(fits)
    if not several or not all(isinstance(fit, Fit) for fit in several):
        raise InputError("fits must be a Fit with a leading axis, as vmap over keys makes it, or several fits")
    engines = {fit.engine for fit in several}
    if len(engines) > 1 or ENGINES[several[0].engine].gives != "point":
        raise InputError(
            f"fits are by {', '.join(sorted(engines))}; give the runs of one engine, {engines_giving('point')}"
        )
    traces, results = [], []
    for position, fit in enumerate(several):
        lines = trace_lines(str(position), fit)
        traces += [line[: np.flatnonzero(np.isfinite(line)).max(initial=0) + 1] for line in lines]
        results += np.broadcast_to(np.asarray(fit.result).ravel(), len(lines)).tolist()
    return traces, np.asarray(results, int), ENGINES[several[0].engine].trace
