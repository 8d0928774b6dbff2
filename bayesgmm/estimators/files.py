"""Files of estimators: their arguments and what they have learnt, without pickle."""

import inspect
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator

from bayesgmm.errors import InputError
from bayesgmm.numerics.validation import shown
from bayesgmm.runtime.files import load_value, save_value

_KIND = "scikit-learn estimator"


def save_estimator(estimator: BaseEstimator, path: str | Path) -> None:
    """Write an estimator: its class by name, its arguments and its fitted attributes.

    Raises:
        InputError: for arguments that such a file cannot hold, and for a path that cannot be written to.
    """
    own = {name: value for name, value in vars(estimator).items() if not hasattr(type(estimator), name)}
    saved = {
        "estimator": type(estimator).__name__,
        "arguments": {name: _storable(value) for name, value in estimator.get_params(deep=False).items()},
        "learnt": {name: _storable(value) for name, value in own.items() if name.endswith("_")},
    }
    save_value(saved, path, _KIND)


def load_estimator[T](cls: type[T], path: str | Path) -> T:
    """Read an estimator of this class.

    Raises:
        InputError: for a file that is damaged, comes from elsewhere, or holds another estimator.
    """
    saved = load_value(path, dict, _KIND)
    where = f"file {str(path)!r}"
    if saved.get("estimator") != cls.__name__:
        raise InputError(
            f"{where} holds a {shown(saved.get('estimator'))}, not a {cls.__name__}; load it with its own class"
        )
    arguments, learnt = saved.get("arguments"), saved.get("learnt")
    if not isinstance(arguments, dict) or not isinstance(learnt, dict):
        raise InputError(f"{where} is damaged (it lacks arguments or attributes); take another copy, or fit again")
    known = inspect.signature(cls).parameters
    if unknown := [name for name in arguments if name not in known]:
        raise InputError(
            f"{where} has the argument {shown(unknown[0])}, which {cls.__name__} of this version does not; upgrade "
            "bayesgmm"
        )
    if wrong := [name for name in learnt if not name.endswith("_") or hasattr(cls, name)]:
        raise InputError(f"{where} is damaged (it has the attribute {shown(wrong[0])}); take another copy")
    estimator = cls(**{name: _restored(value) for name, value in arguments.items()})
    for name, value in learnt.items():
        setattr(estimator, name, _restored(value))
    return estimator


def _storable(value: object) -> object:
    """Convert generators of NumPy to their state, and arrays of words to lists."""
    if isinstance(value, np.random.RandomState):
        return {"random_state": list(value.get_state(legacy=True))}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return {"words": [str(word) for word in value]}
    return value


def _restored(value: object) -> object:
    if isinstance(value, dict) and set(value) == {"random_state"}:
        generator = np.random.RandomState()
        name, numbers, position, has_gauss, cached = value["random_state"]
        generator.set_state((name, numbers, position, has_gauss, cached))
        return generator
    if isinstance(value, dict) and set(value) == {"words"}:
        return np.array(value["words"], dtype=object)
    return value
