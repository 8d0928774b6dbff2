r"""Numbers of whole mixtures: entropy, Kullback-Leibler divergence, levels of highest-density regions.

No closed forms exist, so they are averages over draws from the mixture, with their standard errors. What is known
exactly is taken out of the average first.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture, as_mixture, joint_and_marginal, log_normaliser
from bayesgmm.mixtures.univariate import check_probability, exact_log_level
from bayesgmm.numerics.batches import even_size
from bayesgmm.numerics.precision import AnyArray, ArrayLike, DTypeLike, KeyLike, matching_precision
from bayesgmm.numerics.validation import as_key, whole_number

_AT_ONCE = 2**22  # rows x features x components whose densities are formed at once


class Estimate(NamedTuple):
    """A number that was estimated from draws.

    Attributes:
        value: the number, or one for each draw of the mixture.
        standard_error: its Monte Carlo standard error; 0 where it is exact.
    """

    value: Float[AnyArray, "..."]
    standard_error: Float[AnyArray, "..."]


def entropy(mixture: Mixture, *, key: KeyLike, num_draws: int = 10_000) -> Estimate:
    r"""Differential entropy $H = -\int p \log p$ of a mixture, in nats and the logarithms of the data's units.

    $$ H = H(w) + \sum_j w_j \left(\tfrac d2 - \log \mathcal N(\mu_j \mid \mu_j, \Sigma_j)\right)
           - \mathbb E_x H(p(j \mid x)): $$

    only the entropy of the allocations is averaged over draws. Of one component, or of components that do not overlap,
    nothing is left to estimate. Its derivatives are unbiased estimates too.

    Args:
        mixture: one mixture, or draws of them.
        key: `jax.random.key(seed)`.
        num_draws: rows drawn from every mixture.

    Raises:
        InputError: for fewer than two draws, and for what is no key.
    """
    return _entropy(as_mixture(mixture), as_key(key), whole_number("num_draws", num_draws, least=2))


def kl_divergence(mixture: Mixture, other: Mixture, *, key: KeyLike, num_draws: int = 10_000) -> Estimate:
    r"""Kullback-Leibler divergence $\int p \log (p / q)$ from a mixture p to another q, in nats, by draws from p.

    Its derivatives are unbiased estimates too.

    Args:
        mixture: p, one mixture or draws of them.
        other: q, one mixture or as many as p.
        key: `jax.random.key(seed)`.
        num_draws: rows drawn from every p.

    Raises:
        InputError: for different numbers of features, leading axes that do not fit, fewer than two draws, and for what
            is no key.
    """
    if as_mixture(mixture).num_features != as_mixture(other, "other").num_features:
        raise InputError(
            f"other has {other.num_features} features and mixture {mixture.num_features}; compare mixtures of the same"
        )
    try:
        shape = np.broadcast_shapes(mixture.draw_shape, other.draw_shape)
    except ValueError:
        raise InputError(
            f"other has leading axes {other.draw_shape} and mixture {mixture.draw_shape}; give the same, or one mixture"
        ) from None
    return _kl_divergence(mixture, other, as_key(key), whole_number("num_draws", num_draws, least=2), shape)


def hdr_level(
    mixture: Mixture, probability: ArrayLike, *, key: KeyLike | None = None, num_draws: int = 100_000
) -> Estimate:
    r"""Log-density level of highest-density regions: $\{x : \log p(x) \ge \ell\}$ has the probability asked for.

    It is the smallest region of that probability (Hyndman 1996). For one feature the level is exact, and no key is
    needed. For several it is the quantile of $\log p(x)$ over draws from the mixture, with half the distance of the
    quantiles one binomial standard deviation away as its standard error (Woodruff 1952). It has no derivatives.

    Args:
        mixture: one mixture, or draws of them.
        probability: between 0 and 1; one number, or several (p).
        key: `jax.random.key(seed)`; needed for more than one feature.
        num_draws: rows drawn from every mixture.

    Returns:
        Levels to compare `mixture.log_prob` with, of the shape of `probability` after the mixture's leading axes.

    Raises:
        InputError: for what is no probability, fewer than two draws, and for what is no key; under `grad`.
    """
    probability = check_probability(probability, closed=False)
    num_draws = whole_number("num_draws", num_draws, least=2)
    return _level(mixture, probability, None if as_mixture(mixture).num_features == 1 else as_key(key), num_draws)


def _each(function: Callable[..., Any], shape: tuple[int, ...], mixtures: PyTree, key: Array | None = None) -> Any:
    """`function` of the mixtures at every place of their leading axes, one after the other, with a key of its own."""
    keys = None if key is None else jax.random.split(key, shape)
    if not shape:
        return function(mixtures, key)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(shape) :]), (mixtures, keys))
    found = jax.lax.map(lambda own: function(*own), flat)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), found)


def _in_blocks[R](function: Callable[[Array], R], mixture: Mixture, x: Float[Array, "n d"]) -> R:
    """`function` of rows, arrays (n), of so many rows at a time that memory does not grow with n k d."""
    size = even_size(len(x), _AT_ONCE // mixture.means.size)
    if size == len(x):
        return function(x)
    blocks = x[np.arange(-(-len(x) // size) * size) % len(x)].reshape(-1, size, x.shape[1])
    return jax.tree.map(lambda leaf: leaf.ravel()[: len(x)], jax.lax.map(function, blocks))


def _average(mixture: Mixture, function: Callable[[Array], Array], key: Array, num_draws: int) -> tuple[Array, Array]:
    r"""Average of a function over draws from a mixture, and its standard error.

    Draws move with the parameters in jumps, so they are held fixed and the average's derivative gets the term
    $\mathbb E[f \, \partial \log p]$ from a ratio of densities whose value is one.
    """
    x = jax.lax.stop_gradient(jnp.asarray(mixture.sample(num_draws, key=key)))
    values, log_prob = _in_blocks(lambda x: (function(x), joint_and_marginal(mixture, x)[2]), mixture, x)
    middle = jax.lax.stop_gradient(values.mean())
    finite = jnp.isfinite(middle)  # if not, so is the average, and it has no error
    values = jnp.where(finite, values, 0.0)
    ratio = jnp.exp(log_prob - jax.lax.stop_gradient(log_prob))
    around = (ratio * (values - jnp.where(finite, middle, 0.0))).mean()
    return middle + around, jnp.where(finite, values.std(ddof=1) / num_draws**0.5, jnp.inf)


def _entropy_of(log_shares: Float[Array, "k ..."]) -> Float[Array, "..."]:
    """Entropy of shares given by their logarithms, whose derivative is finite where one of them underflows or is 0."""
    present = log_shares > -jnp.inf
    known = jnp.where(present, log_shares, 0.0)
    return -jnp.where(present, jnp.exp(known) * known, 0.0).sum(0)


@matching_precision
@functools.partial(jax.jit, static_argnums=2)
def _entropy(mixture: Mixture, key: Array, num_draws: int) -> Estimate:
    def of_one(mixture: Mixture, key: Array) -> Estimate:
        of_components = 0.5 * mixture.num_features - log_normaliser(mixture)
        of_weights = _entropy_of(mixture.log_weights)
        together = of_weights + jnp.dot(jnp.exp(mixture.log_weights), of_components, precision="highest")

        def of_allocations(x: Array) -> Array:
            _, joint, marginal = joint_and_marginal(mixture, x)
            return _entropy_of(joint - marginal[None])

        value, error = _average(mixture, of_allocations, key, num_draws)
        return Estimate(together - value, error)

    return _each(of_one, mixture.draw_shape, _as_jax(mixture), key)


@matching_precision
@functools.partial(jax.jit, static_argnums=(3, 4))
def _kl_divergence(mixture: Mixture, other: Mixture, key: Array, num_draws: int, shape: tuple[int, ...]) -> Estimate:
    def of_one(pair: tuple[Mixture, Mixture], key: Array) -> Estimate:
        def log_ratio(x: Array) -> Array:
            return joint_and_marginal(pair[0], x)[2] - joint_and_marginal(pair[1], x)[2]

        return Estimate(*_average(pair[0], log_ratio, key, num_draws))

    dtype = jnp.promote_types(mixture.means.dtype, other.means.dtype)

    def spread(own: Mixture) -> Mixture:
        rank = len(own.draw_shape)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*shape, *leaf.shape[rank:])), _as_jax(own, dtype))

    return _each(of_one, shape, (spread(mixture), spread(other)), key)


@matching_precision
@functools.partial(jax.jit, static_argnums=3)
def _level(mixture: Mixture, probability: ArrayLike, key: Array | None, num_draws: int) -> Estimate:
    mixture = jax.tree.map(_without_derivative, _as_jax(mixture))
    probability = jnp.asarray(probability, mixture.means.dtype)

    def exactly(mixture: Mixture, _: None) -> Estimate:
        level = exact_log_level(mixture, probability.ravel()).reshape(probability.shape)
        return Estimate(level, jnp.zeros_like(level))

    def by_draws(mixture: Mixture, key: Array) -> Estimate:
        below = 1 - probability.ravel()
        deviation = jnp.sqrt(below * (1 - below) / num_draws)
        where = jnp.clip(jnp.stack([below - deviation, below, below + deviation]), 0, 1)
        x = jnp.asarray(mixture.sample(num_draws, key=key))
        log_prob = _in_blocks(lambda x: joint_and_marginal(mixture, x)[2], mixture, x)
        less, level, more = jnp.quantile(log_prob, where.ravel()).reshape(3, *probability.shape)
        return Estimate(level, 0.5 * (more - less))

    return _each(exactly if key is None else by_draws, mixture.draw_shape, mixture, key)


def _as_jax(mixture: Mixture, dtype: DTypeLike | None = None) -> Mixture:
    dtype = jax.dtypes.canonicalize_dtype(mixture.means.dtype if dtype is None else dtype)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), mixture)


@jax.custom_jvp
def _without_derivative(value: Array) -> Array:
    return value


@_without_derivative.defjvp
def _without_derivative_jvp(primals: PyTree, tangents: PyTree) -> PyTree:
    raise InputError("hdr_level has no derivatives; take it of parameters held by jax.lax.stop_gradient")
