"""Runs of EM, each from one start to its end, told of as they go where that is wanted."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bayesgmm.engines.em import fit_em, sorted_components
from bayesgmm.engines.fit import Fit, ResultCode


@dataclasses.dataclass(frozen=True)
class EMRun:
    """`fit_em` from one start at a time, with `options` of it."""

    x: np.ndarray
    num_components: int
    max_steps: int
    options: dict[str, Any]
    verbose: int = 0
    interval: int = 10

    @property
    def total_weight(self) -> float:
        """Weight of all rows."""
        weights = self.options["row_weights"]
        return float(len(self.x) if weights is None else weights.sum())

    def __call__(self, start: Any, key: Any, index: int) -> Fit:
        """The fit from this start, the name of one or a mixture."""
        if not self.verbose:
            return self._steps(start, key, self.max_steps)
        begun = time.perf_counter()
        if self.options["accelerate"]:
            # Extrapolation remembers earlier steps: it is not taken to pieces, and told of when it is over.
            fit = self._steps(start, key, self.max_steps)
            seconds = time.perf_counter() - begun
            tell_run(index, self._bounds(fit)[1:], bool(fit.successful), seconds, self.verbose, self.interval)
            return fit
        print(f"Initialization {index}")
        fit = self._told(start, key)
        _tell_end(self._bounds(fit)[-1], bool(fit.successful), time.perf_counter() - begun, self.verbose)
        return fit

    def _steps(self, start: Any, key: Any, max_steps: int) -> Fit:
        fit = fit_em(
            self.x,
            self.num_components,
            start=start,
            key=key,
            num_restarts=1,
            max_steps=max_steps,
            on_failure="ignore",
            **self.options,
        )
        return jax.tree.map(np.asarray, fit)

    def _bounds(self, fit: Fit) -> np.ndarray:
        return np.asarray(fit.steps, np.float64) / self.total_weight

    def _told(self, start: Any, key: Any) -> Fit:
        """The same steps in stretches of `interval`."""
        fit = self._steps(start, key, min(self.interval, self.max_steps))
        trace, begun = fit.steps, time.perf_counter()
        while len(trace) - 1 < self.max_steps and self._goes_on(fit):
            change = np.diff(self._bounds(fit)[-2:])[0]
            now = time.perf_counter()
            _tell_step(len(trace) - 1, change, now - begun, self.verbose)
            begun = now
            fit = self._steps(fit.mixture, None, min(self.interval, self.max_steps - len(trace) + 1))
            trace = np.concatenate([trace, fit.steps[1:]])
        missing = np.full(max(0, self.max_steps + 1 - len(trace)), np.nan, trace.dtype)
        fit = dataclasses.replace(fit, num_steps=np.int32(len(trace) - 1), trace=np.concatenate([trace, missing]))
        return jax.tree.map(np.asarray, sorted_components(fit)) if isinstance(start, str) else fit

    def ended_singular(self, fit: Fit) -> bool:
        """Whether a run ended because the next step had no density, or has none itself: scikit-learn raises there."""
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.mixture)):
            return True
        failed = fit.code in (ResultCode.collapsed, ResultCode.nonfinite)
        return failed and int(fit.num_steps) < self.max_steps and not self._settled(fit)

    def _goes_on(self, fit: Fit) -> bool:
        """Whether a stretch ended because it was over; a component that has shrunk does not end a run by itself."""
        whole = len(fit.steps) == len(fit.trace)
        return whole and fit.code in (ResultCode.max_steps_reached, ResultCode.collapsed) and not self._settled(fit)

    def _settled(self, fit: Fit) -> bool:
        bounds = self._bounds(fit)
        return len(bounds) > 1 and bool(abs(bounds[-1] - bounds[-2]) < self.options["tol"])


def tell_run(index: int, bounds: np.ndarray, converged: bool, seconds: float, verbose: int, interval: int) -> None:
    """Print what a run was like that is over, with its bound after each step: nothing, or less or more of it."""
    if not verbose:
        return
    print(f"Initialization {index}")
    for step in range(interval, len(bounds), interval):
        _tell_step(step, bounds[step - 1] - (bounds[step - 2] if step > 1 else -np.inf), None, verbose)
    _tell_end(bounds[-1], converged, seconds, verbose)


def _tell_step(step: int, change: float, seconds: float | None, verbose: int) -> None:
    line = f"  Iteration {step}"
    if verbose > 1:
        line += ("" if seconds is None else f"\t time lapse {seconds:.5f} s") + f"\t ll change {change:.5f}"
    print(line)


def _tell_end(bound: float, converged: bool, seconds: float, verbose: int) -> None:
    more = f" in {seconds:.5f} s, lower bound {bound:.5f}" if verbose > 1 else ""
    print(f"Initialization {'converged' if converged else 'did not converge'}{more}.")


def best_fit(fits: Sequence[Fit]) -> Fit:
    """The fit with the highest objective at its end; a collapsed one only where all of them are.

    Of runs that end in the same place the first is taken, whatever rounding makes of their objectives.
    """

    def merit(fit: Fit) -> tuple[bool, float]:
        objective = float(fit.steps[-1])
        return (
            math.isfinite(objective) and fit.code not in (ResultCode.collapsed, ResultCode.nonfinite),
            float(f"{objective:.11e}") if math.isfinite(objective) else -math.inf,
        )

    return max(fits, key=merit)
