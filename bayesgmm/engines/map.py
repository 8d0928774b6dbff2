r"""Maximum a posteriori: the mode of the NumPyro model's own log-density, found to a gradient tolerance.

The mode is that of the *constrained* sites (weights, means, scales and correlations; covariances or variances under a
conjugate prior): the point that NumPyro's `AutoDelta` guide finds and at which MAP-EM ends. A Laplace approximation is
centred elsewhere, on the mode in the unconstrained space, whose density has the Jacobian of the transforms besides.

The posterior of a mixture has many modes, so the climb begins at the ends of several runs of EM and the highest end is
kept. It goes by L-BFGS on unconstrained coordinates, which are but a way to move, and ends in Newton steps, whose
Hessian-vector products come from the derivative of the fused gradient: the gradient at the end is zero to rounding, not
small as at some stage of an Adam run. A point with a direction of positive curvature is a saddle, is left along that
direction, and never passes for a mode.

Sources: Nocedal & Wright (2006), chapters 7 (L-BFGS, inexact Newton) and 3 (directions of negative curvature); Byrd,
Lu, Nocedal & Zhu (1995) for L-BFGS, as implemented in SciPy.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg

from bayesgmm.engines.fit import Fit, ResultCode, announce
from bayesgmm.engines.modes import NUM_STARTS, em_ends
from bayesgmm.engines.registry import Count, OnFailure, Positive, engine
from bayesgmm.likelihood.log_likelihood import log_likelihood
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import matching_precision
from bayesgmm.posterior.matching import relabel
from bayesgmm.priors.checks import check_has_mode
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.starts.given import check_starts
from bayesgmm.target import unconstrained as space

_MOST_POLISHED = 20  # Newton steps; they double the digits
_MOST_SADDLES = 3  # that a climb leaves before it gives up
_SAME = 0.02  # of a component's own standard deviations: mixtures nearer to each other count as one


@engine("map", label="MAP", method="MAP", gives="point", prior="mode", trace="log posterior density", streams=(0,))
def fit_map(
    x: Any,
    num_components: Count,
    *,
    family: str | Family = "full",
    prior: AnyPrior | None = None,
    key: Any,
    start: Mixture | Sequence[Mixture] | None = None,
    num_starts: Count = NUM_STARTS,
    gtol: Positive | None = None,
    max_steps: Count = 1000,
    on_failure: OnFailure = "warn",
) -> Fit:
    """Fit the mixture at the mode of its posterior.

    The mode in the space of weights, means and scales (or covariances), as of `AutoDelta` and MAP-EM; that of a Laplace
    approximation lies in the unconstrained space and is another point.

    Args:
        x: rows (n, d).
        num_components: k.
        family: covariance family.
        prior: numbers of the prior, of `default_prior(x, num_components)`, used by default, or `conjugate_prior`, under
            which the mode is that of EM's M-step with this prior.
        key: `jax.random.key(seed)`; used by EM when no start is given.
        start: where to start, a mixture or several of them; the labels of the first are kept. By default the best fit
            by EM and `num_starts - 1` single runs of EM.
        num_starts: how many ends of EM to start from when no start is given; ends that are the same are taken once.
        gtol: stop when no entry of the gradient of the log posterior density, per row and per unit of the
            unconstrained coordinates, exceeds this. Default 1e-9 in float64, 1e-5 in float32.
        max_steps: limit on steps from every start.
        on_failure: "warn", "raise" or "ignore" when the tolerance was not met.

    Returns:
        A `Fit` of the highest end, whose trace is the log posterior density at every step towards it. Its `summary`
        has the log posterior density at the end from every start (`log_posteriors`), how many of the starts led to
        the highest end (`num_best`), and the number of different modes they led to (`num_modes`).

    Raises:
        InputError: for arguments that cannot be fitted, a prior without a mode among them, before anything is compiled.
    """
    if isinstance(prior, AnyPrior):
        check_has_mode(prior)
    x, family, prior = space.prepare_problem(x, num_components, family, prior, key)
    if start is None:
        # Single runs end in more places than the best of several do.
        starts = em_ends(x, num_components, family, 1, key=key, prior=prior)
        if num_starts > 1:
            single = jax.random.fold_in(key, 1)
            starts += em_ends(x, num_components, family, num_starts - 1, key=single, prior=prior, num_restarts=1)
    else:
        starts = check_starts(start, num_components, x.shape[1], family)
    return announce(_fit(x, num_components, family, prior, starts, gtol, max_steps), on_failure)


@dataclass(frozen=True)
class _End:
    """Where a climb ended: the point, the mixture there, the code, and the log posterior density at every step."""

    point: np.ndarray
    mixture: Mixture
    result: ResultCode
    num_steps: int
    trace: list[float]

    @property
    def height(self) -> float:
        """Log posterior density, and minus infinity where there is none."""
        return self.trace[-1] if np.isfinite(self.trace[-1]) else -np.inf


@dataclass(frozen=True)
class _Objective:
    """Minus the log posterior density as a function of flat vectors in float64, with its derivatives."""

    value_and_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]]
    hessian_product: Callable[[np.ndarray, np.ndarray], np.ndarray]
    tolerance: float  # of the largest entry of the gradient
    rounding: float  # relative error of a curvature


@matching_precision
def _fit(
    x: Any,
    num_components: int,
    family: Family,
    prior: AnyPrior,
    starts: list[Mixture],
    gtol: float | None,
    max_steps: int,
) -> Fit:
    x, prior, starts = jax.tree.map(jnp.asarray, (x, prior, starts))
    if gtol is None:
        gtol = 1e-9 if x.dtype == jnp.float64 else 1e-5
    _, unravel = ravel_pytree(space.to_unconstrained(starts[0], family, prior))
    arguments = (x, prior, num_components, family)

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_gradient(unravel(jnp.asarray(point, x.dtype)), *arguments)
        return float(value), np.asarray(ravel_pytree(gradient)[0], np.float64)

    def hessian_product(point: np.ndarray, direction: np.ndarray) -> np.ndarray:
        point, direction = (unravel(jnp.asarray(vector, x.dtype)) for vector in (point, direction))
        return np.asarray(ravel_pytree(_hessian_product(point, direction, *arguments))[0], np.float64)

    def mixture_at(point: np.ndarray) -> Mixture:
        sites = space.to_sites(unravel(jnp.asarray(point, x.dtype)), family, num_components, x.shape[1])
        return space.mixture_of(sites, family, prior)

    rounding = float(jnp.finfo(x.dtype).eps) ** 0.5
    objective = _Objective(value_and_gradient, hessian_product, gtol * x.shape[0], rounding)
    first_same = _first_same(starts)
    ends: dict[int, _End] = {}
    for index in sorted(set(first_same)):
        point, _ = ravel_pytree(space.to_unconstrained(starts[index], family, prior))
        ends[index] = _climb(np.asarray(point, np.float64), objective, max_steps, mixture_at)
    best = max(ends.values(), key=lambda end: end.height)
    mixture = relabel(best.mixture, starts[0])
    modes = [end.mixture for end in ends.values() if end.result is ResultCode.successful]
    return Fit(
        engine="map",
        family=family.name,
        mixture=mixture,
        log_likelihood=log_likelihood(mixture, x),
        result=np.int32(best.result),
        num_steps=np.int32(best.num_steps),
        trace=jnp.asarray(best.trace),
        summary={
            "log_posteriors": tuple(ends[index].trace[-1] for index in first_same),
            "num_best": sum(_are_same(ends[index].mixture, best.mixture) for index in first_same),
            "num_modes": len(set(_first_same(modes))),
        },
    )


def _first_same(mixtures: list[Mixture]) -> list[int]:
    """For every mixture the index of the first that is the same."""
    return [
        next(i for i, other in enumerate(mixtures[: index + 1]) if i == index or _are_same(one, other))
        for index, one in enumerate(mixtures)
    ]


def _are_same(one: Mixture, other: Mixture) -> bool:
    """Whether every component lies where one of the other mixture does, but for a small part of its own spread."""
    one = relabel(one, other)
    means, scales = np.asarray(other.means), np.asarray(other.scales)
    return bool(
        (np.abs(np.asarray(one.means) - means) <= _SAME * scales).all()
        and (np.abs(np.log(np.asarray(one.scales) / scales)) <= _SAME).all()
        and (np.abs(np.asarray(one.weights) - np.asarray(other.weights)) <= _SAME).all()
    )


def _climb(
    point: np.ndarray, objective: _Objective, max_steps: int, mixture_at: Callable[[np.ndarray], Mixture]
) -> _End:
    """From a start to a mode, through saddles if there are any."""
    trace, num_steps, result = [-objective.value_and_gradient(point)[0]], 0, ResultCode.max_steps_reached
    for saddles_left in reversed(range(_MOST_SADDLES + 1)):
        if not np.isfinite(trace[-1]) or num_steps == max_steps:
            break
        for slope in (1e3, 1e2, 1e1):  # to begin the polish with, over what it ends with
            point, taken = _lbfgs(point, objective, slope * objective.tolerance, max_steps - num_steps, trace)
            num_steps += taken
            point, taken = _polish(point, objective, min(_MOST_POLISHED, max_steps - num_steps))
            num_steps += taken
            value, gradient = objective.value_and_gradient(point)
            trace.append(-value)
            if np.abs(gradient).max() <= objective.tolerance or num_steps == max_steps:
                break
        if not np.abs(gradient).max() <= objective.tolerance:
            break
        ascent = _direction_of_ascent(point, objective)
        if ascent is None:
            result = ResultCode.successful
            break
        if saddles_left and num_steps < max_steps:
            steps = [sign * length * ascent for length in (0.5, 0.1, 0.02) for sign in (1.0, -1.0)]
            point = min((point + step for step in steps), key=lambda near: objective.value_and_gradient(near)[0])
            num_steps += 1
            trace.append(-objective.value_and_gradient(point)[0])
    if not np.isfinite(trace[-1]):
        result = ResultCode.nonfinite
    return _End(point, mixture_at(point), result, num_steps, trace)


def _lbfgs(
    point: np.ndarray, objective: _Objective, gtol: float, max_steps: int, trace: list[float]
) -> tuple[np.ndarray, int]:
    """Steps to a rough tolerance. The last digits of the objective are rounding, on which a line search fails."""
    found = minimize(
        objective.value_and_gradient,
        point,
        jac=True,
        method="L-BFGS-B",
        callback=lambda intermediate_result: trace.append(-float(intermediate_result.fun)),
        options={"gtol": gtol, "ftol": 0.0, "maxiter": max_steps, "maxfun": 20 * max_steps, "maxcor": 20},
    )
    return found.x, found.nit


def _polish(point: np.ndarray, objective: _Objective, max_steps: int) -> tuple[np.ndarray, int]:
    """Newton steps judged by the gradient alone, for as long as each makes it smaller."""
    gradient = objective.value_and_gradient(point)[1]
    for num_steps in range(max_steps):
        if np.abs(gradient).max() <= objective.tolerance:
            return point, num_steps
        here = point
        hessian = LinearOperator(
            shape=(point.size, point.size),
            matvec=lambda direction, here=here: objective.hessian_product(here, direction),  # pyright: ignore[reportCallIssue]
            dtype=np.float64,
        )
        step, _ = cg(hessian, -gradient, rtol=1e-8, maxiter=4 * point.size)
        new_gradient = objective.value_and_gradient(point + step)[1]
        if not np.linalg.norm(new_gradient) < np.linalg.norm(gradient):
            return point, num_steps
        point, gradient = point + step, new_gradient
    return point, max_steps


def _direction_of_ascent(point: np.ndarray, objective: _Objective, most_products: int = 30) -> np.ndarray | None:
    """A direction in which the posterior is convex, so that it rises to both sides, if a few Lanczos steps find one.

    Exact for up to `most_products` coordinates. For more, a direction that is found is one; a weak one may be missed.
    """
    size = min(point.size, most_products)
    basis = np.zeros((size, point.size))
    products = np.zeros_like(basis)
    vector = np.random.default_rng(0).normal(size=point.size)
    for row in range(size):
        for _ in range(2):  # orthogonal to rounding
            vector = vector - basis[:row].T @ (basis[:row] @ vector)
        length = np.linalg.norm(vector)
        if not length > 1e-10 * max(1.0, np.linalg.norm(products[row - 1])):  # the space is exhausted, or NaN
            basis, products = basis[:row], products[:row]
            break
        basis[row] = vector / length
        products[row] = vector = objective.hessian_product(point, basis[row])
    curvatures, directions = np.linalg.eigh(basis @ products.T)
    if not curvatures[0] < -objective.rounding * np.abs(curvatures).max():
        return None
    return directions[:, 0] @ basis


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
