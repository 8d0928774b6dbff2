"""Posterior draws by NUTS, on the NumPyro model, with chains started around the EM fit.

Source: Hoffman & Gelman (2014), as implemented in NumPyro; R-hat and effective sample size by rank normalisation,
Vehtari et al. (2021), as implemented in ArviZ.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import MCMC, NUTS

from bayesgmm.checks import finite_number, whole_number
from bayesgmm.conjugate import AnyPrior
from bayesgmm.engines import space
from bayesgmm.engines.posterior import posterior_fit
from bayesgmm.errors import InputError
from bayesgmm.families import Family
from bayesgmm.mixture import Mixture
from bayesgmm.precision import matching_precision
from bayesgmm.results import Fit, ResultCode, announce, check_on_failure

CHAIN_METHODS = ("parallel", "sequential", "vectorized")
MAX_R_HAT = 1.01
MIN_ESS_PER_CHAIN = 100
_EXTRA_FIELDS = {
    "diverging": "diverging",
    "accept_prob": "acceptance_rate",
    "num_steps": "n_steps",
    "energy": "energy",
    "adapt_state.step_size": "step_size",
}


def fit_nuts(
    x: Any,
    num_components: int,
    *,
    family: str | Family = "full",
    prior: AnyPrior | None = None,
    key: Any,
    start: Mixture | None = None,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_draws: int = 1000,
    target_accept: float = 0.8,
    jitter: float = 0.1,
    chain_method: str | None = None,
    on_failure: str = "warn",
) -> Fit:
    """Draw from the posterior by NUTS.

    Args:
        x: rows (n, d).
        num_components: k.
        family: covariance family.
        prior: numbers of the prior, by default `default_prior(x, num_components)`.
        key: `jax.random.key(seed)`.
        start: the mixture around which chains start, and whose labels are kept; by default a fit by EM.
        num_chains: number of chains.
        num_warmup: draws of every chain spent on adaptation.
        num_draws: draws kept of every chain.
        target_accept: acceptance rate that the step size is adapted to, between 0 and 1.
        jitter: standard deviation of the chains' starting points around the start, in unconstrained units (log scales,
            prior standard deviations of the means).
        chain_method: "parallel" (one device a chain), "sequential" or "vectorized". By default parallel where there
            are as many devices as chains, else sequential on a CPU and vectorized on an accelerator.
        on_failure: "warn", "raise" or "ignore" when there are divergences or the chains disagree.

    Returns:
        A `Fit` with draws of shape (num_chains, num_draws); its `summary` holds the worst R-hat (`r_hat`), the
        smallest bulk effective sample size (`ess_bulk`) and the number of divergences.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
    """
    counts = {"num_chains": num_chains, "num_warmup": num_warmup, "num_draws": num_draws}
    for name, value in counts.items():
        whole_number(name, value)
    if num_draws < 4:
        raise InputError(f"num_draws={num_draws} is too few for R-hat; draw at least 4 a chain")
    if not 0 < finite_number("target_accept", target_accept) < 1:
        raise InputError(f"target_accept={target_accept} must lie between 0 and 1; 0.8 is usual, 0.95 is careful")
    finite_number("jitter", jitter)
    if chain_method not in (None, *CHAIN_METHODS):
        raise InputError(f"chain_method={chain_method!r} is not known; choose one of {', '.join(CHAIN_METHODS)}")
    check_on_failure(on_failure)
    x, family, prior, start = space.prepare(x, num_components, family, prior, start, key)
    if chain_method is None:
        chain_method = _default_chain_method(num_chains)
    fit = _fit(
        x,
        num_components,
        family,
        prior,
        start,
        key,
        (num_chains, num_warmup, num_draws, target_accept, jitter, chain_method),
    )
    return announce(fit, on_failure)


def _default_chain_method(num_chains: int) -> str:
    if jax.local_device_count() >= num_chains:
        return "parallel"
    return "sequential" if jax.default_backend() == "cpu" else "vectorized"


@matching_precision
def _fit(
    x: Any,
    num_components: int,
    family: Family,
    prior: AnyPrior,
    start: Mixture,
    key: Array,
    settings: tuple[int, int, int, float, float, str],
) -> Fit:
    num_chains, num_warmup, num_draws, target_accept, jitter, chain_method = settings
    x, prior, start = jax.tree.map(jnp.asarray, (x, prior, start))
    jitter_key, run_key = jax.random.split(key)
    kernel = NUTS(space.standardised_model, target_accept_prob=target_accept)
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_draws,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
    )
    starts = _jittered(space.to_unconstrained(start, family, prior), num_chains, jitter, key=jitter_key)
    if num_chains == 1:
        starts = jax.tree.map(lambda leaf: leaf[0], starts)
    mcmc.run(
        run_key,
        x,
        num_components,
        family,
        prior,
        init_params=starts,
        extra_fields=(*_EXTRA_FIELDS, "potential_energy"),
    )
    fields = mcmc.get_extra_fields(group_by_chain=True)
    stats = {name: np.asarray(fields[field]) for field, name in _EXTRA_FIELDS.items()}
    # NumPyro counts leapfrog steps; a tree of depth t takes 2^t - 1 of them.
    stats["tree_depth"] = np.ceil(np.log2(stats["n_steps"] + 1.0)).astype(np.int64)
    stats["lp"] = -np.asarray(fields["potential_energy"])
    names = space.to_unconstrained(start, family, prior)
    sites = {name: value for name, value in mcmc.get_samples(group_by_chain=True).items() if name in names}
    # Back on one device: what follows is small, and every later computation with these draws is a plain one.
    sites = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), sites)
    fit = posterior_fit(
        "nuts",
        sites,
        x,
        family,
        prior,
        start,
        result=ResultCode.successful,
        num_steps=num_warmup + num_draws,
        trace=jnp.asarray(stats["lp"]),
        sample_stats=stats,
        summary={},
    )
    return _judged(fit)


def _jittered(point: space.Sites, num_chains: int, jitter: float, *, key: Array) -> space.Sites:
    keys = dict(zip(point, jax.random.split(key, len(point)), strict=True))
    return {
        name: value[None] + jitter * jax.random.normal(keys[name], (num_chains, *value.shape), value.dtype)
        for name, value in point.items()
    }


def _judged(fit: Fit) -> Fit:
    """The fit with its result code, and the worst R-hat and bulk effective sample size among its sample statistics."""
    r_hat, ess = convergence(fit)
    stats = fit.sample_stats
    num_divergences = int(stats["diverging"].sum())
    num_chains = stats["diverging"].shape[0]
    if fit.code is ResultCode.nonfinite:
        result = ResultCode.nonfinite
    elif not (r_hat <= MAX_R_HAT and ess >= MIN_ESS_PER_CHAIN * num_chains):
        result = ResultCode.not_mixed
    else:
        result = ResultCode.divergent if num_divergences else ResultCode.successful
    return dataclasses.replace(
        fit, result=np.int32(result), summary={"r_hat": r_hat, "ess_bulk": ess, "divergences": num_divergences}
    )


def convergence(fit: Fit) -> tuple[float, float]:
    """Worst R-hat and smallest bulk effective sample size over weights, means, scales and log posterior density."""
    from arviz_stats.base.array import array_stats

    assert fit.draws is not None
    num_chains, num_draws = fit.draws.draw_shape
    columns = [
        np.asarray(part).reshape(num_chains, num_draws, -1)
        for part in (fit.draws.weights, fit.draws.means, fit.draws.scales)
    ]
    values = np.concatenate([*columns, fit.sample_stats["lp"][..., None]], axis=-1)
    # A quantity that does not vary (the weight of the only component) has no R-hat.
    values = values[..., np.ptp(values, axis=(0, 1)) > 1e-12 * np.abs(values).max(axis=(0, 1))]
    r_hat = array_stats.rhat(values, chain_axis=0, draw_axis=1)
    ess = array_stats.ess(values, chain_axis=0, draw_axis=1)
    return float(np.max(r_hat)), float(np.min(ess))
