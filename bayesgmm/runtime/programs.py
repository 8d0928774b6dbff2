"""How programs are compiled: the one place that knows about XLA's levels of optimisation."""

import functools
from collections.abc import Callable

import jax

from bayesgmm.numerics.precision import is_traced

_LITTLE_OPTIMISED = {"xla_backend_optimization_level": 0}


def compiled_once[**P, R](
    function: Callable[P, R],
    *,
    static_argnames: str | tuple[str, ...] = (),
    unless: Callable[..., bool] = lambda *args, **kwargs: False,
) -> Callable[P, R]:
    """`jax.jit` of what costs more to compile than all its runs: made in half the time, and several times slower.

    Inside the caller's own program it is a part of that, and optimised with it; so it is `unless` there is much to do.
    """
    whole = jax.jit(function, static_argnames=static_argnames)
    alone = jax.jit(function, static_argnames=static_argnames, compiler_options=_LITTLE_OPTIMISED)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        optimised = is_traced((args, kwargs)) or unless(*args, **kwargs)
        return (whole if optimised else alone)(*args, **kwargs)

    return run
