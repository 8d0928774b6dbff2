"""What is reported of a mixture, by name: its parameters, and any function of it that the user gives."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact

from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray, is_traced, matching_precision, namespace
from bayesgmm.numerics.validation import short_repr

PARAMETERS = ("weights", "means", "covariances", "standard_deviations", "correlations")

Functions = tuple[tuple[str, Callable[[Mixture], Any]], ...]


def quantities_of(mixture: Mixture, functions: Functions = ()) -> dict[str, AnyArray]:
    r"""Parameters of a mixture and what the functions make of it, by name.

    Weights (..., k), means (..., k, d), covariances (..., k, d, d), standard deviations (..., k, d) and correlations
    (..., k, d, d), the last $\Sigma_{ab} / (\sigma_a \sigma_b)$. Functions take a single mixture.
    """
    if not is_traced(mixture):
        mixture = jax.tree.map(np.asarray, mixture)
    return parameters_of(mixture) | values_of(functions, mixture)


def parameters_of(mixture: Mixture) -> dict[str, Inexact[AnyArray, "..."]]:
    """The parameters alone, by the module that the mixture's arrays belong to."""
    covariances, scales = mixture.covariances, mixture.scales
    correlations = covariances / (scales[..., :, None] * scales[..., None, :])
    itself = np.eye(mixture.num_features, dtype=bool)
    return {
        "weights": mixture.weights,
        "means": mixture.means,
        "covariances": covariances,
        "standard_deviations": scales,
        # With themselves 1, to the last digit and in every derivative.
        "correlations": namespace(scales).where(itself, 1.0, correlations),
    }


@matching_precision
def values_of(functions: Functions, mixture: Mixture) -> dict[str, AnyArray]:
    """What the functions of a user make of a mixture, in its precision."""
    return {name: jnp.asarray(function(mixture), mixture.means.dtype) for name, function in functions}


def as_functions(functions: object, mixture: Mixture) -> Functions:
    """Functions of a mixture by name, hashable, each tried without computing anything.

    Raises:
        InputError: for names that are taken, for what cannot be called, and for functions that JAX cannot trace or that
            give no array of real numbers.
    """
    if functions is None:
        return ()
    if not isinstance(functions, Mapping):
        raise InputError(f"functions={short_repr(functions)} must map names to functions of a mixture")
    for name, function in functions.items():
        if name in PARAMETERS or not isinstance(name, str):
            raise InputError(f"functions has the name {name!r}; give it a text other than {', '.join(PARAMETERS)}")
        if not callable(function):
            raise InputError(
                f"functions[{name!r}]={short_repr(function)} cannot be called; give a function of a mixture"
            )
        try:
            found = jax.eval_shape(function, mixture)
        except Exception as error:
            raise InputError(
                f"functions[{name!r}] cannot be traced by JAX ({type(error).__name__}: {short_repr(str(error))}); "
                "write it with jax.numpy and the mixture's own methods"
            ) from error
        if not isinstance(found, jax.ShapeDtypeStruct) or not jnp.issubdtype(found.dtype, jnp.floating):
            raise InputError(
                f"functions[{name!r}] gives {short_repr(found)}, which is no array of floating-point numbers; standard "
                "errors need one"
            )
    return tuple(functions.items())


class Entry(NamedTuple):
    """One number among the quantities: for people, and where it is found."""

    cluster: str
    label: str
    name: str
    place: tuple[int, ...]


def entries(shapes: Mapping[str, tuple[int, ...]], family: Family, feature_names: tuple[str, ...]) -> list[Entry]:
    """The numbers worth a line of a table, cluster by cluster, and then the user's functions.

    Of symmetric matrices one triangle, of constants none, and what all components share once, for the cluster "all".
    """
    found: list[Entry] = []
    for cluster in range(shapes["means"][0]):
        found.append(Entry(str(cluster), "weight", "weights", (cluster,)))
        found += [Entry(str(cluster), f"mean {name}", "means", (cluster, j)) for j, name in enumerate(feature_names)]
        if not family.shared:
            found += _spread_entries(str(cluster), cluster, family, feature_names)
    if family.shared:
        found += _spread_entries("all", 0, family, feature_names)
    for name, shape in shapes.items():
        if name not in PARAMETERS:
            found += [
                Entry("", f"{name}[{', '.join(map(str, index))}]" if index else name, name, index)
                for index in np.ndindex(shape)
            ]
    return found


def _spread_entries(label: str, cluster: int, family: Family, names: tuple[str, ...]) -> list[Entry]:
    """Standard deviations, correlations and covariances of a cluster."""
    features = [("", 0)] if family.isotropic else [(f" {name}", j) for j, name in enumerate(names)]
    count = len(names) if family.has_correlations(len(names)) else 0
    pairs = [(f" {names[column]}, {names[row]}", (row, column)) for row in range(count) for column in range(row)]
    parts = [
        ("sd", "standard_deviations", [(text, (j,)) for text, j in features]),
        ("corr", "correlations", pairs),
        ("variance", "covariances", [(text, (j, j)) for text, j in features]),
        ("cov", "covariances", pairs),
    ]
    return [Entry(label, what + text, name, (cluster, *at)) for what, name, places in parts for text, at in places]
