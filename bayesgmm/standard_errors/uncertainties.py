"""How far a maximum-likelihood fit is to be trusted: standard errors and confidence intervals, six ways.

`observed` and `sandwich` are theory of first order, one pass of second derivatives; `bootstrap`, `weighted`,
`parametric` and `jackknife` fit replicates of the data, all in one compiled program. They answer the same question, so
where they disagree the likelihood is no parabola and the replicates are to be believed.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bayesgmm.engines.fit import Fit, ResultCode, warn_or_raise
from bayesgmm.engines.registry import ENGINES
from bayesgmm.engines.restarts import default_ridge
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import Rows, as_rows
from bayesgmm.mixtures.coordinates import names_of_coordinates
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture, rows_of_mixture
from bayesgmm.mixtures.quantities import Functions, as_functions, quantities_of
from bayesgmm.numerics.precision import AnyArray, ArrayLike, KeyLike, RandomKey, is_traced
from bayesgmm.numerics.thresholds import MAX_DISTANCE, MIN_INFORMATION
from bayesgmm.numerics.validation import as_key, one_of, short_repr, whole_number
from bayesgmm.posterior.matching import relabel
from bayesgmm.runtime.progress import waited_for
from bayesgmm.standard_errors.information import Information, information
from bayesgmm.standard_errors.intervals import BY_DRAWING, BY_THEORY, METHODS, Uncertainty, UncertaintyCode
from bayesgmm.standard_errors.replicates import (
    MAX_STEPS,
    Refits,
    bootstrap_weights,
    dirichlet_weights,
    jackknife_weights,
    refit,
    simulated_rows,
)

if TYPE_CHECKING:
    GivenFunctions = Mapping[str, Callable[[Mixture], AnyArray]]
else:
    GivenFunctions = object  # checked by `as_functions`

Problem = tuple[UncertaintyCode, str]

_NUM_REPLICATES = 500
_TOL = 1e-8  # of the replicates: one that stops early stays near the fit, and would look too certain
MOST_PARAMETERS = 4000  # of which a matrix of second derivatives is made
_MOST_AT_ONCE = 32  # replicates whose quantities are computed together
_WHOSE = "was it made of these rows and row_weights, without a prior or ridge"


@waited_for("standard errors")
def uncertainty(
    fit: Fit,
    x: ArrayLike,
    method: str = "observed",
    *,
    num_replicates: int | None = None,
    key: KeyLike | None = None,
    row_weights: ArrayLike | None = None,
    functions: GivenFunctions | None = None,
    on_failure: str = "warn",
) -> Uncertainty:
    """Estimate standard errors and confidence intervals of a maximum-likelihood fit.

    Args:
        fit: a fit by `fit_em` without a prior.
        x: the rows (n, d) that it was fitted to.
        method:
            * "observed": inverse of the observed information;
            * "sandwich": the same, right too where the rows are not from such a mixture (White 1982);
            * "bootstrap": rows drawn with replacement (Efron 1979);
            * "weighted": Dirichlet weights on the rows, none of them zero, so that small components seldom lose all of
              theirs (Rubin 1981; Newton & Raftery 1994);
            * "parametric": rows drawn from the fit;
            * "jackknife": one row left out after another (n fits).
        num_replicates: fits of the three random methods, 500 by default.
        key: `jax.random.key(seed)`, which they need.
        row_weights: the weights (n) that the fit was made with; weight 2 is the row twice. A jackknife needs whole
            ones.
        functions: a mapping of names to further quantities, functions of a `Mixture` written in JAX that give a number
            or an array of any shape: `{"density": lambda mixture: mixture.log_prob(point)}`, say.
        on_failure: "warn", "raise" or "ignore" where `code` is not successful.

    Returns:
        An `Uncertainty`, in the precision of the rows; it is computed in float64 whatever that is.

    Raises:
        InputError: for arguments that cannot be used, before anything is compiled.
        RuntimeError: where `code` is not successful, when `on_failure` is "raise".
    """
    one_of("on_failure", on_failure, ("warn", "raise", "ignore"))
    one_of("method", method, METHODS)
    if not isinstance(fit, Fit) or ENGINES[fit.engine].prior != "none":
        found = f"a fit by {fit.engine!r}" if isinstance(fit, Fit) else short_repr(fit)
        raise InputError(f"fit is {found}; standard errors are those of a fit by fit_em. Posteriors have draws instead")
    if is_traced((fit, x, row_weights, key)) or fit.mixture.draw_shape:
        raise InputError(
            "uncertainty takes one fit with known values; inside jit or vmap use "
            "bayesgmm.standard_errors.information.information"
        )
    if method in BY_DRAWING:
        key = as_key(key)
        number = _NUM_REPLICATES if num_replicates is None else num_replicates
        num_replicates = whole_number("num_replicates", number, 2)
    elif num_replicates is not None or key is not None:
        given = "num_replicates" if num_replicates is not None else "key"
        raise InputError(f"{given} is of no use to method={method!r}; leave it out, or choose {', '.join(BY_DRAWING)}")
    family = get_family(fit.family)
    known_rows = as_rows(x, row_weights).of_positive_weight()
    dtype, weights = known_rows.dtype, np.asarray(known_rows.weights, np.float64)
    rows = Rows(np.asarray(rows_of_mixture(fit.mixture, known_rows.values), np.float64), weights)
    _check_size(method, fit.mixture, family, weights)
    mixture = jax.tree.map(lambda field: np.asarray(field, np.float64), fit.mixture)
    with jax.enable_x64(True):
        known = as_functions(functions, mixture)
        sandwich = method == "sandwich"
        theory = information(mixture, rows.values, rows.weights, family=family, functions=known, sandwich=sandwich)
        estimates = {name: np.asarray(value) for name, value in quantities_of(mixture, known).items()}
        problems = list(_problems(fit, weights, family, theory))
        sound = all(code.sound for code, _ in problems)
        errors, acceleration = (
            {name: part[name] if sound else np.full_like(part[name], np.nan) for name in estimates}
            for part in (theory.standard_errors, theory.acceleration)
        )
        fields: dict[str, Any] = {"estimates": estimates, "standard_errors": errors, "acceleration": acceleration}
        if method not in BY_THEORY:
            mixture, rows = jax.tree.map(jnp.asarray, (mixture, rows))
            refits = _refit(method, mixture, rows, family, num_replicates, key)
            drawn = _quantities_of_each(refits.mixtures, known)
            fields |= _of_replicates(method, refits, {name: np.asarray(drawn[name]) for name in estimates}, weights)
            missing = "" if sound else ". BCa intervals, which need that information, are missing"
            problems = [(code, text + missing) for code, text in problems] + list(_failures(refits, method))

    code = max((code for code, _ in problems), default=UncertaintyCode.successful)
    message = "; ".join(text for _, text in problems)
    if code:
        warn_or_raise(f"uncertainty ({method}): {message}", on_failure)
    return Uncertainty(method, family.name, fit.mixture, **_cast(fields, dtype), code=code, message=message)


def _cast(value: PyTree, dtype: np.dtype) -> PyTree:
    """Arrays of float64 in the precision of the rows, and those of a dictionary in its order; all else as it is."""
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value.astype(dtype) if getattr(value, "dtype", None) == np.float64 else value


def _check_size(method: str, mixture: Mixture, family: Family, row_weights: np.ndarray) -> None:
    """Refuse what is too large for second derivatives, and weights that cannot be drawn or left out.

    Raises:
        InputError: for those.
    """
    num_parameters = family.num_parameters(mixture.num_components, mixture.num_features)
    if num_parameters > MOST_PARAMETERS:
        raise InputError(
            f"family={family.name!r} with k={mixture.num_components} and d={mixture.num_features} has {num_parameters} "
            f"free parameters, and standard errors are made for up to {MOST_PARAMETERS}; take a more restricted "
            "family, fewer components or fewer features"
        )
    total = float(row_weights.sum())
    if method in ("bootstrap", "parametric") and round(total) <= mixture.num_components:
        raise InputError(
            f"row_weights add up to {total:g}, so that a replicate would have {round(total)} rows; weights count rows "
            "(2 is the row twice): multiply them up"
        )
    if method == "jackknife" and (bad := np.flatnonzero(row_weights != np.round(row_weights))).size:
        raise InputError(
            f"row_weights[{bad[0]}]={row_weights[bad[0]]:g}: a jackknife leaves out one row after another and needs "
            "whole weights; use method='weighted'"
        )


def _refit(
    method: str, mixture: Mixture, rows: Rows, family: Family, num_replicates: int | None, key: RandomKey | None
) -> Refits:
    """EM fits of the replicates, with the labels of the mixture."""
    x, row_weights = rows.values, rows.weights
    num_rows = round(float(row_weights.sum()))
    draw = {
        "bootstrap": bootstrap_weights(row_weights, num_rows),
        "weighted": dirichlet_weights(row_weights),
        "parametric": simulated_rows(mixture, num_rows),
        "jackknife": jackknife_weights(row_weights),
    }[method]
    shared = {"weights": jnp.ones(num_rows, x.dtype)} if method == "parametric" else {"values": x}
    inputs = (
        jnp.flatnonzero(row_weights > 0) if num_replicates is None else jax.random.split(as_key(key), num_replicates)
    )
    refits = refit(mixture, draw, inputs, default_ridge(rows), family=family, tol=_TOL, **shared)
    return Refits(relabel(refits.mixtures, mixture), refits.results)


@functools.partial(jax.jit, static_argnames="functions")
def _quantities_of_each(mixtures: Mixture, functions: Functions) -> dict[str, Array]:
    at_once = min(_MOST_AT_ONCE, len(mixtures.means))
    return jax.lax.map(lambda mixture: quantities_of(mixture, functions), mixtures, batch_size=at_once)


def _of_replicates(method: str, refits: Refits, replicates: dict[str, np.ndarray], v: np.ndarray) -> dict[str, Any]:
    """The fields of an `Uncertainty` that are made of replicates, of rows with these weights."""
    counts = v[v > 0] if method == "jackknife" else np.ones(len(refits.results))
    usable = ~refits.failed
    total = float(counts.sum())
    errors = {name: _spread(value[usable], counts[usable], total, method) for name, value in replicates.items()}
    ends = {"replicate_results": refits.results, "replicate_weights": counts}
    return {"standard_errors": errors, "replicates": replicates, **ends}


def _spread(replicates: np.ndarray, counts: np.ndarray, total: float, method: str) -> np.ndarray:
    r"""Standard deviation of the replicates; of a jackknife, $\sqrt{\frac{N-1}{N} \sum_i (g_{(i)} - \bar g)^2}$.

    Where some rows could not be left out, the sum over the others is scaled up to all.
    """
    if len(replicates) < 2:
        return np.full(replicates.shape[1:], np.nan)
    if method != "jackknife":
        return np.asarray(replicates.std(0, ddof=1))
    share = (counts / counts.sum()).reshape(-1, *(1,) * (replicates.ndim - 1))
    mean = (share * replicates).sum(0)
    return np.asarray(np.sqrt((total - 1.0) * (share * np.square(replicates - mean)).sum(0)))


def _failures(refits: Refits, method: str) -> Iterator[Problem]:
    """What became of replicates that are no fits; nothing where all are."""
    num_failed, num_all = int(refits.failed.sum()), len(refits.results)
    if num_failed:
        kinds = sorted({ResultCode(int(code)).name for code in refits.results[refits.failed]})
        other = "" if method == "weighted" else " or method='weighted'"
        text = (
            f"{num_failed} of {num_all} replicates failed ({', '.join(kinds)}) and are left out, so the errors miss "
            f"what was furthest from the fit; fewer components{other} may help"
        )
        yield UncertaintyCode.failed_replicates, text
    if num_moving := int((refits.results == ResultCode.max_steps_reached).sum()):
        text = f"{num_moving} of {num_all} replicates were still moving after {MAX_STEPS} steps and count as they were"
        yield UncertaintyCode.failed_replicates, text


def _problems(fit: Fit, row_weights: np.ndarray, family: Family, theory: Information) -> Iterator[Problem]:
    """What keeps first-order theory from holding at this fit, in words; nothing where it holds."""
    mixture = fit.mixture
    counts = np.asarray(mixture.weights, np.float64) * row_weights.sum()
    smallest, distance = float(theory.shares[0]), float(theory.distance)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(mixture)) or fit.code is ResultCode.collapsed:
        text = f"the fit is no maximum inside the parameter space: {fit.explanation}"
        yield UncertaintyCode.collapsed, text
    elif (counts < 1.0).any():
        empty = int(counts.argmin())
        text = (
            f"component {empty} holds {counts[empty]:.2g} rows, so its weight is at the boundary, where the "
            "likelihood has no curvature that tells an error; use fewer components"
        )
        yield UncertaintyCode.collapsed, text
    elif not smallest > MIN_INFORMATION:
        names = names_of_coordinates(family, mixture.num_components, mixture.num_features)
        most = names[int(np.abs(np.nan_to_num(np.asarray(theory.flattest))).argmax())]
        direction = f"in a direction that moves most of all the {most}"
        if smallest < -MIN_INFORMATION:
            text = (
                f"the fit is no maximum of this likelihood, which curves upwards {direction}; {_WHOSE}? Then it is "
                "a saddle point or stopped early: fit from other starts or with a smaller tol"
            )
            yield UncertaintyCode.no_maximum, text
        else:
            text = (
                f"the information is singular: the likelihood is flat {direction}, as where two components are the "
                "same; use fewer components or a more restricted family"
            )
            yield UncertaintyCode.singular, text
    elif distance > MAX_DISTANCE:
        text = (
            f"the fit is {distance:.2g} standard errors from the maximum of this likelihood; {_WHOSE}? Then fit "
            "with a smaller tol, or accelerate=True"
        )
        yield UncertaintyCode.away_from_maximum, text
