r"""Label switching: which component of one mixture is which of another.

A mixture's density does not change when its components are renumbered, so draws, restarts and engines have to be
brought to common labels before components are averaged or compared. Every component $i$ of a mixture is scored as an
explanation of every component $j$ of a reference, by the expected joint log-density of rows drawn from $j$,

$$ S_{ij} = w^{\mathrm{ref}}_j \; \mathrm E_{x \sim \mathcal N(\mu^{\mathrm{ref}}_j, \Sigma^{\mathrm{ref}}_j)}
   \log w_i \, \mathcal N(x \mid \mu_i, \Sigma_i), $$

and the permutation of largest total score is found exactly (linear assignment). This is the complete-data
log-likelihood of the reference under the relabelled mixture, in the manner of Stephens (2000), section 4.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bayesgmm.errors import InputError
from bayesgmm.likelihood.moments import Moments, expected_complete_log_prob
from bayesgmm.mixtures.mixture import Mixture, as_mixture, vmap_draws
from bayesgmm.numerics.precision import AnyArray, matching_precision


def match_labels(mixture: Mixture, reference: Mixture) -> Int[np.ndarray, "*draws k"]:
    """Find the order that gives every component of `mixture` (of each of its draws) its label in `reference`.

    `mixture.permute(match_labels(mixture, reference))` has the labels of the reference.

    Raises:
        InputError: when the mixtures differ in components, features or covariance representation.
    """
    check_reference(reference, mixture)
    return best_orders(np.asarray(label_scores(mixture, reference)))


def check_reference(
    reference: Mixture, mixture: Mixture, names: tuple[str, str] = ("reference", "mixture"), *, any_factor: bool = False
) -> None:
    """Refuse a reference that is not one mixture with as many components and features, and the same kind of factor.

    Raises:
        InputError: with the shapes of both, by their names.
    """
    alike = as_mixture(reference, names[0]).means.shape == as_mixture(mixture, names[1]).means.shape[-2:]
    if alike and (any_factor or type(reference.factor) is type(mixture.factor)):
        return
    shapes = [f"means {one.means.shape} and factors {one.precision_factor.shape}" for one in (reference, mixture)]
    raise InputError(
        f"{names[0]} with {shapes[0]} does not fit {names[1]} with {shapes[1]}: give one mixture of the same k, d"
        f"{'' if any_factor else ' and family'}"
    )


def best_orders(scores: Float[np.ndarray, "*draws k k"]) -> Int[np.ndarray, "*draws k"]:
    """Find the order of components of largest total score, for every matrix of scores (component, label).

    The component with label j is `order[j]`. Exact, by linear assignment (a shortest augmenting path, Crouse 2016).
    NaN ranks last.
    """
    from scipy.optimize import linear_sum_assignment  # imported here, where it is used: it takes a third of a second

    finite = np.nan_to_num(np.asarray(scores, np.float64), nan=-1e300, neginf=-1e300, posinf=1e300)
    flat = finite.reshape(-1, *scores.shape[-2:])
    orders = np.empty(flat.shape[:2], np.int32)
    for order, score in zip(orders, flat, strict=True):
        components, labels = linear_sum_assignment(score, maximize=True)
        order[labels] = components
    return orders.reshape(scores.shape[:-1])


def relabel(mixture: Mixture, reference: Mixture) -> Mixture:
    """Put the components of `mixture`, or of each of its draws, in the order of the reference.

    Raises:
        InputError: as `match_labels`.
    """
    return mixture.permute(match_labels(mixture, reference))


@matching_precision
def label_scores(mixture: Mixture, reference: Mixture) -> Float[AnyArray, "*draws k k"]:
    """Score every component of `mixture`, or of each of its draws, for every label of the reference."""
    mixture, reference = jax.tree.map(jnp.asarray, (mixture, reference))
    return vmap_draws(lambda one: _scores_of_one(one, reference), mixture)(mixture)


@jax.jit
def _scores_of_one(mixture: Mixture, reference: Mixture) -> Float[Array, "k k"]:
    covariances = reference.factor.for_each(reference.num_components).covariances()

    def explaining(weight: Array, mean: Array, covariance: Array) -> Array:
        """Score of every component of the mixture as an explanation of one component of the reference."""
        k = mixture.num_components
        count, origin = jnp.broadcast_to(weight, (k,)), jnp.broadcast_to(mean[None], mixture.means.shape)
        second = jnp.broadcast_to(weight * covariance[None], (k, *covariance.shape))
        moments = Moments(origin, count, jnp.zeros_like(origin), second, jnp.zeros((), mean.dtype))
        return expected_complete_log_prob(mixture, moments)

    return jax.vmap(explaining, out_axes=1)(reference.weights, reference.means, covariances)
