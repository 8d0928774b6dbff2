"""`BayesianGaussianMixture`: five ways to a posterior behind scikit-learn's interface, and its arguments of a prior."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import jax
import numpy as np
from sklearn.utils.validation import check_is_fitted

from bayesgmm.diagnostics.datatree import to_datatree
from bayesgmm.diagnostics.findings import percent
from bayesgmm.engines.cavi import draw_from_approximation
from bayesgmm.engines.fit import Fit, ResultCode, warn_or_raise
from bayesgmm.engines.modes import em_optima
from bayesgmm.engines.registry import ENGINES, Count, Engine, choice_of
from bayesgmm.errors import InputError
from bayesgmm.estimators import arguments
from bayesgmm.estimators.arguments import AUTO, auto_or
from bayesgmm.estimators.base import Auto, MixtureEstimator, named, over_rows, sample_of_draws
from bayesgmm.estimators.maximum_likelihood import report_run
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.coordinates import normalise
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.keys import split_key
from bayesgmm.numerics.precision import AnyArray, ArrayLike, compiled
from bayesgmm.numerics.thresholds import MAX_TRUNCATED
from bayesgmm.numerics.validation import nonnegative, short_repr, whole_number
from bayesgmm.posterior.allocations import flat_draws, mean_responsibilities, pooled_draws
from bayesgmm.priors.conjugate import AnyPrior, conjugate_prior, is_positive_definite, sample_covariance
from bayesgmm.priors.normal_inverse_wishart import ConjugateDistribution, expected_mixture, sample_mixture
from bayesgmm.priors.weakly_informative import WeaklyInformativePrior, default_prior
from bayesgmm.starts.named import start_from

if TYPE_CHECKING:
    from xarray import DataTree

WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")
NUMBERS = (
    "weight_concentration_prior",
    "mean_precision_prior",
    "mean_prior",
    "degrees_of_freedom_prior",
    "covariance_prior",
)
PRIOR_ARGUMENTS = ("weight_concentration_prior_type", *NUMBERS)
Inference = Literal["cavi", "gibbs", "map", "vi", "nuts"]
WeightPrior = Annotated[Literal["dirichlet_process", "dirichlet_distribution"], choice_of(*WEIGHT_PRIORS)]
_NUM_DRAWS = 1000  # that the tree of a conjugate approximation has
_DRAWS_AT_ONCE = 4096
_APPROXIMATION = ("weight_concentration_", "mean_precision_", "degrees_of_freedom_")
# Arguments of engines that those of the estimator decide.
_OWN_ARGUMENTS = {"x", "num_components", "family", "prior", "key", "start", "num_starts", "on_failure", "progress"}
_OWN_LIMITS = {"row_weights", "num_restarts", "tol", "max_steps"}


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class BayesianGaussianMixture(MixtureEstimator):
    """Posterior of a Gaussian mixture; scikit-learn's class of this name by `inference="cavi"`, and four more ways.

    Everything is computed in float64 whatever JAX's global setting, and in float32 where the rows are float32.

    The methods average over the posterior. `score_samples` is the logarithm of the posterior predictive density, which
    integrates to 1 (what scikit-learn's class gives does not); `sample` draws from it; `predict_proba` gives mean
    responsibilities. The fitted attributes are those of the mixture of posterior means. A Dirichlet process is
    truncated as by Blei & Jordan (2006): the last component takes all that earlier ones have left.

    Args:
        n_components: k.
        covariance_type: "full", "tied", "diag" or "spherical".
        inference: "cavi" (coordinate ascent of conjugate distributions), "gibbs" (draws by Gibbs sampling), "map" (the
            mode), "vi" (a normal approximation by stochastic ascent) or "nuts" (draws by NUTS).
        tol: "cavi" stops when a step changes the evidence lower bound by less than this, in all and not per row, as
            scikit-learn's class does; for the others it is that of the fits by EM that they start from. "auto" is
            1e-3, or with `init_params="auto"` that of `fit_cavi` (1e-6 for each row) and of `fit_em`.
        reg_covar: ridge of the covariances that inference starts from, in squared units of the data; the prior holds
            those that it ends with. "auto" as in `GaussianMixture`.
        max_iter: limit on steps of each ascent of "cavi", or of each fit by EM that the others start from. "auto" is
            100, or 1000 with `init_params="auto"`.
        n_init: number of starts; "auto" is 4 for the samplers and "map", 1 for "vi", and for "cavi" 1, or 10 with
            `init_params="auto"`.
        init_params: "auto" (as the function of the engine starts by default), or as in `GaussianMixture`.
        weight_concentration_prior_type: "dirichlet_process", by default for "cavi", or "dirichlet_distribution", by
            default for the others.
        weight_concentration_prior: by default 1 / k, and 1 for "map", which has no mode below.
        mean_precision_prior, mean_prior, degrees_of_freedom_prior, covariance_prior: numbers of the conjugate prior, by
            default 1, the column means, d, and the covariance of the rows (their variances, where it is singular).
            "map", "vi" and "nuts" use `bayesgmm.default_prior` unless one of these five is given.
        random_state: a seed, a `numpy.random.RandomState`, or None for NumPy's global generator.
        warm_start: whether `fit` continues from the last fit, if there is one; then `n_init` does not count.
        verbose: 1 reports starts and steps, 2 also times and bounds; samplers report their progress.
        verbose_interval: steps, or reports, from one such line to the next.
        prior: in place of those numbers: "conjugate" or "weakly_informative" for `bayesgmm.conjugate_prior` or
            `bayesgmm.default_prior` of the rows, or such a prior itself.
        engine_options: mapping of further arguments of `bayesgmm.fit_map`, `fit_vi`, `fit_gibbs` or `fit_nuts`, such as
            `{"num_draws": 2000}`; of "cavi" only `num_draws`, for `datatree_`.

    Attributes:
        weights_, means_, covariances_, precisions_, precisions_cholesky_: the mixture of posterior means, in
            scikit-learn's shapes; of "map" the mode.
        converged_, n_iter_: whether inference converged, and its number of steps.
        lower_bound_, lower_bounds_: the evidence lower bound of "cavi" and "vi", in all, with its constants, and after
            each step; for "map" the log posterior density; for samplers NaN, and none.
        labels_: the component of every row.
        fit_: the `bayesgmm.Fit`, whose `code` says how inference ended.
        prior_: the prior that was used.
        weight_concentration_prior_, mean_precision_prior_, mean_prior_, degrees_of_freedom_prior_, covariance_prior_:
            its numbers, where they come from the arguments of these names.
        weight_concentration_, mean_precision_, degrees_of_freedom_: numbers of the approximation, of "cavi" only.
        n_features_in_, feature_names_in_: as in scikit-learn.
    """

    n_components: Count = 1
    inference: Annotated[Inference, choice_of(*get_args(Inference))] = "cavi"
    n_init: Annotated[int | Auto, auto_or(whole_number)] = "auto"
    weight_concentration_prior_type: WeightPrior | None = None
    weight_concentration_prior: float | None = None
    mean_precision_prior: float | None = None
    mean_prior: ArrayLike | None = None
    degrees_of_freedom_prior: float | None = None
    covariance_prior: ArrayLike | None = None
    prior: Annotated[AnyPrior | str | None, named("conjugate", "weakly_informative")] = None
    engine_options: Mapping[str, object] | None = None

    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> Self:
        """Find the posterior given rows X (n, d).

        Args:
            X: rows (n, d).
            y: not used.
            sample_weight: weight of every row (n), for `inference="cavi"`; weight 2 is the row twice. By default 1.

        Raises:
            InputError: a `ValueError`, for arguments and rows that cannot be used.
        """
        rows = self._training_rows(X, sample_weight)
        engine, family = ENGINES[self.inference], self._family
        options = self._checked_options(engine)
        if sample_weight is not None and not engine.takes_weights:
            raise InputError(
                f"inference={self.inference!r} takes no sample_weight; leave it out, or choose inference='cavi', or "
                "GaussianMixture(prior='conjugate')"
            )
        rng = arguments.generator_of(self.random_state)
        with arguments.sklearn_words():
            given = {name: value for name in PRIOR_ARGUMENTS if (value := getattr(self, name)) is not None}
            prior, numbers = prior_of(self.prior, given, engine, rows, self.n_components, family)
            run = functools.partial(engine.fit, rows.values, self.n_components, family=family, prior=prior)
            find = self._best_ascent if engine.makes_starts else self._fit_from_optima
            fit = find(engine, functools.partial(run, on_failure="ignore", **options), rows, rng)
        self._keep(fit, prior, numbers)
        self._rows = rows.values, sample_weight is not None, options.get("num_draws", _NUM_DRAWS), arguments.key_of(rng)
        failure = f"inference={self.inference!r} did not converge: {fit.explanation}; see engine_options"
        return self._finish(rows, "" if engine.makes_starts else failure)

    @functools.cached_property
    def datatree_(self) -> "DataTree":
        """The posterior as an ArviZ `DataTree`, made when first asked for: see `bayesgmm.to_datatree`.

        Raises:
            InputError: for a fit of weighted rows, and for an estimator that was read from a file, which has no rows.
        """
        check_is_fitted(self)
        if not hasattr(self, "_rows"):
            raise InputError(
                "datatree_ needs the rows, which files do not keep; call bayesgmm.to_datatree(estimator.fit_, X, "
                "prior=estimator.prior_, key=...)"
            )
        x, weighted, num_draws, key = self._rows
        if weighted:
            raise InputError("datatree_ has log-likelihoods of rows that count once; fit without sample_weight")
        draw_key, tree_key = split_key(key)
        fit = self.fit_
        if fit.approximation is not None:
            fit = draw_from_approximation(fit, x, num_draws=num_draws, prior=self.prior_, key=draw_key)
        names = list(getattr(self, "feature_names_in_", ())) or None
        return to_datatree(fit, x, prior=self.prior_, key=tree_key, feature_names=names)

    def __getstate__(self) -> dict[str, object]:
        """Without the rows of the fit, which may be many."""
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_rows"}

    def _checked_options(self, engine: Engine) -> dict[str, Any]:
        """Further arguments of the engine, as the caller gives them.

        Raises:
            ParameterError: for what is no mapping, and for arguments that the engine does not take.
        """
        options = {} if self.engine_options is None else self.engine_options
        if not isinstance(options, Mapping):
            raise arguments.ParameterError(f"engine_options={short_repr(options)} must be a mapping of names to values")
        known = set(engine.parameters) - _OWN_ARGUMENTS - (_OWN_LIMITS if engine.makes_starts else set())
        if unknown := [name for name in options if name not in known]:
            raise arguments.ParameterError(
                f"engine_options has {unknown[0]!r}, which inference={self.inference!r} does not take; choose from "
                f"{', '.join(sorted(known))}"
            )
        return dict(options)

    def _best_ascent(self, engine: Engine, run: Callable[..., Fit], rows: Rows, rng: np.random.RandomState) -> Fit:
        """The best of the ascents, or the one that continues the previous fit. No draws are made.

        Scikit-learn counts the pass that evaluates a start as a step.

        Raises:
            ParameterError: for no step at all.
        """
        if self.max_iter == 0:
            raise arguments.ParameterError("max_iter=0 leaves the prior as it is; take at least 1 step")
        previous, reached = self._previous_fit(rows), np.nan
        own, total = engine.parameters, float(np.sum(rows.weights))
        tol = self._or_default("tol", own["tol"].default * total)
        max_steps = self._or_default("max_iter", own["max_steps"].default + 1) - 1
        num_starts = self._or_default("n_init", own["num_restarts"].default)
        run = functools.partial(run, row_weights=rows.weights, tol=tol / total, max_steps=max_steps, num_draws=0)
        key = jax.random.key(0)  # nothing is drawn
        if previous is not None:
            starts = [previous.approximation or previous.mixture]
            reached = np.nan if previous.approximation is None else previous.summary["elbo"]
        elif self._is_auto:
            starts, key = [own["start"].default], arguments.key_of(rng)
            run = functools.partial(run, num_restarts=num_starts)  # side by side
        else:
            starts = (self._first_shares(rows, rng) for _ in range(num_starts))
        fits = []
        for index, start in enumerate(starts):
            begun = time.perf_counter()
            fit = jax.tree.map(np.asarray, run(key=key, start=start))
            if abs(fit.trace[0] - reached) < tol:
                fit = dataclasses.replace(fit, result=np.int32(ResultCode.successful))
            report_run(index, _bounds(fit), fit, time.perf_counter() - begun, self)
            fits.append(fit)
        return max(fits, key=lambda fit: float(fit.summary["elbo"]))

    def _first_shares(self, rows: Rows, rng: np.random.RandomState) -> np.ndarray:
        """Responsibilities that the first numbers of the approximation are to have, as scikit-learn begins."""
        start, key = self._start(rows, {}, rng)
        if isinstance(start, str):
            problem = (rows, self.n_components, self._family, self._ridge_of_starts(rows))
            start = start_from(*problem, start=start, key=key)
        if isinstance(start, Mixture):
            start = over_rows(start.responsibilities, np.asarray(rows.values), start.means.size)
        return start

    def _fit_from_optima(self, engine: Engine, run: Callable[..., Fit], rows: Rows, rng: np.random.RandomState) -> Fit:
        """The fit by an engine that starts from fits by EM, or from the previous fit."""
        key, previous = arguments.key_of(rng), self._previous_fit(rows)
        if previous is not None:
            starts = [previous.mixture]
        else:
            names = {"tol": "tol", "max_steps": "max_iter", "start": "init_params"}
            options: dict[str, Any] = {ours: self._or_default(theirs, AUTO) for ours, theirs in names.items()}
            options = {name: value for name, value in options.items() if value != AUTO}  # by default EM's own
            default = engine.parameters["num_starts"].default if engine.takes_starts else 1
            problem = (rows.values, self.n_components, self._family, default if self.n_init == AUTO else self.n_init)
            starts = em_optima(*problem, key=key, reg_covar=self._ridge(rows), **options)
        if self.verbose:
            print(f"{engine.name}: {len(starts)} starts by EM")
            if "progress" in engine.parameters:
                run = functools.partial(run, progress=_print_every(self.verbose_interval))
        begun = time.perf_counter()
        fit = run(key=key, start=starts if engine.takes_starts else starts[0])
        if self.verbose:
            lapse = f" in {time.perf_counter() - begun:.5f} s" if self.verbose > 1 else ""
            print(f"{engine.name}: {fit.explanation}{lapse}")
        return jax.tree.map(np.asarray, fit)

    def _keep(self, fit: Fit, prior: AnyPrior, numbers: Mapping[str, float | np.ndarray]) -> None:
        for name in ("datatree_", *(f"{name}_" for name in NUMBERS), *_APPROXIMATION):
            vars(self).pop(name, None)
        self.fit_, self.prior_, family = fit, prior, self._family
        self._set_mixture(fit.mixture, family)
        bounds = _bounds(fit)
        self.converged_ = bool(fit.successful)
        self.n_iter_ = len(bounds) if ENGINES[fit.engine].makes_starts else int(fit.num_steps)
        self.lower_bounds_ = bounds[-self.n_iter_ :].tolist()  # without that of the start, where there is one
        self.lower_bound_ = float(fit.summary.get("elbo", bounds[-1] if bounds.size else np.nan))
        vars(self).update({f"{name}_": value for name, value in numbers.items()})
        if (found := fit.approximation) is None:
            return
        self.weight_concentration_ = found.concentration
        if found.remainder is not None:  # nothing is left after the last component
            self.weight_concentration_ = found.concentration, np.append(found.remainder[:-1], 0.0)
        self.mean_precision_ = found.shrinkage
        dof = found.dof / repeats(family, *found.mean.shape)
        self.degrees_of_freedom_ = float(dof[0]) if family.shared else dof

    def _responsibilities(self, x: np.ndarray) -> AnyArray:
        """Responsibilities averaged over the draws.

        Of a conjugate approximation the allocation of a row that is best for it (Bishop 2006, equation 10.49).
        """
        if self.fit_.approximation is not None:
            return _allocating_mixture(self.fit_.approximation).responsibilities(x)
        if self.fit_.draws is None:
            return super()._responsibilities(x)
        return mean_responsibilities(flat_draws(self.fit_.draws), x)

    def _log_prob(self, x: np.ndarray) -> AnyArray:
        """Log-density averaged over the posterior, of a conjugate approximation in closed form."""
        if self.fit_.approximation is not None:
            return self.fit_.approximation.predictive_log_prob(x)
        if self.fit_.draws is None:
            return super()._log_prob(x)
        mean_density = pooled_draws(flat_draws(self.fit_.draws))
        return over_rows(mean_density.log_prob, x, mean_density.means.size)

    def _sample(self, num_rows: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        if self.fit_.approximation is not None:
            draw_key, key = split_key(arguments.key_of(rng))
            drawn = _draw_mixtures(self.fit_.approximation, jax.random.split(draw_key, _DRAWS_AT_ONCE))
            return sample_of_draws(jax.tree.map(np.asarray, drawn), num_rows, rng, key=key)
        if self.fit_.draws is None:
            return super()._sample(num_rows, rng)
        return sample_of_draws(flat_draws(self.fit_.draws), num_rows, rng, key=arguments.key_of(rng))


@compiled
def _allocating_mixture(approximation: ConjugateDistribution) -> Mixture:
    """The expected mixture, its weights made to sum to one, which leaves its responsibilities as they are."""
    mixture = expected_mixture(approximation)
    return dataclasses.replace(mixture, log_weights=normalise(mixture.log_weights))


@compiled
def _draw_mixtures(approximation: ConjugateDistribution, keys: jax.Array) -> Mixture:
    return jax.vmap(lambda key: sample_mixture(approximation, key=key))(keys)


def _bounds(fit: Fit) -> np.ndarray:
    """The objective that inference climbed, after each of its steps; samplers do not climb."""
    trace = np.asarray(fit.trace, np.float64)
    return trace[np.isfinite(trace)] if trace.ndim == 1 else np.empty(0)


def _print_every(interval: int) -> Callable[[str], None]:
    """A function that prints every n-th message, from the first on."""
    count = itertools.count()

    def tell(sentence: str) -> None:
        if next(count) % interval == 0:
            print(f"  {sentence}")

    return tell


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
        raise arguments.ParameterError(
            f"prior={short_repr(prior)} and {name}={short_repr(value)} contradict each other; give one of them"
        )
    if isinstance(prior, str) and prior == "conjugate":
        return conjugate_prior(rows, num_components, family), {}
    if prior is None or isinstance(prior, str):
        prior = default_prior(rows, num_components)
    if not isinstance(prior, AnyPrior):
        raise arguments.ParameterError(
            f"prior={short_repr(prior)} is no prior; give 'conjugate', 'weakly_informative', or one of conjugate_prior "
            "or default_prior"
        )
    if isinstance(prior, WeaklyInformativePrior) and engine.prior == "conjugate":
        raise arguments.ParameterError(
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
    mean = arguments.array_of_shape("means", "mean_prior", given.get("mean_prior", column_means), (d,))
    covariance = _covariance(given, covariance, family)
    # Scikit-learn's default for its own method, a conjugate approximation.
    process = engine.gives == "approximation" and engine.prior == "conjugate"
    times = repeats(family, k, d)
    of_weights = given.get("weight_concentration_prior_type", WEIGHT_PRIORS[not process])
    weights = {"concentration": concentration, "stick_breaking": of_weights == WEIGHT_PRIORS[0]}
    spread = {"dof": times * dof, "scale": times * covariance}
    prior = conjugate_prior(rows, k, family, mean=mean, shrinkage=shrinkage, **weights, **spread)
    if prior.truncated_share > MAX_TRUNCATED:
        message = (
            f"weight_concentration_prior={concentration:g} is too large for n_components={k}: the Dirichlet process is "
            f"cut off where {percent(prior.truncated_share)} of it is left, all for the last component; raise "
            "n_components, or lower weight_concentration_prior"
        )
        warn_or_raise(message, "warn")
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
    array = arguments.array_of_shape(called, "covariance_prior", given.get("covariance_prior", default), default.shape)
    arguments.check_positive_definite(called, "it", array, diagonal=family.diagonal)
    return array


@arguments.sklearn_words(arguments.ParameterError)
def _positive(given: Mapping[str, ArrayLike], name: str, default: float) -> float:
    """The number of this name, or its default."""
    number = nonnegative(name, given.get(name, default))
    if not number > 0:
        raise InputError(f"{name}={short_repr(given[name])} must be greater than 0")
    return float(number)
