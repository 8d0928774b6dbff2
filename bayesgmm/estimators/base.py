"""What both estimators share: rows in, fitted attributes out, starts, the methods of a fitted mixture, files."""

import abc
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import jax
import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, DensityMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from bayesgmm.engines.fit import Fit
from bayesgmm.engines.registry import Count, Flag, Rule, choice_of, rule_of
from bayesgmm.engines.restarts import default_ridge
from bayesgmm.errors import InputError
from bayesgmm.estimators import arguments
from bayesgmm.estimators.arguments import AUTO, auto_or
from bayesgmm.likelihood.rows import Rows, as_row_weights, as_rows, has_enough_rows
from bayesgmm.likelihood.scores import row_log_prob
from bayesgmm.mixtures.families import NAMES, Family, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.batches import in_batches
from bayesgmm.numerics.keys import number_key
from bayesgmm.numerics.precision import AnyArray, ArrayLike
from bayesgmm.numerics.validation import nonnegative, one_of, refuse_masks, short_repr, whole_number
from bayesgmm.runtime.files import load_value, save_value
from bayesgmm.starts.given import mixture_from_start
from bayesgmm.starts.named import get_start, start_from

Auto = Literal["auto"]
SKLEARN_DEFAULTS = {"tol": 1e-3, "reg_covar": 1e-6, "max_iter": 100, "n_init": 1}
"""What "auto" is from a start that scikit-learn's class has."""


def _whole_number_or_zero(name: str, value: object) -> int:
    return whole_number(name, value, 0)


def named(*known: str) -> Rule:
    """One of these words, if it is a word."""
    return Rule(lambda name, value: one_of(name, value, known) if isinstance(value, str) else value)


_BLOCK_NUMBERS = 2**22  # of the largest array of a block: rows x components x features
_SMALLEST_BLOCK = 16
_KIND = "scikit-learn estimator"  # of a file


@dataclasses.dataclass(eq=False, repr=False)
class MixtureEstimator(DensityMixin, ClusterMixin, BaseEstimator, abc.ABC):
    """A mixture behind scikit-learn's methods; has no numerics of its own."""

    n_components: Count = 1
    _: dataclasses.KW_ONLY
    covariance_type: str = "full"
    tol: Annotated[float | Auto, auto_or(nonnegative)] = "auto"
    reg_covar: Annotated[float | Auto, auto_or(nonnegative)] = "auto"
    max_iter: Annotated[int | Auto, auto_or(_whole_number_or_zero)] = "auto"
    init_params: Annotated[str, choice_of(*arguments.INIT_PARAMS)] = "auto"
    random_state: int | np.integer | np.random.RandomState | None = None
    warm_start: Flag = False
    verbose: Annotated[int, Rule(lambda name, value: whole_number(name, _as_integer(value), 0))] = 0
    verbose_interval: Count = 10
    fit_: Fit = dataclasses.field(init=False)
    n_features_in_: int = dataclasses.field(init=False)

    @property
    @arguments.sklearn_words(arguments.ParameterError)
    def _family(self) -> Family:
        return get_family(one_of("covariance_type", self.covariance_type, NAMES))

    def fit_predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> np.ndarray:
        """`fit`, and the component of every row, shape (n)."""
        return self.fit(X, y, sample_weight=sample_weight).labels_

    @abc.abstractmethod
    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the mixture to rows X (n, d)."""

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The component of largest probability for every row of X (n, d), shape (n)."""
        return self.predict_proba(X).argmax(1)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probability of every component for every row of X (n, d), shape (n, k)."""
        return over_rows(self._responsibilities, self._known_rows(X), self.means_.size)

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """Log-density of every row of X (n, d), shape (n)."""
        return over_rows(self._log_prob, self._known_rows(X), self.means_.size)

    def score(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Mean log-density of the rows of X (n, d), weighted by `sample_weight` (n) where that is given."""
        log_prob = self.score_samples(X)
        with arguments.sklearn_words():
            weights = as_row_weights(sample_weight, log_prob[:, None])
        return float(np.average(log_prob, weights=weights))

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """`n_samples` new rows (n, d), and the component that each is from (n), in the order of the components.

        Raises:
            InputError: for fewer than one.
        """
        self._check_fitted()
        try:
            num_rows = whole_number("n_samples", n_samples)
        except InputError:
            raise InputError(
                f"Invalid value for 'n_samples': {short_repr(n_samples)}; the sampling requires at least one sample"
            ) from None
        return self._sample(num_rows, arguments.generator_of(self.random_state))

    def save(self, path: str | Path) -> None:
        """Write the estimator, its arguments and what it has learnt: NumPy's npz with a header in JSON, no pickle.

        Raises:
            InputError: for arguments that such a file cannot hold, and for a path that cannot be written to.
        """
        given = {name: _storable(value) for name, value in self.get_params(deep=False).items()}
        names = [name for name in vars(self) if name.endswith("_") and not hasattr(type(self), name)]
        learnt = {name: _storable(getattr(self, name)) for name in names}
        save_value({"estimator": type(self).__name__, "arguments": given, "learnt": learnt}, path, _KIND)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an estimator that `save` has written; no code of the file is run.

        Raises:
            InputError: for a file that is damaged, comes from elsewhere, or holds another estimator.
        """
        saved = load_value(path, dict, _KIND)
        where = f"file {str(path)!r}"
        if saved.get("estimator") != cls.__name__:
            raise InputError(
                f"{where} holds a {short_repr(saved.get('estimator'))}, not a {cls.__name__}; load it with its own "
                "class"
            )
        given, learnt = saved.get("arguments"), saved.get("learnt")
        if not isinstance(given, dict) or not isinstance(learnt, dict):
            raise InputError(f"{where} is damaged (it lacks arguments or attributes); take another copy, or fit again")
        if unknown := given.keys() - inspect.signature(cls).parameters:
            raise InputError(
                f"{where} has the argument {short_repr(min(unknown))}, which {cls.__name__} of this version does not; "
                "upgrade bayesgmm"
            )
        if wrong := [name for name in learnt if not name.endswith("_") or hasattr(cls, name)]:
            raise InputError(f"{where} is damaged (it has the attribute {short_repr(wrong[0])}); take another copy")
        estimator = cls(**{name: _restored(value) for name, value in given.items()})
        vars(estimator).update({name: _restored(value) for name, value in learnt.items()})
        return estimator

    # Those of a point; of a posterior they are averages.

    def _responsibilities(self, x: np.ndarray) -> AnyArray:
        """Probability of every component for every row, (n, k)."""
        return self._mixture().responsibilities(x)

    def _log_prob(self, x: np.ndarray) -> AnyArray:
        """Log-density of every row, (n)."""
        return row_log_prob(self._mixture(), x)

    def _sample(self, num_rows: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """New rows and their components, in the order of the components, as scikit-learn gives them."""
        mixture, key = self._mixture(), arguments.key_of(rng)
        weights, means = np.asarray(mixture.weights, np.float64), np.asarray(mixture.means)
        factor = np.broadcast_to(mixture.precision_factor, (len(means), *mixture.precision_factor.shape[1:]))
        counts = rng.multinomial(num_rows, weights / weights.sum())
        size, parts = _round_up_to_power(int(counts.max())), []
        for j, count in enumerate(counts):
            component = Mixture(np.zeros(1, means.dtype), means[j : j + 1], factor[j : j + 1])
            parts.append(np.asarray(component.sample(size, key=number_key(key, j)))[:count])
        return np.concatenate(parts), np.repeat(np.arange(len(counts)), counts)

    @arguments.sklearn_words(arguments.ParameterError)
    def _check_arguments(self) -> None:
        """Refuse arguments that are out of range.

        Raises:
            ParameterError: naming the argument, the value and the range.
        """
        for field in dataclasses.fields(self):
            if (rule := rule_of(field.type)) is not None:
                rule.check(field.name, getattr(self, field.name))

    def _checked_rows(self, X: ArrayLike, **settings: bool | int) -> np.ndarray:
        """Rows in float64 or float32, checked by scikit-learn, which drops masks."""
        refuse_masks(X, "X")
        return np.asarray(validate_data(self, X, dtype=[np.float64, np.float32], **settings))  # pyright: ignore[reportArgumentType]

    def _check_fitted(self) -> None:
        """Refuse an estimator that has no mixture.

        Raises:
            InputError: for attributes that are missing beside others; `NotFittedError` for one without any.
        """
        check_is_fitted(self)
        if missing := [name for name in ("weights_", "means_") if not hasattr(self, name)]:
            raise InputError(f"{missing[0]} is missing; set weights_, means_ and precisions_cholesky_, or call fit")

    def _known_rows(self, X: ArrayLike) -> np.ndarray:
        """Rows for a fitted estimator, with the features that it knows."""
        self._check_fitted()
        return self._checked_rows(X, reset=False)

    def _training_rows(self, X: ArrayLike, sample_weight: ArrayLike | None) -> Rows:
        """Check arguments, then rows and weights against each other and against the number of components.

        Raises:
            InputError: for weights that cannot be used, and more components than rows; `ValueError` and `TypeError` of
                scikit-learn's for rows that cannot be used.
        """
        self._check_arguments()
        x = self._checked_rows(X, ensure_min_samples=2)
        if len(x) < self.n_components:
            raise InputError(
                f"Expected n_samples >= n_components, but got n_components = {self.n_components}, n_samples = "
                f"{len(x)}; give more rows, or fewer components"
            )
        with arguments.sklearn_words():
            return as_rows(x, sample_weight)

    def _previous_fit(self, rows: Rows) -> Fit | None:
        """The fit to continue from, if there is one.

        Raises:
            InputError: where it is of another shape.
        """
        if not (self.warm_start and hasattr(self, "fit_")):
            return None
        (k, d), family = self.means_.shape, self.fit_.family
        if (k, d) != (self.n_components, rows.num_features) or family != self._family.name:
            raise InputError(
                f"warm_start=True goes on from {k} components of {d} features, but n_components={self.n_components} "
                f"and X has {rows.num_features} features, or from covariance_type={family!r}, not "
                f"{self.covariance_type!r}; set warm_start=False"
            )
        return self.fit_

    @property
    def _is_auto(self) -> bool:
        """Whether starts and limits are by default the engine's own, not scikit-learn's."""
        return self.init_params == AUTO

    def _or_default[T](self, name: str, engines: T) -> T:
        """The argument of this name; where it is "auto", the engine's default, or scikit-learn's from its starts."""
        value = getattr(self, name)
        if value != AUTO:
            return value
        return engines if self._is_auto else SKLEARN_DEFAULTS[name]

    def _ridge(self, rows: Rows, *, bounded: bool = False) -> float | None:
        """The ridge of variances, None for the engine's own.

        Rows that do not determine every covariance, such as those with a constant column, need one of the user's or
        scikit-learn's, unless they are `bounded` by a prior.
        """
        ridge = self._or_default("reg_covar", None)
        if ridge is not None:
            return float(ridge)
        enough = has_enough_rows(rows, self.n_components, self._family, bounded=bounded)
        return None if enough else SKLEARN_DEFAULTS["reg_covar"]

    def _ridge_of_starts(self, rows: Rows) -> AnyArray:
        ridge = self._ridge(rows)
        return default_ridge(rows) if ridge is None else np.asarray(ridge)

    def _start(
        self, rows: Rows, given: Mapping[str, np.ndarray], rng: np.random.RandomState
    ) -> tuple[Mixture | np.ndarray | str, jax.Array | None]:
        """A start for an engine (name, responsibilities or mixture), and the key that it needs if it is a name.

        k-means is scikit-learn's, so that the same `random_state` gives the start of its own class, with labels in the
        same order. Parts that are `given` replace those of the start, by default of that of k-means.
        """
        problem = (rows, self.n_components, self._family, self._ridge_of_starts(rows))
        if {"weights", "means", "precisions"} <= set(given):
            return mixture_from_start(given, *problem), None
        if self.init_params in (AUTO, "kmeans"):
            shares = _share_by_kmeans(rows, self.n_components, rng)
            if not given:
                return shares, None
            made = mixture_from_start(shares, *problem)
        else:
            key = arguments.key_of(rng)
            if not given and get_start(self.init_params).random:
                return self.init_params, key
            made = start_from(*problem, start=self.init_params, key=key)
            made = made.permute(np.lexsort(np.asarray(made.means).T[::-1]))  # whatever the order of the rows
        parts = {"weights": made.weights, "means": made.means, **given}
        if "precisions" in given:
            made = mixture_from_start(parts, *problem)
        made = dataclasses.replace(made, log_weights=np.log(parts["weights"]), means=parts["means"])
        return jax.tree.map(lambda leaf: np.asarray(leaf, rows.dtype), made), None

    def _finish(self, rows: Rows, failure: str = "") -> Self:
        """Label the rows of the fit, and warn if it did not converge."""
        self.labels_ = over_rows(self._responsibilities, np.asarray(rows.values), self.means_.size).argmax(1)
        if not self.fit_.successful and (failure or self.max_iter != 0):
            message = f"{arguments.NOT_CONVERGED} ({arguments.in_sklearn_words(self.fit_.explanation)})"
            warnings.warn(failure or message, ConvergenceWarning, stacklevel=3)
        return self

    def _set_mixture(self, mixture: Mixture, family: Family) -> None:
        """Set the fitted attributes that describe a mixture, each in scikit-learn's shape."""
        mixture = jax.tree.map(np.asarray, mixture)
        self.weights_, self.means_ = np.asarray(mixture.weights), mixture.means
        factor = mixture.precision_factor
        if family.diagonal:
            arrays = np.square(np.asarray(mixture.scales)), np.square(factor), factor
        else:
            arrays = np.asarray(mixture.covariances), factor.mT @ factor, factor.mT.copy()
        arrays = [family.compact(array[: len(factor)]) for array in arrays]
        self.covariances_, self.precisions_, self.precisions_cholesky_ = arrays

    def _mixture(self) -> Mixture:
        """The mixture that the fitted attributes describe, those included that users set.

        Raises:
            InputError: for attributes that are missing, or of other shapes.
        """
        weights, means, family = np.asarray(self.weights_), np.asarray(self.means_), self._fitted_family
        if hasattr(self, "precisions_cholesky_"):
            factor = family.expand("precisions_cholesky_", np.asarray(self.precisions_cholesky_), *means.shape)
            with np.errstate(divide="ignore"):
                return Mixture(np.log(weights), means, factor if family.diagonal else factor.mT)
        if hasattr(self, "covariances_"):
            covariances = family.expand("covariances_", np.asarray(self.covariances_), *means.shape)
            return Mixture.from_covariances(weights, means, covariances)
        raise InputError("precisions_cholesky_ is missing; set it, or covariances_, or call fit")

    @property
    def _fitted_family(self) -> Family:
        """That of the fit, whatever arguments have been set since; of attributes set by hand that of the arguments."""
        return get_family(self.fit_.family) if hasattr(self, "fit_") else self._family

    def _n_parameters(self) -> int:
        """Free parameters of the mixture."""
        return self._fitted_family.num_parameters(*self.means_.shape)


@arguments.sklearn_words()
def over_rows(function: Callable[[np.ndarray], AnyArray], x: np.ndarray, width: int) -> np.ndarray:
    """`function` of rows (n, d), whose results have rows as the first axis, a block at a time.

    Blocks are padded to a power of two, so that a table of any length finds its program compiled. `width` is how many
    numbers a row takes.
    """
    most = _round_up_to_power(max(_SMALLEST_BLOCK, _BLOCK_NUMBERS // max(width, 1)))
    return in_batches(lambda rows: np.asarray(function(rows)), min(most, _round_up_to_power(len(x))), x)


def sample_of_draws(
    draws: Mixture, num_rows: int, rng: np.random.RandomState, *, key: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a posterior predictive distribution, each from a draw (s) of its own, and their components, in order."""
    index = rng.randint(len(draws.means), size=_round_up_to_power(num_rows))
    cumulative = np.asarray(draws.weights, np.float64)[index].cumsum(1)
    labels = (cumulative < rng.uniform(size=(len(index), 1)) * cumulative[:, -1:]).sum(1)
    factor = np.asarray(draws.precision_factor)
    factor = factor[index, labels if factor.shape[1] > 1 else 0][:, None]
    means = np.asarray(draws.means)[index, labels][:, None]
    rows = np.asarray(Mixture(np.zeros((len(index), 1), means.dtype), means, factor).sample(1, key=key))[:num_rows, 0]
    order = np.argsort(labels[:num_rows], kind="stable")
    return rows[order], labels[order]


def _as_integer(value: object) -> object:
    """Truth values as numbers, which scikit-learn takes for `verbose`."""
    return int(value) if isinstance(value, bool | np.bool_) else value


def _round_up_to_power(number: int) -> int:
    return max(_SMALLEST_BLOCK, 1 << (number - 1).bit_length())


def _share_by_kmeans(rows: Rows, num_components: int, rng: np.random.RandomState) -> np.ndarray:
    """Responsibilities (n, k) of k-means by scikit-learn; a component without rows takes half of one that has some."""
    kmeans = KMeans(num_components, n_init=1, random_state=rng)  # pyright: ignore[reportArgumentType]
    labels = np.asarray(kmeans.fit(rows.values, sample_weight=rows.weights).labels_)
    counts = np.bincount(labels, rows.weights, num_components)
    hosts = np.arange(num_components)
    hosts[counts == 0] = np.resize(np.flatnonzero(counts), (counts == 0).sum())
    shares = np.eye(num_components)[hosts[labels]][:, hosts]
    return shares / shares.sum(1, keepdims=True)


def _storable(value: object) -> object:
    """Convert generators of NumPy to their state, and arrays of words to lists."""
    if isinstance(value, np.random.RandomState):
        return {"random_state": list(value.get_state(legacy=True))}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return {"words": [str(word) for word in value]}
    return value


def _restored(value: object) -> Any:
    if isinstance(value, dict) and set(value) == {"random_state"}:
        generator = np.random.RandomState()
        generator.set_state(tuple(value["random_state"]))
        return generator
    if isinstance(value, dict) and set(value) == {"words"}:
        return np.array(value["words"], dtype=object)
    return value
