"""The one module that calls bayesgmm: a change of its signatures is met here."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from bayesgmm import FAMILIES, Fit, Mixture, ResultCode, expected_moments, fit_em, load_dataset, log_likelihood
from bayesgmm.likelihood.moments import maximise
from tests.benchmarks.data import Parameters


def precision(dtype: str) -> contextlib.AbstractContextManager:
    """JAX's 64-bit types on for float64; peers that expect float32 keep the default."""
    return jax.enable_x64(dtype == "float64")


def place(x: np.ndarray, dtype: str) -> jax.Array:
    """The rows as an array of JAX, copied before any clock runs."""
    with precision(dtype):
        return jax.block_until_ready(jax.numpy.array(x, dtype))


def mixture_of(start: Parameters, family: str, dtype: str) -> Mixture:
    """A start as a mixture of the family; exact for unit covariances."""
    record = FAMILIES[family]
    covariances = np.diagonal(start.covariances, axis1=1, axis2=2) if record.diagonal else start.covariances
    covariances = covariances[:1] if record.shared else covariances
    arrays = (np.asarray(array, dtype) for array in (start.weights, start.means, covariances))
    with precision(dtype):
        return jax.block_until_ready(Mixture.from_covariances(*arrays))


def steps_from(x: Any, start: Mixture, family: str, num_steps: int) -> Fit:
    """A fit of so many plain steps from a given start, without ridge: tolerance 0 is never met."""
    with precision(str(x.dtype)):
        return fit_em(
            x,
            start.num_components,
            family=family,
            start=start,
            tol=0.0,
            max_steps=num_steps,
            accelerate=False,
            reg_covar=0.0,
            on_failure="ignore",
        )


def fit(x: Any, num_components: int, *, seed: int, **options: Any) -> Fit:
    """A whole fit from scratch, with the default number of restarts unless told otherwise."""
    with precision(str(x.dtype)):
        return fit_em(x, num_components, key=jax.random.key(seed), on_failure="ignore", **options)


def many_fits(x: jax.Array, num_components: int, *, seed: int, mesh: Mesh | None, **options: Any) -> Callable[[], Fit]:
    """Fits of x[i] (many, n, d) as one vmap, ready to be called; on a mesh of devices, each has its share of them."""

    def one(x: jax.Array, key: jax.Array) -> Fit:
        return fit_em(x, num_components, key=key, num_restarts=1, on_failure="ignore", **options)

    fits = jax.vmap(one)
    if mesh is not None:
        rows = PartitionSpec(mesh.axis_names[0])
        fits = jax.shard_map(fits, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False)
    fits = jax.jit(fits)
    with precision(str(x.dtype)):
        keys = jax.random.split(jax.random.key(seed), len(x))
    return functools.partial(_in_precision, str(x.dtype), fits, x, keys)


def one_iteration(x: jax.Array, mixture: Mixture, family: str) -> Callable[[], Mixture]:
    """The moments and the M-step, compiled together."""
    record = FAMILIES[family]

    @jax.jit
    def iterate(mixture: Mixture, x: jax.Array) -> Mixture:
        return maximise(expected_moments(mixture, x), record, jax.numpy.zeros(x.shape[1], x.dtype))

    return functools.partial(_in_precision, str(x.dtype), iterate, mixture, x)


def value_and_gradient(x: jax.Array, mixture: Mixture) -> Callable[[], tuple[jax.Array, Mixture]]:
    """The log-likelihood and its gradient in every field of the mixture, compiled together."""
    compiled = jax.jit(jax.value_and_grad(log_likelihood))
    return functools.partial(_in_precision, str(x.dtype), compiled, mixture, x)


def _in_precision(dtype: str, function: Callable[..., Any], *args: Any) -> Any:
    with precision(dtype):
        return function(*args)


def parameters_of(mixture: Mixture) -> Parameters:
    """The mixture as plain float64 arrays."""
    with precision("float64"):
        fields = (np.asarray(field, np.float64) for field in jax.tree.leaves(mixture))
        mixture = Mixture(*fields)
        return Parameters(np.asarray(mixture.weights), mixture.means, np.asarray(mixture.covariances))


def sentence(fit: Fit) -> str:
    """The result code by name."""
    return fit.code.name


def sentences(results: Any) -> str:
    """Result codes of many fits: how many of each."""
    codes, counts = np.unique(np.asarray(results), return_counts=True)
    return ", ".join(f"{count} {ResultCode(int(code)).name}" for code, count in zip(codes, counts, strict=True))


def shipped(name: str) -> np.ndarray:
    """Rows of a data set that comes with the package."""
    return np.asarray(load_dataset(name).x, np.float64)
