"""The same fit to data that might have been: weights of the rows or rows drawn anew, and EM from the fit on each.

All replicates of a method go through one compiled program, in lanes where they are small (`runtime/lanes.py`); of many
rows only as many replicates at a time as fit into memory.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bayesgmm.engines.ascent import run_em
from bayesgmm.engines.fit import ResultCode
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.batches import even_size, in_batches
from bayesgmm.numerics.precision import RandomKey, is_traced

MAX_STEPS = 1000
_BYTES_AT_ONCE = 2**27  # of the weights, or rows, of the replicates that are fitted together
_FAILURES = (ResultCode.nonfinite, ResultCode.collapsed, ResultCode.decreased)


def is_failure(results: Int[np.ndarray, " r"]) -> Bool[np.ndarray, " r"]:
    """Which result codes are those of no fit; one that was still moving is one."""
    return np.isin(results, _FAILURES)


class Refits(NamedTuple):
    """EM fits of replicates: mixtures with a leading axis, in the order of components that EM kept, and their ends."""

    mixtures: Mixture
    results: Int[np.ndarray, " r"]

    @property
    def failed(self) -> Bool[np.ndarray, " r"]:
        """Which of them are no fits, (r)."""
        return is_failure(self.results)


def refit_reweighted(
    start: Mixture,
    x: Float[Array, "n d"],
    weights_of: Callable[[Array], Float[Array, " n"]],
    inputs: Array,
    ridge: Float[Array, " d"],
    *,
    family: Family,
    tol: float,
) -> Refits:
    """EM from the start on the rows, weighted by `weights_of` each of the inputs (r, ...), keys or numbers of rows."""
    numbers = jnp.asarray(tol, x.dtype)

    def refit(part: Array) -> tuple[Mixture, Array]:
        weights = jax.vmap(weights_of)(part)
        return _refit_weights(start, x, weights, ridge, numbers, family=family)

    return _in_parts(refit, inputs, len(x) * x.dtype.itemsize)


def refit_simulated(
    start: Mixture,
    num_rows: int,
    keys: Array,
    ridge: Float[Array, " d"],
    *,
    family: Family,
    tol: float,
) -> Refits:
    """EM from the start on rows drawn from it with each of the keys (r)."""
    dtype = start.means.dtype
    numbers = jnp.asarray(tol, dtype)

    def refit(part: Array) -> tuple[Mixture, Array]:
        rows = jax.vmap(lambda key: start.sample(num_rows, key=key))(part)
        return _refit_rows(start, rows, ridge, numbers, family=family)

    return _in_parts(refit, keys, num_rows * start.num_features * dtype.itemsize)


def bootstrap_weights(row_weights: Float[Array, " n"], num_rows: int) -> Callable[[RandomKey], Float[Array, " n"]]:
    """How often each row is drawn among `num_rows` draws with replacement, in the total weight that the rows have."""
    total = row_weights.sum()

    def weights_of(key: RandomKey) -> Float[Array, " n"]:
        drawn = jax.random.choice(key, len(row_weights), (num_rows,), p=row_weights / total)
        return jnp.zeros_like(row_weights).at[drawn].add(total / num_rows)

    return weights_of


def dirichlet_weights(row_weights: Float[Array, " n"]) -> Callable[[RandomKey], Float[Array, " n"]]:
    """Dirichlet weights of the rows times their total: the Bayesian bootstrap (Rubin 1981)."""
    # Gamma variables of shape one are exponential, and so come ten times faster.
    plain = not is_traced(row_weights) and bool((np.asarray(row_weights) == 1.0).all())

    def weights_of(key: RandomKey) -> Float[Array, " n"]:
        if plain:
            drawn = jax.random.exponential(key, row_weights.shape, row_weights.dtype)
        else:
            drawn = jnp.where(row_weights > 0, jax.random.gamma(key, row_weights, dtype=row_weights.dtype), 0.0)
        return drawn * (row_weights.sum() / drawn.sum())

    return weights_of


def jackknife_weights(row_weights: Float[Array, " n"]) -> Callable[[Array], Float[Array, " n"]]:
    """The weights with one row of this number left out."""
    return lambda row: row_weights.at[row].add(-1.0)


def _in_parts(refit: Callable[[Array], tuple[Mixture, Array]], inputs: Array, bytes_each: int) -> Refits:
    """The refits of all inputs, in parts of one size, for which one program is compiled."""
    size = even_size(len(inputs), _BYTES_AT_ONCE // bytes_each)
    mixtures, results = in_batches(refit, size, inputs)
    return Refits(mixtures, np.asarray(results))


@functools.partial(jax.jit, static_argnames="family")
def _refit_weights(
    start: Mixture, x: Array, weights: Array, ridge: Array, tol: Array, *, family: Family
) -> tuple[Mixture, Array]:
    def fit(v: Array) -> tuple[Mixture, Array]:
        found = run_em(start, Rows(x, v), ridge, tol, family=family, max_steps=MAX_STEPS, accelerate=True)
        return found.mixture, found.result

    return jax.vmap(fit)(weights)


@functools.partial(jax.jit, static_argnames="family")
def _refit_rows(start: Mixture, rows: Array, ridge: Array, tol: Array, *, family: Family) -> tuple[Mixture, Array]:
    ones = jnp.ones(rows.shape[1], rows.dtype)

    def fit(x: Array) -> tuple[Mixture, Array]:
        found = run_em(start, Rows(x, ones), ridge, tol, family=family, max_steps=MAX_STEPS, accelerate=True)
        return found.mixture, found.result

    return jax.vmap(fit)(rows)
