"""EM optima, the best maxima of the likelihood: where the Bayesian engines start."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from bayesgmm.engines.em import fit_em
from bayesgmm.engines.optima import off_saddle
from bayesgmm.likelihood.rows import Rows, as_rows, has_enough_rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.keys import number_key, split_key
from bayesgmm.numerics.precision import ArrayLike, RandomKey
from bayesgmm.priors.conjugate import AnyPrior, ConjugatePrior
from bayesgmm.starts.given import StartLike, check_starts
from bayesgmm.target.problem import Problem

NUM_STARTS = 4
"""Fits by EM around whose optima samplers start by default."""


def starts_of(
    problem: Problem,
    start: StartLike | None,
    num_starts: int,
    *,
    key: RandomKey,
    finite: bool = True,
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Mixture]:
    """The mixtures to start from: those of the user, checked, or EM optima where there are none.

    Components of a user's start that coincide are moved apart: there the density is flat, and engines stay.

    `meanwhile` begins what a thread may do during the search.

    Raises:
        InputError: for starts that do not suit the problem; where `finite` is asked for, for one that is not.
    """
    k, family, rows = problem.num_components, problem.family, problem.rows
    if start is None:
        meanwhile()
        return em_optima(rows, k, family, num_starts, key=key, prior=problem.prior)
    return [off_saddle(one) for one in check_starts(start, k, rows.num_features, family, finite=finite)]


def em_optima(
    x: ArrayLike | Rows,
    num_components: int,
    family: Family,
    num_starts: int,
    *,
    key: RandomKey,
    prior: AnyPrior | None = None,
    **options: Any,
) -> list[Mixture]:
    """Optima of `num_starts` fits by EM, each the best of its restarts, highest log-likelihood first.

    One program fits them all; optima may be the same. Where rows are so few that their likelihood has no maximum, the
    posterior under a conjugate `prior` is climbed. `options` are further arguments of `fit_em`.
    """
    rows = as_rows(x)
    if isinstance(prior, ConjugatePrior) and not has_enough_rows(rows, num_components, family):
        # Its mode needs concentrations of at least 1; for a start these will do.
        options["prior"] = dataclasses.replace(prior, concentration=np.maximum(prior.concentration, 1.0))
    keys = [key, *split_key(number_key(key, 1), num_starts)[1:]]
    options = {"family": family, **options, "on_failure": "ignore"}
    fits = [fit_em(rows, num_components, key=each, **options) for each in keys]
    # A collapsed fit is no mode worth starting at where there is another.
    fits.sort(key=lambda fit: (not fit.successful, -float(fit.log_likelihood)))
    good = [fit.mixture for fit in fits if fit.successful]
    return good or [fits[0].mixture]
