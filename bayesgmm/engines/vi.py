r"""Variational inference by NumPyro's SVI: a normal approximation in the unconstrained space, around the EM fit.

The stopping rule. The ELBO is estimated at every step and compared between the two halves of the last `2 * window`
steps. While the second half is higher than the first by more than twice the standard error of the difference, the fit
is still climbing. Once it is not, the approximation has settled at this step size; the step size falls to a quarter,
three times in all, and the fit is done when it has settled at the last one.

Source: Kucukelbir et al. (2017), automatic differentiation variational inference.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoContinuous, AutoDiagonalNormal, AutoMultivariateNormal
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import potential_energy
from numpyro.optim import Adam

from bayesgmm.checks import whole_number
from bayesgmm.conjugate import AnyPrior
from bayesgmm.engines import space
from bayesgmm.engines.posterior import posterior_fit
from bayesgmm.errors import InputError
from bayesgmm.families import Family
from bayesgmm.mixture import Mixture
from bayesgmm.precision import matching_precision
from bayesgmm.results import Fit, ResultCode, announce, check_on_failure

GUIDES: dict[str, Callable[..., AutoContinuous]] = {"normal": AutoDiagonalNormal, "full_rank": AutoMultivariateNormal}
STEP_SIZES = (2e-2, 5e-3, 1.25e-3)


def fit_vi(
    x: Any,
    num_components: int,
    *,
    family: str | Family = "full",
    prior: AnyPrior | None = None,
    key: Any,
    start: Mixture | None = None,
    guide: str = "full_rank",
    num_draws: int = 2000,
    num_particles: int = 8,
    window: int = 500,
    max_steps: int = 20_000,
    on_failure: str = "warn",
    progress: Callable[[str], None] | None = None,
) -> Fit:
    """Approximate the posterior by a normal distribution of the unconstrained sites.

    Args:
        x: rows (n, d).
        num_components: k.
        family: covariance family.
        prior: numbers of the prior, by default `default_prior(x, num_components)`.
        key: `jax.random.key(seed)`.
        start: where to start, and whose labels to keep; by default a fit by EM.
        guide: "normal" (mean-field) or "full_rank".
        num_draws: draws taken from the fitted approximation.
        num_particles: draws in the estimate of the ELBO at every step.
        window: length of the windows of the stopping rule, in steps.
        max_steps: limit on steps in all.
        on_failure: "warn", "raise" or "ignore" when the ELBO did not settle.
        progress: called with a sentence now and then.

    Returns:
        A `Fit` with draws of shape (1, num_draws) and the ELBO of every step as its trace. Its `sample_stats` hold the
        log-densities of every draw under the posterior (`log_p`, up to the evidence) and under the approximation
        (`log_q`), its `summary` the Pareto k-hat of their ratios and the mean ELBO of the last window.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
    """
    if guide not in GUIDES:
        raise InputError(f"guide={guide!r} is not known; choose one of {', '.join(GUIDES)}")
    for name, value in {"num_draws": num_draws, "num_particles": num_particles, "window": window}.items():
        whole_number(name, value)
    if whole_number("max_steps", max_steps) < 2 * window:
        raise InputError(f"max_steps={max_steps} must be at least two windows of {window} steps; raise it")
    check_on_failure(on_failure)
    x, family, prior, start = space.prepare(x, num_components, family, prior, start, key)
    settings = (guide, num_draws, num_particles, window, max_steps)
    return announce(_fit(x, num_components, family, prior, start, key, settings, progress), on_failure)


@matching_precision
def _fit(
    x: Any,
    num_components: int,
    family: Family,
    prior: AnyPrior,
    start: Mixture,
    key: Array,
    settings: tuple[str, int, int, int, int],
    progress: Callable[[str], None] | None,
) -> Fit:
    guide_name, num_draws, num_particles, window, max_steps = settings
    x, prior, start = jax.tree.map(jnp.asarray, (x, prior, start))
    begin_key, draw_key = jax.random.split(key)
    values = space.to_sites(space.to_unconstrained(start, family, prior), family, num_components, x.shape[1])
    # Posterior standard deviations shrink as one over the square root of the rows in a component.
    width = float(np.clip((num_components / x.shape[0]) ** 0.5, 1e-3, 0.1))
    guide = GUIDES[guide_name](
        space.standardised_model, init_loc_fn=functools.partial(init_to_value, values=values), init_scale=width
    )
    svi = SVI(space.standardised_model, guide, Adam(STEP_SIZES[0]), Trace_ELBO(num_particles=num_particles))
    state = jax.jit(lambda key, x, prior: svi.init(key, x, num_components, family, prior))(begin_key, x, prior)

    @jax.jit
    def advance(state: Any, step_size: Array, x: Array, prior: AnyPrior) -> tuple[Any, Array]:
        at_step_size = SVI(svi.model, svi.guide, Adam(step_size), svi.loss)
        at_step_size.constrain_fn = svi.constrain_fn

        def step(state: Any, _: None) -> tuple[Any, Array]:
            state, loss = at_step_size.update(state, x, num_components, family, prior)
            return state, -loss

        return jax.lax.scan(step, state, length=window)

    trace, settled = np.empty(0), False
    for step_size in STEP_SIZES:
        at_this_size, settled = 0, False
        while not settled and len(trace) < max_steps:
            state, elbo = advance(state, jnp.asarray(step_size, x.dtype), x, prior)
            trace = np.append(trace, np.asarray(elbo))
            at_this_size += 1
            settled = at_this_size > 1 and has_settled(trace[-2 * window : -window], trace[-window:])
            if progress is not None:
                progress(f"step {len(trace)}, ELBO {trace[-window:].mean():.2f}, step size {step_size:g}")
            if not np.isfinite(trace[-window:]).all():
                break
        if not settled:
            break
    finite = bool(np.isfinite(trace[-window:]).all())
    result = ResultCode.successful if settled else ResultCode.max_steps_reached if finite else ResultCode.nonfinite

    @jax.jit
    def draw(parameters: Any, key: Array, x: Array, prior: AnyPrior) -> tuple[space.Sites, Array, Array]:
        approximation = guide.get_posterior(parameters)
        latent = approximation.sample(key, (num_draws,))
        log_q = approximation.log_prob(latent).reshape(num_draws, -1).sum(-1)  # mean-field: one a coordinate

        def look(latent: Any) -> tuple[space.Sites, Array]:
            # The order of the sites in a latent vector is the guide's own affair, and it has no public way to tell it.
            unconstrained: Any = guide._unpack_latent(latent)
            potential = potential_energy(
                space.standardised_model, (x, num_components, family, prior), {}, unconstrained
            )
            return space.to_sites(unconstrained, family, num_components, x.shape[1]), -jnp.asarray(potential)

        return (*jax.lax.map(look, latent), log_q)

    sites, log_p, log_q = draw(svi.get_params(state), draw_key, x, prior)
    return posterior_fit(
        "vi",
        jax.tree.map(lambda leaf: leaf[None], sites),
        x,
        family,
        prior,
        start,
        result=result,
        num_steps=len(trace),
        trace=jnp.asarray(trace, x.dtype),
        sample_stats={"log_p": log_p[None], "log_q": log_q[None]},
        summary={"khat": pareto_khat(np.asarray(log_p - log_q)), "elbo": float(trace[-window:].mean())},
    )


def pareto_khat(log_weights: np.ndarray) -> float:
    """Pareto shape of importance weights from the approximation to the posterior; below 0.7 it can be trusted.

    Source: Yao et al. (2018), Yes, but did it work?, section 3; Vehtari et al. (2024) for the smoothing, by ArviZ.
    """
    from arviz_stats.base.array import array_stats

    if not np.isfinite(log_weights).all():
        return float("inf")
    # ArviZ takes log-likelihoods, whose negatives are the log-weights of leave-one-out.
    return float(array_stats.psislw(-log_weights)[1])


def has_settled(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the mean of `after` exceeds that of `before` by at most twice the standard error of the difference."""
    error = np.sqrt(before.var(ddof=1) / before.size + after.var(ddof=1) / after.size)
    return bool(after.mean() - before.mean() <= 2 * error)
