"""`GaussianMixture`: EM behind scikit-learn's interface, with row weights, priors and acceleration."""

import dataclasses
import warnings
from typing import Any, Self

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from bayesgmm.diagnostics.criteria import Criteria, information_criteria
from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.errors import InputError
from bayesgmm.estimators.arguments import INIT_PARAMS, check_choice, check_init, generator_of, key_of
from bayesgmm.estimators.base import MixtureEstimator
from bayesgmm.estimators.rows import sample_labelled
from bayesgmm.estimators.runs import EMRun, best_fit
from bayesgmm.estimators.starts import start_of_init
from bayesgmm.estimators.words import ILL_DEFINED, NOT_CONVERGED, in_scikit_learns_words, scikit_learns_words
from bayesgmm.likelihood.log_likelihood import row_log_prob
from bayesgmm.likelihood.rows import as_rows, enough_rows
from bayesgmm.mixtures.families import FAMILIES, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.priors.conjugate import ConjugatePrior, check_conjugate_prior, conjugate_prior


class GaussianMixture(MixtureEstimator):
    """Gaussian mixture by maximum likelihood; scikit-learn's class of this name, and more.

    EM runs from `n_init` starts, each to its end; the highest log-likelihood is kept. Everything is computed in float64
    whatever JAX's global setting, and in float32 where the rows are float32.

    Two things differ from scikit-learn's class. `lower_bound_` is the mean log-likelihood of exactly the mixture that
    is reported, not of the one a step before; so the rule that ends a run sees a step sooner that it is met, and
    `n_iter_` is one less at the same `tol`. And a fit with a collapsed component is never `converged_`.

    Args:
        n_components: k.
        covariance_type: "full", "tied", "diag" or "spherical".
        tol: EM stops when a step changes the mean log-likelihood per row (per unit of `sample_weight`) by less.
        reg_covar: ridge added to the variances, in squared units of the data.
        max_iter: limit on steps of each run; 0 takes the start as it is.
        n_init: number of starts.
        init_params: "kmeans" (scikit-learn's, so that the same seed starts where its class does), "k-means++" (nearest
            of k rows drawn far apart, on standardised columns), "random" (a few rows for each component, drawn at
            random), "random_from_data" (nearest of k rows drawn at random) or "hierarchical" (model-based, as R's
            mclust).
        weights_init, means_init, precisions_init: parts of the start, in place of those that `init_params` makes.
        random_state: a seed, a `numpy.random.RandomState`, or None for NumPy's global generator.
        warm_start: whether `fit` goes on from the last fit, if there is one; then `n_init` does not count.
        verbose: 1 tells of starts and steps, 2 also of time and of the change of the log-likelihood.
        verbose_interval: steps from one such line to the next.
        prior: None for maximum likelihood; "conjugate" for the posterior mode under `bayesgmm.conjugate_prior` of the
            rows, or such a prior itself. `lower_bound_` and `tol` are then of the log posterior density.
        acceleration: None, or "squarem" to extrapolate every second step where that does not lower the likelihood.

    Attributes:
        weights_, means_, covariances_, precisions_, precisions_cholesky_: the mixture, in scikit-learn's shapes.
        converged_, n_iter_: whether the best run met `tol`, and after how many steps.
        lower_bound_, lower_bounds_: the mean log-likelihood at its end, and after each of its steps.
        labels_: the component of every row.
        fit_: the `bayesgmm.Fit`, whose `code` says how the run ended.
        prior_: the prior that was used, or None.
        n_features_in_, feature_names_in_: as in scikit-learn.
    """

    def __init__(
        self,
        n_components=1,
        *,
        covariance_type="full",
        tol=1e-3,
        reg_covar=1e-6,
        max_iter=100,
        n_init=1,
        init_params="kmeans",
        weights_init=None,
        means_init=None,
        precisions_init=None,
        random_state=None,
        warm_start=False,
        verbose=0,
        verbose_interval=10,
        prior=None,
        acceleration=None,
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.prior = prior
        self.acceleration = acceleration

    @classmethod
    def from_mixture(cls, mixture: Mixture, covariance_type: str | None = None, **arguments: Any) -> Self:
        """An estimator that is fitted already, with this mixture; `arguments` are further ones of the constructor.

        Args:
            mixture: a single mixture, such as the `mixture` of a fit by any engine.
            covariance_type: by default "full" or "diag", or "tied" where components share a covariance matrix.

        Raises:
            InputError: for many mixtures at once, and for a covariance type that the mixture does not have.
        """
        if mixture.draw_shape:
            raise InputError(f"mixture has leading axes {mixture.draw_shape}; index it down to a single mixture")
        factor = np.asarray(mixture.precision_factor)
        if covariance_type is None:
            kind = (type(mixture.factor), len(factor) < mixture.num_components)
            covariance_type = next(f.name for f in FAMILIES.values() if (f.representation, f.shared) == kind)
        estimator = cls(mixture.num_components, covariance_type=covariance_type, **arguments)
        family = estimator._family
        wanted = 1 if family.shared else mixture.num_components
        differ = family.isotropic and (factor != factor[:, :1]).any()
        if mixture.is_diagonal != family.diagonal or len(factor) != wanted or differ:
            kind = "diagonal" if mixture.is_diagonal else "triangular"
            raise InputError(
                f"covariance_type={covariance_type!r} does not fit a mixture whose {kind} precision factor has shape "
                f"{factor.shape}{', with variances that differ between features' if differ else ''}; leave it out"
            )
        nan = np.asarray(np.nan, factor.dtype)
        result = np.int32(ResultCode.max_steps_reached)
        estimator._keep(Fit("em", family.name, mixture, nan, result, np.int32(0), nan[None]), 1.0)
        estimator.n_features_in_ = mixture.num_features
        estimator.prior_ = None
        return estimator

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the mixture to rows X (n, d).

        Args:
            X: rows (n, d).
            y: not used.
            sample_weight: weight of every row (n); weight 2 is the row twice. By default 1.

        Raises:
            InputError: a `ValueError`, for arguments and rows that cannot be fitted.
        """
        x, weights = self._training_rows(X, sample_weight)
        family = self._family
        check_choice("init_params", self.init_params, INIT_PARAMS)
        check_choice("acceleration", self.acceleration, (None, "squarem"))
        given = check_init(
            self.weights_init, self.means_init, self.precisions_init, self.n_components, x.shape[1], family
        )
        rng = generator_of(self.random_state)
        with scikit_learns_words():
            self._check_degenerate(x, weights)
            prior = self._prior(x, weights)
            options = {
                "family": family,
                "row_weights": weights,
                "prior": prior,
                "accelerate": self.acceleration is not None,
                "tol": self.tol,
                "reg_covar": self.reg_covar,
            }
            run = EMRun(x, self.n_components, self.max_iter, options, int(self.verbose), self.verbose_interval)
            if self.warm_start and hasattr(self, "fit_"):
                self._check_continues(x)
                fits = [run(self._mixture(), None, 0)]
            else:
                problem = (x, self.n_components, weights, family, self.reg_covar)
                starts = (start_of_init(self.init_params, given, *problem, rng) for _ in range(self.n_init))
                fits = [run(start, key, index) for index, (start, key) in enumerate(starts)]
        fit = best_fit(fits)
        if run.ended_singular(fit):
            raise InputError(f"{ILL_DEFINED} ({in_scikit_learns_words(fit.code.explanation)})")
        self.prior_ = prior
        self._keep(fit, run.total_weight)
        self.labels_ = self._probabilities(x).argmax(1)
        if fit.code is not ResultCode.successful and self.max_iter > 0:
            message = f"{NOT_CONVERGED} ({in_scikit_learns_words(fit.code.explanation)})"
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return self

    def bic(self, X: Any, sample_weight: Any = None) -> float:
        """Bayesian information criterion of the mixture on rows X (n, d); smaller is better."""
        return self._criteria(X, sample_weight).bic

    def aic(self, X: Any, sample_weight: Any = None) -> float:
        """Akaike information criterion of the mixture on rows X (n, d); smaller is better."""
        return self._criteria(X, sample_weight).aic

    def icl(self, X: Any, sample_weight: Any = None) -> float:
        """Integrated completed likelihood of the mixture on rows X (n, d), as a criterion; smaller is better."""
        return self._criteria(X, sample_weight).icl

    def _criteria(self, X: Any, sample_weight: Any) -> Criteria:
        x = self._known_rows(X)
        weights = None if sample_weight is None else self._weights(sample_weight, x)
        return information_criteria(dataclasses.replace(self.fit_, mixture=self._mixture()), x, weights)

    def _responsibilities(self, x: np.ndarray) -> Any:
        return self._mixture().responsibilities(x)

    def _log_prob(self, x: np.ndarray) -> Any:
        return row_log_prob(self._mixture(), x)

    def _sample(self, num_rows: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        return sample_labelled(self._mixture(), num_rows, rng, key=key_of(rng))

    def _prior(self, x: np.ndarray, weights: np.ndarray | None) -> ConjugatePrior | None:
        if self.prior is None:
            return None
        if isinstance(self.prior, str):
            check_choice("prior", self.prior, (None, "conjugate"))
            return conjugate_prior(x, self.n_components, self._family, row_weights=weights)
        return check_conjugate_prior(self.prior, self.n_components, x.shape[1], self._family)

    def _check_degenerate(self, x: np.ndarray, weights: np.ndarray | None) -> None:
        """Refuse rows on which the likelihood has no maximum: too few that differ, and nothing to hold a variance."""
        if self.reg_covar > 0 or self.prior is not None:
            return
        try:
            enough_rows(as_rows(x, weights), self.n_components, self._family)
        except InputError as error:
            raise InputError(f"{ILL_DEFINED} ({error})") from None

    def _check_continues(self, x: np.ndarray) -> None:
        if self.means_.shape != (self.n_components, x.shape[1]):
            raise InputError(
                f"warm_start=True goes on from {len(self.means_)} components of {self.means_.shape[1]} features, but "
                f"n_components={self.n_components} and X has {x.shape[1]} features; set warm_start=False"
            )

    def _keep(self, fit: Fit, total_weight: float) -> None:
        self.fit_ = jax.tree.map(np.asarray, fit)
        self._set_mixture(fit.mixture, get_family(fit.family))
        bounds = self.fit_.steps / total_weight
        self.converged_ = bool(fit.successful)
        self.n_iter_ = int(fit.num_steps)
        self.lower_bound_, self.lower_bounds_ = float(bounds[-1]), bounds[1:].tolist()
