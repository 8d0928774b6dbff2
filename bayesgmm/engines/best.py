"""Which of several runs is kept: the highest whose maximum is that of the rows and not of chance."""

import dataclasses
from collections.abc import Iterable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.engines.optima import as_spurious
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.precision import AnyArray
from bayesgmm.priors.conjugate import ConjugatePrior

_IMPROPER = (ResultCode.nonfinite, ResultCode.collapsed, ResultCode.spurious)


def best_end(
    ends: Iterable[Fit], num_carried: int, rows: Rows, family: Family, prior: ConjugatePrior | None
) -> tuple[int, Fit]:
    """The best of the first runs, or where none of them is proper, the first of the others that is, if there is one.

    With its number. Of a higher maximum that was passed over because chance makes it, the summary has the difference.
    """
    made: list[Fit] = []
    unseen: list[int] = []  # whose maxima chance may have made; only those are asked that could win

    def is_proper(number: int) -> bool:
        unseen.remove(number)
        made[number] = as_spurious(made[number], rows, family, prior)
        return int(made[number].result) not in _IMPROPER

    for number, fit in enumerate(ends):
        made.append(fit)
        unseen.append(number)
        enough = len(made) >= num_carried
        if enough and any(map(is_proper, sorted(unseen, key=lambda number: -_rank(made[number])))):
            break
    objectives, results = np.asarray([objective_of(fit) for fit in made]), np.asarray([int(fit.result) for fit in made])
    which = int(_merit(objectives, results, np).argmax())
    best, passed_over = made[which], objectives[results == ResultCode.spurious]
    if results[which] not in _IMPROPER and (passed_over > objectives[which]).any():
        best = dataclasses.replace(best, summary={"passed_over": float(passed_over.max() - objectives[which])})
    return which, best


def _rank(fit: Fit) -> float:
    objective = objective_of(fit)
    return objective if np.isfinite(objective) else -np.inf


def objective_of(fit: Fit) -> float:
    """What the run has climbed to."""
    return float(np.asarray(fit.trace)[int(fit.num_steps)])


def best_run(fits: Fit, count: int | None = None, xp: ModuleType = jnp) -> Fit:
    """The best of the runs, or so many of them."""
    objective = xp.take_along_axis(fits.trace, fits.num_steps[:, None], axis=1)[:, 0]
    merit = _merit(objective, fits.result, xp)
    which = xp.argmax(merit) if count is None else xp.argsort(-merit, stable=True)[:count]
    return jax.tree.map(lambda field: field[which], fits)


def _merit(objective: AnyArray, results: AnyArray, xp: ModuleType) -> Float[AnyArray, " restarts"]:
    """The objective that each run ended with, by which runs are chosen.

    A run that collapsed climbs a spike of unbounded likelihood, and a spurious one has a component that chance makes:
    they are eligible only where there is no other.
    """
    finite = xp.isfinite(objective) & (results != int(ResultCode.nonfinite))
    bounded = finite & (results != int(ResultCode.collapsed))
    proper = bounded & (results != int(ResultCode.spurious))
    eligible = xp.where(proper.any(), proper, xp.where(bounded.any(), bounded, finite))
    return xp.where(eligible, objective, -xp.inf)
