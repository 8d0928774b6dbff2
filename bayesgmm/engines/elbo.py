"""The evidence lower bound that variational inference climbs, the same in every process."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.handlers import seed
from numpyro.infer import ELBO
from numpyro.infer.util import get_importance_trace


class Elbo(ELBO):
    """What NumPyro's `Trace_ELBO` is, added up in the order in which sites occur.

    NumPyro's order is that of a set of strings, which differs from process to process: so would the last digits, and
    the program, which then could not be taken from JAX's cache on disk.
    """

    def loss_with_mutable_state(
        self, rng_key: Array, param_map: dict[str, Any], model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Minus the mean of log p - log q over particles."""

        def of_particle(key: Array) -> Array:
            _, log_p, log_q = look(key, model, guide, args, kwargs, param_map)
            return log_p - log_q

        over = self.vectorize_particles_fn(of_particle, jax.random.split(rng_key, self.num_particles))
        return {"loss": -over.mean(), "mutable_state": None}


def look(
    key: Array, model: Any, guide: Any, arguments: tuple[Any, ...], named: dict[str, Any], parameters: dict[str, Any]
) -> tuple[dict[str, Array], Array, Array]:
    """A draw from the guide: the values of the model's sites there, and its log-densities under model and guide."""
    model_key, guide_key = jax.random.split(key)
    traces = get_importance_trace(seed(model, model_key), seed(guide, guide_key), arguments, named, parameters)
    log_p, log_q = (
        jnp.stack([site["log_prob"].sum() for site in trace.values() if site["type"] == "sample"]).sum()
        for trace in traces
    )
    return {name: site["value"] for name, site in traces[0].items()}, log_p, log_q


def one_by_one(function: Callable[[Array], Any], keys: Array) -> Any:
    """Over particles one after the other, whose responsibilities are worked out again for the gradient, not kept."""
    return jax.lax.map(jax.checkpoint(function), keys)
