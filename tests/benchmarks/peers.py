"""The peers: scikit-learn's GaussianMixture and gmmx, from the same start and over the same rows."""

import warnings
from typing import Any

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from tests.benchmarks.data import Parameters, covariances_of_family, dense_covariances
from tests.benchmarks.timing import rest, seconds_of

THREADS = (1, 2)


class SklearnSteps:
    """EM steps of scikit-learn, taken one at a time by its own E- and M-step: nothing else of its fit is counted.

    Steps on one and on two threads alternate; the faster count is scikit-learn's time.
    """

    def __init__(self, x: np.ndarray, start: Parameters, family: str) -> None:
        self.x, self.family = x, family
        self.seconds: dict[int, list[float]] = {threads: [] for threads in THREADS}
        covariances = covariances_of_family(start, family).astype(x.dtype)
        self.estimator = GaussianMixture(len(start.weights), covariance_type=family, reg_covar=0.0)
        self.estimator.weights_ = start.weights.astype(x.dtype)
        self.estimator.means_ = start.means.astype(x.dtype)
        # The starts have unit covariances, whose precision factors are themselves.
        self.estimator.covariances_ = self.estimator.precisions_cholesky_ = covariances

    def step(self, threads: int) -> None:
        rest()
        with threadpool_limits(limits=threads):
            elapsed, _ = seconds_of(self._step)
        self.seconds[threads].append(elapsed)

    def _step(self) -> None:
        _, log_responsibilities = self.estimator._e_step(self.x)
        self.estimator._m_step(self.x, log_responsibilities)

    @property
    def best(self) -> tuple[float, int]:
        """Median seconds of a step on the better number of threads, and that number. The first step warms up."""
        medians = {threads: float(np.median(times[1:] or times)) for threads, times in self.seconds.items() if times}
        threads = min(medians, key=medians.__getitem__)
        return medians[threads], threads

    @property
    def parameters(self) -> Parameters:
        return sklearn_parameters(self.estimator)


def sklearn_parameters(estimator: GaussianMixture) -> Parameters:
    """The mixture of a fitted estimator."""
    shape = estimator.means_.shape
    covariances = dense_covariances(estimator.covariances_, estimator.covariance_type, *shape)
    return Parameters(*(np.asarray(field, np.float64) for field in (estimator.weights_, estimator.means_, covariances)))


def sklearn_fit(x: np.ndarray, num_components: int, *, threads: int = 1, seed: int = 0, **options: Any) -> Any:
    """A whole fit of scikit-learn."""
    estimator = GaussianMixture(num_components, random_state=seed, **options)
    with threadpool_limits(limits=threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(x)


def gmmx_fit(x: jax.Array, start: Parameters, num_steps: int) -> Any:
    """A fit of gmmx (full covariances, float32) of so many steps from a given start."""
    from gmmx import EMFitter, GaussianMixtureModelJax

    arrays = {name: np.asarray(getattr(start, name), np.float32) for name in ("weights", "means", "covariances")}
    mixture = GaussianMixtureModelJax.from_squeezed(**arrays, covariance_type="full")
    return EMFitter(max_iter=num_steps, tol=0.0, reg_covar=0.0).fit(x, mixture)


def gmmx_parameters(result: Any) -> Parameters:
    """The mixture of a fit of gmmx."""
    gmm = result.gmm
    fields = (gmm.weights_numpy, gmm.means_numpy, gmm.covariances.values_numpy)
    return Parameters(*(np.asarray(field, np.float64) for field in fields))
