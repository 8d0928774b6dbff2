r"""Maximum a posteriori: the mode of the NumPyro model's own log-density, found to a gradient tolerance.

The mode is that of the *constrained* sites (weights, means, scales and correlations; covariances or variances under a
conjugate prior), the point that NumPyro's `AutoDelta` guide finds. It is reached by a trust-region Newton method on
unconstrained coordinates, whose Hessian-vector products come from the derivative of the fused gradient, so the end
point is sharp: its gradient is zero to rounding, not a stage of an Adam run.

Source: Nocedal & Wright (2006), chapter 7 (trust-region Newton-CG), as implemented in SciPy.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg

from bayesgmm.checks import finite_number, whole_number
from bayesgmm.conjugate import AnyPrior
from bayesgmm.engines import space
from bayesgmm.errors import InputError
from bayesgmm.families import Family
from bayesgmm.labels import relabel
from bayesgmm.likelihood import log_likelihood
from bayesgmm.mixture import Mixture
from bayesgmm.precision import matching_precision
from bayesgmm.results import Fit, ResultCode, announce, check_on_failure


def fit_map(
    x: Any,
    num_components: int,
    *,
    family: str | Family = "full",
    prior: AnyPrior | None = None,
    key: Any,
    start: Mixture | None = None,
    gtol: float | None = None,
    max_steps: int = 500,
    on_failure: str = "warn",
) -> Fit:
    """Fit the mixture at the mode of its posterior.

    Args:
        x: rows (n, d).
        num_components: k.
        family: covariance family.
        prior: numbers of the prior, of `default_prior(x, num_components)`, used by default, or `conjugate_prior`, under
            which the mode is that of EM's M-step with this prior.
        key: `jax.random.key(seed)`; used by the EM fit when no start is given.
        start: where to start, and whose labels to keep; by default a fit by EM.
        gtol: stop when no entry of the gradient of the log posterior density, per row and per unit of the
            unconstrained coordinates, exceeds this. Default 1e-9 in float64, 1e-5 in float32.
        max_steps: limit on Newton steps.
        on_failure: "warn", "raise" or "ignore" when the tolerance was not met.

    Returns:
        A `Fit` whose trace is the log posterior density at every step.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
    """
    check_on_failure(on_failure)
    x, family, prior, start = space.prepare(x, num_components, family, prior, start, key)
    max_steps = whole_number("max_steps", max_steps)
    if gtol is not None and not finite_number("gtol", gtol) > 0:
        raise InputError(f"gtol={gtol} must be greater than 0")
    return announce(_fit(x, num_components, family, prior, start, gtol, max_steps), on_failure)


@matching_precision
def _fit(
    x: Any, num_components: int, family: Family, prior: AnyPrior, start: Mixture, gtol: float | None, max_steps: int
) -> Fit:
    x, prior, start = jax.tree.map(jnp.asarray, (x, prior, start))
    if gtol is None:
        gtol = 1e-9 if x.dtype == jnp.float64 else 1e-5
    tolerance = gtol * x.shape[0]
    origin, unravel = ravel_pytree(space.to_unconstrained(start, family, prior))
    arguments = (x, prior, num_components, family)

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_gradient(unravel(jnp.asarray(point, x.dtype)), *arguments)
        return float(value), np.asarray(ravel_pytree(gradient)[0], np.float64)

    def hessian_product(point: np.ndarray, direction: np.ndarray) -> np.ndarray:
        point, direction = (unravel(jnp.asarray(vector, x.dtype)) for vector in (point, direction))
        return np.asarray(ravel_pytree(_hessian_product(point, direction, *arguments))[0], np.float64)

    trace = [-value_and_gradient(np.asarray(origin))[0]]
    found = minimize(
        value_and_gradient,
        np.asarray(origin, np.float64),
        jac=True,
        hessp=hessian_product,
        method="trust-ncg",
        callback=lambda intermediate_result: trace.append(-intermediate_result.fun),
        # The last digits of the objective are rounding, on which a trust region chokes; the polish does without them.
        options={"gtol": 1e3 * tolerance, "maxiter": max_steps},
    )
    steps_left = min(20, max_steps - found.nit)
    point, num_polished = _polish(found.x, value_and_gradient, hessian_product, tolerance, steps_left)
    value, gradient = value_and_gradient(point)
    trace.append(-value)
    if not np.isfinite(value) or not np.isfinite(gradient).all():
        result = ResultCode.nonfinite
    elif np.abs(gradient).max() <= tolerance:
        result = ResultCode.successful
    else:
        result = ResultCode.max_steps_reached
    sites = space.to_sites(unravel(jnp.asarray(point, x.dtype)), family, num_components, x.shape[1])
    mixture = relabel(space.mixture_of(sites, family, prior), start)
    return Fit(
        engine="map",
        family=family.name,
        mixture=mixture,
        log_likelihood=log_likelihood(mixture, x),
        result=np.int32(result),
        num_steps=np.int32(found.nit + num_polished),
        trace=jnp.asarray(trace),
    )


def _polish(
    point: np.ndarray,
    value_and_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]],
    hessian_product: Callable[[np.ndarray, np.ndarray], np.ndarray],
    tolerance: float,
    max_steps: int,
) -> tuple[np.ndarray, int]:
    """Newton steps judged by the gradient alone, for as long as each makes it smaller."""
    gradient = value_and_gradient(point)[1]
    for num_steps in range(max_steps):
        if np.abs(gradient).max() <= tolerance:
            return point, num_steps
        here = point
        hessian = LinearOperator(
            shape=(point.size, point.size),
            matvec=lambda direction, here=here: hessian_product(here, direction),  # pyright: ignore[reportCallIssue]
            dtype=np.float64,
        )
        step, _ = cg(hessian, -gradient, rtol=1e-8, maxiter=4 * point.size)
        new_gradient = value_and_gradient(point + step)[1]
        if not np.linalg.norm(new_gradient) < np.linalg.norm(gradient):
            return point, num_steps
        point, gradient = point + step, new_gradient
    return point, max_steps


@functools.partial(jax.jit, static_argnames=("num_components", "family"))
def _value_and_gradient(
    point: space.Sites, x: Array, prior: AnyPrior, num_components: int, family: Family
) -> tuple[Array, space.Sites]:
    def objective(point: space.Sites) -> Array:
        return -space.constrained_log_density(point, x, num_components, family, prior)

    return jax.value_and_grad(objective)(point)


@functools.partial(jax.jit, static_argnames=("num_components", "family"))
def _hessian_product(
    point: space.Sites, direction: space.Sites, x: Array, prior: AnyPrior, num_components: int, family: Family
) -> space.Sites:
    def gradient(point: space.Sites) -> space.Sites:
        return _value_and_gradient(point, x, prior, num_components, family)[1]

    return jax.jvp(gradient, (point,), (direction,))[1]
