"""How programs are compiled: for which shapes, and at which of XLA's levels of optimisation."""

import functools
from collections.abc import Callable

import jax

from bayesgmm.numerics.precision import is_traced

SMALL = 2**17  # rows x features x components below which shapes are rounded up, so that programs serve many fits
_COMPONENTS = 10  # that few rows have room for, where so many of them
_ROOMY = 2**14  # times rows times features are no more than this
_LITTLE_OPTIMISED = {"xla_backend_optimization_level": 0}


def roomy_components(num_components: int, num_values: int) -> int:
    """For how many components a program is compiled that takes so many values of rows: for a few more, if not many."""
    few = num_components <= _COMPONENTS and num_values * _COMPONENTS <= _ROOMY
    return _COMPONENTS if few else num_components


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
