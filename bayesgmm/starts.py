"""Where an engine starts: made-up responsibilities, then the M-step.

A start is a partition of the rows. It is made on standardised columns, so that the unit of a feature does not decide
it; the mixture is then estimated in the original units by the same M-step that EM uses.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bayesgmm.families import Family
from bayesgmm.mixture import Mixture
from bayesgmm.moments import maximise, moments_of_partition
from bayesgmm.precision import RandomKey


def standardise(x: Float[Array, "n d"], row_weights: Float[Array, " n"]) -> Float[Array, "n d"]:
    """Columns with weighted mean 0 and variance 1; a constant column stays at 0."""
    mean, variance = column_moments(x, row_weights)
    return (x - mean[None]) / jnp.where(variance > 0, jnp.sqrt(variance), 1.0)[None]


def column_moments(x: Float[Array, "n d"], row_weights: Float[Array, " n"]) -> tuple[Array, Array]:
    """Weighted mean and variance of every column."""
    shares = row_weights / row_weights.sum()
    mean = jnp.matmul(shares, x, precision="highest")
    return mean, jnp.matmul(shares, jnp.square(x - mean[None]), precision="highest")


def kmeans_plus_plus(
    x: Float[Array, "n d"], num_components: int, row_weights: Float[Array, " n"], *, key: RandomKey
) -> Int[Array, " n"]:
    """A partition of the rows around seeds drawn by k-means++: each row belongs to its nearest seed.

    Seeds are rows, the first drawn by weight, each next one with probability proportional to its squared distance
    from the seeds already drawn. Distances are in the units given.

    Source: Arthur & Vassilvitskii (2007), section 2.2.
    """

    def distances_to(index: Array) -> Array:
        return jnp.square(x - x[index][None]).sum(1)

    def add_seed(state: tuple[Array, Array], step: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        nearest, labels = state
        label, key = step
        seed = jax.random.categorical(key, jnp.log(row_weights * nearest))
        distances = distances_to(seed)
        return (jnp.minimum(nearest, distances), jnp.where(distances < nearest, label, labels)), None

    keys = jax.random.split(key, num_components)
    first = jax.random.categorical(keys[0], jnp.log(row_weights))
    state = (distances_to(first), jnp.zeros(x.shape[0], jnp.int32))
    (_, labels), _ = jax.lax.scan(add_seed, state, (jnp.arange(1, num_components, dtype=jnp.int32), keys[1:]))
    return labels


def mixture_of_partition(
    x: Float[Array, "n d"],
    responsibilities: Float[Array, "n k"],
    row_weights: Float[Array, " n"],
    family: Family,
    reg_covar: Float[Array, " d"],
) -> Mixture:
    """The M-step from given responsibilities."""
    moments = moments_of_partition(x, responsibilities, row_weights, diagonal=family.diagonal)
    return maximise(moments, family, reg_covar)


@functools.partial(jax.jit, static_argnames=("num_components", "family"))
def start_at_seeds(
    x: Float[Array, "n d"],
    num_components: int,
    row_weights: Float[Array, " n"],
    family: Family,
    reg_covar: Float[Array, " d"],
    *,
    key: RandomKey,
) -> Mixture:
    """The starting mixture of EM: k-means++ on standardised columns, then one M-step."""
    labels = kmeans_plus_plus(standardise(x, row_weights), num_components, row_weights, key=key)
    responsibilities = jax.nn.one_hot(labels, num_components, dtype=x.dtype)
    return mixture_of_partition(x, responsibilities, row_weights, family, reg_covar)
