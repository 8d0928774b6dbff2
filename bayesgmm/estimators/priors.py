"""Scikit-learn's arguments of a prior, as a prior of ours."""

from collections.abc import Mapping

import numpy as np

from bayesgmm.engines.registry import Engine
from bayesgmm.errors import InputError
from bayesgmm.estimators.arguments import ParameterError, array_of_shape, check_positive_definite, sklearn_words
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.numerics.validation import nonnegative, short_repr
from bayesgmm.priors.conjugate import AnyPrior, conjugate_prior, is_positive_definite, sample_covariance
from bayesgmm.priors.weakly_informative import WeaklyInformativePrior, default_prior

WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")
NUMBERS = (
    "weight_concentration_prior",
    "mean_precision_prior",
    "mean_prior",
    "degrees_of_freedom_prior",
    "covariance_prior",
)
PRIOR_ARGUMENTS = ("weight_concentration_prior_type", *NUMBERS)


def prior_of(
    prior: object, given: Mapping[str, ArrayLike], engine: Engine, rows: Rows, num_components: int, family: Family
) -> tuple[AnyPrior, dict[str, float | np.ndarray]]:
    """The prior that the arguments describe, and its numbers by their names, where they are scikit-learn's.

    `given` has those of `PRIOR_ARGUMENTS` that are not None.

    Raises:
        InputError: for numbers out of range or of the wrong shape, and for `prior` beside them.
    """
    if prior is None and (given or engine.prior == "conjugate"):
        return _prior_of_numbers(given, engine, rows, num_components, family)
    if given:
        name, value = next(iter(given.items()))
        raise ParameterError(
            f"prior={short_repr(prior)} and {name}={short_repr(value)} contradict each other; give one of them"
        )
    if isinstance(prior, str) and prior == "conjugate":
        return conjugate_prior(rows, num_components, family), {}
    if prior is None or isinstance(prior, str):
        prior = default_prior(rows, num_components)
    if not isinstance(prior, AnyPrior):
        raise ParameterError(
            f"prior={short_repr(prior)} is no prior; give 'conjugate', 'weakly_informative', or one of conjugate_prior "
            "or default_prior"
        )
    if isinstance(prior, WeaklyInformativePrior) and engine.prior == "conjugate":
        raise ParameterError(
            f"prior is one of default_prior, and inference={engine.name!r} takes a conjugate prior; give "
            f"prior='conjugate', or choose inference='nuts'"
        )
    return prior, {}


def repeats(family: Family, num_components: int, num_features: int) -> int:
    """How many of our degrees of freedom, each of one variance or of one matrix, are one of scikit-learn's.

    Scikit-learn's are of a Wishart distribution of every component's precision, restricted to the family. Components
    that share a covariance count it once for each of them.
    """
    return (num_components if family.shared else 1) * (num_features if family.isotropic else 1)


def _prior_of_numbers(
    given: Mapping[str, ArrayLike], engine: Engine, rows: Rows, num_components: int, family: Family
) -> tuple[AnyPrior, dict[str, float | np.ndarray]]:
    k, d = num_components, rows.num_features
    column_means, covariance = sample_covariance(np.asarray(rows.values), np.asarray(rows.weights))
    # Below a concentration of 1 there is no mode.
    concentration = _positive(given, "weight_concentration_prior", 1.0 if engine.prior == "mode" else 1.0 / k)
    shrinkage = _positive(given, "mean_precision_prior", 1.0)
    dof = _positive(given, "degrees_of_freedom_prior", float(d))
    if not dof > d - 1:
        raise InputError(f"The parameter 'degrees_of_freedom_prior' should be greater than {d - 1}, but got {dof:.3f}.")
    mean = array_of_shape("means", "mean_prior", given.get("mean_prior", column_means), (d,))
    covariance = _covariance(given, covariance, family)
    # Scikit-learn's default for its own method, a conjugate approximation.
    process = engine.gives == "approximation" and engine.prior == "conjugate"
    times = repeats(family, k, d)
    of_weights = given.get("weight_concentration_prior_type", WEIGHT_PRIORS[not process])
    weights = {"concentration": concentration, "stick_breaking": of_weights == WEIGHT_PRIORS[0]}
    spread = {"dof": times * dof, "scale": times * covariance}
    prior = conjugate_prior(rows, k, family, mean=mean, shrinkage=shrinkage, **weights, **spread)
    return prior, dict(zip(NUMBERS, (concentration, shrinkage, mean, dof, covariance), strict=True))


def _covariance(given: Mapping[str, ArrayLike], covariance: np.ndarray, family: Family) -> float | np.ndarray:
    """The covariance that is given, or that of the rows, in the family's own form.

    That of few rows, or of columns that are sums of others, is singular, and no prior: its variances are.
    """
    variances = covariance.diagonal().copy()
    if family.isotropic:
        return _positive(given, "covariance_prior", variances.mean())
    default = variances if family.diagonal else covariance if is_positive_definite(covariance) else np.diag(variances)
    called = f"{family.name} covariance_prior"
    array = array_of_shape(called, "covariance_prior", given.get("covariance_prior", default), default.shape)
    check_positive_definite(called, "it", array, diagonal=family.diagonal)
    return array


@sklearn_words(ParameterError)
def _positive(given: Mapping[str, ArrayLike], name: str, default: float) -> float:
    """The number of this name, or its default."""
    number = nonnegative(name, given.get(name, default))
    if not number > 0:
        raise InputError(f"{name}={short_repr(given[name])} must be greater than 0")
    return float(number)
