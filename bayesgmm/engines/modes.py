"""Where the likelihood has its best maxima: the ends of several fits by EM, as starts of Bayesian engines."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bayesgmm.checks import has_enough_rows, shown
from bayesgmm.conjugate import ConjugatePrior
from bayesgmm.engines.em import fit_em
from bayesgmm.errors import InputError
from bayesgmm.families import Family
from bayesgmm.mixture import Mixture

NUM_STARTS = 4
"""Fits by EM whose ends samplers start around, unless told otherwise."""


def em_ends(
    x: Any, num_components: int, family: Family, num_starts: int, *, key: Any, prior: Any = None, **options: Any
) -> list[Mixture]:
    """Ends of so many fits by EM, each the best of its restarts, highest log-likelihood first.

    One program fits them all; ends may be the same. Of rows so few that their likelihood has no maximum it is the
    posterior under a conjugate `prior` that is climbed. `options` are further arguments of `fit_em`.
    """
    if isinstance(prior, ConjugatePrior) and not has_enough_rows(x, num_components, family):
        # Its mode needs concentrations of at least 1; for a start these will do.
        options["prior"] = dataclasses.replace(prior, concentration=np.maximum(prior.concentration, 1.0))
    keys = [key, *jax.random.split(jax.random.fold_in(key, 1), num_starts)[1:]]
    options = {"family": family, **options, "on_failure": "ignore"}
    fits = [fit_em(x, num_components, key=each, **options) for each in keys]
    # A collapsed end is no mode worth starting at where there is another.
    fits.sort(key=lambda fit: (not fit.successful, -float(fit.log_likelihood)))
    good = [fit.mixture for fit in fits if fit.successful]
    return good or [fits[0].mixture]


def check_starts(start: Any, num_components: int, num_features: int, family: Family) -> list[Mixture]:
    """The start or starts, a mixture or a sequence of them, if they are such as the family can have.

    Raises:
        InputError: if one of them is not, and for none.
    """
    given = list(start) if isinstance(start, Sequence) and not isinstance(start, str) else [start]
    if not given:
        raise InputError("start is an empty sequence; give at least one Mixture, or leave it out to start from EM")
    return [check_start(one, num_components, num_features, family) for one in given]


def check_start(start: Any, num_components: int, num_features: int, family: Family) -> Mixture:
    """The start, if it is a mixture that the family can have.

    Raises:
        InputError: if it is not.
    """
    if not isinstance(start, Mixture):
        raise InputError(f"start={shown(start)} must be a Mixture, such as the .mixture of a fit_em result")
    if start.means.shape != (num_components, num_features) or start.is_diagonal != family.diagonal:
        raise InputError(
            f"start has means of shape {start.means.shape} and a {'diagonal' if start.is_diagonal else 'triangular'} "
            f"factor; num_components={num_components} and family={family.name!r} need another. Start from a fit_em "
            "result of the same family"
        )
    return start
