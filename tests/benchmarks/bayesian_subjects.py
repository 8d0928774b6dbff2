"""Calls of bayesgmm's Bayesian engines, all of them here: a change of their signatures is met here."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import bayesgmm
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.target.problem import Problem
from bayesgmm.target.unconstrained import Target, make_target, vector_of
from tests.benchmarks.data import Parameters
from tests.benchmarks.posteriors import Draws, Judged
from tests.benchmarks.subjects import fit as fit_em
from tests.benchmarks.subjects import mixture_of, precision

FEWEST_DRAWS = 25  # of a variational fit, which draws when it has ended: they are no part of an iteration


class NutsSampler:
    """`fit_nuts` with its defaults, under the default prior, or under the conjugate one where settings ask for it."""

    warmup_share = 3 / 13  # 300 of 1300 iterations, which cost more during warm-up

    def __init__(self, x: np.ndarray, num_components: int, settings: dict[str, Any]) -> None:
        settings = dict(settings)
        make_prior = bayesgmm.conjugate_prior if settings.pop("conjugate", False) else bayesgmm.default_prior
        self.fit = functools.partial(self._engine(), x, num_components, prior=make_prior(x, num_components), **settings)

    def _engine(self) -> Callable[..., Any]:
        return bayesgmm.fit_nuts

    def draw(self, seed: int) -> Any:
        return jax.block_until_ready(self.fit(key=jax.random.key(seed), on_failure="ignore"))

    def draws(self, fit: Any) -> Draws:
        with precision("float64"):
            drawn = fit.draws
            return Draws(*(np.asarray(part) for part in (drawn.weights, drawn.means, drawn.covariances)))


class GibbsSampler(NutsSampler):
    """`fit_gibbs` with its defaults, under the conjugate prior."""

    warmup_share = 1 / 5  # 500 of 2500 sweeps, which all cost the same

    def _engine(self) -> Callable[..., Any]:
        return bayesgmm.fit_gibbs

    def draw(self, seed: int) -> Any:
        return jax.block_until_ready(self.fit(key=jax.random.key(seed)))


SAMPLERS = {"nuts": NutsSampler, "gibbs": GibbsSampler}


def judge(draws: Draws, x: np.ndarray, *, seed: int = 0) -> Judged:
    """Draws with the labels of a fit by EM, and the log-likelihood of each, by the same function for every subject."""
    reference = fit_em(x, draws.means.shape[2], seed=seed, num_restarts=10).mixture
    with precision("float64"):
        mixture = bayesgmm.Mixture.from_covariances(*map(jax.numpy.asarray, draws.parts.values()))
        order = bayesgmm.match_labels(mixture, reference)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), mixture)
        total = np.asarray(_log_likelihoods(flat, jax.numpy.asarray(x))).reshape(draws.weights.shape[:2])
    return Judged(draws.permute(order), total)


@jax.jit
def _log_likelihoods(mixtures: bayesgmm.Mixture, x: jax.Array) -> jax.Array:
    return jax.lax.map(lambda mixture: bayesgmm.log_likelihood(mixture, x), mixtures)


def potential_and_start(x: jax.Array, start: Parameters, *, apart: float) -> tuple[Callable[..., Any], Any, Any]:
    """The potential in which `fit_nuts` moves, its data, and coordinates so far apart from a mixture's.

    So that no coordinate is zero, where a wrong prior would not show.
    """

    dtype, num_components, rng = str(x.dtype), len(start.weights), np.random.default_rng(0)
    family, prior = bayesgmm.FAMILIES["full"], bayesgmm.default_prior(np.asarray(x), num_components)
    with precision(dtype):
        mixture = mixture_of(start, "full", dtype)
        target = make_target(Problem(as_rows(x), prior, num_components, family), mixture)
        point = target.split(vector_of(target, jax.tree.map(jax.numpy.asarray, mixture)))
        point = {name: leaf + apart * rng.normal(size=leaf.shape).astype(dtype) for name, leaf in point.items()}

    def potential(point: Any, target: Target) -> Any:
        return target.energy(ravel_pytree(point)[0])

    return potential, target, point


def conjugate_prior_of(x: np.ndarray, num_components: int) -> bayesgmm.ConjugatePrior:
    """The conjugate prior with its default numbers."""
    return bayesgmm.conjugate_prior(x, num_components, "full")


def ascent(x: Any, responsibilities: np.ndarray, num_steps: int, prior: bayesgmm.ConjugatePrior) -> bayesgmm.Fit:
    """So many steps of `fit_cavi` from responsibilities: tolerance 0 is never met."""
    with precision(str(x.dtype)):
        return bayesgmm.fit_cavi(
            x,
            responsibilities.shape[1],
            prior=prior,
            key=jax.random.key(0),
            start=responsibilities,
            tol=0.0,
            max_steps=num_steps,
            num_draws=FEWEST_DRAWS,
            on_failure="ignore",
        )
