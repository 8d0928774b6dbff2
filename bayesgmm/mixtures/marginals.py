"""Mixtures of some of the features: alone, or given the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bayesgmm.mixtures.mixture import Mixture, densities_anywhere, vmap_draws
from bayesgmm.numerics.precision import AnyArray, compiled


@functools.partial(compiled, static_argnums=1)
def marginal_of(mixture: Mixture, columns: tuple[int, ...]) -> Mixture:
    """The mixture of these features, in this order."""
    chosen = np.array(columns)

    def one(mixture: Mixture) -> Mixture:
        means = jnp.asarray(mixture.means)[:, chosen]
        return Mixture(mixture.log_weights, means, mixture.factor.marginal(chosen).array)

    return vmap_draws(one, mixture)(mixture)


@functools.partial(compiled, static_argnums=2)
def condition_on(mixture: Mixture, values: AnyArray, columns: tuple[int, ...]) -> Mixture:
    """The mixture of the other features where these columns have values (b) or, for m mixtures, (m, b)."""
    given, others = np.array(columns), np.setdiff1d(np.arange(mixture.num_features), columns)
    values = jnp.asarray(values, jax.dtypes.canonicalize_dtype(mixture.means.dtype))
    rows = values.reshape(-1, len(columns))

    def one(mixture: Mixture) -> Mixture:
        log_shares = densities_anywhere(marginal_of(mixture, columns), rows).log_shares
        means = jnp.asarray(mixture.means)
        factor, move = mixture.factor.condition(given, others, rows[:, None] - means[None, :, given])
        array = jnp.broadcast_to(factor.array, (len(rows), *factor.array.shape))
        fields = (log_shares.T, means[None, :, others] + move, array)
        return Mixture(*(field if values.ndim == 2 else field[0] for field in fields))

    return vmap_draws(one, mixture)(mixture)
