r"""Minibatches for variational inference: an ELBO on some of the rows that is, on average, the ELBO on all of them.

A batch B of b rows of n counts n / b times. By itself that is unbiased but far too noisy: the log-likelihood of the
batch strays from its share by $n / \sqrt b$ nats, where one nat matters. So what is estimated is only what a row's
log-density departs from its tangent at a reference mixture $\theta_0$ (the start), and the tangent is known for all
rows together:

$$ \hat L(\theta) = L(\theta_0) + \nabla L(\theta_0) \cdot \delta + \frac n b \sum_{i \in B}
   \bigl[\ell_i(\theta) - \ell_i(\theta_0) - \nabla \ell_i(\theta_0) \cdot \delta\bigr],
   \qquad \delta = \theta - \theta_0. $$

Its mean over batches is L for every $\theta$, near or far; near the reference, where the posterior of many rows lies,
the departure is of second order and the noise of the order of $p / \sqrt b$ nats for p parameters, whatever n is.

Source: Baker, Fearnhead, Fox & Nemeth (2019), Control variates for stochastic gradient MCMC, section 3.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.primitives import Messenger

from bayesgmm.likelihood.log_likelihood import log_likelihood
from bayesgmm.mixtures.mixture import Mixture

ALL_ROWS_UP_TO = 100_000
BATCH_SIZE = 4096


class Tangent(NamedTuple):
    """The log-likelihood of all rows at the reference, and its slope there in every number of the mixture."""

    reference: Mixture
    slope: Mixture
    log_likelihood: Array
    num_rows: Array


@jax.jit
def tangent_at(reference: Mixture, x: Float[Array, "n d"]) -> Tangent:
    """One pass over all rows."""
    value, slope = jax.value_and_grad(lambda mixture: log_likelihood(mixture, x))(reference)
    return Tangent(reference, slope, value, jnp.asarray(x.shape[0], x.dtype))


class RowsOfBatch(dist.Distribution):
    r"""A row's part in $\hat L(\theta) - L(\theta_0)$, when it counts n / b times.

    The constant is left out, lest what varies drown in its rounding. It cannot be sampled: rows of a batch are given.
    """

    support = constraints.real_vector  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    pytree_data_fields = ("mixture", "tangent")

    def __init__(self, mixture: Mixture, tangent: Tangent, *, validate_args: bool | None = None) -> None:
        self.mixture, self.tangent = mixture, tangent
        super().__init__(batch_shape=(), event_shape=(mixture.num_features,), validate_args=validate_args)

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """Of rows (b, d), shape (b)."""
        reference, slope, _, num_rows = self.tangent
        away = jax.tree.map(jnp.subtract, self.mixture, reference)
        there, along = jax.jvp(lambda mixture: mixture.log_prob(value), (reference,), (away,))
        of_all = sum(jnp.vdot(*pair) for pair in zip(jax.tree.leaves(slope), jax.tree.leaves(away), strict=True))
        return self.mixture.log_prob(value) - there - along + of_all / num_rows


class Minibatch(Messenger):
    """The rows seen in the model are a batch of those of the tangent, and stand for all of them."""

    def __init__(self, fn: Any = None, *, tangent: Tangent) -> None:
        self.tangent = tangent
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Replace the distribution of the rows, and count each n / b times."""
        if msg["type"] != "sample" or msg["name"] != "x":
            return
        rows: Any = msg["fn"]
        while isinstance(rows, dist.ExpandedDistribution):
            rows = rows.base_dist
        msg["fn"] = RowsOfBatch(rows.mixture, self.tangent)
        msg["scale"] = self.tangent.num_rows / msg["value"].shape[0]
