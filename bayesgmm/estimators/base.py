"""What both estimators share: rows in, fitted attributes out, and the methods of a mixture that is fitted."""

import abc
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, DensityMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from bayesgmm.errors import InputError
from bayesgmm.estimators.arguments import check_choice, check_numbers, generator_of
from bayesgmm.estimators.files import load_estimator, save_estimator
from bayesgmm.estimators.rows import over_rows
from bayesgmm.estimators.words import scikit_learns_words
from bayesgmm.likelihood.rows import as_row_weights
from bayesgmm.mixtures.families import NAMES, Family, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.validation import shown, whole_number


class MixtureEstimator(DensityMixin, ClusterMixin, BaseEstimator, abc.ABC):
    """A mixture behind scikit-learn's methods; has no numerics of its own."""

    _auto_init = False  # whether `n_init` may be "auto"
    n_components: Any
    covariance_type: Any
    random_state: Any
    n_features_in_: int
    labels_: np.ndarray
    weights_: np.ndarray
    means_: np.ndarray
    covariances_: np.ndarray
    precisions_: np.ndarray
    precisions_cholesky_: np.ndarray

    @property
    def _family(self) -> Family:
        check_choice("covariance_type", self.covariance_type, NAMES)
        return get_family(self.covariance_type)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`fit`, and the component of every row, shape (n)."""
        return self.fit(X, y, sample_weight=sample_weight).labels_

    @abc.abstractmethod
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the mixture to rows X (n, d)."""

    def predict(self, X: Any) -> np.ndarray:
        """The component of largest probability for every row of X (n, d), shape (n)."""
        return self.predict_proba(X).argmax(1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of every component for every row of X (n, d), shape (n, k)."""
        return self._probabilities(self._known_rows(X))

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of every row of X (n, d), shape (n)."""
        x = self._known_rows(X)
        with scikit_learns_words():
            return over_rows(self._log_prob, x, self.means_.size)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Mean log-density of the rows of X (n, d), weighted by `sample_weight` (n) where that is given."""
        log_prob = self.score_samples(X)
        weights = None if sample_weight is None else self._weights(sample_weight, log_prob[:, None])
        return float(np.average(log_prob, weights=weights))

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """`n_samples` new rows (n, d), and the component that each is from (n), in the order of the components.

        Raises:
            InputError: for fewer than one.
        """
        check_is_fitted(self)
        try:
            num_rows = whole_number("n_samples", n_samples)
        except InputError:
            raise InputError(
                f"Invalid value for 'n_samples': {shown(n_samples)}; the sampling requires at least one sample"
            ) from None
        return self._sample(num_rows, generator_of(self.random_state))

    def save(self, path: str | Path) -> None:
        """Write the estimator, its arguments and what it has learnt: NumPy's npz with a header in JSON, no pickle.

        Raises:
            InputError: for arguments that such a file cannot hold, and for a path that cannot be written to.
        """
        save_estimator(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an estimator that `save` has written; no code of the file is run.

        Raises:
            InputError: for a file that is damaged, comes from elsewhere, or holds another estimator.
        """
        return load_estimator(cls, path)

    # What the two differ in: the density, and what is known of it.

    @abc.abstractmethod
    def _responsibilities(self, x: np.ndarray) -> Any:
        """Probability of every component for every row, (n, k)."""

    @abc.abstractmethod
    def _log_prob(self, x: np.ndarray) -> Any:
        """Log-density of every row, (n)."""

    @abc.abstractmethod
    def _sample(self, num_rows: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """New rows and their components."""

    def _probabilities(self, x: np.ndarray) -> np.ndarray:
        with scikit_learns_words():
            return over_rows(self._responsibilities, x, self.means_.size)

    def _known_rows(self, X: Any) -> np.ndarray:
        """Rows for an estimator that is fitted, with the features that it knows."""
        check_is_fitted(self)
        rows: Any = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return rows

    def _training_rows(self, X: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows and weights, checked against each other and against the number of components.

        Raises:
            InputError: for weights that cannot be used, and more components than rows; `ValueError` and `TypeError` of
                scikit-learn's for rows that cannot be used.
        """
        check_numbers(self, auto=self._auto_init)
        x: Any = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        if len(x) < self.n_components:
            raise InputError(
                f"Expected n_samples >= n_components, but got n_components = {self.n_components}, n_samples = "
                f"{len(x)}; give more rows, or fewer components"
            )
        return x, None if sample_weight is None else self._weights(sample_weight, x)

    def _weights(self, sample_weight: Any, x: np.ndarray) -> np.ndarray:
        with scikit_learns_words():
            return np.asarray(as_row_weights(sample_weight, x))

    def _set_mixture(self, mixture: Mixture, family: Family) -> None:
        """The fitted attributes that describe a mixture, each in the shape that scikit-learn gives it."""
        mixture = jax.tree.map(np.asarray, mixture)
        self.weights_, self.means_ = np.asarray(mixture.weights), mixture.means
        factor = mixture.precision_factor
        if family.diagonal:
            root, covariances = factor, np.square(np.asarray(mixture.scales)[: len(factor)])
        else:
            root, covariances = np.swapaxes(factor, 1, 2).copy(), np.asarray(mixture.covariances)[: len(factor)]
        precisions = np.square(root) if family.diagonal else root @ factor
        for name, value in (("covariances_", covariances), ("precisions_", precisions), ("precisions_cholesky_", root)):
            setattr(self, name, own_shape(value, family))

    def _mixture(self) -> Mixture:
        """The mixture that the fitted attributes describe, so that whoever sets them has set the mixture."""
        family = self._family
        factor = np.asarray(self.precisions_cholesky_)
        means = np.asarray(self.means_)
        factor = factor[None] if family.shared else factor
        factor = factor[:, None] if family.isotropic else factor
        factor = np.broadcast_to(factor, (len(factor), *means.shape[1:])) if family.diagonal else factor.mT
        with np.errstate(divide="ignore"):
            return Mixture(np.log(self.weights_), means, factor)

    def _n_parameters(self) -> int:
        """Free parameters of the mixture."""
        return self._family.num_parameters(*self.means_.shape)


def own_shape(value: np.ndarray, family: Family) -> np.ndarray:
    """Arrays (e, d, d) or (e, d) as scikit-learn has them: without e where it is shared, without d where all agree."""
    value = value[:, 0] if family.isotropic else value
    return value[0] if family.shared else value
