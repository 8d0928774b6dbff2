"""Covariance structures, one record each.

A family says how its covariances are estimated from counts and scatter, how many free parameters they have, how
NumPyro samples them and how sampled values are read back. Adding a structure is adding a record; engines, criteria
and tests iterate over `FAMILIES` and never ask which structure they serve.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesgmm.errors import InputError
from bayesgmm.mixtures.factors import Diagonal, Factor, Triangular


@dataclass(frozen=True)
class Family:
    """One covariance structure.

    Attributes:
        name: the name users give, scikit-learn's `covariance_type`.
        mclust: three-letter code of volume, shape and orientation (Celeux & Govaert 1995; R's mclust).
        description: the structure in words.
        representation: of the precision factors, triangular or diagonal.
        shared: whether one covariance serves all components (e = 1 in shapes).
        num_covariance_parameters: free parameters of the covariances, from (k, d).
        maximise: maximum-likelihood covariances from counts (k) and scatter about the component means, (k, d, d), or
            its diagonal (k, d) for diagonal families; shared covariances also take the sum (1, ...) over components.
            Shape (e, d, d) or (e, d).
        scale_shape: shape (e, d) or (e, 1) of the standard deviations that are free, from (k, d).
    """

    name: str
    mclust: str
    description: str
    representation: type[Factor]
    shared: bool
    num_covariance_parameters: Callable[[int, int], int]
    maximise: Callable[[Array, Array], Array]
    scale_shape: Callable[[int, int], tuple[int, int]]

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """Free parameters of the mixture: weights, means and covariances."""
        k, d = num_components, num_features
        return (k - 1) + k * d + self.num_covariance_parameters(k, d)

    @property
    def diagonal(self) -> bool:
        """Whether there are no correlations within a component."""
        return self.representation is Diagonal

    @property
    def isotropic(self) -> bool:
        """Whether a component has one variance, the same along every feature."""
        return self.diagonal and self.scale_shape(1, 2) == (1, 1)

    def has_correlations(self, num_features: int) -> bool:
        """Whether covariances have entries off the diagonal."""
        return not self.diagonal and num_features > 1


def _maximise_full(count: Float[Array, " k"], scatter: Float[Array, "k d d"]) -> Float[Array, "k d d"]:
    return scatter / count[:, None, None]


def _maximise_tied(count: Float[Array, " k"], scatter: Float[Array, "e d d"]) -> Float[Array, "1 d d"]:
    return scatter.sum(0, keepdims=True) / count.sum()


def _maximise_diag(count: Float[Array, " k"], scatter: Float[Array, "k d"]) -> Float[Array, "k d"]:
    return scatter / count[:, None]


def _maximise_spherical(count: Float[Array, " k"], scatter: Float[Array, "k d"]) -> Float[Array, "k d"]:
    variances = scatter.mean(1, keepdims=True) / count[:, None]
    return jnp.broadcast_to(variances, scatter.shape)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family(
                name="full",
                mclust="VVV",
                description="each component has its own covariance matrix",
                representation=Triangular,
                shared=False,
                num_covariance_parameters=lambda k, d: k * d * (d + 1) // 2,
                maximise=_maximise_full,
                scale_shape=lambda k, d: (k, d),
            ),
            Family(
                name="tied",
                mclust="EEE",
                description="one covariance matrix shared by all components",
                representation=Triangular,
                shared=True,
                num_covariance_parameters=lambda k, d: d * (d + 1) // 2,
                maximise=_maximise_tied,
                scale_shape=lambda k, d: (1, d),
            ),
            Family(
                name="diag",
                mclust="VVI",
                description="each component has its own variance along every feature, no correlations",
                representation=Diagonal,
                shared=False,
                num_covariance_parameters=lambda k, d: k * d,
                maximise=_maximise_diag,
                scale_shape=lambda k, d: (k, d),
            ),
            Family(
                name="spherical",
                mclust="VII",
                description="each component has one variance, the same along every feature",
                representation=Diagonal,
                shared=False,
                num_covariance_parameters=lambda k, d: k,
                maximise=_maximise_spherical,
                scale_shape=lambda k, d: (k, 1),
            ),
        )
    }
)


def get_family(family: str | Family) -> Family:
    """The record of a family given by name; a record is returned as it is.

    Raises:
        InputError: for an unknown name, listing the known ones.
    """
    if isinstance(family, Family):
        return family
    if isinstance(family, str) and family in FAMILIES:
        return FAMILIES[family]
    name = next((known.name for known in FAMILIES.values() if known.mclust == family), None)
    if name is not None:
        raise InputError(f"family={family!r} is what R's mclust calls {name!r}; write family={name!r}")
    raise InputError(f"family={family!r} is not known; choose one of {', '.join(FAMILIES)}")
