"""Files of estimators: their arguments and what they have learnt, without pickle."""

import inspect
from pathlib import Path
from typing import Self

import numpy as np
from sklearn.base import BaseEstimator

from bayesgmm.errors import InputError
from bayesgmm.numerics.validation import short_repr
from bayesgmm.runtime.files import load_value, save_value

_KIND = "scikit-learn estimator"


class StoredEstimator(BaseEstimator):
    """An estimator that is written to files and read from them."""

    def save(self, path: str | Path) -> None:
        """Write the estimator, its arguments and what it has learnt: NumPy's npz with a header in JSON, no pickle.

        Raises:
            InputError: for arguments that such a file cannot hold, and for a path that cannot be written to.
        """
        learnt = {name for name in vars(self) if name.endswith("_") and not hasattr(type(self), name)}
        saved = {
            "estimator": type(self).__name__,
            "arguments": {name: _storable(value) for name, value in self.get_params(deep=False).items()},
            "learnt": {name: _storable(value) for name, value in vars(self).items() if name in learnt},
        }
        save_value(saved, path, _KIND)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an estimator that `save` has written; no code of the file is run.

        Raises:
            InputError: for a file that is damaged, comes from elsewhere, or holds another estimator.
        """
        saved = load_value(path, dict, _KIND)
        where = f"file {str(path)!r}"
        if saved.get("estimator") != cls.__name__:
            raise InputError(
                f"{where} holds a {short_repr(saved.get('estimator'))}, not a {cls.__name__}; load it with its own "
                "class"
            )
        arguments, learnt = saved.get("arguments"), saved.get("learnt")
        if not isinstance(arguments, dict) or not isinstance(learnt, dict):
            raise InputError(f"{where} is damaged (it lacks arguments or attributes); take another copy, or fit again")
        if unknown := arguments.keys() - inspect.signature(cls).parameters:
            raise InputError(
                f"{where} has the argument {short_repr(min(unknown))}, which {cls.__name__} of this version does not; "
                "upgrade bayesgmm"
            )
        if wrong := [name for name in learnt if not name.endswith("_") or hasattr(cls, name)]:
            raise InputError(f"{where} is damaged (it has the attribute {short_repr(wrong[0])}); take another copy")
        estimator = cls(**{name: _restored(value) for name, value in arguments.items()})
        vars(estimator).update({name: _restored(value) for name, value in learnt.items()})
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
        generator.set_state(tuple(value["random_state"]))
        return generator
    if isinstance(value, dict) and set(value) == {"words"}:
        return np.array(value["words"], dtype=object)
    return value
