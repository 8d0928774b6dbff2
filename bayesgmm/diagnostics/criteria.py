r"""Information criteria from the shared log-likelihood, and pointwise log-likelihoods of posterior draws.

With $\ell$ the log-likelihood, $p$ the number of free parameters and $n$ the number of rows,

$$ \mathrm{BIC} = -2\ell + p \log n, \quad \mathrm{AIC} = -2\ell + 2p, \quad
   \mathrm{ICL} = \mathrm{BIC} - 2 \sum_i \log \max_j r_{ij}; $$

smaller is better, as in scikit-learn; R's mclust reports the negatives of BIC and ICL.

Sources: Schwarz (1978); Akaike (1974); Biernacki, Celeux & Govaert (2000), equation 4, with hard assignments.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bayesgmm.engines.fit import Fit, as_fit
from bayesgmm.likelihood.rows import Rows, as_rows
from bayesgmm.likelihood.scores import row_log_prob, row_summaries
from bayesgmm.mixtures.families import get_family
from bayesgmm.mixtures.mixture import Mixture, rows_of_mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike, is_traced, matching_precision


@dataclass(frozen=True)
class Criteria:
    """Information criteria of one point; smaller is better."""

    log_likelihood: float
    num_parameters: int
    bic: float
    aic: float
    icl: float


def information_criteria(fit: Fit, x: ArrayLike, row_weights: ArrayLike | None = None) -> Criteria:
    """Compute BIC, AIC and ICL of a fit's point on rows x (n, d); n is the total weight of the rows.

    Raises:
        InputError: for what is no fit, for rows or weights that cannot be used, and for rows of another number of
            features than the mixture's.
    """
    fit, rows = as_fit(fit), as_rows(x, row_weights).of_positive_weight()
    weights = np.asarray(rows.weights, np.float64)
    log_prob, log_certainty = (np.asarray(part, np.float64) for part in row_summaries(fit.mixture, rows))
    total = float(weights @ log_prob)
    num_parameters = get_family(fit.family).num_parameters(fit.mixture.num_components, fit.mixture.num_features)
    bic = -2 * total + num_parameters * float(np.log(weights.sum()))
    aic, icl = -2 * total + 2 * num_parameters, bic - 2 * float(weights @ log_certainty)
    return Criteria(total, num_parameters, bic, aic, icl)


def bic(fit: Fit, x: ArrayLike, row_weights: ArrayLike | None = None) -> float:
    """Compute the Bayesian information criterion; smaller is better."""
    return information_criteria(fit, x, row_weights).bic


def aic(fit: Fit, x: ArrayLike, row_weights: ArrayLike | None = None) -> float:
    """Compute the Akaike information criterion; smaller is better."""
    return information_criteria(fit, x, row_weights).aic


def icl(fit: Fit, x: ArrayLike, row_weights: ArrayLike | None = None) -> float:
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
