"""When stochastic ascent has settled: windows of its noisy ELBO are compared, and the step size falls.

The mean of the ELBO over the last window is compared with that over the window before. While it rose by more than twice
the standard error of the difference, the fit is still climbing. Where twice that standard error is above half a nat, a
climb could hide in the noise: nothing is concluded, and the windows are made twice as long. Else the approximation has
settled at this step size, and the next one begins.
"""

import numpy as np

STEP_SIZES = (2e-2, 5e-3, 1.25e-3)
RESOLUTION = 0.5
"""Nats to which two windows of the ELBO must be told apart before the stopping rule concludes anything."""


class Schedule:
    """What step size is next, given the ELBO of all steps so far: a function of those alone, so that it can be resumed.

    Attributes:
        trace: ELBO of every step so far.
        settled: whether the ascent has settled at the last step size.
        failed: whether the last steps have an ELBO that is not finite.
    """

    def __init__(self, window: int, max_steps: int) -> None:
        self.trace = np.empty(0)
        self.settled = self.failed = False
        self._window, self._max_steps = window, max_steps
        self._phase, self._began, self._span = 0, 0, window

    @property
    def step_size(self) -> float | None:
        """For the next window; None when there is to be none."""
        over = self.settled or self.failed or len(self.trace) + self._window > self._max_steps
        return None if over else STEP_SIZES[self._phase]

    @property
    def last(self) -> np.ndarray:
        """ELBO of the steps of the last window."""
        return self.trace[-self._window :]

    def add(self, elbo: np.ndarray) -> None:
        """A window of steps has been taken."""
        self.trace = np.append(self.trace, elbo)
        self.failed = not np.isfinite(elbo).all()
        if self.failed or len(self.trace) - self._began < 2 * self._span:
            return
        before, after = self.trace[-2 * self._span : -self._span], self.trace[-self._span :]
        if has_settled(before, after):
            self.settled = self._phase == len(STEP_SIZES) - 1
            self._phase, self._began = self._phase + 1, len(self.trace)
        elif not can_tell(before, after):
            self._span *= 2

    def resume(self, trace: np.ndarray) -> None:
        """The windows that were taken before."""
        for elbo in trace.reshape(-1, self._window):
            self.add(elbo)


def has_settled(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two windows are told apart, and the second is higher by at most twice the error of the difference."""
    return can_tell(before, after) and bool(after.mean() - before.mean() <= 2 * _error(before, after))


def can_tell(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a difference of `RESOLUTION` between the means of two windows would be seen."""
    return bool(2 * _error(before, after) <= RESOLUTION)


def _error(before: np.ndarray, after: np.ndarray) -> float:
    """Standard error of the difference of the means."""
    return float(np.sqrt(before.var(ddof=1) / before.size + after.var(ddof=1) / after.size))
