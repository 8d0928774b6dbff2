"""From scikit-learn's arguments of a prior to a prior of ours."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesgmm.errors import InputError
from bayesgmm.estimators.arguments import array_of_shape, check_choice
from bayesgmm.estimators.words import ParameterError
from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.validation import finite_number, shown
from bayesgmm.priors.conjugate import AnyPrior, ConjugatePrior, conjugate_prior, is_positive_definite, sample_covariance
from bayesgmm.priors.weakly_informative import WeaklyInformativePrior, default_prior

WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")
NUMBERS = (
    "weight_concentration_prior",
    "mean_precision_prior",
    "mean_prior",
    "degrees_of_freedom_prior",
    "covariance_prior",
)
CONJUGATE_INFERENCE = ("cavi", "gibbs")
"""Kinds of inference that need a conjugate prior."""


@dataclass(frozen=True)
class Numbers:
    """Numbers of a conjugate prior in scikit-learn's terms; `None` stands for its default.

    A Wishart distribution of every component's precision with `degrees_of_freedom` and `covariance`, restricted to the
    family. Components that share a covariance count it once for each of them, as scikit-learn does.
    """

    weight_type: str
    weight_concentration: float
    mean_precision: float
    mean: np.ndarray
    degrees_of_freedom: float
    covariance: Any

    def prior(self, x: np.ndarray, num_components: int, family: Family, weights: np.ndarray | None) -> ConjugatePrior:
        """The same prior as one of ours."""
        times = repeats(family, num_components, x.shape[1])
        return conjugate_prior(
            x,
            num_components,
            family,
            row_weights=weights,
            concentration=self.weight_concentration,
            mean=self.mean,
            shrinkage=self.mean_precision,
            dof=times * self.degrees_of_freedom,
            scale=times * self.covariance,
            stick_breaking=self.weight_type == "dirichlet_process",
        )


def repeats(family: Family, num_components: int, num_features: int) -> int:
    """How many of our degrees of freedom, each of one variance or of one matrix, are one of scikit-learn's."""
    return (num_components if family.shared else 1) * (num_features if family.isotropic else 1)


def prior_of(
    estimator: Any, x: np.ndarray, weights: np.ndarray | None, family: Family
) -> tuple[AnyPrior, Numbers | None]:
    """The prior that the arguments of the estimator describe, and its numbers where they are scikit-learn's.

    Raises:
        InputError: for numbers out of range or of the wrong shape, and for `prior` beside them.
    """
    prior, inference, k = estimator.prior, estimator.inference, estimator.n_components
    check_choice("weight_concentration_prior_type", estimator.weight_concentration_prior_type, (None, *WEIGHT_PRIORS))
    names = ("weight_concentration_prior_type", *NUMBERS)
    given = [name for name in names if getattr(estimator, name) is not None]
    if prior is None:
        if inference not in CONJUGATE_INFERENCE and not given:
            return default_prior(x, k), None
        numbers = _numbers(estimator, x, weights, family)
        return numbers.prior(x, k, family, weights), numbers
    if given:
        raise ParameterError(
            f"prior={shown(prior)} and {given[0]}={shown(getattr(estimator, given[0]))} contradict each other; give "
            "one of them"
        )
    if isinstance(prior, str):
        check_choice("prior", prior, (None, "conjugate", "weakly_informative"))
        if prior == "conjugate":
            return conjugate_prior(x, k, family, row_weights=weights), None
        prior = default_prior(x, k)
    if not isinstance(prior, AnyPrior):
        raise ParameterError(
            f"prior={shown(prior)} is no prior; give 'conjugate', 'weakly_informative', or one of conjugate_prior or "
            "default_prior"
        )
    if isinstance(prior, WeaklyInformativePrior) and inference in CONJUGATE_INFERENCE:
        raise ParameterError(
            f"prior is one of default_prior, and inference={inference!r} takes a conjugate prior; give "
            f"prior='conjugate', or choose inference='nuts'"
        )
    return prior, None


def _numbers(estimator: Any, x: np.ndarray, weights: np.ndarray | None, family: Family) -> Numbers:
    k, d = estimator.n_components, x.shape[1]
    inference = estimator.inference
    weight_type = estimator.weight_concentration_prior_type
    if weight_type is None:
        weight_type = WEIGHT_PRIORS[0] if inference == "cavi" else WEIGHT_PRIORS[1]
    for name in ("weight_concentration_prior", "mean_precision_prior", "degrees_of_freedom_prior"):
        _check_positive(name, getattr(estimator, name))
    mean, covariance = sample_covariance(x, np.ones(len(x), x.dtype) if weights is None else weights)
    dof = d if estimator.degrees_of_freedom_prior is None else estimator.degrees_of_freedom_prior
    if not dof > d - 1:
        raise InputError(f"The parameter 'degrees_of_freedom_prior' should be greater than {d - 1}, but got {dof:.3f}.")
    if estimator.mean_prior is not None:
        mean = array_of_shape("means", "mean_prior", estimator.mean_prior, (d,))
    concentration = estimator.weight_concentration_prior
    if concentration is None:
        concentration = 1.0 if inference == "map" else 1.0 / k  # below 1 there is no mode
    shrinkage = 1.0 if estimator.mean_precision_prior is None else estimator.mean_precision_prior
    if estimator.covariance_prior is None:
        covariance = _default_covariance(covariance, family)
    else:
        covariance = _covariance(estimator.covariance_prior, d, family)
    return Numbers(weight_type, concentration, shrinkage, mean, dof, covariance)


def _default_covariance(covariance: np.ndarray, family: Family) -> Any:
    """The covariance of the rows in the family's own form.

    That of few rows, or of columns that are sums of others, is singular, and no prior: its variances are.
    """
    variances = covariance.diagonal().copy()
    if family.diagonal:
        return variances.mean() if family.isotropic else variances
    return covariance if is_positive_definite(covariance) else np.diag(variances)


def _covariance(value: Any, num_features: int, family: Family) -> Any:
    if family.isotropic:
        _check_positive("covariance_prior", value)
        return value
    name = f"{family.name} covariance_prior"
    shape = (num_features,) if family.diagonal else (num_features, num_features)
    array = array_of_shape(name, "covariance_prior", value, shape)
    if family.diagonal:
        if (array <= 0).any():
            raise InputError(f"'{name}' should be positive; it has {array.min():g}")
    elif not np.allclose(array, array.T) or np.linalg.eigvalsh(array)[0] <= 0:
        raise InputError(f"'{name}' should be symmetric, positive-definite; give a covariance matrix")
    return array


def _check_positive(name: str, value: Any) -> None:
    if value is None:
        return
    try:
        number = finite_number(name, value)
    except InputError as error:
        raise ParameterError(str(error).replace("of at least 0", "greater than 0")) from None
    if not number > 0:
        raise ParameterError(f"{name}={shown(value)} must be greater than 0")
