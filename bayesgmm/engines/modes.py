"""Where the likelihood has its best maxima: the ends of several fits by EM, as starts of Bayesian engines."""

import dataclasses
from typing import Any

import jax
import numpy as np

from bayesgmm.engines.em import fit_em
from bayesgmm.likelihood.rows import has_enough_rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray
from bayesgmm.priors.conjugate import AnyPrior, ConjugatePrior
from bayesgmm.starts.given import check_start
from bayesgmm.target import unconstrained as space

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


def prepare(
    x: Any,
    num_components: int,
    family: str | Family,
    prior: AnyPrior | None,
    start: Mixture | None,
    key: Any,
) -> tuple[AnyArray, Family, AnyPrior, Mixture]:
    """Checked arguments of a Bayesian engine, with the default prior and an EM fit as the start where none is given.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
    """
    x, family, prior = space.prepare_problem(x, num_components, family, prior, key)
    if start is None:
        start = fit_em(x, num_components, family=family, key=key, on_failure="ignore").mixture
    return x, family, prior, check_start(start, num_components, x.shape[1], family)
