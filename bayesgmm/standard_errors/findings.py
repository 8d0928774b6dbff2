"""What speaks against standard errors, in words, with a code for programs."""

import enum

import jax
import numpy as np
from jaxtyping import Array

from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.mixtures.coordinates import names_of_coordinates
from bayesgmm.mixtures.families import Family
from bayesgmm.standard_errors.information import Information
from bayesgmm.standard_errors.replicates import MAX_STEPS, Refits

_FLAT = 1e-7  # share of the information that known labels would give, which rounding hides in passes over many rows
_FAR = 0.25  # standard errors from the maximum, from which an estimate is not the one whose errors are given
_WHOSE = "was it made of these rows and row_weights, without a prior or ridge"


class UncertaintyCode(enum.IntEnum):
    """What is wrong with standard errors, worst last; `message` of an `Uncertainty` says it in words."""

    successful = 0
    failed_replicates = 1
    away_from_maximum = 2
    no_maximum = 3
    singular = 4
    collapsed = 5

    @property
    def sound(self) -> bool:
        """Whether the curvature of the likelihood tells standard errors all the same."""
        return self < UncertaintyCode.no_maximum


def failures_of(refits: Refits, method: str) -> str | None:
    """What became of replicates that are no fits, or none where all are."""
    parts = []
    num_failed, num_all = int(refits.failed.sum()), len(refits.results)
    if num_failed:
        kinds = sorted({ResultCode(int(code)).name for code in refits.results[refits.failed]})
        other = "" if method == "weighted" else " or method='weighted'"
        parts.append(
            f"{num_failed} of {num_all} replicates failed ({', '.join(kinds)}) and are left out, so the errors miss "
            f"what was furthest from the fit; fewer components{other} may help"
        )
    if num_moving := int((refits.results == ResultCode.max_steps_reached).sum()):
        parts.append(
            f"{num_moving} of {num_all} replicates were still moving after {MAX_STEPS} steps and count as they were"
        )
    return "; ".join(parts) or None


def troubles_of(fit: Fit, row_weights: Array, family: Family, theory: Information) -> list[tuple[UncertaintyCode, str]]:
    """What speaks against theory of first order at this fit, in words."""
    mixture = fit.mixture
    counts = np.asarray(mixture.weights, np.float64) * float(row_weights.sum())
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(mixture)) or fit.code is ResultCode.collapsed:
        return [
            (UncertaintyCode.collapsed, f"the fit is no maximum inside the parameter space: {fit.code.explanation}")
        ]
    if (counts < 1.0).any():
        empty = int(counts.argmin())
        return [
            (
                UncertaintyCode.collapsed,
                f"component {empty} holds {counts[empty]:.2g} rows, so its weight is at the boundary, where the "
                "likelihood has no curvature that tells an error; use fewer components",
            )
        ]
    smallest = float(theory.shares[0])
    if not smallest > _FLAT:
        names = names_of_coordinates(family, mixture.num_components, mixture.num_features)
        most = names[int(np.abs(np.nan_to_num(np.asarray(theory.flattest))).argmax())]
        direction = f"in a direction that moves most of all the {most}"
        if smallest < -_FLAT:
            return [
                (
                    UncertaintyCode.no_maximum,
                    f"the fit is no maximum of this likelihood, which curves upwards {direction}; {_WHOSE}? Then it is "
                    "a saddle point or stopped early: fit from other starts or with a smaller tol",
                )
            ]
        return [
            (
                UncertaintyCode.singular,
                f"the information is singular: the likelihood is flat {direction}, as where two components are the "
                "same; use fewer components or a more restricted family",
            )
        ]
    distance = float(theory.distance)
    if distance > _FAR:
        return [
            (
                UncertaintyCode.away_from_maximum,
                f"the fit is {distance:.2g} standard errors from the maximum of this likelihood; {_WHOSE}? Then fit "
                "with a smaller tol, or accelerate=True",
            )
        ]
    return []
