"""Which priors suit a problem: made for as many components and features, and with a mode where one is looked for."""

import numpy as np

from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.precision import is_traced
from bayesgmm.numerics.validation import short_repr
from bayesgmm.priors.conjugate import AnyPrior, ConjugatePrior, check_conjugate_prior
from bayesgmm.priors.scales import HalfNormalScales
from bayesgmm.priors.weakly_informative import WeaklyInformativePrior


def check_prior(prior: object, num_components: int, num_features: int | None, family: Family) -> AnyPrior:
    """The prior, if it is one for this family, number of components and number of features (None: any).

    Raises:
        InputError: saying what it is for.
    """
    if isinstance(prior, ConjugatePrior):
        return check_conjugate_prior(prior, num_components, num_features or len(prior.mean), family)
    if not isinstance(prior, WeaklyInformativePrior):
        raise InputError(
            f"prior is {short_repr(prior)}, which is no prior; make it with default_prior(x, {num_components}) or "
            f"conjugate_prior(x, {num_components}, {family.name!r})"
        )
    given = prior.concentration.shape[0], prior.mean_loc.shape[0]
    if given[0] != num_components or (num_features is not None and given[1] != num_features):
        raise InputError(
            f"prior is for k={given[0]} components of {given[1]} features, but num_components={num_components} and x "
            f"has {num_features or given[1]} features; make it with default_prior(x, {num_components})"
        )
    return prior


def check_has_mode(prior: AnyPrior) -> None:
    """Refuse a prior under which the posterior density is unbounded, so that there is no mode to look for.

    Raises:
        InputError: for half-normal scales, a Dirichlet concentration below 1 and a Dirichlet process.
    """
    if isinstance(prior, ConjugatePrior) and prior.stick_breaking:
        raise InputError(
            "prior stick_breaking=True has a density that is unbounded where components are empty, and no mode; use "
            "stick_breaking=False, or fit_cavi or a sampler"
        )
    if isinstance(prior, WeaklyInformativePrior) and isinstance(prior.scales, HalfNormalScales):
        raise InputError(
            'prior scale_prior="half_normal" is finite at zero, so the posterior density is unbounded and has no mode; '
            'use scale_prior="lognormal" or a conjugate_prior, or draw from the posterior with fit_nuts'
        )
    if not is_traced(prior.concentration) and (smallest := np.min(np.asarray(prior.concentration))) < 1:
        raise InputError(
            f"prior concentration={smallest:g} is below 1, so the posterior density is unbounded where a weight is 0 "
            "and has no mode; use at least 1, or draw from the posterior with fit_nuts"
        )


def distinguishes_components(prior: AnyPrior) -> bool:
    """Whether the prior of the weights is another one when components are renumbered."""
    sticks = isinstance(prior, ConjugatePrior) and prior.stick_breaking
    return bool(np.size(prior.concentration) > 1 and (sticks or np.ptp(np.asarray(prior.concentration)) > 0))
