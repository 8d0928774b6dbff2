"""How programs are compiled: for which shapes, at which of XLA's levels of optimisation, when, and where kept."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.stages import Lowered, Wrapped
from jaxtyping import PyTree

from bayesgmm.errors import InputError
from bayesgmm.numerics.paths import as_path
from bayesgmm.numerics.precision import is_traced
from bayesgmm.runtime.stopwatch import with_owner

SMALL = 2**17  # rows x features x components below which shapes are rounded up, so that programs serve many fits
ROOM = 10  # components that programs of few rows are compiled for, where so many of them
_ROOMY = 2**14  # times rows times features are no more than this
_FEW_ROWS, _FEWEST_ROWS = 256, 32  # where their arithmetic does not count beside the rest of a fit
_TRACE_ROOM = 1000  # steps, at least
_LITTLE_OPTIMISED = {"xla_backend_optimization_level": 0}
_KEEP_ALL = {"jax_persistent_cache_min_compile_time_secs": 0, "jax_persistent_cache_min_entry_size_bytes": -1}


def room_of_rows(num_rows: int) -> int:
    """For how many rows a program is compiled: a power of two of few, else one of four to eight sizes an octave."""
    bits = (num_rows - 1).bit_length()
    step = 2 ** (bits - 3) if num_rows > _FEW_ROWS else max(2**bits, _FEWEST_ROWS)
    return num_rows + -num_rows % step


def room_of_steps(max_steps: int) -> int:
    """For how many steps the trace of a program has room, at least so many."""
    return _TRACE_ROOM if max_steps <= _TRACE_ROOM else 2 ** (max_steps - 1).bit_length()


def has_room(num_components: int, num_values: int) -> bool:
    """Whether a program for so many values of rows is compiled with room for more components than these."""
    return num_components <= ROOM and num_values * ROOM <= _ROOMY


class Once[**P, R]:
    """`jax.jit` of what costs more to compile than all its runs: made in half the time, and several times slower.

    Inside the caller's own program it is a part of that, and optimised with it; so it is `unless` there is much to do.
    """

    def __init__(
        self, function: Callable[P, R], static_argnames: str | tuple[str, ...], unless: Callable[..., bool]
    ) -> None:
        self._whole = jax.jit(function, static_argnames=static_argnames)
        self._alone = jax.jit(function, static_argnames=static_argnames, compiler_options=_LITTLE_OPTIMISED)
        self._unless = unless
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result, of the program or of its part in another."""
        return self._program(*args, **kwargs)(*args, **kwargs)

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> Lowered:
        """What a call will compile."""
        return self._program(*args, **kwargs).lower(*args, **kwargs)

    def _program(self, *args: P.args, **kwargs: P.kwargs) -> Wrapped:
        return self._whole if is_traced((args, kwargs)) or self._unless(*args, **kwargs) else self._alone


def compiled_once[**P, R](
    function: Callable[P, R],
    *,
    static_argnames: str | tuple[str, ...] = (),
    unless: Callable[..., bool] = lambda *args, **kwargs: False,
) -> Once[P, R]:
    """A function as an `Once`."""
    return Once(function, static_argnames, unless)


@functools.cache
def _compiler() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="bayesgmm-compiler")


def compile_ahead(program: Wrapped | Once[..., Any], *args: PyTree, **static: object) -> None:
    """Compile in a thread what a call of a jitted function with arguments of these shapes will need.

    The call that needs it waits for it: JAX keeps one executable of what was lowered alike.
    """
    lowered, x64 = program.lower(*args, **static), jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]

    def finish() -> None:
        with jax.enable_x64(x64):
            lowered.compile()

    _compiler().submit(with_owner(finish))


def cache(folder: str | Path | None = None) -> Path:
    """Keep compiled programs on disk: later processes, and workers that this one starts, read them back.

    Sets JAX's own options (`jax_compilation_cache_dir` and two thresholds) for this process, and as environment
    variables for those that it starts, such as joblib's workers in `cross_val_score(..., n_jobs=2)`. Nothing is kept
    unless this is called; the command line does it by itself.

    Args:
        folder: where programs are kept; by default where JAX has been told to keep them, else in the user's
            cache folder.

    Returns:
        The folder.

    Raises:
        InputError: for a folder that cannot be made.
    """
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    known = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None and known is None:
        from platformdirs import user_cache_path

        folder = user_cache_path("bayesgmm") / "programs"
    place = as_path(known if folder is None else folder, "folder").expanduser()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder={str(place)!r} cannot be made ({error.strerror}); name one that can") from None
    options = {"jax_compilation_cache_dir": str(place), **_KEEP_ALL}
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    reset_cache()  # else a folder that was in use already stays so
    return place
