r"""The target density: the posterior as a function of one flat vector, in which every Bayesian engine moves.

Every site of the NumPyro model is mapped to the whole real space as by NumPyro's own transforms. Component means are
measured in the columns' standard deviations from the columns' means, and covariance matrices in those standard
deviations, so that one step size suits all coordinates. The sites follow one another in alphabetical order, each one
flattened. With $v$ the vector, $\theta(v)$ the sites and $J(v)$ the log-determinant of that map,

$$ E(v) = -\log p(\theta(v)) - \sum_i \log p(x_i \mid \theta(v)) - J(v) $$

is the energy of NUTS, variational inference and the Laplace approximation. Without $J$ it is the objective of MAP.
The log-likelihood is that of all rows in one: value and gradient for about the price of one EM iteration.
"""

import functools
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from numpyro.distributions.transforms import Transform
from numpyro.handlers import block, reparam, seed, trace
from numpyro.infer.reparam import TransformReparam
from numpyro.infer.util import log_density

from bayesgmm.likelihood.expectation import Prepared
from bayesgmm.likelihood.scores import log_likelihood_of_rows, prepare_rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.batches import in_batches
from bayesgmm.numerics.precision import AnyArray
from bayesgmm.runtime.programs import compiled_once
from bayesgmm.target.numpyro_model import (
    CovarianceUnits,
    floor_weights,
    mixture_of_sites,
    sample_sites,
    sites_of_mixture,
)
from bayesgmm.target.problem import Problem
from bayesgmm.target.transforms import transform_to

_ROOM = 64  # points that a compiled call has room for
_MIXTURES_AT_ONCE = 1000
_SMALL = 2**11  # rows x features x components with which a fit evaluates for less time than optimising takes

Sites = dict[str, Array]
Numbers = NDArray[np.float64]


def in_column_units(site: dict[str, object]) -> TransformReparam | None:
    """NumPyro's `reparam` with this config measures means and covariance matrices in units of the columns."""
    return TransformReparam() if site["name"] in ("means", "covariances") else None


# Values are mapped into the supports of their sites: checks that they lie there are kernels that find nothing.
_standardised_prior = reparam(functools.partial(sample_sites, validate=False), config=in_column_units)


class _Site(NamedTuple):
    """A free site of the standardised model: how it is reached from the real space, and its unconstrained shape."""

    name: str
    transform: Transform
    shape: tuple[int, ...]


@functools.cache
def _layout(
    num_components: int, family: Family, structure: Hashable, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> list[_Site]:
    """The free sites under a prior of this structure, in the order of the flat vector. Nothing is computed."""
    layout: list[_Site] = []

    def look(leaves: tuple[Array, ...]) -> None:
        seeded = seed(_standardised_prior, jax.random.key(0))
        sites = trace(seeded).get_trace(num_components, family, jax.tree.unflatten(structure, leaves))
        for name, site in sorted(sites.items()):
            if site["type"] == "sample" and not site["is_observed"]:
                transform = transform_to(site["fn"].support)
                layout.append(_Site(name, transform, transform.inverse_shape(site["value"].shape)))

    jax.eval_shape(look, leaves)
    return layout


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Target(Problem):
    """The posterior density of a problem, as a function of the flat vector; a pytree.

    Attributes:
        prepared: what evaluations on the same rows share, or None.
    """

    prepared: Prepared | None = None

    @property
    def _layout(self) -> list[_Site]:
        leaves, structure = jax.tree.flatten(self.prior)
        shapes = tuple(jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in leaves)
        return _layout(self.num_components, self.family, structure, shapes)

    @property
    def size(self) -> int:
        """Number of coordinates, p."""
        return sum(math.prod(site.shape) for site in self._layout)

    def split(self, vector: Float[Array, " p"]) -> Sites:
        """Unconstrained coordinates of every site of the standardised model."""
        sizes = [math.prod(site.shape) for site in self._layout]
        parts = jnp.split(vector, np.cumsum(sizes)[:-1])
        return {site.name: part.reshape(site.shape) for site, part in zip(self._layout, parts, strict=True)}

    def sites_at(self, vector: Float[Array, " p"]) -> tuple[Sites, Float[Array, ""]]:
        """Values of the standardised model's sites, and the log-determinant of the map that leads to them."""
        unconstrained, sites, log_determinant = self.split(vector), {}, jnp.zeros((), vector.dtype)
        for name, transform, _ in self._layout:
            sites[name] = transform(unconstrained[name])
            change = jnp.asarray(transform.log_abs_det_jacobian(unconstrained[name], sites[name]))
            log_determinant = log_determinant + change.sum()
        return sites, log_determinant

    def mixture_of(self, sites: Sites) -> Mixture:
        """The mixture with these values of the standardised model's sites."""
        origin, unit = self.prior.column_mean, self.prior.column_scale
        sites = {**sites, "means": origin[None] + unit[None] * sites["means_base"]}
        if "covariances_base" in sites:
            sites["covariances"] = CovarianceUnits(unit)(sites["covariances_base"])
        return mixture_of_sites(sites, self.family)

    def mixture_at(self, vector: Float[Array, " p"]) -> Mixture:
        """The mixture at these coordinates."""
        return self.mixture_of(self.sites_at(vector)[0])

    def vector_of(self, mixture: Mixture) -> Float[Array, " p"]:
        """Coordinates of a mixture, whose weights are kept off zero."""
        sites = sites_of_mixture(floor_weights(mixture), self.family, self.prior)
        sites["means_base"] = (sites.pop("means") - self.prior.column_mean[None]) / self.prior.column_scale[None]
        if "covariances" in sites:
            units = CovarianceUnits(self.prior.column_scale)
            sites["covariances_base"] = jnp.asarray(units.inv(sites.pop("covariances")))
        return jnp.concatenate([jnp.ravel(transform.inv(sites[name])) for name, transform, _ in self._layout])

    def mixture_and_log_prior(
        self, vector: Float[Array, " p"], jacobian: float | Array = 1.0
    ) -> tuple[Mixture, Float[Array, ""]]:
        """The mixture, and the log prior density of the coordinates; with `jacobian` 0, of the sites."""
        sites, log_determinant = self.sites_at(vector)
        with block():  # within a model, such as that of SVI, these are no sites of its own
            log_prior = log_density(_standardised_prior, (self.num_components, self.family, self.prior), {}, sites)[0]
        return self.mixture_of(sites), jnp.asarray(log_prior) + jacobian * log_determinant

    def energy(self, vector: Float[Array, " p"], jacobian: float | Array = 1.0) -> Float[Array, ""]:
        """Minus the log posterior density of the coordinates, up to the evidence; with `jacobian` 0, of the sites."""
        mixture, log_prior = self.mixture_and_log_prior(vector, jacobian)
        return -log_prior - log_likelihood_of_rows(mixture, self.rows, self.prepared)

    def log_unit(self) -> float:
        """Log density of the sites in the units of the data, less that of the standardised ones: a constant."""
        unit = np.log(np.asarray(self.prior.column_scale, np.float64))
        times, num_features = self.num_components, len(unit)
        if any(site.name == "covariances_base" for site in self._layout):
            times += self.family.num_factors(self.num_components) * (num_features + 1)
        return float(-times * unit.sum())


def make_target(problem: Problem, start: Mixture, *, in_steps: bool = True) -> Target:
    """The target of a problem, prepared for many evaluations around a start.

    With `in_steps`, few rows are padded with rows of weight zero, so that one program serves tables of several sizes.
    """
    problem, start = jax.tree.map(jnp.asarray, (problem.in_steps() if in_steps else problem, start))
    return Target(**vars(problem), prepared=prepare_rows(start, problem.rows))


@jax.jit
def vector_of(target: Target, mixture: Mixture) -> Float[Array, " p"]:
    """Coordinates of a mixture."""
    return target.vector_of(mixture)


def mixtures_at(target: Target, vectors: Float[AnyArray, "*batch p"]) -> Mixture:
    """Mixtures at coordinates with any leading axes, by a program that serves any number of them."""
    flat = np.asarray(vectors, target.rows.dtype).reshape(-1, vectors.shape[-1])
    found = in_batches(functools.partial(_mixtures_at, target), _MIXTURES_AT_ONCE, flat)
    return jax.device_put(jax.tree.map(lambda leaf: leaf.reshape(*vectors.shape[:-1], *leaf.shape[1:]), found))


@compiled_once
def _mixtures_at(target: Target, vectors: Float[AnyArray, "m p"]) -> Mixture:
    return jax.vmap(target.mixture_at)(vectors)


def _is_large(target: Target, *_: object) -> bool:
    return target.rows.values.size * target.num_components > _SMALL


@functools.partial(compiled_once, unless=_is_large)
def _values_and_gradients(
    target: Target, vectors: AnyArray, count: AnyArray, jacobian: AnyArray
) -> tuple[Array, Array]:
    """Energies and gradients of the first `count` vectors, one after the other."""

    def one(index: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        value, gradient = jax.value_and_grad(target.energy)(vectors[index], jacobian)
        return found[0].at[index].set(value), found[1].at[index].set(gradient)

    return jax.lax.fori_loop(0, count, one, (jnp.zeros(len(vectors), vectors.dtype), jnp.zeros_like(vectors)))


@dataclass(frozen=True)
class Energy:
    """The energy of a target for programs of NumPy and SciPy: float64 in and out, one compiled program for all of it.

    Attributes:
        target: the target.
        jacobian: 1 for the density of the coordinates, 0 for that of the sites.
    """

    target: Target
    jacobian: float = 1.0

    def __call__(self, vectors: Float[np.ndarray, "m p"]) -> tuple[Numbers, Numbers]:
        """Energies (m) and gradients (m, p)."""
        dtype = self.target.rows.dtype
        jacobian = np.asarray(self.jacobian, dtype)

        def evaluate(batch: np.ndarray) -> tuple[Array, Array]:
            return _values_and_gradients(self.target, batch.astype(dtype), np.int32(min(len(vectors), _ROOM)), jacobian)

        values, gradients = in_batches(evaluate, _ROOM, vectors)
        return np.asarray(values, np.float64), np.asarray(gradients, np.float64)

    @np.errstate(all="ignore")  # where there is no density, there is no curvature
    def curvature(self, vector: Numbers, directions: Numbers) -> tuple[float, Numbers, Numbers]:
        """Energy, gradient (p), and products (m, p) of the matrix of second derivatives with directions of length 1.

        By central differences of the exact gradient. They are best at about the cube root of the rounding.
        """
        width = float(np.finfo(self.target.rows.dtype).eps) ** (1 / 3)
        count, moves = len(directions), width * directions
        values, gradients = self(np.concatenate([vector + moves, vector - moves, vector[None]]))
        return float(values[-1]), gradients[-1], (gradients[:count] - gradients[count:-1]) / (2 * width)
