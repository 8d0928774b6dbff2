"""Which columns, and which directions, tell the components of a mixture apart."""

import numpy as np
import scipy.linalg
from jaxtyping import Float

from bayesgmm.mixtures.mixture import Mixture


def column_separations(mixture: Mixture) -> Float[np.ndarray, "k d"]:
    r"""How well each column tells each component from the others: mean distance of the means, in standard deviations.

    For component j and column c, $\sum_l \pi_l |\mu_{jc} - \mu_{lc}| / \sqrt{(\sigma_{jc}^2 + \sigma_{lc}^2) / 2}$. Of
    draws, of their mean parameters.
    """
    weights, means, covariances = _mean_parameters(mixture)
    variances = np.diagonal(covariances, axis1=1, axis2=2)
    distances = np.abs(means[:, None] - means) / np.sqrt((variances[:, None] + variances) / 2)
    return np.einsum("l,jlc->jc", weights, distances)


def discriminant_coordinates(mixture: Mixture) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, " d"]]:
    r"""The directions in which components differ most in their means and shapes, one a row, and how much in each.

    Eigenvectors v, with $v^\top \Sigma v = 1$, and eigenvalues of $M v = \lambda \Sigma v$, where $\Sigma$ is the
    covariance of the mixture, B that of its means, W the mean of the components' covariances, and

    $$ M = B \Sigma^{-1} B + \sum_j \pi_j (\Sigma_j - W) \Sigma^{-1} (\Sigma_j - W). $$

    The sign of each makes its largest coefficient, in standard deviations of the columns, positive.

    Source: Scrucca (2010), Dimension reduction for model-based clustering.
    """
    weights, means, covariances = _mean_parameters(mixture)
    centred, within = means - weights @ means, np.einsum("k,kij->ij", weights, covariances)
    between = np.einsum("k,ki,kj->ij", weights, centred, centred)
    total = within + between
    # In units of the columns' standard deviations, so that none decides by its scale what rounding loses.
    scale = np.sqrt(np.diagonal(total))
    units = np.outer(scale, scale)
    total, between, apart = total / units, between / units, (covariances - within) / units
    kernel = between @ np.linalg.solve(total, between)
    kernel += np.einsum("k,kij,kjl->il", weights, apart, np.linalg.solve(total, apart))
    strengths, vectors = scipy.linalg.eigh((kernel + kernel.T) / 2, total)
    vectors = vectors[:, ::-1].T
    vectors *= np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])[:, None]
    return vectors / scale, np.maximum(strengths[::-1], 0.0)


def _mean_parameters(mixture: Mixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (k), means (k, d) and covariances (k, d, d) in float64, of draws their means."""
    axes = tuple(range(len(mixture.draw_shape)))
    parts = (mixture.weights, mixture.means, mixture.covariances)
    weights, means, covariances = (np.asarray(part, np.float64).mean(axes) for part in parts)
    return weights, means, np.broadcast_to(covariances, (len(weights), *covariances.shape[-2:]))
