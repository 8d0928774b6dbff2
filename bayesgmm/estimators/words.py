"""Errors and warnings in scikit-learn's words: its names of arguments, its classes of exceptions."""

import contextlib
import re
from collections.abc import Iterator

from sklearn.utils._param_validation import InvalidParameterError

from bayesgmm.errors import InputError

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
"""What scikit-learn says of a singular covariance: code that looks for its words finds them."""

NOT_CONVERGED = (
    "Best performing initialization did not converge. Try different init parameters, or increase max_iter, tol, or "
    "check for degenerate data."
)
"""What scikit-learn says of a fit that did not converge."""


class ParameterError(InputError, InvalidParameterError):
    """An argument of the constructor that cannot be used; as scikit-learn's a `ValueError` and a `TypeError`."""


@contextlib.contextmanager
def scikit_learns_words() -> Iterator[None]:
    """Errors of the functional core name arguments as the estimators do.

    Raises:
        InputError: those that come from inside, in other words.
    """
    try:
        yield
    except InputError as error:
        if type(error) is not InputError:
            raise
        raise InputError(in_scikit_learns_words(str(error))) from None


def in_scikit_learns_words(sentence: str) -> str:
    """A sentence about our arguments, with their names there."""
    return _OURS.sub(lambda found: _NAMES[found[0]], sentence)
