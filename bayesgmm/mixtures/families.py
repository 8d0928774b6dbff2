"""Covariance structures, one record each.

A record has all that the package needs to know of a structure: how its covariances are estimated from counts and
scatter, how many free parameters they have and which, how NumPyro samples them, which conjugate prior they have, and
the closest member of the structure to any other covariances. Adding a structure is adding a record; engines, criteria
and tests iterate over `FAMILIES` and never ask which structure they serve.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from bayesgmm.errors import InputError
from bayesgmm.mixtures.factors import Diagonal, Factor, Triangular
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray, is_traced, namespace

# Covariances (e, d, d) or (e, d) that maximise the likelihood, from counts (k) and scatter about the component means,
# (k, d, d) or (k, d), for shared ones also its sum (1, ...); the third argument is the previous estimate, or None, from
# which structures whose M-step iterates start.
MStep = Callable[..., AnyArray]


@dataclass(frozen=True)
class Family:
    """One covariance structure.

    Attributes:
        name: the name in tables and messages, scikit-learn's `covariance_type` where it has one.
        mclust: three-letter code of volume, shape and orientation (Celeux & Govaert 1995; R's mclust).
        description: the structure in words.
        representation: of the precision factors, triangular or diagonal.
        shared: whether one covariance serves all components (e = 1 in shapes).
        num_covariance_parameters: free parameters of the covariances, from (k, d).
        maximise: the M-step of the covariances.
        isotropic: whether a component has one variance, the same along every feature.
        closed: whether averages of covariances of the structure belong to it, and all points on lines between free
            coordinates; of other structures the closest member is taken.
        conjugate: prior of a covariance under which the posterior given allocations is of the same kind; or none.
    """

    name: str
    mclust: str
    description: str
    representation: type[Factor]
    shared: bool
    num_covariance_parameters: Callable[[int, int], int]
    maximise: MStep
    isotropic: bool = False
    closed: bool = True
    conjugate: Literal["inverse-Wishart", "inverse-gamma"] | None = None

    @property
    def diagonal(self) -> bool:
        """Whether there are no correlations within a component."""
        return self.representation is Diagonal

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """Free parameters of the mixture: weights, means and covariances."""
        k, d = num_components, num_features
        return (k - 1) + k * d + self.num_covariance_parameters(k, d)

    def num_factors(self, num_components: int) -> int:
        """e."""
        return 1 if self.shared else num_components

    def scale_shape(self, num_components: int, num_features: int) -> tuple[int, int]:
        """Shape (e, d) or (e, 1) of the standard deviations that are free."""
        return self.num_factors(num_components), 1 if self.isotropic else num_features

    def matrix_shape(self, num_features: int) -> tuple[int, ...]:
        """Shape of one covariance without repetitions, as scikit-learn has it: (d, d), (d), or () of one variance."""
        return () if self.isotropic else self.representation.shape(num_features)

    def compact(self, matrices: AnyArray) -> AnyArray:
        """Covariances (e, d, d) or (e, d) without repetitions, as scikit-learn has them."""
        matrices = matrices[:, 0] if self.isotropic else matrices
        return matrices[0] if self.shared else matrices

    def expand(self, name: str, matrices: AnyArray, num_components: int, num_features: int) -> AnyArray:
        """The inverse of `compact`, also of matrices that keep some of the repetitions.

        Raises:
            InputError: for matrices of other shapes, with their `name`.
        """
        num_factors, shape = self.num_factors(num_components), self.representation.shape(num_features)
        for form in (shape, (1,), ()) if self.diagonal else (shape,):
            if matrices.shape == (num_factors, *form) or (self.shared and matrices.shape == form):
                matrices = matrices.reshape(num_factors, *(form or (1,)))
                return (jnp if is_traced(matrices) else np).broadcast_to(matrices, (num_factors, *shape))
        expected = shape if self.shared else (num_factors, *shape)
        raise InputError(f"{name} of family={self.name!r} must have shape {expected}; got {matrices.shape}")

    def has_correlations(self, num_features: int) -> bool:
        """Whether covariances have entries off the diagonal."""
        return not self.diagonal and num_features > 1

    def min_rows(self, num_features: int) -> int:
        """Fewest rows from which a covariance can be estimated."""
        return 2 if self.diagonal else num_features + 1

    def min_component_rows(self, num_features: int) -> int:
        """Fewest rows that each component needs."""
        return 1 if self.shared else self.min_rows(num_features)

    def project(self, mixture: Mixture) -> Mixture:
        r"""The mixture with the closest covariances of the structure.

        They minimise $\sum_j w_j \mathrm{KL}(\mathcal N(0, \Sigma_j) \,\|\, \mathcal N(0, \Sigma'_j))$: the M-step
        of the scatter that rows of the mixture are expected to have.
        """
        if self.closed:
            return mixture
        factor, weights = mixture.factor.for_each(mixture.num_components), jnp.exp(mixture.log_weights)
        covariances = self.maximise(weights, factor.of_each(weights) * factor.covariances(), factor)
        return dataclasses.replace(mixture, precision_factor=factor.from_covariances(covariances).array)

    def to_free(self, factor: Factor, unit: Float[AnyArray, " d"]) -> Float[AnyArray, " p"]:
        """Free coordinates of covariances, with features measured in `unit`: without constraints and without units.

        Logarithms of the factor's diagonal, then its entries below. Of a variance that all features share there is
        one, that of the first feature.
        """
        log_diagonal, below = factor.scaled(unit).logarithms()
        width = self.scale_shape(1, len(unit))[1]
        return namespace(below).concatenate([log_diagonal[:, :width].ravel(), below.ravel()])

    def from_free(self, vector: Inexact[AnyArray, " p"], unit: Float[AnyArray, " d"], num_components: int) -> Factor:
        """The factors with these free coordinates: the inverse of `to_free`."""
        num_factors, width = self.scale_shape(num_components, len(unit))
        log_diagonal = vector[: num_factors * width].reshape(num_factors, width)
        if self.isotropic:
            # In the units of the data they are equal, and so in their own units they are not.
            log_diagonal = log_diagonal + namespace(unit).log(unit / unit[0])[None]
        below = vector[num_factors * width :].reshape(num_factors, -1)
        return self.representation.from_logarithms(log_diagonal, below).scaled(1.0 / unit)

    def to_sites(self, factor: Factor, *, conjugate: bool) -> dict[str, Array]:
        """What NumPyro samples in place of factors.

        Under the conjugate prior `covariances`, or the `variances` that are free; else `scales`, standard deviations,
        and where there are correlations their Cholesky factors, `correlation_cholesky`.
        """
        width = self.scale_shape(1, factor.array.shape[-1])[1]
        if conjugate and self.conjugate == "inverse-Wishart":
            return {"covariances": factor.covariances()}
        if conjugate:
            return {"variances": factor.variances()[:, :width]}
        scales, correlation_cholesky = factor.scales_and_correlations()
        sites = {"scales": scales[:, :width]}
        return sites if correlation_cholesky is None else sites | {"correlation_cholesky": correlation_cholesky}

    def from_sites(self, sites: Mapping[str, Array], num_features: int) -> Factor:
        """The factors with these values of NumPyro's sites: the inverse of `to_sites`."""
        if "covariances" in sites:
            return self.representation.from_covariances(sites["covariances"])
        scales = jnp.sqrt(sites["variances"]) if "variances" in sites else sites["scales"]
        scales = jnp.broadcast_to(scales, (*scales.shape[:-1], num_features))
        return self.representation.from_scales(scales, sites.get("correlation_cholesky"))


def _own(count: AnyArray, scatter: AnyArray, previous: Factor | None = None) -> AnyArray:
    return scatter / count.reshape(-1, *(1,) * (scatter.ndim - 1))


def _pooled(count: AnyArray, scatter: AnyArray, previous: Factor | None = None) -> AnyArray:
    return scatter.sum(0, keepdims=True) / count.sum()


def _isotropic(estimate: MStep) -> MStep:
    """The M-step of one variance for all features: that of their mean."""

    def maximise(count: AnyArray, scatter: AnyArray, previous: Factor | None = None) -> AnyArray:
        variances = estimate(count, scatter.mean(1, keepdims=True))
        return namespace(variances).broadcast_to(variances, (len(variances), scatter.shape[1]))

    return maximise


def _closed_form(name: str, mclust: str, description: str) -> Family:
    """A structure whose M-step has a closed form, as mclust's code describes it.

    Its letters are volume, shape and orientation: equal (E) or varying (V) over components, or those of the identity
    (I), a sphere along the axes.
    """
    shared, isotropic, is_diagonal = mclust[0] == "E", mclust[1] == "I", mclust[2] == "I"
    estimate = _pooled if shared else _own
    return Family(
        name,
        mclust,
        description,
        representation=Diagonal if is_diagonal else Triangular,
        shared=shared,
        num_covariance_parameters=lambda k, d: (
            (1 if shared else k) * (1 if isotropic else d if is_diagonal else d * (d + 1) // 2)
        ),
        maximise=_isotropic(estimate) if isotropic else estimate,
        isotropic=isotropic,
        conjugate="inverse-gamma" if is_diagonal else "inverse-Wishart",
    )


_RECORDS = (
    _closed_form("full", "VVV", "each component has its own covariance matrix"),
    _closed_form("tied", "EEE", "one covariance matrix shared by all components"),
    _closed_form("diag", "VVI", "each component has its own variance along every feature, no correlations"),
    _closed_form("spherical", "VII", "each component has one variance, the same along every feature"),
    _closed_form("tied_diag", "EEI", "one variance along every feature, shared by all components, no correlations"),
    _closed_form("tied_spherical", "EII", "one variance, the same for all components and along every feature"),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _RECORDS})
_BY_CODE = {family.mclust: family for family in FAMILIES.values()}
NAMES = (*FAMILIES, *_BY_CODE)
"""All names by which a family can be given: those of `FAMILIES`, and mclust's codes."""


def get_family(family: str | Family) -> Family:
    """The record of a family given by name or by mclust's code; a record is returned as it is.

    Raises:
        InputError: for an unknown name, listing the known ones.
    """
    if isinstance(family, Family):
        return family
    if isinstance(family, str) and family in NAMES:
        return FAMILIES.get(family) or _BY_CODE[family]
    raise InputError(
        f"family={family!r} is not known; choose one of {', '.join(FAMILIES)}, or R's mclust's names of them: "
        f"{', '.join(_BY_CODE)}"
    )
