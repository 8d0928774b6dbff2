r"""The potential energy of the NumPyro model in unconstrained coordinates, as engines evaluate it many times.

It is the model's prior, with the Jacobian of its transforms, and the shared log-likelihood of all rows in one: value
and gradient for about the price of one EM iteration, where the rows' log-densities one by one would cost several.
"""

import functools

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpyro.infer.util import potential_energy as numpyro_potential_energy

from bayesgmm.likelihood.expectation import Prepared
from bayesgmm.likelihood.log_likelihood import log_likelihood_of_rows
from bayesgmm.mixtures.families import Family
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.target import unconstrained as space

MAX_DENSE = 200  # coordinates up to which curvature is found in all directions and kept as a matrix


def potential_energy(
    unconstrained: space.Sites,
    x: Float[Array, "n d"],
    prepared: Prepared | None,
    num_components: int,
    family: Family,
    prior: AnyPrior,
) -> Float[Array, ""]:
    """Minus the log posterior density of the unconstrained coordinates, up to the evidence."""
    mixture = space.mixture_of(space.to_sites(unconstrained, family, num_components, x.shape[1]), family, prior)
    of_prior = numpyro_potential_energy(space.standardised_prior, (num_components, family, prior), {}, unconstrained)
    return jnp.asarray(of_prior) - log_likelihood_of_rows(mixture, x, prepared)


@functools.partial(jax.jit, static_argnames=("num_components", "family"))
def values_and_gradients(
    points: space.Sites,
    x: Array,
    prepared: Prepared | None,
    prior: AnyPrior,
    *,
    num_components: int,
    family: Family,
) -> tuple[Float[Array, " m"], space.Sites]:
    """Potential energy and its gradient at many points, one after the other: leaves with a leading axis."""

    def at(point: space.Sites) -> tuple[Array, space.Sites]:
        return jax.value_and_grad(lambda z: potential_energy(z, x, prepared, num_components, family, prior))(point)

    return jax.lax.map(at, points)


def ravel(points: space.Sites) -> Float[Array, "m p"]:
    """Coordinates of many points in one array, in the order of `ravel_pytree`."""
    return jax.vmap(lambda point: ravel_pytree(point)[0])(points)
