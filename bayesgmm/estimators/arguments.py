"""Arguments in scikit-learn's words: its names and exceptions, random states, and the parts of a start."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import InvalidParameterError

from bayesgmm.engines.registry import Rule
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.numerics.validation import matrix_fault, refuse_masks, short_repr

AUTO = "auto"
"""A default that depends on other arguments."""

INIT_PARAMS = (AUTO, "kmeans", "k-means++", "random", "random_from_data", "hierarchical")
"""The engine's own starts, scikit-learn's names of starts, and one more."""

_NAMES = {
    "num_components": "n_components",
    "family": "covariance_type",
    "row_weights": "sample_weight",
    "max_steps": "max_iter",
    "num_starts": "n_init",
}
_OURS = re.compile(rf"\b({'|'.join(_NAMES)})\b")

ILL_DEFINED = (
    "Fitting the mixture model failed because some components have ill-defined empirical covariance (for instance "
    "caused by singleton or collapsed samples). Try to decrease the number of components, increase reg_covar, or scale "
    "the input data."
)
"""Scikit-learn's message for a singular covariance, which code may look for."""

NOT_CONVERGED = (
    "Best performing initialization did not converge. Try different init parameters, or increase max_iter, tol, or "
    "check for degenerate data."
)
"""Scikit-learn's message for a fit that did not converge."""


def auto_or(check: Callable[[str, Any], Any]) -> Rule:
    """The word "auto", or what `check` of an argument's name and value takes."""
    return Rule(lambda name, value: value if isinstance(value, str) and value == AUTO else check(name, value))


class ParameterError(InputError, InvalidParameterError):
    """An argument of the constructor that cannot be used; as scikit-learn's a `ValueError` and a `TypeError`."""


@contextlib.contextmanager
def sklearn_words(kind: type[InputError] = InputError) -> Iterator[None]:
    """Raise errors of the functional core as this kind of error, with scikit-learn's names of arguments.

    Raises:
        InputError: in place of the one from inside.
    """
    try:
        yield
    except InputError as error:
        if isinstance(error, ParameterError):
            raise
        raise kind(in_sklearn_words(str(error))) from None


def in_sklearn_words(sentence: str) -> str:
    """Replace the names of our arguments in a sentence."""
    return _OURS.sub(lambda found: _NAMES[found[0]], sentence)


def generator_of(random_state: object) -> np.random.RandomState:
    """The generator that scikit-learn's `random_state` means: a seed, a generator, or None for NumPy's global one.

    Raises:
        ParameterError: for anything else.
    """
    try:
        return check_random_state(random_state)
    except ValueError:
        raise ParameterError(
            f"random_state={short_repr(random_state)} must be a whole number, a numpy.random.RandomState or None"
        ) from None


def key_of(rng: np.random.RandomState) -> jax.Array:
    """Draw a random key from a generator of NumPy."""
    return jax.random.key(int(rng.randint(np.iinfo(np.int32).max)))


def array_of_shape(called: str, name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Finite numbers of this shape, in float32 or float64; `called` is their name in scikit-learn's messages.

    Raises:
        InputError: for anything else.
    """
    refuse_masks(value, name)
    try:
        array = np.asarray(value)
        array = array if array.dtype == np.float32 else array.astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}={short_repr(value)} must be an array of numbers of shape {shape}") from None
    if array.shape != shape:
        raise InputError(
            f"The parameter '{called}' should have the shape of {shape}, but got {array.shape}: reshape {name}"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{name} contains NaN or infinity; give finite numbers")
    return array


def check_positive_definite(called: str, where: str, array: np.ndarray, *, diagonal: bool) -> None:
    """Refuse a matrix (d, d), or diagonals of matrices, that no covariance or precision has.

    Raises:
        InputError: saying what is wrong `where`.
    """
    if diagonal:
        if (array <= 0).any():
            raise InputError(f"'{called}' should be positive; {where} has {array.min():g}")
    elif fault := matrix_fault(array):
        raise InputError(f"'{called}' should be symmetric, positive-definite; {where} {fault}")


def check_init(
    given: Mapping[str, ArrayLike | None], num_components: int, num_features: int, family: Family
) -> dict[str, np.ndarray]:
    """Parts of a start (weights, means, precisions) that are not None, as arrays of the right shapes.

    Messages begin with scikit-learn's words.

    Raises:
        InputError: for other shapes, weights that do not sum to 1, and precisions that are not positive definite.
    """
    k, d = num_components, num_features
    leading = () if family.shared else (k,)
    shapes = {"weights": (k,), "means": (k, d), "precisions": (*leading, *family.matrix_shape(d))}
    names = {"weights": "weights", "means": "means", "precisions": f"{family.name} precision"}
    parts = {
        part: array_of_shape(names[part], f"{part}_init", value, shapes[part])
        for part, value in given.items()
        if value is not None
    }
    if "weights" in parts:
        _check_weights(parts["weights"])
    if "precisions" in parts:
        by_component = not (family.diagonal or family.shared)
        for index, matrix in enumerate(parts["precisions"] if by_component else [parts["precisions"]]):
            where = f"precisions_init[{index}]" if by_component else "precisions_init"
            check_positive_definite(names["precisions"], where, matrix, diagonal=family.diagonal)
    return parts


def _check_weights(weights: np.ndarray) -> None:
    if (bad := np.flatnonzero((weights < 0) | (weights > 1))).size:
        # Minimum and maximum are exchanged in scikit-learn's own message, which code may look for.
        raise InputError(
            f"The parameter 'weights' should be in the range [0, 1], but got max value {weights.min():.5f}, min value "
            f"{weights.max():.5f}: weights_init[{bad[0]}]={weights[bad[0]]:g} is none; give proportions that sum to 1"
        )
    if abs(1.0 - float(weights.sum())) > (1e-6 if weights.dtype == np.float32 else 1e-8):
        raise InputError(
            f"The parameter 'weights' should be normalized, but got sum(weights) = {weights.sum():.5f}: divide "
            "weights_init by its sum"
        )
    if (bad := np.flatnonzero(weights == 0)).size:
        raise InputError(f"weights_init[{bad[0]}]=0: an empty component stays empty; give it a share, or drop it")
