"""Where the likelihood has its best maxima: the ends of several fits by EM, as starts of Bayesian engines."""

from typing import Any

import jax

from bayesgmm.engines.em import fit_em
from bayesgmm.families import Family
from bayesgmm.mixture import Mixture


def em_ends(x: Any, num_components: int, family: Family, num_starts: int, *, key: Any) -> list[Mixture]:
    """Ends of so many fits by EM, each the best of its restarts, highest log-likelihood first.

    One program fits them all; ends may be the same.
    """
    keys = [key, *jax.random.split(jax.random.fold_in(key, 1), num_starts)[1:]]
    fits = [fit_em(x, num_components, family=family, key=each, on_failure="ignore") for each in keys]
    # A collapsed end is no mode worth starting at where there is another.
    fits.sort(key=lambda fit: (not fit.successful, -float(fit.log_likelihood)))
    good = [fit.mixture for fit in fits if fit.successful]
    return good or [fits[0].mixture]
