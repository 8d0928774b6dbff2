"""Files of mixtures and fits, in the format of `runtime.files`."""

import dataclasses
from pathlib import Path

from bayesgmm.engines.fit import Fit, as_fit
from bayesgmm.mixtures.mixture import Mixture, as_mixture
from bayesgmm.runtime.files import load_value, save_value

_RENAMED = {"num_permuted": "num_relabelled"}  # entries of a summary, as older files have them


def save_fit(fit: Fit, path: str | Path) -> None:
    """Write a fit of any engine whole, its draws included, in the dtypes that it has.

    Raises:
        InputError: for what is no fit, for one inside the caller's own `jit`, and for a path that cannot be written to.
    """
    save_value(as_fit(fit), path, "fit")


def load_fit(path: str | Path) -> Fit:
    """Read a fit that `save_fit` has written; its arrays are NumPy's.

    Raises:
        InputError: as `load_value`.
    """
    fit = load_value(path, Fit, "fit")
    return dataclasses.replace(fit, summary={_RENAMED.get(name, name): value for name, value in fit.summary.items()})


def save_mixture(mixture: Mixture, path: str | Path) -> None:
    """Write a mixture, or draws of them, in the dtypes that it has.

    Raises:
        InputError: for what is no mixture, for one inside the caller's own `jit`, and for a path that cannot be
            written to.
    """
    save_value(as_mixture(mixture), path, "mixture")


def load_mixture(path: str | Path) -> Mixture:
    """Read a mixture that `save_mixture` has written; its arrays are NumPy's.

    Raises:
        InputError: as `load_value`, and for what no mixture has.
    """
    return as_mixture(load_value(path, Mixture, "mixture"), f"mixture of file {str(path)!r}")
