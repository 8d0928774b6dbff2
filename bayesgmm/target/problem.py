"""What every Bayesian engine is asked for: rows, a number of components, a family and a prior, checked once."""

import dataclasses
from dataclasses import dataclass, field
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from bayesgmm.likelihood.rows import Rows, enough_rows
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import KeyLike, in_precision
from bayesgmm.numerics.validation import as_key
from bayesgmm.priors.checks import check_prior
from bayesgmm.priors.conjugate import (
    AnyPrior,
    ConjugatePrior,
    PriorLike,
    check_conjugate_prior,
    conjugate_prior,
    distribution_of_prior,
)
from bayesgmm.priors.normal_inverse_wishart import ConjugateDistribution
from bayesgmm.priors.weakly_informative import default_prior


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Problem:
    """A posterior: of the parameters of a mixture, given rows and a prior. A pytree.

    Attributes:
        rows: the rows and their weights.
        prior: numbers of the prior.
        num_components: k.
        family: covariance family.
    """

    rows: Rows
    prior: AnyPrior
    num_components: int = field(metadata={"static": True})
    family: Family = field(metadata={"static": True})

    def placed(self) -> Self:
        """The problem in arrays of JAX, its prior in the precision of the rows."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, self.rows.dtype), self)

    def any_mixture(self) -> Mixture:
        """A mixture of the family, no matter which: what programs are compiled for."""
        k, num_features, factor = self.num_components, self.rows.num_features, self.family.representation
        eye = np.eye(num_features) if factor.num_axes == 2 else np.ones(num_features)
        array = np.broadcast_to(eye, (self.family.num_factors(k), *factor.shape(num_features)))
        return in_precision(Mixture(np.zeros(k), np.zeros((k, num_features)), array), self.rows.dtype)

    def in_steps(self) -> Self:
        """The problem with rows of weight zero, so that programs serve tables of several sizes."""
        return dataclasses.replace(self, rows=self.rows.in_steps())

    def prior_distribution(self) -> ConjugateDistribution:
        """The prior of every component, where it is a conjugate one."""
        assert isinstance(self.prior, ConjugatePrior)
        return distribution_of_prior(self.prior, self.family, self.num_components)


def make_problem(
    rows: Rows,
    num_components: int,
    family: str | Family,
    prior: PriorLike,
    key: KeyLike,
    *,
    conjugate: bool = False,
) -> Problem:
    """The checked problem of a Bayesian engine, with the default prior where none is given.

    With `conjugate`, the prior must be a conjugate one.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
    """
    family = get_family(family)
    # A conjugate prior bounds the likelihood; the others do not where rows are fewer than features.
    enough_rows(rows, num_components, family, bounded=conjugate or isinstance(prior, ConjugatePrior))
    as_key(key)
    check = check_conjugate_prior if conjugate else check_prior
    if prior is None:
        prior = conjugate_prior(rows, num_components, family) if conjugate else default_prior(rows, num_components)
    return Problem(rows, check(prior, num_components, rows.num_features, family), num_components, family)
