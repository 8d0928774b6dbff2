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
from bayesgmm.numerics.keys import written_out
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


def refit(
    start: Mixture,
    draw: Callable[[Array], Array],
    inputs: Array,
    ridge: Float[Array, " d"],
    *,
    values: Float[Array, "n d"] | None = None,
    weights: Float[Array, " n"] | None = None,
    family: Family,
    tol: float,
) -> Refits:
    """EM from the start on a replicate of the rows for each of the inputs (r, ...), keys or numbers of rows.

    `draw` makes of an input the weights of the rows with these `values`, or the rows that have these `weights`.
    Replicates go in parts of one size, for which one program is compiled.
    """
    number = jnp.asarray(tol, start.means.dtype)

    def of_part(part: Array) -> tuple[Mixture, Array]:
        drawn = jax.vmap(draw)(part)
        rows = (drawn, weights) if values is None else (values, drawn)
        return _refit_each(start, *rows, ridge, number, family=family)

    drawn = jax.eval_shape(draw, inputs[0])
    size = even_size(len(inputs), _BYTES_AT_ONCE // (drawn.size * drawn.dtype.itemsize))
    mixtures, results = in_batches(of_part, size, inputs)
    return Refits(mixtures, np.asarray(results))


def bootstrap_weights(row_weights: Float[Array, " n"], num_rows: int) -> Callable[[RandomKey], Float[Array, " n"]]:
    """How often each row is drawn among `num_rows` draws with replacement, in the total weight that the rows have."""
    total = row_weights.sum()

    def weights_of(key: RandomKey) -> Float[Array, " n"]:
        drawn = jax.random.choice(written_out(key), len(row_weights), (num_rows,), p=row_weights / total)
        return jnp.zeros_like(row_weights).at[drawn].add(total / num_rows)

    return weights_of


def dirichlet_weights(row_weights: Float[Array, " n"]) -> Callable[[RandomKey], Float[Array, " n"]]:
    """Dirichlet weights of the rows times their total: the Bayesian bootstrap (Rubin 1981)."""
    # Gamma variables of shape one are exponential, and so come ten times faster.
    plain = not is_traced(row_weights) and bool((np.asarray(row_weights) == 1.0).all())

    def weights_of(key: RandomKey) -> Float[Array, " n"]:
        key = written_out(key)
        if plain:
            drawn = jax.random.exponential(key, row_weights.shape, row_weights.dtype)
        else:
            drawn = jnp.where(row_weights > 0, jax.random.gamma(key, row_weights, dtype=row_weights.dtype), 0.0)
        return drawn * (row_weights.sum() / drawn.sum())

    return weights_of


def jackknife_weights(row_weights: Float[Array, " n"]) -> Callable[[Array], Float[Array, " n"]]:
    """The weights with one row of this number left out."""
    return lambda row: row_weights.at[row].add(-1.0)


def simulated_rows(mixture: Mixture, num_rows: int) -> Callable[[RandomKey], Float[Array, "n d"]]:
    """So many rows drawn from the mixture."""
    return lambda key: mixture.sample(num_rows, key=key)


@functools.partial(jax.jit, static_argnames="family")
def _refit_each(
    start: Mixture,
    values: Float[Array, "n d"] | Float[Array, "r n d"],
    weights: Float[Array, " n"] | Float[Array, "r n"],
    ridge: Array,
    tol: Array,
    *,
    family: Family,
) -> tuple[Mixture, Array]:
    def fit(x: Array, v: Array) -> tuple[Mixture, Array]:
        found = run_em(start, Rows(x, v), ridge, tol, family=family, max_steps=MAX_STEPS, accelerate=True)
        # Few rows in a component are no more of a fault than in the fit itself.
        return found.mixture, jnp.where(found.result == ResultCode.spurious, ResultCode.successful, found.result)

    return jax.vmap(fit, (0 if values.ndim == 3 else None, 0 if weights.ndim == 2 else None))(values, weights)
