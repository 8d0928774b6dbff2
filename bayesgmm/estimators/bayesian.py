"""`BayesianGaussianMixture`: five ways to a posterior behind scikit-learn's interface."""

import functools
import warnings
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from bayesgmm.diagnostics.datatree import to_datatree
from bayesgmm.engines.cavi import draw_from_approximation
from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.estimators.arguments import INIT_PARAMS, check_choice, generator_of, key_of
from bayesgmm.estimators.base import MixtureEstimator
from bayesgmm.estimators.inference import INFERENCE, best_ascent, bounds_of, engine_options, fit_by_engine
from bayesgmm.estimators.posterior import predictive_log_prob, responsibilities, sample_predictive
from bayesgmm.estimators.prior_arguments import NUMBERS, Numbers, prior_of, repeats
from bayesgmm.estimators.words import NOT_CONVERGED, in_scikit_learns_words, scikit_learns_words
from bayesgmm.mixtures.families import Family
from bayesgmm.priors.conjugate import AnyPrior

if TYPE_CHECKING:
    from xarray import DataTree

_NUM_DRAWS = 1000  # that the tree of a conjugate approximation has
_APPROXIMATION = ("weight_concentration_", "mean_precision_", "degrees_of_freedom_")


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
            scikit-learn's class does. The others start from fits by EM, which stop as `GaussianMixture` does.
        reg_covar: ridge of the covariances that inference starts from, in squared units of the data; the prior holds
            those that it ends with.
        max_iter: limit on steps of each ascent of "cavi", or of each fit by EM that the others start from.
        n_init: number of starts; "auto" is 1 for "cavi" and "vi", 4 for the samplers and "map".
        init_params: as in `GaussianMixture`.
        weight_concentration_prior_type: "dirichlet_process", by default for "cavi", or "dirichlet_distribution", by
            default for the others.
        weight_concentration_prior: by default 1 / k, and 1 for "map", which has no mode below.
        mean_precision_prior, mean_prior, degrees_of_freedom_prior, covariance_prior: numbers of the conjugate prior, by
            default 1, the column means, d, and the covariance of the rows (their variances, where it is singular).
            "map", "vi" and "nuts" use `bayesgmm.default_prior` unless one of these five is given.
        random_state: a seed, a `numpy.random.RandomState`, or None for NumPy's global generator.
        warm_start: whether `fit` goes on from the last fit, if there is one; then `n_init` does not count.
        verbose: 1 tells of starts and steps, 2 also of time and bounds; samplers report how far they are.
        verbose_interval: steps, or reports, from one such line to the next.
        prior: in place of those numbers: "conjugate" or "weakly_informative" for `bayesgmm.conjugate_prior` or
            `bayesgmm.default_prior` of the rows, or such a prior itself.
        engine_options: mapping of further arguments of `bayesgmm.fit_map`, `fit_vi`, `fit_gibbs` or `fit_nuts`, such as
            `{"num_draws": 2000}`; of "cavi" only `num_draws`, for `datatree_`.

    Attributes:
        weights_, means_, covariances_, precisions_, precisions_cholesky_: the mixture of posterior means, in
            scikit-learn's shapes; of "map" the mode.
        converged_, n_iter_: whether inference has done what it promises, and its steps.
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

    _auto_init = True

    def __init__(
        self,
        *,
        n_components=1,
        covariance_type="full",
        inference="cavi",
        tol=1e-3,
        reg_covar=1e-6,
        max_iter=100,
        n_init="auto",
        init_params="kmeans",
        weight_concentration_prior_type=None,
        weight_concentration_prior=None,
        mean_precision_prior=None,
        mean_prior=None,
        degrees_of_freedom_prior=None,
        covariance_prior=None,
        random_state=None,
        warm_start=False,
        verbose=0,
        verbose_interval=10,
        prior=None,
        engine_options=None,
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.inference = inference
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.prior = prior
        self.engine_options = engine_options

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Find the posterior given rows X (n, d).

        Args:
            X: rows (n, d).
            y: not used.
            sample_weight: weight of every row (n), for `inference="cavi"`; weight 2 is the row twice. By default 1.

        Raises:
            InputError: a `ValueError`, for arguments and rows that cannot be used.
        """
        x, weights = self._training_rows(X, sample_weight)
        family = self._family
        check_choice("inference", self.inference, INFERENCE)
        check_choice("init_params", self.init_params, INIT_PARAMS)
        options = engine_options(self.inference, self.engine_options)
        if weights is not None and self.inference != "cavi":
            raise InputError(
                f"inference={self.inference!r} takes no sample_weight; leave it out, or choose inference='cavi', or "
                "GaussianMixture(prior='conjugate')"
            )
        rng = generator_of(self.random_state)
        with scikit_learns_words():
            prior, numbers = prior_of(self, x, weights, family)
            previous = self.fit_ if self._goes_on(x) else None
            if self.inference == "cavi":
                fit = best_ascent(self, x, weights, family, prior, previous, rng)
            else:
                fit = fit_by_engine(self, x, family, prior, previous, options, rng)
        self._keep(fit, family, prior, numbers)
        self._rows = x, weights, options, key_of(rng)
        self.labels_ = self._probabilities(x).argmax(1)
        if not self.converged_:
            explanation = self.fit_.code.explanation
            message = f"{NOT_CONVERGED} ({in_scikit_learns_words(explanation)})"
            if self.inference != "cavi":
                message = f"inference={self.inference!r} did not converge: {explanation}; see engine_options"
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return self

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
        x, weights, options, key = self._rows
        if weights is not None:
            raise InputError("datatree_ has log-likelihoods of rows that count once; fit without sample_weight")
        draw_key, tree_key = jax.random.split(key)
        fit = self.fit_
        if fit.approximation is not None:
            num_draws = options.get("num_draws", _NUM_DRAWS)
            fit = draw_from_approximation(fit, x, num_draws=num_draws, prior=self.prior_, key=draw_key)
        names = getattr(self, "feature_names_in_", None)
        names = None if names is None else list(names)
        return to_datatree(fit, x, prior=self.prior_, key=tree_key, feature_names=names)

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows of the fit, which may be many."""
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_rows"}

    def _goes_on(self, x: np.ndarray) -> bool:
        """Whether there is a fit to go on from.

        Raises:
            InputError: where it is of another shape.
        """
        if not (self.warm_start and hasattr(self, "fit_")):
            return False
        shape, family = self.fit_.mixture.means.shape, self.fit_.family
        if shape != (self.n_components, x.shape[1]) or family != self._family.name:
            raise InputError(
                f"warm_start=True goes on from {shape[0]} components of {shape[1]} features with covariance_type="
                f"{family!r}, but n_components={self.n_components}, X has {x.shape[1]} features and covariance_type="
                f"{self.covariance_type!r}; set warm_start=False"
            )
        return True

    def _keep(self, fit: Fit, family: Family, prior: AnyPrior, numbers: Numbers | None) -> None:
        vars(self).pop("datatree_", None)
        self.fit_, self.prior_ = fit, prior
        self._set_mixture(fit.mixture, family)
        bounds = bounds_of(fit)
        self.converged_ = bool(fit.successful)
        self.n_iter_ = len(bounds) if fit.engine == "cavi" else int(fit.num_steps)
        self.lower_bounds_ = bounds[-self.n_iter_ :].tolist()  # without that of the start, where there is one
        self.lower_bound_ = float(
            fit.summary["elbo"] if "elbo" in fit.summary else bounds[-1] if bounds.size else np.nan
        )
        for name in (*(f"{name}_" for name in NUMBERS), *_APPROXIMATION):
            vars(self).pop(name, None)
        if numbers is not None:
            self.weight_concentration_prior_ = numbers.weight_concentration
            self.mean_precision_prior_ = numbers.mean_precision
            self.mean_prior_ = numbers.mean
            self.degrees_of_freedom_prior_ = numbers.degrees_of_freedom
            self.covariance_prior_ = numbers.covariance
        found = fit.approximation
        if found is None:
            return
        self.weight_concentration_ = found.concentration
        if found.remainder is not None:  # nothing is left after the last component
            self.weight_concentration_ = found.concentration, np.append(found.remainder[:-1], 0.0)
        self.mean_precision_ = found.shrinkage
        dof = found.dof / repeats(family, *found.mean.shape)
        self.degrees_of_freedom_ = float(dof[0]) if family.shared else dof

    def _responsibilities(self, x: np.ndarray) -> Any:
        return responsibilities(self.fit_, x)

    def _log_prob(self, x: np.ndarray) -> Any:
        return predictive_log_prob(self.fit_, x)

    def _sample(self, num_rows: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        return sample_predictive(self.fit_, num_rows, rng, key=key_of(rng))
