r"""Maximum a posteriori: the mode of the NumPyro model's own log-density, found to a gradient tolerance.

The mode is that of the *constrained* sites (weights, means, scales and correlations; covariances or variances under a
conjugate prior): the point that NumPyro's `AutoDelta` guide finds and at which MAP-EM ends. A Laplace approximation is
centred elsewhere, on the mode in the unconstrained space, whose density has the Jacobian of the transforms besides.

The posterior of a mixture has many modes, so the climb begins at several EM optima and the highest end is kept. It goes
by L-BFGS on unconstrained coordinates, which are but a way to move, and ends in Newton steps on the curvature of the
target: the gradient at the end is zero to rounding, not small as at some stage of an Adam run. A point with a direction
of positive curvature is a saddle, is left along that direction, and never passes for a mode.

Sources: Nocedal & Wright (2006), chapters 7 (L-BFGS, inexact Newton) and 3 (directions of negative curvature); Byrd,
Lu, Nocedal & Zhu (1995) for L-BFGS, as implemented in SciPy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg

from bayesgmm.engines.fit import Fit, ResultCode, report_failure
from bayesgmm.engines.modes import NUM_STARTS, starts_of
from bayesgmm.engines.registry import Count, OnFailure, Positive, engine
from bayesgmm.likelihood.rows import unweighted_rows
from bayesgmm.likelihood.scores import log_likelihood
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike, KeyLike, matching_precision
from bayesgmm.posterior.matching import relabel
from bayesgmm.priors.checks import check_has_mode
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.target.problem import Problem, make_problem
from bayesgmm.target.unconstrained import Energy, make_target, mixtures_at, vector_of

_MOST_POLISHED = 20  # Newton steps; they double the digits
_MOST_SADDLES = 3  # that a climb leaves before it gives up
_SAME = 0.02  # of a component's own standard deviations: mixtures nearer to each other count as one


@engine("map", label="MAP", method="MAP", gives="point", prior="mode", trace="log posterior density", streams=(0,))
def fit_map(
    x: ArrayLike,
    num_components: Count,
    *,
    family: str | Family = "full",
    prior: AnyPrior | None = None,
    key: KeyLike,
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
        start: where to start, a mixture or several of them; the labels of the first are kept. By default the
            optima of `num_starts` fits by EM.
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
    problem = make_problem(unweighted_rows(x), num_components, family, prior, key)
    # A start that is not finite is an end like others: of several the best is kept, and alone it is reported.
    starts = starts_of(problem, start, num_starts, key=key, finite=False)
    return report_failure(_fit(problem, starts, gtol, max_steps), on_failure)


@dataclass(frozen=True)
class _End:
    """Where a climb ended: the mixture there, the code, and the log posterior density at every step."""

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
    """Minus the log posterior density of the sites, as a function of flat vectors in float64."""

    energy: Energy
    tolerance: float  # of the largest entry of the gradient
    rounding: float  # relative error of a curvature

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient."""
        values, gradients = self.energy(point[None])
        return float(values[0]), gradients[0]

    def hessian_product(self, point: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Product of the curvature with a direction."""
        length = float(np.linalg.norm(direction))
        return length * self.energy.curvature(point, direction[None] / max(length, 1e-300))[2][0]


@matching_precision
def _fit(problem: Problem, starts: list[Mixture], gtol: float | None, max_steps: int) -> Fit:
    target = make_target(problem, starts[0])
    starts, dtype = jax.tree.map(jnp.asarray, starts), target.rows.dtype
    if gtol is None:
        gtol = 1e-9 if dtype == jnp.float64 else 1e-5
    objective = _Objective(Energy(target, jacobian=0.0), gtol * len(problem.rows), float(jnp.finfo(dtype).eps) ** 0.5)
    first_same = _first_same(starts)
    ends = {
        index: _climb(np.asarray(vector_of(target, starts[index]), np.float64), objective, max_steps)
        for index in sorted(set(first_same))
    }
    best = max(ends.values(), key=lambda end: end.height)
    mixture = relabel(best.mixture, starts[0])
    modes = [end.mixture for end in ends.values() if end.result is ResultCode.successful]
    shift = target.log_unit()
    return Fit(
        engine="map",
        family=target.family.name,
        mixture=mixture,
        log_likelihood=log_likelihood(mixture, target.rows),
        result=np.int32(best.result),
        num_steps=np.int32(best.num_steps),
        trace=jnp.asarray(np.asarray(best.trace) + shift),
        summary={
            "log_posteriors": tuple(ends[index].trace[-1] + shift for index in first_same),
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
    ours, theirs = (_parameters(mixture) for mixture in (relabel(one, other), other))
    weights, means, scales = (np.abs(np.asarray(a) - np.asarray(b)) for a, b in zip(ours, theirs, strict=True))
    return bool(
        (weights <= _SAME).all() and (means <= _SAME * np.exp(np.asarray(theirs[2]))).all() and (scales <= _SAME).all()
    )


@jax.jit
def _parameters(mixture: Mixture) -> tuple[Array, Array, Array]:
    """Weights, means and log scales."""
    return mixture.weights, mixture.means, jnp.log(mixture.scales)


def _climb(point: np.ndarray, objective: _Objective, max_steps: int) -> _End:
    """From a start to a mode, through saddles if there are any."""
    trace, num_steps, result = [-objective(point)[0]], 0, ResultCode.max_steps_reached
    for saddles_left in reversed(range(_MOST_SADDLES + 1)):
        if not np.isfinite(trace[-1]) or num_steps == max_steps:
            break
        for slope in (1e3, 1e2, 1e1):  # to begin the polish with, over what it ends with
            point, taken = _lbfgs(point, objective, slope * objective.tolerance, max_steps - num_steps, trace)
            num_steps += taken
            point, taken = _polish(point, objective, min(_MOST_POLISHED, max_steps - num_steps))
            num_steps += taken
            value, gradient = objective(point)
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
            point = min((point + step for step in steps), key=lambda near: objective(near)[0])
            num_steps += 1
            trace.append(-objective(point)[0])
    if not np.isfinite(trace[-1]):
        result = ResultCode.nonfinite
    target = objective.energy.target
    mixture = mixtures_at(target, point)
    return _End(mixture, result, num_steps, trace)


def _lbfgs(
    point: np.ndarray, objective: _Objective, gtol: float, max_steps: int, trace: list[float]
) -> tuple[np.ndarray, int]:
    """Steps to a rough tolerance. The last digits of the objective are rounding, on which a line search fails."""
    found = minimize(
        objective,
        point,
        jac=True,
        method="L-BFGS-B",
        callback=lambda intermediate_result: trace.append(-float(intermediate_result.fun)),
        options={"gtol": gtol, "ftol": 0.0, "maxiter": max_steps, "maxfun": 20 * max_steps, "maxcor": 20},
    )
    return found.x, found.nit


def _polish(point: np.ndarray, objective: _Objective, max_steps: int) -> tuple[np.ndarray, int]:
    """Newton steps judged by the gradient alone, for as long as each makes it smaller."""
    gradient = objective(point)[1]
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
        new_gradient = objective(point + step)[1]
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
