"""What every engine watched while it ran."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bayesgmm.engines.fit import SAMPLERS, Fit
from bayesgmm.errors import InputError
from bayesgmm.plots.panels import new_axes, one_axes
from bayesgmm.plots.style import FONT_SIZE, PALETTE, tidy

_LONG = 50  # steps from which the first ones may leave the panel, so that the end can be seen
_SMOOTHED = 25  # the smoothed ELBO averages a window of this fraction of the steps


class _Watched(NamedTuple):
    title: str
    step: str
    quantity: str


_WATCHED = {
    "em": _Watched("EM", "step", "log-likelihood"),
    "map": _Watched("MAP", "step", "log posterior density"),
    "vi": _Watched("Variational inference", "step", "ELBO"),
    "cavi": _Watched("Coordinate ascent", "step", "ELBO"),
    "gibbs": _Watched("Gibbs sampling", "draw", "log posterior density"),
    "nuts": _Watched("NUTS", "draw", "log posterior density"),
}


def plot_traces(fits: Mapping[str, Fit], *, ax: Any = None) -> Any:
    """Draw what each engine watched, one panel for every engine among the fits.

    EM: the log-likelihood at every step. MAP: the log posterior density at every step. VI: the ELBO at every step, raw
    and averaged over a moving window of 1/25 of the steps. CAVI: the ELBO at every step. Gibbs and NUTS: the log
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
    if ax is None:
        num_columns = min(len(engines), 2)
        num_rows = -(-len(engines) // num_columns)
        grid = new_axes((3.8 * num_columns + 0.2, 2.7 * num_rows), num_rows, num_columns, squeeze=False)
        for spare in grid.ravel()[len(engines) :]:
            spare.set_axis_off()
        ax = grid.ravel()[: len(engines)]
    axes = np.ravel(np.asarray(ax, object))
    if len(axes) != len(engines):
        raise InputError(f"ax holds {len(axes)} axes, but the fits are of {len(engines)} engines")
    for engine, panel in zip(engines, axes, strict=True):
        traces = {name: trace_lines(name, fit) for name, fit in fits.items() if fit.engine == engine}
        _draw_panel(panel, engine, traces)
    return axes


def plot_elbo(fits: Fit | Mapping[str, Fit], *, ax: Any = None) -> Axes:
    """Draw the evidence lower bound at every step of variational fits: of VI raw and smoothed, of CAVI as it is.

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
    if len(engines) != 1 or engines[0] not in ("vi", "cavi"):
        raise InputError(f"fits are by {', '.join(engines) or 'no engine'}; give fits by VI, or by CAVI")
    ax = one_axes(ax, (5.4, 3.2))
    _draw_panel(ax, engines[0], {name: trace_lines(name, fit) for name, fit in named.items()})
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


def _draw_panel(ax: Axes, engine: str, traces: dict[str, Float[np.ndarray, "_ _"]]) -> None:
    watched = _WATCHED.get(engine, _Watched(engine.upper(), "step", "objective"))
    ax.set_title(watched.title)
    ax.set_xlabel(watched.step)
    ax.set_ylabel(watched.quantity)
    longest = max(lines.shape[1] for lines in traces.values())
    drawn = 0
    for name, lines in traces.items():
        for row, values in enumerate(lines):
            label = f"chain {row}" if engine in SAMPLERS else f"run {row}" if len(lines) > 1 else name
            if len(traces) > 1 and len(lines) > 1:
                label = f"{name}, {label}"
            _draw_line(ax, engine, values, label, PALETTE[drawn % len(PALETTE)])
            drawn += 1
    # The density of draws has no start to leave behind, and EM takes few steps, all of them of interest.
    if engine not in (*SAMPLERS, "em") and longest > _LONG:
        ax.set_ylim(settled_limits(list(traces.values())))
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.ticklabel_format(axis="y", useOffset=False)
    tidy(ax)
    if 1 < drawn <= 8:
        _add_legend(ax, engine, drawn)


def _draw_line(ax: Axes, engine: str, values: Float[np.ndarray, " steps"], label: str, colour: str) -> None:
    steps = np.arange(len(values))
    if engine == "vi":
        ax.plot(steps, values, color=colour, linewidth=0.5, alpha=0.3, rasterized=len(values) > 5000, gid="raw")
        ax.plot(
            *smooth(values, max(len(values) // _SMOOTHED, 1)),
            color=colour,
            linewidth=1.6,
            label=label,
            zorder=3,
            gid="smooth",
        )
    elif engine in SAMPLERS:
        ax.plot(steps, values, color=colour, linewidth=0.6, alpha=0.75, rasterized=len(values) > 5000, label=label)
    else:
        marker = "o" if len(values) <= _LONG else ""
        ax.plot(steps, values, color=colour, linewidth=1.4, marker=marker, markersize=3.0, label=label)


def smooth(values: Float[np.ndarray, " steps"], window: int) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Centres and means of a moving window, over the finite values in it."""
    finite = np.isfinite(values)
    kernel = np.ones(window)
    count = np.convolve(finite, kernel, mode="valid")
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="valid")
    centres = np.arange(len(count)) + (window - 1) / 2
    return centres[count > 0], total[count > 0] / count[count > 0]


def settled_limits(traces: list[Float[np.ndarray, "_ _"]]) -> tuple[float, float]:
    """Limits that hold nearly all of the second half of every trace, and as much again below for the way there."""
    lows, highs = [], []
    for lines in traces:
        half = lines[:, lines.shape[1] // 2 :]
        low, high = np.nanquantile(half, [0.02, 0.998])
        lows.append(low)
        highs.append(high)
    low, high = float(min(lows)), float(max(highs))
    span = high - low or max(abs(high), 1.0) * 1e-3
    return low - 1.2 * span, high + 0.2 * span


def _add_legend(ax: Axes, engine: str, num_lines: int) -> None:
    """Rising traces leave the lower right free; draws leave nothing free, so room is made below them."""
    if engine in SAMPLERS:
        low, high = ax.get_ylim()
        ax.set_ylim(low - 0.1 * (high - low) * -(-num_lines // 4), high)
    legend = ax.legend(
        loc="lower center" if engine in SAMPLERS else "lower right",
        ncols=4 if engine in SAMPLERS else 1,
        frameon=False,
        fontsize=FONT_SIZE - 1,
        handlelength=1.2,
        columnspacing=1.0,
    )
    for handle in legend.get_lines():
        handle.set_linewidth(1.6)
        handle.set_alpha(1.0)
