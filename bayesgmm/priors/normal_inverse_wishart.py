r"""The conjugate distribution of a mixture: its weights and, for every component, a normal-inverse-Wishart.

$$ w \sim \mathrm{Dirichlet}(\alpha), \quad \mu_j \mid \Sigma_j \sim \mathcal N(m_j, \Sigma_j / \kappa_j), \quad
   \Sigma_j \sim \mathrm{IW}(\nu_j, \Lambda_j), $$

for diagonals and spheres with variances $\sigma^2 \sim \mathrm{IG}(\nu/2, s/2)$ in place of matrices, and with
stick-breaking weights in place of the Dirichlet distribution where there is a `remainder`. It is the form of
the prior, of the posterior when the allocations of the rows are known (Gibbs sampling draws from it), and of the best
factorised approximation of the posterior (coordinate ascent). Expected moments of the rows update its numbers.

Source: Bishop (2006), Pattern Recognition and Machine Learning, section 10.2; Gelman et al. (2013), section 3.6.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, multigammaln
from jaxtyping import Array, Float, Shaped

from bayesgmm.likelihood.moments import Moments
from bayesgmm.mixtures.checks import rows_of_features
from bayesgmm.mixtures.factors import Diagonal, Factor, Triangular, pool
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import LOG_2PI, Mixture, log_normaliser, sum_over_components
from bayesgmm.numerics.keys import written_out
from bayesgmm.numerics.precision import AnyArray, ArrayLike, RandomKey, in_wider_precision, matching_precision
from bayesgmm.numerics.triangular import cholesky
from bayesgmm.priors import mixing_weights
from bayesgmm.runtime.files import storable


@storable
@jax.tree_util.register_dataclass
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
        return self.representation is Diagonal

    @property
    def representation(self) -> type[Factor]:
        """That of its mixtures' precision factors."""
        return Diagonal if self.scale.ndim == self.mean.ndim else Triangular

    @property
    def weight_parameters(self) -> tuple[AnyArray, mixing_weights.Remainder]:
        """What the functions of `mixing_weights` take."""
        return self.concentration, self.remainder

    def free_scales(self) -> Float[Array, "e v p p"]:
        """The scales as matrices of covariances that are independent: v of one dimension for variances, else one."""
        return self.representation.to_blocks(self.scale)

    def _factor_of_scales(self, dof: Float[Array, " e"]) -> Factor:
        """Precision factors of the covariances whose scales are divided by these numbers."""
        blocks = Triangular.from_covariances(self.free_scales() / dof[:, None, None, None]).array
        return self.representation.from_blocks(blocks, count_features(self))

    @matching_precision
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
        x = rows_of_features(self.mean.shape[-1], x)
        approximation, x = in_wider_precision(self, self.mean.dtype, x)
        return _predictive(approximation, jnp.asarray(x))


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
    concentration, remainder = mixing_weights.update_weights(*prior.weight_parameters, count)
    mean, shrinkage, dof = moments.origin + shift, prior.shrinkage + count, prior.dof + rows
    return ConjugateDistribution(concentration, mean, shrinkage, dof, prior.scale + scatter, remainder)


def spread_of_means(kind: type[Factor], shrinkage: Array, to_mean: Array, first: Array, shift: Array) -> Array:
    r"""What the prior mean and the move to the new mean add to second moments about an origin.

    $\kappa (m - o)(m - o)^\top - f s^\top$ with f the first moments of the rows and of the $\kappa$ rows at m, and s
    the move of the mean, for every component.
    """
    return kind.of_each(shrinkage) * kind.outer(to_mean, to_mean) - kind.outer(first, shift)


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
    d, p, dof = count_features(distribution), distribution.free_scales().shape[-1], distribution.dof
    halves = 0.5 * (dof[:, None] - jnp.arange(p, dtype=dof.dtype)[None])
    expected_log = (d // p) * (digamma(halves).sum(1) + p * jnp.log(2.0 / dof))
    log_weights = mixing_weights.expected_log_weights(*distribution.weight_parameters)
    log_weights = log_weights + 0.5 * expected_log - 0.5 * d / distribution.shrinkage
    return Mixture(log_weights, distribution.mean, distribution._factor_of_scales(dof).array)


def log_evidence(posterior: ConjugateDistribution, prior: ConjugateDistribution, total_weight: Array) -> Array:
    """Log-probability of the rows and allocations that took `prior` to `posterior`, parameters integrated out."""
    per_row = 0.5 * count_features(prior) * LOG_2PI
    return _log_constant(posterior) - _log_constant(prior) - per_row * total_weight


def _log_constant(distribution: ConjugateDistribution) -> Array:
    """Logarithm of the constant that normalises the density, without what depends on k and d alone."""
    d, dof = count_features(distribution), distribution.dof
    of_weights = mixing_weights.log_constant_of_weights(*distribution.weight_parameters)
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
    of_weights = mixing_weights.log_prob_of_weights(*distribution.weight_parameters, mixture.log_weights)
    scales = distribution.free_scales()  # (e, v, p, p), one p-dimensional covariance for each
    num_free, size = scales.shape[1:3]
    factor = jnp.tril(mixture.factor.to_blocks(mixture.precision_factor)[:, :num_free])
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
    gamma_key, normal_key = jax.random.split(written_out(key))
    (k, d), dtype, scales = distribution.mean.shape, distribution.mean.dtype, distribution.free_scales()
    *shape, p = scales.shape[:-1]
    halves = 0.5 * (distribution.dof[:, None, None] - jnp.arange(p - 1, -1, -1, dtype=dtype)[None, None])
    of_weights = mixing_weights.gamma_shapes(*distribution.weight_parameters)
    # All gamma variables in one call, and all normal ones, held apart from what is made of them: there are few numbers,
    # and most of what a program of draws costs is to compile each call, for each of its uses anew.
    gammas = jnp.concatenate([of_weights, jnp.broadcast_to(halves, (*shape, p)).ravel()])
    normals = jax.random.normal(normal_key, (k * d + scales.size,), dtype)
    gammas, normals = jax.lax.optimization_barrier((jax.random.loggamma(gamma_key, gammas, dtype=dtype), normals))
    log_weights = mixing_weights.log_weights_of_gammas(gammas[: len(of_weights)], distribution.remainder)
    noise = normals[: k * d].reshape(k, d) / jnp.sqrt(distribution.shrinkage)[:, None]
    diagonal = jnp.sqrt(2.0 * jnp.exp(gammas[len(of_weights) :].reshape(*shape, p)))
    lower = jnp.tril(normals[k * d :].reshape(scales.shape), -1) + Triangular.of_diagonal(diagonal)
    blocks = jnp.matmul(lower, Triangular.from_covariances(scales).array, precision="highest")
    factor = distribution.representation.from_blocks(blocks, d)
    # Covariance factor times noise, which is small beside what a solve would cost to set up.
    return Mixture(log_weights, distribution.mean + factor.times(factor.inverse(), noise), factor.array)


@jax.jit
def _predictive(distribution: ConjugateDistribution, x: Array) -> Array:
    distribution = jax.tree.map(jnp.asarray, distribution)
    (k, d), (v, p) = distribution.mean.shape, distribution.free_scales().shape[1:3]
    dof = distribution.dof - p + 1.0
    factor = distribution._factor_of_scales(dof)
    widening = 1.0 + 1.0 / distribution.shrinkage  # a new row has the spread of its component and that of its mean
    factor = type(factor)(factor.array / factor.of_each(jnp.sqrt(widening)))
    # A density of d / v features for each covariance that is independent of the others.
    whitened = factor.whiten(x.T[None] - distribution.mean[:, :, None]).reshape(k, v, d // v, -1)
    log_det = jnp.log(factor.diagonal()).reshape(k, v, d // v).sum(2)
    log_prob = (_log_student(whitened, dof[:, None], d // v) + log_det[:, :, None]).sum(1)
    log_weights = mixing_weights.log_mean_weights(*distribution.weight_parameters)
    return sum_over_components(log_weights[:, None] + log_prob)


def _log_student(whitened: Array, dof: Array, d: int) -> Array:
    """Log-density of Student's t in d dimensions, (..., d, n), but for its log-determinant: finite however far away."""
    dof = dof[..., None]
    constant = gammaln(0.5 * (dof + d)) - gammaln(0.5 * dof) - 0.5 * d * jnp.log(dof * math.pi)
    unit = jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(whitened).max(-2)))
    squares = jnp.square(whitened / unit[..., None, :]).sum(-2) / dof
    # log(1 + u^2 s), where u^2 may overflow.
    tail = jnp.where(unit > 1.0, jnp.log(unit**-2.0 + squares) + 2.0 * jnp.log(unit), jnp.log1p(squares))
    return constant - 0.5 * (dof + d) * tail
