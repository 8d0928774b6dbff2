"""The engines behind `BayesianGaussianMixture`, each with what scikit-learn's arguments say of it."""

import dataclasses
import inspect
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from bayesgmm.engines.cavi import fit_cavi
from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.engines.gibbs import fit_gibbs
from bayesgmm.engines.map import fit_map
from bayesgmm.engines.modes import NUM_STARTS, em_optima
from bayesgmm.engines.nuts import fit_nuts
from bayesgmm.engines.vi import fit_vi
from bayesgmm.estimators.arguments import key_of
from bayesgmm.estimators.rows import over_rows
from bayesgmm.estimators.runs import tell_run
from bayesgmm.estimators.starts import start_of_init
from bayesgmm.estimators.words import ParameterError
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.validation import shown
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.starts.named import start_from

_ENGINES = {"map": fit_map, "vi": fit_vi, "gibbs": fit_gibbs, "nuts": fit_nuts}
INFERENCE = ("cavi", *_ENGINES)
_STARTS = {"cavi": 1, "map": NUM_STARTS, "vi": 1, "gibbs": NUM_STARTS, "nuts": NUM_STARTS}
_OWN_ARGUMENTS = {"x", "num_components", "family", "prior", "key", "start", "num_starts", "on_failure", "progress"}


def engine_options(inference: str, options: Any) -> dict[str, Any]:
    """Further arguments of the engine, as the caller gives them.

    Raises:
        ParameterError: for what is no mapping, and for arguments that the engine does not take.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ParameterError(f"engine_options={shown(options)} must be a mapping of names to values")
    if inference == "cavi":
        known = {"num_draws"}
    else:
        known = set(inspect.signature(_ENGINES[inference]).parameters) - _OWN_ARGUMENTS
    if unknown := [name for name in options if name not in known]:
        raise ParameterError(
            f"engine_options has {unknown[0]!r}, which inference={inference!r} does not take; choose from "
            f"{', '.join(sorted(known))}"
        )
    return dict(options)


def best_ascent(
    estimator: Any,
    x: np.ndarray,
    weights: np.ndarray | None,
    family: Family,
    prior: Any,
    previous: Fit | None,
    rng: np.random.RandomState,
) -> Fit:
    """The best of the ascents, or the one that goes on from a previous fit. No draws are made.

    Scikit-learn counts the pass that evaluates a start as a step.

    Raises:
        ParameterError: for no step at all.
    """
    if estimator.max_iter == 0:
        raise ParameterError("max_iter=0 leaves the prior as it is; take at least 1 step")
    total_weight = len(x) if weights is None else weights.sum()
    k = estimator.n_components
    reached = None
    if previous is None:
        problem = (x, k, weights, family, estimator.reg_covar)
        starts: Any = (_first_shares(estimator.init_params, *problem, rng) for _ in range(_num_starts(estimator)))
    elif previous.approximation is None:
        starts = [previous.mixture]
    else:
        starts, reached = [previous.approximation], previous.summary["elbo"]
    fits = []
    for index, start in enumerate(starts):
        begun = time.perf_counter()
        fit = fit_cavi(
            x,
            k,
            family=family,
            prior=prior,
            key=jax.random.key(0),  # nothing is drawn
            start=start,
            row_weights=weights,
            tol=estimator.tol / total_weight,
            max_steps=estimator.max_iter - 1,
            num_draws=0,
            on_failure="ignore",
        )
        fit = jax.tree.map(np.asarray, fit)
        if reached is not None and abs(fit.trace[0] - reached) < estimator.tol:
            fit = dataclasses.replace(fit, result=np.int32(ResultCode.successful))
        seconds, verbose = time.perf_counter() - begun, int(estimator.verbose)
        tell_run(index, bounds_of(fit), bool(fit.successful), seconds, verbose, estimator.verbose_interval)
        fits.append(fit)
    return max(fits, key=lambda fit: float(fit.summary["elbo"]))


def _num_starts(estimator: Any) -> int:
    return _STARTS[estimator.inference] if estimator.n_init == "auto" else int(estimator.n_init)


def _first_shares(
    init_params: str,
    x: np.ndarray,
    num_components: int,
    weights: np.ndarray | None,
    family: Family,
    reg_covar: Any,
    rng: np.random.RandomState,
) -> np.ndarray:
    """Responsibilities that the first numbers of the approximation are to have, as scikit-learn begins."""
    start, key = start_of_init(init_params, {}, x, num_components, weights, family, reg_covar, rng)
    if isinstance(start, str):
        start = start_from(as_rows(x, weights), num_components, family, reg_covar, start=start, key=key)
    return over_rows(start.responsibilities, x, start.means.size) if isinstance(start, Mixture) else start


def fit_by_engine(
    estimator: Any,
    x: np.ndarray,
    family: Family,
    prior: AnyPrior,
    previous: Fit | None,
    options: dict[str, Any],
    rng: np.random.RandomState,
) -> Fit:
    """The fit by an engine that starts from fits by EM, or from a previous fit."""
    inference, key = estimator.inference, key_of(rng)
    if previous is not None:
        starts = [previous.mixture]
    else:
        starts = em_optima(
            x,
            estimator.n_components,
            family,
            _num_starts(estimator),
            key=key,
            start=estimator.init_params,
            tol=estimator.tol,
            max_steps=estimator.max_iter,
            reg_covar=estimator.reg_covar,
        )
    start = starts[0] if inference == "vi" else starts
    told: dict[str, Any] = {}
    if inference != "map" and estimator.verbose:
        told["progress"] = _every(estimator.verbose_interval)
    if estimator.verbose:
        print(f"{inference}: {len(starts)} starts by EM")
    begun = time.perf_counter()
    fit = _ENGINES[inference](
        x,
        estimator.n_components,
        family=family,
        prior=prior,
        key=key,
        start=start,
        on_failure="ignore",
        **told,
        **options,
    )
    if estimator.verbose:
        lapse = f" in {time.perf_counter() - begun:.5f} s" if estimator.verbose > 1 else ""
        print(f"{inference}: {fit.code.explanation}{lapse}")
    return jax.tree.map(np.asarray, fit)


def bounds_of(fit: Fit) -> np.ndarray:
    """What inference climbed, after each of its steps; samplers do not climb."""
    trace = np.asarray(fit.trace, np.float64)
    return trace[np.isfinite(trace)] if trace.ndim == 1 else np.empty(0)


def _every(interval: int) -> Callable[[str], None]:
    """Prints every so manieth sentence that it is told, from the first on."""
    count = itertools.count()

    def tell(sentence: str) -> None:
        if next(count) % interval == 0:
            print(f"  {sentence}")

    return tell
