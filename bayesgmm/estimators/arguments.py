"""Arguments of the constructors, checked when `fit` is called: one line with the argument, the value and the cure."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from sklearn.utils import check_random_state

from bayesgmm.errors import InputError
from bayesgmm.estimators.words import ParameterError
from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.validation import finite_number, shown, truth_value, whole_number

INIT_PARAMS = ("kmeans", "k-means++", "random", "random_from_data", "hierarchical")
"""Scikit-learn's names of starts, and one more."""


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse what is none of the known values.

    Raises:
        ParameterError: naming them.
    """
    if not any(value is each or (isinstance(value, str) and value == each) for each in known):
        raise ParameterError(f"{name}={shown(value)} is not known; choose one of {', '.join(map(repr, known))}")


def check_numbers(estimator: Any, *, auto: bool) -> None:
    """Refuse numbers that are out of range: those that both estimators have. With `auto`, `n_init` may be that word.

    Raises:
        ParameterError: naming the argument, the value and the range.
    """
    try:
        whole_number("n_components", estimator.n_components)
        finite_number("tol", estimator.tol)
        finite_number("reg_covar", estimator.reg_covar)
        whole_number("max_iter", estimator.max_iter, 0)
        if not (auto and isinstance(estimator.n_init, str) and estimator.n_init == "auto"):
            whole_number("n_init", estimator.n_init)
        truth_value("warm_start", estimator.warm_start)
        if not isinstance(estimator.verbose, bool | np.bool_):
            whole_number("verbose", estimator.verbose, 0)
        whole_number("verbose_interval", estimator.verbose_interval)
    except ParameterError:
        raise
    except InputError as error:
        raise ParameterError(str(error)) from None


def generator_of(random_state: Any) -> np.random.RandomState:
    """The generator that scikit-learn's `random_state` means: a seed, a generator, or None for NumPy's global one.

    Raises:
        ParameterError: for anything else.
    """
    try:
        return check_random_state(random_state)
    except ValueError:
        raise ParameterError(
            f"random_state={shown(random_state)} must be a whole number, a numpy.random.RandomState or None"
        ) from None


def key_of(rng: np.random.RandomState) -> jax.Array:
    """A random key that such a generator draws."""
    return jax.random.key(int(rng.randint(np.iinfo(np.int32).max)))


def check_init(
    weights: Any, means: Any, precisions: Any, num_components: int, num_features: int, family: Family
) -> Mapping[str, np.ndarray]:
    """Those of `weights_init`, `means_init` and `precisions_init` that are given, as arrays of the right shapes.

    Messages begin with scikit-learn's words.

    Raises:
        InputError: for other shapes, weights that do not sum to 1, and precisions that are not positive definite.
    """
    k, d = num_components, num_features
    one = () if family.isotropic else family.representation.shape(d)
    shape = one if family.shared else (k, *one)
    given = {}
    if weights is not None:
        given["weights"] = _check_weights(array_of_shape("weights", "weights_init", weights, (k,)))
    if means is not None:
        given["means"] = array_of_shape("means", "means_init", means, (k, d))
    if precisions is not None:
        name = f"{family.name} precision"
        given["precisions"] = array_of_shape(name, "precisions_init", precisions, shape)
        _check_precisions(name, given["precisions"], family)
    return given


def array_of_shape(called: str, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Finite numbers of this shape, in float32 or float64; `called` is what scikit-learn's messages call them.

    Raises:
        InputError: for anything else.
    """
    try:
        array = np.asarray(value)
        array = array if array.dtype == np.float32 else array.astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}={shown(value)} must be an array of numbers of shape {shape}") from None
    if array.shape != shape:
        raise InputError(
            f"The parameter '{called}' should have the shape of {shape}, but got {array.shape}: reshape {name}"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{name} contains NaN or infinity; give finite numbers")
    return array


def _check_weights(weights: np.ndarray) -> np.ndarray:
    if (weights < 0).any() or (weights > 1).any():
        index = int(np.flatnonzero((weights < 0) | (weights > 1))[0])
        # The two names are exchanged in scikit-learn's own message, which people may look for; the entry is told after.
        raise InputError(
            f"The parameter 'weights' should be in the range [0, 1], but got max value {weights.min():.5f}, min value "
            f"{weights.max():.5f}: weights_init[{index}]={weights[index]:g} is none; give proportions that sum to 1"
        )
    if abs(1.0 - float(weights.sum())) > (1e-6 if weights.dtype == np.float32 else 1e-8):
        raise InputError(
            f"The parameter 'weights' should be normalized, but got sum(weights) = {weights.sum():.5f}: divide "
            "weights_init by its sum"
        )
    if (weights == 0).any():
        index = int(np.flatnonzero(weights == 0)[0])
        raise InputError(f"weights_init[{index}]=0: an empty component stays empty; give it a share, or drop it")
    return weights


def _check_precisions(name: str, precisions: np.ndarray, family: Family) -> None:
    if family.diagonal:
        if (precisions <= 0).any():
            raise InputError(f"'{name}' should be positive; precisions_init has {precisions.min():g}")
        return
    for index, matrix in enumerate(precisions[None] if family.shared else precisions):
        where = "precisions_init" if family.shared else f"precisions_init[{index}]"
        if not np.allclose(matrix, matrix.T):
            raise InputError(f"'{name}' should be symmetric, positive-definite; {where} is not symmetric")
        if (least := np.linalg.eigvalsh(matrix)[0]) <= 0:
            raise InputError(
                f"'{name}' should be symmetric, positive-definite; {where} has the eigenvalue {least:g}; invert a "
                "covariance matrix"
            )
