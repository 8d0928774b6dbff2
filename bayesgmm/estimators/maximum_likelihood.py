"""`GaussianMixture`: EM behind scikit-learn's interface, with row weights, priors and acceleration."""

import dataclasses
import functools
import math
import time
from typing import Annotated, Any, Literal, Self

import jax
import numpy as np

from bayesgmm.diagnostics.criteria import Criteria, information_criteria
from bayesgmm.engines.em import fit_em
from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.engines.registry import BASE_ENGINE, ENGINES, choice_of
from bayesgmm.engines.restarts import sorted_components
from bayesgmm.errors import InputError
from bayesgmm.estimators.arguments import AUTO, ILL_DEFINED, auto_or, check_init, generator_of, key_of, sklearn_words
from bayesgmm.estimators.base import Auto, MixtureEstimator, named
from bayesgmm.likelihood.rows import Rows, enough_rows
from bayesgmm.mixtures.families import FAMILIES, Family, get_family
from bayesgmm.mixtures.mixture import Mixture, as_mixture
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.numerics.validation import whole_number
from bayesgmm.priors.conjugate import ConjugatePrior, check_conjugate_prior, conjugate_prior


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class GaussianMixture(MixtureEstimator):
    """Gaussian mixture by maximum likelihood; scikit-learn's class of this name, and more.

    By default the fit is that of `bayesgmm.fit_em(..., accelerate=True)`, by its starts, limits and ridge. From a start
    that scikit-learn's class has (`init_params`), EM runs as there: from `n_init` starts, each to its end, and the
    highest log-likelihood is kept. Everything is computed in float64 whatever JAX's global setting, and in float32
    where the rows are float32.

    From such a start two things differ from scikit-learn's class. `lower_bound_` is the mean log-likelihood of exactly
    the mixture that is reported, not of the one a step before; so the stopping rule is met a step sooner, and `n_iter_`
    is one less at the same `tol`. And a fit with a collapsed component is never `converged_`.

    Args:
        n_components: k.
        covariance_type: "full", "tied", "diag" or "spherical".
        tol: EM stops when a step changes the mean log-likelihood per row (per unit of `sample_weight`) by less. "auto"
            is 1e-3, or with `init_params="auto"` what `fit_em` does: stop when less than 1e-7 is left to gain.
        reg_covar: ridge added to the variances, in squared units of the data. "auto" is 1e-6, or with
            `init_params="auto"` that of `fit_em`, a tiny fraction of each component's own variances, where the rows
            determine every covariance.
        max_iter: step limit of each run; 0 takes the start as it is. "auto" is 100, or 1000 with `init_params="auto"`.
        n_init: number of starts. "auto" is 1, or with `init_params="auto"` that of `fit_em`, 40 or 10, of which the
            best are carried on.
        init_params: "auto" (the random starts of `fit_em`), "kmeans" (scikit-learn's, so that the same seed starts
            where its class does), "k-means++" (nearest of k rows drawn far apart, on standardised columns), "random"
            (a few rows for each component, drawn at random), "random_from_data" (nearest of k rows drawn at random) or
            "hierarchical" (model-based, as R's mclust).
        weights_init, means_init, precisions_init: parts of the start, in place of those that `init_params` makes, by
            default from "kmeans".
        random_state: a seed, a `numpy.random.RandomState`, or None for NumPy's global generator.
        warm_start: whether `fit` continues from the last fit, if there is one; then `n_init` does not count.
        verbose: 1 reports starts and steps, 2 also times and changes of the log-likelihood.
        verbose_interval: steps from one such line to the next.
        prior: None for maximum likelihood; "conjugate" for the posterior mode under `bayesgmm.conjugate_prior` of the
            rows, or such a prior itself. `lower_bound_` and `tol` are then of the log posterior density.
        acceleration: None, or "squarem" to extrapolate every second step where that does not lower the likelihood.
            "auto" is "squarem" where `tol` is that of `fit_em`, else None.

    Attributes:
        weights_, means_, covariances_, precisions_, precisions_cholesky_: the mixture, in scikit-learn's shapes.
        converged_, n_iter_: whether the best run met `tol`, and after how many steps (not those of short runs).
        lower_bound_, lower_bounds_: the mean log-likelihood at its end, and after each of its steps.
        labels_: the component of every row.
        fit_: the `bayesgmm.Fit`, whose `code` says how the run ended.
        prior_: the prior that was used, or None.
        n_features_in_, feature_names_in_: as in scikit-learn.
    """

    n_init: Annotated[int | Auto, auto_or(whole_number)] = "auto"
    weights_init: ArrayLike | None = None
    means_init: ArrayLike | None = None
    precisions_init: ArrayLike | None = None
    prior: Annotated[Literal["conjugate"] | ConjugatePrior | None, named("conjugate")] = None
    acceleration: Annotated[Literal["auto", "squarem"], choice_of("auto", "squarem")] | None = "auto"

    @classmethod
    def from_mixture(cls, mixture: Mixture, covariance_type: str | None = None, **arguments: Any) -> Self:
        """An estimator that is fitted already, with this mixture; `arguments` are further ones of the constructor.

        Args:
            mixture: a single mixture, such as the `mixture` of a fit by any engine.
            covariance_type: by default "full" or "diag", or "tied" where components share a covariance matrix.

        Raises:
            InputError: for many mixtures at once, and for a covariance type that the mixture does not have.
        """
        if as_mixture(mixture).draw_shape:
            raise InputError(f"mixture has leading axes {mixture.draw_shape}; index it down to a single mixture")
        factor = np.asarray(mixture.precision_factor)
        if covariance_type is None:
            found = (type(mixture.factor), len(factor) < mixture.num_components)
            covariance_type = next(f.name for f in FAMILIES.values() if (f.representation, f.shared) == found)
        estimator = cls(mixture.num_components, covariance_type=covariance_type, **arguments)
        family = estimator._family
        differ = family.isotropic and (factor != factor[:, :1]).any()
        num_factors = family.num_factors(mixture.num_components)
        if not isinstance(mixture.factor, family.representation) or len(factor) != num_factors or differ:
            kind = type(mixture.factor).__name__.lower()
            raise InputError(
                f"covariance_type={covariance_type!r} does not fit a mixture whose {kind} precision factor has shape "
                f"{factor.shape}{', with variances that differ between features' if differ else ''}; leave it out"
            )
        estimator._keep(_fit_of(mixture, family), 1.0)
        estimator.n_features_in_ = mixture.num_features
        estimator.prior_ = None
        return estimator

    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the mixture to rows X (n, d).

        Args:
            X: rows (n, d).
            y: not used.
            sample_weight: weight of every row (n); weight 2 is the row twice. By default 1.

        Raises:
            InputError: a `ValueError`, for arguments and rows that cannot be fitted.
        """
        rows = self._training_rows(X, sample_weight)
        given = {"weights": self.weights_init, "means": self.means_init, "precisions": self.precisions_init}
        given = check_init(given, self.n_components, rows.num_features, self._family)
        rng = generator_of(self.random_state)
        with sklearn_words():
            prior = self._prior(rows)
            if prior is None and self.reg_covar == 0:
                try:
                    enough_rows(rows, self.n_components, self._family)
                except InputError as error:
                    raise InputError(f"{ILL_DEFINED} ({error})") from None
            ridge = self._ridge(rows, bounded=prior is not None)
            problem = {"family": self._family, "row_weights": rows.weights, "prior": prior, "reg_covar": ridge}
            way = self._way()
            em = functools.partial(fit_em, rows.values, self.n_components, **problem, **way, on_failure="ignore")
            max_steps = self._or_default("max_iter", _OWN["max_steps"].default)
            run = _EMRun(self, em, float(np.sum(rows.weights)), max_steps, way["tol"])
            num_starts = self._or_default("n_init", 1 if given else _OWN["num_restarts"].default)
            if self._previous_fit(rows) is not None:
                starts = [(self._mixture(), None)]
            elif self._is_auto and not given:
                em.keywords["num_restarts"] = num_starts  # short runs inside one fit
                starts = [(_OWN["start"].default, key_of(rng))]
            else:
                starts = (self._start(rows, given, rng) for _ in range(num_starts))
            fit = max((run(start, key, index) for index, (start, key) in enumerate(starts)), key=_merit)
            if run.ended_singular(fit):
                raise InputError(f"{ILL_DEFINED} ({fit.explanation})")
        self.prior_ = prior
        self._keep(fit, run.total_weight)
        return self._finish(rows)

    def bic(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Bayesian information criterion of the mixture on rows X (n, d); smaller is better."""
        return float(self._criteria(X, sample_weight).bic)

    def aic(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Akaike information criterion of the mixture on rows X (n, d); smaller is better."""
        return float(self._criteria(X, sample_weight).aic)

    def icl(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Integrated completed likelihood of the mixture on rows X (n, d), as a criterion; smaller is better."""
        return float(self._criteria(X, sample_weight).icl)

    @sklearn_words()
    def _criteria(self, X: ArrayLike, sample_weight: ArrayLike | None) -> Criteria:
        x = self._known_rows(X)
        return information_criteria(_fit_of(self._mixture(), self._fitted_family), x, sample_weight)

    def _way(self) -> dict[str, Any]:
        """Arguments of `fit_em` on how steps are made and when they end: its own, or scikit-learn's."""
        if self._is_auto and self.tol == AUTO:
            # From the first step on: then few rows need one program, not a second one for runs that are slow.
            way = {"accelerate": True, **{name: _OWN[name].default for name in ("tol", "stop_rule")}}
        else:
            way = {"accelerate": False, "tol": self._or_default("tol", self.tol), "stop_rule": "change"}
        if self.acceleration != AUTO:
            way["accelerate"] = self.acceleration is not None
        return {**way, "num_restarts": 1}

    def _prior(self, rows: Rows) -> ConjugatePrior | None:
        if self.prior is None:
            return None
        if isinstance(self.prior, str):
            return conjugate_prior(rows, self.n_components, self._family)
        return check_conjugate_prior(self.prior, self.n_components, rows.num_features, self._family)

    def _keep(self, fit: Fit, total_weight: float) -> None:
        self.fit_ = jax.tree.map(np.asarray, fit)
        self._set_mixture(fit.mixture, get_family(fit.family))
        bounds = self.fit_.steps / total_weight
        self.converged_ = bool(fit.successful)
        self.n_iter_ = int(fit.num_steps)
        self.lower_bound_, self.lower_bounds_ = float(bounds[-1]), bounds[1:].tolist()


_OWN = ENGINES[BASE_ENGINE].parameters


@dataclasses.dataclass(frozen=True)
class _EMRun:
    """EM from one start at a time, or the best of short runs, to its end; reported as it proceeds where `verbose`."""

    settings: GaussianMixture
    em: functools.partial[Fit]  # of a start, its key and a limit on steps
    total_weight: float
    max_steps: int
    tol: float

    def __call__(self, start: Mixture | np.ndarray | str, key: jax.Array | None, index: int) -> Fit:
        begun, verbose = time.perf_counter(), self.settings.verbose
        if not verbose or self.em.keywords["accelerate"] is not False or self.em.keywords["num_restarts"] > 1:
            # Extrapolation remembers earlier steps: it is not cut into stretches, and reported when it is over.
            fit = self._steps(start, key, self.max_steps)
            report_run(index, self._bounds(fit)[1:], fit, time.perf_counter() - begun, self.settings)
            return fit
        print(f"Initialization {index}")
        fit = self._in_stretches(start, key)
        _report_end(self._bounds(fit)[-1], fit, time.perf_counter() - begun, verbose)
        return fit

    def _steps(self, start: Mixture | np.ndarray | str, key: jax.Array | None, max_steps: int) -> Fit:
        return jax.tree.map(np.asarray, self.em(start=start, key=key, max_steps=max_steps))

    def _bounds(self, fit: Fit) -> np.ndarray:
        return np.asarray(fit.steps, np.float64) / self.total_weight

    def _in_stretches(self, start: Mixture | np.ndarray | str, key: jax.Array | None) -> Fit:
        """The same steps in stretches of `verbose_interval`, each reported."""
        interval, most = self.settings.verbose_interval, self.max_steps
        fit = self._steps(start, key, min(interval, most))
        trace, begun = fit.steps, time.perf_counter()
        while len(trace) - 1 < most and self._continues(fit):
            now = time.perf_counter()
            _report_step(len(trace) - 1, np.diff(self._bounds(fit)[-2:])[0], now - begun, self.settings.verbose)
            begun = now
            fit = self._steps(fit.mixture, None, min(interval, most - len(trace) + 1))
            trace = np.concatenate([trace, fit.steps[1:]])
        missing = np.full(max(0, most + 1 - len(trace)), np.nan, trace.dtype)
        fit = dataclasses.replace(fit, num_steps=np.int32(len(trace) - 1), trace=np.concatenate([trace, missing]))
        return jax.tree.map(np.asarray, sorted_components(fit)) if isinstance(start, str) else fit

    def ended_singular(self, fit: Fit) -> bool:
        """Whether a run ended because the next step had no density, or has none itself: scikit-learn raises there."""
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.mixture)):
            return True
        if self.em.keywords["reg_covar"] is None:  # the run with a spike is the best of several, and reported
            return False
        return fit.code in _FAILED and int(fit.num_steps) < self.max_steps and not self._settled(fit)

    def _continues(self, fit: Fit) -> bool:
        """Whether only the end of a stretch ended it; a component that has shrunk does not end a run alone."""
        whole = len(fit.steps) == len(fit.trace)
        return whole and fit.code in (ResultCode.max_steps_reached, ResultCode.collapsed) and not self._settled(fit)

    def _settled(self, fit: Fit) -> bool:
        bounds = self._bounds(fit)
        return len(bounds) > 1 and bool(abs(bounds[-1] - bounds[-2]) < self.tol)


def _fit_of(mixture: Mixture, family: Family) -> Fit:
    """A fit in name only, of a mixture that was made by hand or is fitted already."""
    nan = np.asarray(np.nan, np.asarray(mixture.means).dtype)
    return Fit(BASE_ENGINE, family.name, mixture, nan, np.int32(ResultCode.max_steps_reached), np.int32(0), nan[None])


_FAILED = (ResultCode.collapsed, ResultCode.nonfinite)


def _merit(fit: Fit) -> tuple[bool, float]:
    """The objective at the end of a run, by which runs are chosen; a collapsed run is last.

    Of runs that end in the same place the first is chosen, whatever rounding makes of their objectives.
    """
    objective = float(fit.steps[-1])
    if not math.isfinite(objective):
        return False, -math.inf
    return fit.code not in _FAILED, float(f"{objective:.11e}")


def report_run(index: int, bounds: np.ndarray, fit: Fit, seconds: float, settings: MixtureEstimator) -> None:
    """Print a report of a run that is over, with its bound after each step, as long as `verbose` asks for."""
    verbose, interval = settings.verbose, settings.verbose_interval
    if not verbose:
        return
    print(f"Initialization {index}")
    for step in range(interval, len(bounds), interval):
        _report_step(step, bounds[step - 1] - (bounds[step - 2] if step > 1 else -np.inf), None, verbose)
    _report_end(bounds[-1], fit, seconds, verbose)


def _report_step(step: int, change: float, seconds: float | None, verbose: int) -> None:
    line = f"  Iteration {step}"
    if verbose > 1:
        line += ("" if seconds is None else f"\t time lapse {seconds:.5f} s") + f"\t ll change {change:.5f}"
    print(line)


def _report_end(bound: float, fit: Fit, seconds: float, verbose: int) -> None:
    more = f" in {seconds:.5f} s, lower bound {bound:.5f}" if verbose > 1 else ""
    print(f"Initialization {'converged' if fit.successful else 'did not converge'}{more}.")
