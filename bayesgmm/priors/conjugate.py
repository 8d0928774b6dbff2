r"""The conjugate prior of a Gaussian mixture: its numbers, its density, and the M-step that it regularises.

Weights have a Dirichlet prior and every component a normal prior whose spread follows its own covariance,

$$ w \sim \mathrm{Dirichlet}(\alpha), \qquad \mu_j \mid \Sigma_j \sim \mathcal N(m, \Sigma_j / \kappa). $$

Covariances have the prior that is conjugate within their family: for matrices $\Sigma \sim \mathrm{IW}(\nu, \Lambda)$,
one matrix where components share it; for diagonals every variance $\sigma^2_{jl} \sim \mathrm{IG}(\nu/2, s_l/2)$; for
spheres one variance $\sigma^2_j \sim \mathrm{IG}(\nu/2, s/2)$. All of them have the kernel
$|\Sigma|^{-c/2} \exp(-\tfrac12 \operatorname{tr} \Sigma^{-1} S)$, with $c = \nu + d + 1$ and $S = \Lambda$ for
matrices, $c = \nu + 2$ and $S = \operatorname{diag}(s)$ for diagonals, $c = (\nu + 2) / d$ and $S = (s/d) I$ for
spheres: to the M-step the prior is some more rows and some more scatter.

Source: Fraley & Raftery (2007), Bayesian regularization for normal mixture estimation and model-based clustering.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesgmm.errors import InputError
from bayesgmm.likelihood.moments import Moments
from bayesgmm.likelihood.rows import Rows, as_rows
from bayesgmm.mixtures.factors import Factor, pool
from bayesgmm.mixtures.families import FAMILIES, Family, get_family
from bayesgmm.mixtures.mixture import Mixture, as_mixture
from bayesgmm.mixtures.named import NOT_OF_JAX, Named
from bayesgmm.numerics.precision import AnyArray, ArrayLike, BoolLike, is_traced, matching_precision
from bayesgmm.numerics.validation import (
    check_bool,
    name_features,
    names_of,
    no_constant_column,
    refuse_masks,
    short_repr,
    whole_number,
)
from bayesgmm.numerics.words import counted
from bayesgmm.priors.description import (
    Row,
    as_lines,
    as_table,
    describe_intervals,
    describe_sticks,
    describe_weights,
)
from bayesgmm.priors.normal_inverse_wishart import ConjugateDistribution, log_prob_of_mixture, spread_of_means
from bayesgmm.priors.scales import prior_number
from bayesgmm.priors.weakly_informative import WeaklyInformativePrior
from bayesgmm.runtime.files import storable
from bayesgmm.runtime.printing import Lines, Printable

_MOST_LISTED = 6  # features of a matrix that a description lists in full


@storable
@functools.partial(jax.tree_util.register_dataclass, drop_fields=NOT_OF_JAX)
@dataclass(frozen=True)
class ConjugatePrior(Named, Printable):
    r"""Numbers of the conjugate prior; a pytree, so another number is not another compilation.

    Attributes:
        concentration: Dirichlet parameter of the weights $\alpha$, or that of the process, shape (k).
        mean: prior mean of the component means $m$, in the units of the data, shape (d).
        shrinkage: number of rows that the prior mean counts for, $\kappa$, ().
        dof: degrees of freedom $\nu$, ().
        scale: $\Lambda$ (d, d) for families of matrices, $s$ (d) for diagonals, () for spheres; squared units of the
            data.
        column_mean: where the data lie, shape (d): the origin from which engines measure component means.
        column_scale: how wide the data are, shape (d): the unit in which engines measure. Both are coordinates, no part
            of what the prior assumes.
        stick_breaking: whether the weights are those of a Dirichlet process, truncated to k components.
    """

    concentration: Float[AnyArray, " k"]
    mean: Float[AnyArray, " d"]
    shrinkage: Float[AnyArray, ""]
    dof: Float[AnyArray, ""]
    scale: Float[AnyArray, "d d"] | Float[AnyArray, " d"] | Float[AnyArray, ""]
    column_mean: Float[AnyArray, " d"]
    column_scale: Float[AnyArray, " d"]
    stick_breaking: bool = field(default=False, metadata={"static": True})

    @property
    def truncated_share(self) -> float:
        """Of a stick, the share that the prior expects to be left for the last component: small unless k is too few."""
        log_left = -np.log1p(1.0 / np.asarray(self.concentration, np.float64)[:-1])
        cut_off = self.stick_breaking and len(log_left) > 0  # one component alone has no stick
        return float(np.exp(log_left.sum())) if cut_off else 0.0

    def describe(self, feature_names: Sequence[str] | None = None) -> str:
        """What the prior assumes, in words and numbers, with the intervals that hold 95% of it.

        Raises:
            InputError: for another number of names than features.
        """
        return as_table(self._rows(feature_names))

    def shown(self) -> tuple[str, Lines] | None:
        """How many components and features it is for, and its rows."""
        if is_traced(self):
            return None
        k, d = len(self.concentration), len(self.mean)
        return f"Conjugate prior of {counted(k, 'component')} of {counted(d, 'feature')}", as_lines(self._rows(None))

    def _rows(self, feature_names: Sequence[str] | None) -> list[Row]:
        from scipy import stats

        mean, scale = np.asarray(self.mean, np.float64), np.asarray(self.scale, np.float64)
        names = name_features(feature_names, len(mean), self)
        kappa, dof = float(self.shrinkage), float(self.dof)
        # A diagonal entry of an inverse-Wishart matrix is an inverse-gamma variable of fewer degrees of freedom.
        margin_dof = dof - len(mean) + 1.0 if scale.ndim == 2 else dof
        margin_scale = np.broadcast_to(scale.diagonal() if scale.ndim == 2 else scale, mean.shape)
        rows = describe_sticks(self.concentration) if self.stick_breaking else describe_weights(self.concentration)
        centred = "Normal, {}: mean {:.4g}, variance the component's over {:g}"
        assumed = [centred.format(name, value, kappa) for name, value in zip(names, mean, strict=True)]
        margin = stats.t(margin_dof, mean, np.sqrt(margin_scale / margin_dof / kappa)).interval(0.95)
        rows += describe_intervals("means", assumed, margin)
        low, high = np.sqrt(margin_scale / stats.chi2(margin_dof).ppf([[0.975], [0.025]]))
        if scale.ndim == 2:
            few, assumed = len(scale) <= _MOST_LISTED, list(names)
            whole = f"scale [{'; '.join(_listed(row) for row in scale)}]"
            if len(scale) > 2:
                whole = f"the {'lower half' if few else 'diagonal'} of its scale:"
                parts = [_listed(row[0 if few else j : j + 1]) for j, row in enumerate(scale)]
                assumed = [f"{name}: {part}" for name, part in zip(names, parts, strict=True)]
            rows.append(("covariances", f"InverseWishart, dof {dof:g}, {whole}", ""))
        elif scale.ndim == 1:
            named = zip(names, scale, strict=True)
            assumed = [f"InverseGamma, {name}: shape {dof / 2:g}, scale {s / 2:.4g}" for name, s in named]
        else:
            for_all = ", one for all features" if len(mean) > 1 else ""
            assumed = [f"InverseGamma: shape {dof / 2:g}, scale {float(scale) / 2:.4g}{for_all}"]
        quantity = "covariances" if scale.ndim == 2 else "variances"
        rows += describe_intervals(quantity, assumed, (low[: len(assumed)], high[: len(assumed)]), "sd ")
        return rows


def _listed(numbers: np.ndarray) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)


AnyPrior = WeaklyInformativePrior | ConjugatePrior
"""Any prior that the NumPyro model can be given."""

if TYPE_CHECKING:
    PriorLike = AnyPrior | None
else:
    PriorLike = object
"""A prior as a user gives it, before it is checked."""


def conjugate_prior(
    x: ArrayLike | Rows,
    num_components: int,
    family: str | Family = "full",
    *,
    row_weights: ArrayLike | None = None,
    concentration: ArrayLike = 1.0,
    mean: ArrayLike | None = None,
    shrinkage: ArrayLike = 0.01,
    dof: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    stick_breaking: BoolLike = False,
) -> ConjugatePrior:
    r"""The conjugate prior for rows x (n, d) and a family, with any of its numbers set by the caller.

    Defaults (Fraley & Raftery 2007, section 3.2; those of R's mclust): flat weights, the column means, shrinkage 0.01,
    d + 2 degrees of freedom, and the data's sample covariance divided by $k^{2/d}$, so that k components of that size
    fill the volume of the data; for diagonals and spheres the mean of the columns' variances in its place, which
    supposes that features have comparable units: set `scale` where they have not.

    Args:
        x: rows (n, d).
        num_components: k.
        family: covariance family; it decides the shape of `scale`.
        row_weights: weight of every row (n); weight 2 is the row twice.
        concentration: Dirichlet parameter, one number or (k). Below 1 weights are sparse and the density has no mode
            (it grows without bound as a weight goes to zero): for CAVI and samplers, refused by EM and MAP.
        mean: prior mean of the component means, one number or (d).
        shrinkage: number of rows that it counts for.
        dof: degrees of freedom, above d - 1 for families of matrices, above 0 otherwise.
        scale: positive definite (d, d) for families of matrices, positive numbers for diagonals (one, or (d)) and
            spheres (one).
        stick_breaking: take the weights of a Dirichlet process, truncated to k components, with `concentration` as its
            parameter: each component takes a share, Beta(1, concentration), of what earlier ones have left. Components
            are not alike under it: the first is the largest. There is no mode; for CAVI and samplers.

    Raises:
        InputError: for a number out of range or of the wrong shape, and for a column that does not vary.
    """
    family = _conjugate_family(family)
    rows = as_rows(x, row_weights)
    values, weights, num_features = rows.values, rows.weights, rows.num_features
    num_components = whole_number("num_components", num_components)
    if not is_traced(rows):
        no_constant_column(np.asarray(values)[np.asarray(weights) > 0])
    center, covariance = sample_covariance(values, weights)
    lowest = num_features - 1 if family.conjugate == "inverse-Wishart" else 0
    prior = ConjugatePrior(
        concentration=prior_number("concentration", concentration, (num_components,), rows.dtype),
        mean=prior_number("mean", center if mean is None else mean, (num_features,), rows.dtype, positive=False),
        shrinkage=prior_number("shrinkage", shrinkage, (), rows.dtype),
        dof=prior_number("dof", num_features + 2 if dof is None else dof, (), rows.dtype),
        scale=_scale(scale, covariance / num_components ** (2 / num_features), values, family),
        column_mean=center,
        column_scale=covariance.diagonal() ** 0.5,
        stick_breaking=check_bool("stick_breaking", stick_breaking),
    )
    if not is_traced(prior.dof) and not prior.dof > lowest:
        raise InputError(
            f"prior dof={dof} must be greater than {lowest} for family={family.name!r} and {num_features} features; "
            f"{num_features + 2} is usual"
        )
    return prior.named(names_of(x))


def check_conjugate_prior(prior: object, num_components: int, num_features: int, family: Family) -> ConjugatePrior:
    """The prior, if it is one for this number of components and features and this family.

    Raises:
        InputError: if it is not.
    """
    _conjugate_family(family)
    cure = f"make it with conjugate_prior(x, {num_components}, {family.name!r})"
    if not isinstance(prior, ConjugatePrior):
        fault = "is one of default_prior" if isinstance(prior, WeaklyInformativePrior) else f"is {short_repr(prior)}"
        raise InputError(f"prior {fault}, and this takes a conjugate prior; {cure}")
    shape = family.matrix_shape(num_features)
    if prior.concentration.shape != (num_components,) or prior.mean.shape != (num_features,):
        fault = f"is for k={prior.concentration.shape[0]} components of {prior.mean.shape[0]} features"
    elif prior.scale.shape != shape:
        fault = f"has a scale of shape {prior.scale.shape}, not {shape}"
    else:
        return prior
    raise InputError(
        f"prior {fault}, but num_components={num_components}, x has {num_features} features and "
        f"family={family.name!r}; {cure}"
    )


@matching_precision
def maximise_posterior(
    moments: Moments,
    family: str | Family,
    prior: ConjugatePrior,
    reg_covar: ArrayLike = 0.0,
    previous: Factor | None = None,
) -> Mixture:
    r"""The M-step under the prior: the mixture that maximises the expected complete-data log-density plus `log_prior`.

    The joint mode in weights, means and covariances. The prior mean is $\kappa$ more rows at m, and

    $$ w_j \propto N_j + \alpha_j - 1, \quad \mu_j = \frac{N_j \bar x_j + \kappa m}{N_j + \kappa}, \quad
       \Sigma_j = \frac{W_j + \frac{\kappa N_j}{\kappa + N_j} (\bar x_j - m)(\bar x_j - m)^\top + S}{N_j + 1 + c}, $$

    with $W_j$ the scatter about $\bar x_j$ and the prior's scatter S and count c of this module's introduction; other
    families pool numerator and denominator as their own M-step does. For matrices the denominator is
    $\nu + d + 2 + N_j$, for a shared one $\nu + d + 1 + k + n$, for diagonals $\nu + 3 + N_j$, for spheres
    $\nu + 2 + d + d N_j$. The ridge `reg_covar`, in squared units of the data, adds $N_j \operatorname{diag}(\rho)$.

    An empty component falls back on the mode of the prior. An M-step that iterates starts from the `previous` estimate.

    Raises:
        InputError: for a prior of another number of components or features, or another family.
    """
    dtype, family = moments.count.dtype, get_family(family)
    num_components, num_features = moments.first.shape
    prior = check_conjugate_prior(prior, num_components, num_features, family)
    prior = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), prior)
    ridge = jnp.broadcast_to(jnp.asarray(reg_covar, dtype), (num_features,))
    more_count, more_scatter = _pseudo_moments(prior, family, num_components)

    count = moments.count
    to_mean = prior.mean[None] - moments.origin
    first = moments.first + prior.shrinkage * to_mean
    shift = first / (count + prior.shrinkage)[:, None]
    shrinkage = jnp.broadcast_to(prior.shrinkage, (num_components,))
    kind = family.representation
    added = spread_of_means(kind, shrinkage, to_mean, first, shift)
    added = added + kind.of_each(count) * kind.of_diagonal(ridge)[None] + more_scatter[None]
    scatter = moments.second + pool(added, len(moments.second))
    covariances = family.maximise(count + 1.0 + more_count, scatter, previous)

    mass = jnp.maximum(count + prior.concentration - 1.0, jnp.finfo(dtype).tiny)
    return Mixture(jnp.log(mass / mass.sum()), moments.origin + shift, kind.from_covariances(covariances).array)


@matching_precision
def log_prior(mixture: Mixture, family: str | Family, prior: ConjugatePrior) -> Float[AnyArray, ""]:
    """Log prior density, constants included, of the mixture's weights, means and covariances.

    The density is that of covariance matrices for families of matrices, of variances for diagonals and spheres, with
    one factor for each covariance that is free. Added to the log-likelihood it is what MAP-EM climbs.

    Raises:
        InputError: for a prior of another number of components or features, or another family.
    """
    family, mixture = get_family(family), as_mixture(mixture)
    check_conjugate_prior(prior, mixture.num_components, mixture.num_features, family)
    return _log_prior(mixture, family, prior)


@functools.partial(jax.jit, static_argnames="family")
def _log_prior(mixture: Mixture, family: Family, prior: ConjugatePrior) -> Array:
    mixture = jax.tree.map(jnp.asarray, mixture)
    prior = jax.tree.map(lambda leaf: jnp.asarray(leaf, mixture.means.dtype), prior)
    return log_prob_of_mixture(distribution_of_prior(prior, family, mixture.num_components), mixture)


def distribution_of_prior(prior: ConjugatePrior, family: Family, num_components: int) -> ConjugateDistribution:
    """The prior with its numbers written out for every component."""
    num_features = prior.mean.shape[0]
    num_factors = family.num_factors(num_components)
    shape = family.matrix_shape(num_features) or (1,)
    concentration = jnp.asarray(prior.concentration)
    return ConjugateDistribution(
        concentration=jnp.ones_like(concentration) if prior.stick_breaking else concentration,
        remainder=concentration if prior.stick_breaking else None,
        mean=jnp.broadcast_to(prior.mean, (num_components, num_features)),
        shrinkage=jnp.broadcast_to(prior.shrinkage, (num_components,)),
        dof=jnp.broadcast_to(prior.dof, (num_factors,)),
        scale=jnp.broadcast_to(prior.scale, (num_factors, *shape)),
    )


def _pseudo_moments(prior: ConjugatePrior, family: Family, num_components: int) -> tuple[Array, Array]:
    """Count and scatter that the prior of its covariance lends a component; that of a shared one is split."""
    portion, num_features = 1.0 / num_components if family.shared else 1.0, len(prior.mean)
    if family.conjugate == "inverse-Wishart":
        return (prior.dof + num_features + 1.0) * portion, prior.scale * portion
    # As many free variances as features, or one for all of them, whose prior counts once.
    portion = portion / num_features if family.isotropic else portion
    return (prior.dof + 2.0) * portion, jnp.broadcast_to(prior.scale, (num_features,)) * portion


def _conjugate_family(family: str | Family) -> Family:
    family = get_family(family)
    if family.conjugate is None:
        known = ", ".join(record.name for record in FAMILIES.values() if record.conjugate is not None)
        raise InputError(f"family={family.name!r} ({family.mclust}) has no conjugate prior; choose one of {known}")
    return family


def sample_covariance(x: Float[AnyArray, "n d"], weights: Float[AnyArray, " n"]) -> tuple[AnyArray, AnyArray]:
    """Column means (d) and the covariance of the columns (d, d), divided by one less than the total row weight."""
    total = weights.sum()
    if not is_traced(total) and not total > 1:
        raise InputError(
            f"row_weights add up to {total:g}, and a sample covariance needs more than 1; give them as counts of rows"
        )
    center = weights @ x / total
    centred = x - center[None]
    return center, (weights[:, None] * centred).T @ centred / (total - 1)


def _scale(scale: ArrayLike | None, covariance: AnyArray, x: AnyArray, family: Family) -> AnyArray:
    """The scale that is given, or by default this covariance; of few rows, which it is singular of, its diagonal."""
    refuse_masks(scale, "prior scale")
    shape = family.matrix_shape(x.shape[1])
    if family.diagonal:
        return prior_number("scale", covariance.diagonal().mean() if scale is None else scale, shape, x.dtype)
    if scale is None:
        scale = covariance if len(x) > x.shape[1] else (jnp if is_traced(x) else np).diag(covariance.diagonal())
    if is_traced(scale):
        return jnp.reshape(jnp.asarray(scale), shape)
    given = np.asarray(scale, x.dtype)
    given = given.reshape(shape) if given.size == 1 == x.shape[1] else given
    if given.shape != shape:
        raise InputError(f"prior scale has shape {given.shape}; family={family.name!r} needs a matrix of shape {shape}")
    if not is_positive_definite(given):
        shown = np.array2string(given, precision=4, separator=", ").replace("\n", "")
        raise InputError(
            f"prior scale={shown} must be symmetric and positive definite; give such a matrix, or drop columns that "
            "are sums of others"
        )
    return 0.5 * (given + given.T)


def is_positive_definite(matrix: np.ndarray) -> bool:
    """Whether it is symmetric and positive definite by more than rounding, whatever the units of its columns."""
    diagonal = np.diagonal(matrix)
    if not np.isfinite(matrix).all() or (diagonal <= 0).any():
        return False
    scales = np.sqrt(diagonal)
    correlation = matrix / scales[:, None] / scales[None]
    rounding = len(matrix) * np.finfo(matrix.dtype).eps
    symmetric = np.abs(correlation - correlation.T).max() <= 10 * rounding
    return bool(symmetric and np.linalg.eigvalsh(correlation)[0] > rounding)
