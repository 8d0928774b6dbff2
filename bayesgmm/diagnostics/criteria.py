r"""Information criteria from the shared log-likelihood, and pointwise log-likelihoods of posterior draws.

With $\ell$ the log-likelihood, $p$ the number of free parameters and $n$ the number of rows,

$$ \mathrm{BIC} = -2\ell + p \log n, \quad \mathrm{AIC} = -2\ell + 2p, \quad
   \mathrm{ICL} = \mathrm{BIC} - 2 \sum_i \log \max_j r_{ij}; $$

smaller is better, as in scikit-learn; R's mclust reports the negatives of BIC and ICL.

Sources: Schwarz (1978); Akaike (1974); Biernacki, Celeux & Govaert (2000), equation 4, with hard assignments.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesgmm.engines.fit import Fit, as_fit
from bayesgmm.likelihood.rows import Rows, as_rows
from bayesgmm.likelihood.scores import row_log_prob, row_summaries
from bayesgmm.mixtures.families import get_family
from bayesgmm.mixtures.mixture import Mixture, rows_of_mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike, is_traced, matching_precision


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Criteria:
    """Information criteria of one point; smaller is better. A pytree, of scalar arrays inside `jit` and `vmap`."""

    log_likelihood: float | Array
    num_parameters: int = field(metadata={"static": True})
    bic: float | Array
    aic: float | Array
    icl: float | Array


def information_criteria(fit: Fit, x: ArrayLike, row_weights: ArrayLike | None = None) -> Criteria:
    """Compute BIC, AIC and ICL of a fit's point on rows x (n, d); n is the total weight of the rows.

    Usable inside the caller's `jit` and `vmap`.

    Raises:
        InputError: for what is no fit, for rows or weights that cannot be used, and for rows of another number of
            features than the mixture's.
    """
    fit, rows = as_fit(fit), as_rows(x, row_weights)
    traced = is_traced((fit, rows))
    rows = rows if traced else rows.of_positive_weight()
    xp, dtype = (jnp, rows.dtype) if traced else (np, np.float64)
    weights = xp.asarray(rows.weights, dtype)
    # Rows of no weight may be anything, and have any density.
    log_prob, log_certainty = (
        xp.where(weights > 0, xp.asarray(part, dtype), 0.0) for part in row_summaries(fit.mixture, rows)
    )
    total, certainty, log_n = (weights * log_prob).sum(), (weights * log_certainty).sum(), xp.log(weights.sum())
    p = get_family(fit.family).num_parameters(fit.mixture.num_components, fit.mixture.num_features)
    found = (total, -2 * total + p * log_n, -2 * total + 2 * p, -2 * total + p * log_n - 2 * certainty)
    total, bic, aic, icl = found if traced else map(float, found)
    return Criteria(total, p, bic, aic, icl)


def bic(fit: Fit, x: ArrayLike, row_weights: ArrayLike | None = None) -> float | Array:
    """Compute the Bayesian information criterion; smaller is better."""
    return information_criteria(fit, x, row_weights).bic


def aic(fit: Fit, x: ArrayLike, row_weights: ArrayLike | None = None) -> float | Array:
    """Compute the Akaike information criterion; smaller is better."""
    return information_criteria(fit, x, row_weights).aic


def icl(fit: Fit, x: ArrayLike, row_weights: ArrayLike | None = None) -> float | Array:
    """Compute the integrated completed likelihood; smaller is better."""
    return information_criteria(fit, x, row_weights).icl


@matching_precision
def pointwise_log_likelihood(draws: Mixture, x: ArrayLike) -> Float[AnyArray, "*draws n"]:
    r"""Compute $\log p(x_i)$ of every row under every draw, shape (..., n)."""
    rows = rows_of_mixture(draws, x)
    flat = jax.tree.map(lambda leaf: jnp.reshape(jnp.asarray(leaf), (-1, *leaf.shape[len(draws.draw_shape) :])), draws)
    shape = (*draws.draw_shape, len(rows))
    if is_traced((draws, rows)):
        return jnp.reshape(_pointwise(flat, rows), shape)
    padded = Rows(rows, np.ones(len(rows), rows.dtype)).in_steps().values
    return jax.device_put(np.asarray(_pointwise(flat, padded))[:, : len(rows)].reshape(shape))


@jax.jit
def _pointwise(draws: Mixture, x: AnyArray) -> Float[AnyArray, "s n"]:
    return jax.lax.map(lambda mixture: row_log_prob(mixture, x), draws)
