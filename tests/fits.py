"""Fits that tests share, one for each data set, number of components, family and settings, made when first asked for.

A compiled program is paid for once for each shape and each static setting; tests whose claim does not depend on these
therefore take the fit, or at least the rows, from here. What comes back is shared: change a copy of it.
"""

import functools

import jax
import numpy as np
from helpers import DATA

import bayesgmm

# Short chains, of one program: stretches have at most 250 steps, so that more draws are no other.
NUTS = {"num_warmup": 300, "num_draws": 400, "num_chains": 2, "checkpoint": False}

# The maximum of the likelihood to its last digits, for what is exact there alone.
TIGHT = {"tol": 1e-13, "max_steps": 5000, "accelerate": True, "reg_covar": 0.0}


@functools.cache
def em(data, num_components, family="full", *, seed=0, **settings):
    """EM from random starts."""
    return bayesgmm.fit_em(DATA[data], num_components, family=family, key=jax.random.key(seed), **settings)


@functools.cache
def maximum(data, num_components, family="full"):
    """EM run on to the last digit."""
    x = DATA[data]
    return bayesgmm.fit_em(x, num_components, family=family, start=in_order(x, num_components), **TIGHT)


def in_order(x, num_components):
    """Labels of as many rows for each component, by the first feature: a start that costs no program of its own."""
    return np.argsort(np.argsort(x[:, 0], kind="stable")) * num_components // len(x)


@functools.cache
def nuts(data, num_components, family="full", *, seed=0, **settings):
    """Short chains of NUTS from the fit by EM, under the default prior."""
    return bayesgmm.fit_nuts(
        DATA[data],
        num_components,
        family=family,
        key=jax.random.key(seed),
        start=em(data, num_components, family).mixture,
        on_failure="ignore",
        **(NUTS | settings),
    )
