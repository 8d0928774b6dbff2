r"""The evidence lower bound of variational inference: its estimate, also on minibatches, and its schedule.

**Minibatches.** A batch B of b rows of n counts n / b times. In itself that is unbiased but far too noisy: the
log-likelihood of the batch strays from its share by $n / \sqrt b$ nats, where one nat matters. So what is estimated is
only what a row's log-density departs from its tangent at a reference mixture $\theta_0$ (the start), and the tangent is
known for all rows together:

$$ \hat L(\theta) = L(\theta_0) + \nabla L(\theta_0) \cdot \delta + \frac n b \sum_{i \in B}
   \bigl[\ell_i(\theta) - \ell_i(\theta_0) - \nabla \ell_i(\theta_0) \cdot \delta\bigr],
   \qquad \delta = \theta - \theta_0. $$

Its mean over batches is L for every $\theta$, near or far; near the reference, where the posterior of many rows lies,
the departure is of second order and the noise of the order of $p / \sqrt b$ nats for p parameters, whatever n is.

**Schedule.** The mean of the ELBO over the last window of steps is compared with that over the window before. While it
rose by more than twice the standard error of the difference, the fit is still climbing. Where twice that standard error
is above half a nat, a climb could hide in the noise: nothing is concluded, and the windows are made twice as long. Else
the approximation has settled at this step size, and the next one begins.

Source: Baker, Fearnhead, Fox & Nemeth (2019), Control variates for stochastic gradient MCMC, section 3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.handlers import seed
from numpyro.infer import ELBO
from numpyro.infer.util import get_importance_trace
from numpyro.primitives import Messenger

from bayesgmm.likelihood.rows import Rows
from bayesgmm.likelihood.scores import log_likelihood_of_rows
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import RandomKey

ALL_ROWS_UP_TO = 100_000
BATCH_SIZE = 4096


class Tangent(NamedTuple):
    """The log-likelihood of all rows at the reference, and its slope there in every number of the mixture."""

    reference: Mixture
    slope: Mixture
    log_likelihood: Array
    num_rows: Array


@jax.jit
def tangent_at(reference: Mixture, rows: Rows) -> Tangent:
    """One pass over all rows."""
    value, slope = jax.value_and_grad(lambda mixture: log_likelihood_of_rows(mixture, rows, None))(reference)
    return Tangent(reference, slope, value, jnp.asarray(len(rows), rows.dtype))


def log_likelihood_of_batch(mixture: Mixture, batch: Rows, tangent: Tangent) -> Float[Array, ""]:
    r"""The estimate $\hat L(\theta) - L(\theta_0)$; without the constant, lest what varies drown in its rounding."""
    reference, slope, _, num_rows = tangent
    away = jax.tree.map(jnp.subtract, mixture, reference)
    there, along = jax.jvp(lambda mixture: log_likelihood_of_rows(mixture, batch, None), (reference,), (away,))
    of_all = sum(jnp.vdot(*pair) for pair in zip(jax.tree.leaves(slope), jax.tree.leaves(away), strict=True))
    return num_rows / len(batch) * (log_likelihood_of_rows(mixture, batch, None) - there - along) + of_all


Program = Callable[..., Any]
"""A model or a guide: a function that calls NumPyro's primitives."""


class Elbo(ELBO):
    """What NumPyro's `Trace_ELBO` is, added up in the order in which sites occur.

    NumPyro's order is that of a set of strings, which differs from process to process: so would the last digits, and
    the program, which then could not be taken from JAX's cache on disk.
    """

    def loss_with_mutable_state(
        self, rng_key: RandomKey, param_map: dict[str, Any], model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Any:
        """Minus the mean of log p - log q over particles."""

        def of_particle(key: RandomKey) -> Array:
            _, log_p, log_q = log_densities(key, model, guide, args, param_map, kwargs)
            return log_p - log_q

        over = self.vectorize_particles_fn(of_particle, jax.random.split(rng_key, self.num_particles))
        return {"loss": -over.mean(), "mutable_state": None}


def log_densities(
    key: RandomKey,
    model: Program,
    guide: Program,
    arguments: tuple[Any, ...],
    parameters: dict[str, Any],
    named: dict[str, Any] | None = None,
) -> tuple[dict[str, Array], Float[Array, ""], Float[Array, ""]]:
    """A draw from the guide: values of the model's sites there, and its log-densities under model and guide."""
    model_key, guide_key = jax.random.split(key)
    guide = _HeldApart(seed(guide, guide_key))
    traces = get_importance_trace(seed(model, model_key), guide, arguments, named or {}, parameters)
    log_p, log_q = (
        jnp.stack([site["log_prob"].sum() for site in trace.values() if site["type"] == "sample"]).sum()
        for trace in traces
    )
    return {name: site["value"] for name, site in traces[0].items()}, log_p, log_q


class _HeldApart(Messenger):
    """Draws held apart from what is made of them, or each of their uses would be compiled with the drawing anew."""

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Put the barrier behind a draw."""
        if msg["type"] == "sample" and not msg["is_observed"]:
            msg["value"] = jax.lax.optimization_barrier(msg["value"])


STEP_SIZES = (2e-2, 5e-3, 1.25e-3)
RESOLUTION = 0.5
"""Nats: the difference between two windows of the ELBO that the stopping rule must be able to see."""


class ElboSchedule:
    """What step size is next, given the ELBO of all steps so far: a function of those alone, so that it can be resumed.

    Attributes:
        trace: ELBO of every step so far.
        settled: whether the ascent has settled at the last step size.
        failed: whether the last steps have an ELBO that is not finite.
        taken: the step size of the last window.
    """

    def __init__(self, window: int, max_steps: int) -> None:
        self.trace = np.empty(0)
        self.settled = self.failed = False
        self.taken = STEP_SIZES[0]
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
        """Windows of steps have been taken."""
        for window in elbo.reshape(-1, self._window):
            self.taken = STEP_SIZES[self._phase]
            self.trace = np.append(self.trace, window)
            self.failed = not np.isfinite(window).all()
            if self.failed or len(self.trace) - self._began < 2 * self._span:
                continue
            before, after = self.trace[-2 * self._span : -self._span], self.trace[-self._span :]
            if has_settled(before, after):
                self.settled = self._phase == len(STEP_SIZES) - 1
                self._phase, self._began = min(self._phase + 1, len(STEP_SIZES) - 1), len(self.trace)
            elif not can_resolve(before, after):
                self._span *= 2


def has_settled(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two windows can be distinguished, the second higher by at most twice the error of the difference."""
    return can_resolve(before, after) and bool(after.mean() - before.mean() <= 2 * _error(before, after))


def can_resolve(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a difference of `RESOLUTION` between the means of two windows would be seen."""
    return bool(2 * _error(before, after) <= RESOLUTION)


def _error(before: np.ndarray, after: np.ndarray) -> float:
    """Standard error of the difference of the means."""
    return float(np.sqrt(before.var(ddof=1) / before.size + after.var(ddof=1) / after.size))
