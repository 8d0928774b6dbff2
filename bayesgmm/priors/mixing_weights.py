r"""Conjugate distributions of mixing proportions: Dirichlet, and the broken stick of a truncated Dirichlet process.

The second breaks k - 1 pieces off a stick of length 1, each a share of what the earlier ones have left, and gives the
last component the rest,

$$ w_j = v_j \prod_{l < j} (1 - v_l), \qquad v_j \sim \mathrm{Beta}(a_j, b_j), \quad v_k = 1. $$

It is a generalised Dirichlet distribution, so allocations update it in closed form: counts are added to $a$, and counts
of all later components to $b$. Here `concentration` is $\alpha$ or $a$, shape (k), and `remainder` None or $b$, shape
(k), whose last entry means nothing.

Sources: Connor & Mosimann (1969); Ishwaran & James (2001), Gibbs sampling methods for stick-breaking priors; Blei &
Jordan (2006), Variational inference for Dirichlet process mixtures.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, digamma, gammaln
from jaxtyping import Array, Float

from bayesgmm.numerics.precision import AnyArray, RandomKey

PerComponent = Float[AnyArray, " k"]
Remainder = PerComponent | None


def update_weights(
    concentration: PerComponent, remainder: Remainder, count: PerComponent
) -> tuple[PerComponent, Remainder]:
    """The distribution given so many rows of each component."""
    if remainder is None:
        return concentration + count, None
    later = jnp.cumsum(count[::-1])[::-1] - count
    return concentration + count, remainder + later


def expected_log_weights(concentration: PerComponent, remainder: Remainder) -> PerComponent:
    """Expectation of the logarithm of every weight."""
    if remainder is None:
        return digamma(concentration) - digamma(concentration.sum())
    a, b = concentration[:-1], remainder[:-1]
    of_sum = digamma(a + b)
    return _with_the_last(digamma(a) - of_sum) + _of_earlier(digamma(b) - of_sum)


def log_mean_weights(concentration: PerComponent, remainder: Remainder) -> PerComponent:
    """Logarithm of the expectation of every weight."""
    if remainder is None:
        return jnp.log(concentration / concentration.sum())
    a, b = concentration[:-1], remainder[:-1]
    return _with_the_last(jnp.log(a / (a + b))) + _of_earlier(jnp.log(b / (a + b)))


def log_constant_of_weights(concentration: PerComponent, remainder: Remainder) -> Float[AnyArray, ""]:
    """Logarithm of the integral of the density without its normalising constant."""
    if remainder is None:
        return gammaln(concentration).sum() - gammaln(concentration.sum())
    return betaln(concentration[:-1], remainder[:-1]).sum()


def log_prob_of_weights(
    concentration: PerComponent, remainder: Remainder, log_weights: PerComponent
) -> Float[AnyArray, ""]:
    """Log-density of weights, constants included, with regard to all but the last of them."""
    if remainder is None:
        kernel = _times(concentration - 1.0, log_weights).sum()
    else:
        left = jax.lax.cumlogsumexp(log_weights, reverse=True)  # of the stick before each piece, however little it is
        a, b = concentration[:-1], remainder[:-1]
        pieces = _times(a - 1.0, log_weights[:-1]) + _times(b - 1.0, left[1:])
        kernel = (pieces - _times(a + b - 1.0, left[:-1])).sum()
    return kernel - log_constant_of_weights(concentration, remainder)


def gamma_shapes(concentration: PerComponent, remainder: Remainder) -> Float[AnyArray, " g"]:
    """Shapes of the gamma variables that a draw of weights is made of: k, or two for each piece of a stick."""
    return concentration if remainder is None else jnp.concatenate([concentration[:-1], remainder[:-1]])


def log_weights_of_gammas(log_gammas: Float[Array, " g"], remainder: Remainder) -> PerComponent:
    """Logarithms of the weights that are made of the logarithms of such variables."""
    if remainder is None:
        return jax.nn.log_softmax(log_gammas)
    odds = log_gammas[: len(log_gammas) // 2] - log_gammas[len(log_gammas) // 2 :]
    return _with_the_last(-jax.nn.softplus(-odds)) + _of_earlier(-jax.nn.softplus(odds))


def sample_log_weights(concentration: PerComponent, remainder: Remainder, *, key: RandomKey) -> PerComponent:
    """Logarithms of weights drawn from the distribution."""
    shapes = gamma_shapes(concentration, remainder)
    return log_weights_of_gammas(jax.random.loggamma(key, shapes, dtype=concentration.dtype), remainder)


def _with_the_last(of_pieces: Float[Array, " pieces"]) -> PerComponent:
    """What the last component takes is all that is left."""
    return jnp.concatenate([of_pieces, jnp.zeros(1, of_pieces.dtype)])


def _of_earlier(of_pieces: Float[Array, " pieces"]) -> PerComponent:
    return jnp.concatenate([jnp.zeros(1, of_pieces.dtype), jnp.cumsum(of_pieces)])


def _times(factor: Array, logarithm: Array) -> Array:
    """A flat density does not mind a weight of 0, whose logarithm is -inf."""
    return jnp.where(factor == 0.0, 0.0, factor * logarithm)
