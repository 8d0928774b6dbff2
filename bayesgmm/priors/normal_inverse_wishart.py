r"""The conjugate distribution of a mixture: its weights and, for every component, a normal-inverse-Wishart.

$$ w \sim \mathrm{Dirichlet}(\alpha), \quad \mu_j \mid \Sigma_j \sim \mathcal N(m_j, \Sigma_j / \kappa_j), \quad
   \Sigma_j \sim \mathrm{IW}(\nu_j, \Lambda_j), $$

for diagonals and spheres with variances $\sigma^2 \sim \mathrm{IG}(\nu/2, s/2)$ in place of matrices, and with
stick-breaking weights in place of the Dirichlet distribution where there is a `remainder`. It is the form of
the prior, of the posterior when the allocations of the rows are known (Gibbs sampling draws from it), and of the best
factorised approximation of the posterior (coordinate ascent). Expected moments of the rows update its numbers.

Source: Bishop (2006), Pattern Recognition and Machine Learning, section 10.2; Gelman et al. (2013), section 3.6.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, multigammaln
from jaxtyping import Array, Float, Shaped

from bayesgmm.likelihood.moments import Moments
from bayesgmm.mixtures.factors import Factor, Triangular, pool
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import (
    LOG_2PI,
    Mixture,
    log_normaliser,
    rows_of_mixture,
    sum_over_components,
)
from bayesgmm.numerics.precision import AnyArray, ArrayLike, RandomKey, matching_precision
from bayesgmm.numerics.triangular import cholesky, inverse_of_lower
from bayesgmm.priors.mixing_weights import (
    expected_log_weights,
    log_constant_of_weights,
    log_mean_weights,
    log_prob_of_weights,
    sample_log_weights,
    update_weights,
)
from bayesgmm.runtime.files import storable


@storable
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["concentration", "mean", "shrinkage", "dof", "scale", "remainder"],
    meta_fields=[],
)
@dataclass(frozen=True)
class ConjugateDistribution:
    r"""Numbers of the conjugate distribution of a mixture, for every component; see the module.

    Attributes:
        concentration: Dirichlet parameters $\alpha$, or $a$ of a stick's pieces, shape (k).
        mean: means $m$ of the component means, shape (k, d).
        shrinkage: numbers of rows $\kappa$ that those means count for, shape (k).
        dof: degrees of freedom $\nu$ of each covariance that is free, shape (e).
        scale: $\Lambda$ (e, d, d) for matrices; $s$ (e, d) for diagonals, (e, 1) for spheres; squared units of the
            data.
        remainder: None for Dirichlet weights, or $b$ of a stick's pieces, shape (k).
    """

    concentration: Shaped[AnyArray, "*draws k"]
    mean: Shaped[AnyArray, "*draws k d"]
    shrinkage: Shaped[AnyArray, "*draws k"]
    dof: Shaped[AnyArray, "*draws e"]
    scale: Shaped[AnyArray, "*draws e d d"] | Shaped[AnyArray, "*draws e v"]
    remainder: Shaped[AnyArray, "*draws k"] | None = None

    @property
    def is_diagonal(self) -> bool:
        """Whether it is one of variances, not of covariance matrices."""
        return self.scale.ndim == self.mean.ndim

    def free_scales(self) -> Float[Array, "e v p p"]:
        """The scales as matrices of covariances that are independent: v of one dimension for variances, else one."""
        return self.scale[:, :, None, None] if self.is_diagonal else self.scale[:, None]

    def predictive_log_prob(self, x: ArrayLike) -> Float[AnyArray, " n"]:
        r"""Log-density of new rows x (n, d) with weights, means and covariances integrated out, shape (n).

        A mixture of Student-t densities, normalised: for matrices
        $\sum_j \bar w_j \, \mathrm t_{\nu_j - d + 1}(m_j, \Lambda_j (1 + \kappa_j) / (\kappa_j (\nu_j - d + 1)))$ with
        $\bar w = \alpha / \sum \alpha$ (Bishop 2006, equation 10.81); for spheres
        $\mathrm t_{\nu_j}(m_j, I s_j (1 + \kappa_j) / (\kappa_j \nu_j))$; for diagonals a product of such densities,
        one for each feature.

        Raises:
            InputError: for rows of another number of features.
        """
        return _predictive_log_prob(self, x)


def update(prior: ConjugateDistribution, moments: Moments, family: Family) -> ConjugateDistribution:
    r"""The distribution given rows of these moments: the posterior if their allocation to components is known.

    $$ \alpha_j + N_j, \quad \kappa_j + N_j, \quad \frac{\kappa_j m_j + N_j \bar x_j}{\kappa_j + N_j},
       \quad \nu_j + N_j, \quad
       \Lambda_j + W_j + \frac{\kappa_j N_j}{\kappa_j + N_j} (\bar x_j - m_j)(\bar x_j - m_j)^\top, $$

    with $W_j$ the scatter about $\bar x_j$ (Bishop 2006, equations 10.58 to 10.63). A shared covariance takes the
    counts and the scatter of all components; one variance for all d features takes $d N_j$.
    """
    count = moments.count
    to_mean = prior.mean - moments.origin
    first = moments.first + prior.shrinkage[:, None] * to_mean
    shift = first / (count + prior.shrinkage)[:, None]
    spread = spread_of_means(family.representation, prior.shrinkage, to_mean, first, shift)
    num_factors = len(prior.scale)
    scatter = pool(moments.second + pool(spread, len(moments.second)), num_factors)
    rows = pool(count, num_factors)
    if family.isotropic:
        scatter, rows = scatter.sum(1, keepdims=True), rows * count_features(prior)
    concentration, remainder = update_weights(prior.concentration, prior.remainder, count)
    return ConjugateDistribution(
        concentration=concentration,
        remainder=remainder,
        mean=moments.origin + shift,
        shrinkage=prior.shrinkage + count,
        dof=prior.dof + rows,
        scale=prior.scale + scatter,
    )


def spread_of_means(
    representation: type[Factor], shrinkage: Array, to_mean: Array, first: Array, shift: Array
) -> Array:
    r"""What the prior mean and the move to the new mean add to second moments about an origin.

    $\kappa (m - o)(m - o)^\top - f s^\top$ with f the first moments of the rows and of the $\kappa$ rows at m, and s
    the move of the mean, for every component.
    """
    outer = representation.outer
    return representation.of_each(shrinkage) * outer(to_mean, to_mean) - outer(first, shift)


def count_features(distribution: ConjugateDistribution) -> int:
    """d."""
    return distribution.mean.shape[-1]


def expected_mixture(distribution: ConjugateDistribution) -> Mixture:
    r"""The mixture whose joint log-density is the expectation of that of the mixtures of this distribution.

    $$ \mathrm E \log w_j \mathcal N(x \mid \mu_j, \Sigma_j) = \mathrm E \log w_j
       + \tfrac12 \mathrm E \log|\Sigma_j^{-1}| - \tfrac d2 \log 2\pi - \tfrac d{2\kappa_j}
       - \tfrac12 (x - m_j)^\top \nu_j \Lambda_j^{-1} (x - m_j) $$

    (Bishop 2006, equations 10.64 to 10.66): a Gaussian one, so that the pass over the rows serves coordinate ascent as
    it is. Its weights do not sum to one.
    """
    d = count_features(distribution)
    dof = distribution.dof
    if distribution.is_diagonal:
        factor = jnp.sqrt(dof[:, None] / distribution.scale)
        factor = jnp.broadcast_to(factor, (len(factor), d))
        expected_log = d * (digamma(0.5 * dof) + jnp.log(2.0 / dof))
    else:
        factor = Triangular.from_covariances(distribution.scale / dof[:, None, None]).array
        halves = 0.5 * (dof[:, None] - jnp.arange(d, dtype=dof.dtype)[None])
        expected_log = digamma(halves).sum(1) + d * jnp.log(2.0 / dof)
    log_weights = expected_log_weights(distribution.concentration, distribution.remainder)
    return Mixture(log_weights + 0.5 * expected_log - 0.5 * d / distribution.shrinkage, distribution.mean, factor)


def log_evidence(
    posterior: ConjugateDistribution, prior: ConjugateDistribution, total_weight: Array
) -> Float[Array, ""]:
    """Log-probability of the rows and allocations that took `prior` to `posterior`, parameters integrated out."""
    d = count_features(prior)
    constants = _log_constant(posterior) - _log_constant(prior)
    return constants - 0.5 * d * LOG_2PI * total_weight


def _log_constant(distribution: ConjugateDistribution) -> Array:
    """Logarithm of the constant that normalises the density, without what depends on k and d alone."""
    d, dof = count_features(distribution), distribution.dof
    of_weights = log_constant_of_weights(distribution.concentration, distribution.remainder)
    of_means = -0.5 * d * jnp.log(distribution.shrinkage).sum()
    return of_weights + of_means + _log_constants_of_covariances(dof, distribution.free_scales()).sum()


def _log_constants_of_covariances(dof: Array, scales: Float[Array, "e v p p"]) -> Float[Array, "e v"]:
    """Of inverse-Wishart distributions; in one dimension they are inverse-gamma."""
    size, half = scales.shape[-1], 0.5 * dof[:, None]
    log_det = 2.0 * jnp.log(jnp.diagonal(cholesky(scales), axis1=-2, axis2=-1)).sum(-1)
    return half * (size * math.log(2.0) - log_det) + multigammaln(half, size)


def log_prob_of_mixture(distribution: ConjugateDistribution, mixture: Mixture) -> Float[Array, ""]:
    """Log-density of the mixture's weights, means and covariances, constants included.

    Of covariance matrices where they are free, of variances for diagonals and spheres, one factor for each free one.
    """
    d = count_features(distribution)
    of_weights = log_prob_of_weights(distribution.concentration, distribution.remainder, mixture.log_weights)
    scales = distribution.free_scales()  # (e, v, p, p), one p-dimensional covariance for each
    num_free, size = scales.shape[1:3]
    factor = mixture.precision_factor
    factor = factor[:, :num_free, None, None] if distribution.is_diagonal else jnp.tril(factor)[:, None]
    log_det = -2.0 * jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
    traces = jnp.square(jnp.matmul(factor, cholesky(scales), precision="highest")).sum((-2, -1))
    of_covariances = -0.5 * (distribution.dof[:, None] + size + 1.0) * log_det - 0.5 * traces
    of_covariances = of_covariances - _log_constants_of_covariances(distribution.dof, scales)
    whitened = mixture.factor.whiten((mixture.means - distribution.mean)[:, :, None])[:, :, 0]
    of_means = log_normaliser(mixture) + 0.5 * d * jnp.log(distribution.shrinkage)
    of_means = of_means - 0.5 * distribution.shrinkage * jnp.square(whitened).sum(1)
    return of_weights + of_means.sum() + of_covariances.sum()


def sample_mixture(distribution: ConjugateDistribution, *, key: RandomKey) -> Mixture:
    r"""A mixture drawn from the distribution.

    Precisions of matrices are drawn as products of triangles: with $\Lambda^{-1} = G^\top G$ and B lower triangular,
    $B_{ii}^2 \sim \chi^2_{\nu - d + i}$ and standard normal below, $F = B G$ is the factor of a Wishart precision
    (Bartlett 1933, with the order of the features reversed), so that none has to be factorised.
    """
    weight_key, covariance_key, off_key, mean_key = jax.random.split(key, 4)
    (k, d), dtype = distribution.mean.shape, distribution.mean.dtype
    log_weights = sample_log_weights(distribution.concentration, distribution.remainder, key=weight_key)
    noise = jax.random.normal(mean_key, (k, d), dtype) / jnp.sqrt(distribution.shrinkage)[:, None]
    scale, half = distribution.scale, 0.5 * distribution.dof
    if distribution.is_diagonal:
        precisions = 2.0 * jax.random.gamma(covariance_key, half[:, None], scale.shape, dtype) / scale
        factor = jnp.broadcast_to(jnp.sqrt(precisions), (len(scale), d))
        return Mixture(log_weights, distribution.mean + noise / factor, factor)
    halves = half[:, None] - 0.5 * jnp.arange(d - 1, -1, -1, dtype=dtype)[None]
    diagonal = jnp.sqrt(2.0 * jax.random.gamma(covariance_key, halves, dtype=dtype))
    lower = jnp.tril(jax.random.normal(off_key, scale.shape, dtype), -1)
    lower = lower + diagonal[:, :, None] * jnp.eye(d, dtype=dtype)[None]
    factor = jnp.matmul(lower, Triangular.from_covariances(scale).array, precision="highest")
    # Covariance factor times noise, which is small beside what a solve would cost to set up.
    away = (inverse_of_lower(factor) * noise[:, None, :]).sum(2)
    return Mixture(log_weights, distribution.mean + away, factor)


@matching_precision
def _predictive_log_prob(distribution: ConjugateDistribution, x: ArrayLike) -> AnyArray:
    d = count_features(distribution)
    x = rows_of_mixture(Mixture(distribution.concentration, distribution.mean, distribution.scale), x)
    return _predictive(distribution, jnp.asarray(x, jax.dtypes.canonicalize_dtype(distribution.mean.dtype)), d)


@functools.partial(jax.jit, static_argnames="d")
def _predictive(distribution: ConjugateDistribution, x: Array, d: int) -> Array:
    distribution = jax.tree.map(jnp.asarray, distribution)
    widening = 1.0 + 1.0 / distribution.shrinkage  # a new row has the spread of its component and that of its mean
    centred = x.T[None] - distribution.mean[:, :, None]  # (k, d, n)
    if distribution.is_diagonal:
        dof = distribution.dof
        variances = distribution.scale / dof[:, None] * widening[:, None]
        squares = jnp.square(centred) / variances[:, :, None]
        if distribution.scale.shape[1] < d:
            log_prob = _log_student(squares.sum(1), dof, d) - 0.5 * d * jnp.log(variances)
        else:
            each = _log_student(squares, dof[:, None], 1) - 0.5 * jnp.log(variances)[:, :, None]
            log_prob = each.sum(1)
    else:
        dof = distribution.dof - d + 1.0
        factor = Triangular.from_covariances(distribution.scale / dof[:, None, None]).array
        factor = factor / jnp.sqrt(widening)[:, None, None]
        squares = jnp.square(jnp.matmul(jnp.tril(factor), centred, precision="highest")).sum(1)
        log_det = jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)).sum(1)
        log_prob = _log_student(squares, dof, d) + log_det[:, None]
    log_weights = log_mean_weights(distribution.concentration, distribution.remainder)
    return sum_over_components(log_weights[:, None] + log_prob)


def _log_student(squares: Array, dof: Array, d: int) -> Array:
    """Log-density of Student's t in d dimensions at squared distances, rows last, but for its log-determinant."""
    dof = dof[..., None]
    constant = gammaln(0.5 * (dof + d)) - gammaln(0.5 * dof) - 0.5 * d * jnp.log(dof * math.pi)
    return constant - 0.5 * (dof + d) * jnp.log1p(squares / dof)
