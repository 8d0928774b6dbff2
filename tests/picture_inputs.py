"""What the pictures are of: rows, mixtures and draws by formula or from NumPy's seeds, and no fits."""

import arviz
import numpy as np
import pandas as pd

from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.engines.kmeans import KMeansFit
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots.view import thinned_draws

WEIGHTS = np.array([0.35, 0.4, 0.25])
MEANS = np.array([[2.0, 55.0, 1.0], [4.3, 80.0, 3.0], [5.2, 60.0, 2.0]])
COVARIANCES = np.array(
    [
        [[0.09, 0.6, 0.02], [0.6, 30.0, 0.5], [0.02, 0.5, 0.2]],
        [[0.2, 1.2, -0.05], [1.2, 36.0, 0.3], [-0.05, 0.3, 0.3]],
        [[0.3, -1.0, 0.1], [-1.0, 25.0, 0.6], [0.1, 0.6, 0.25]],
    ]
)
NAMES = ("eruption (min)", "waiting (min)", "height (m)")
MIXTURE = Mixture.from_covariances(WEIGHTS, MEANS, COVARIANCES)
PLANE = MIXTURE.marginal([0, 1])
LINE = MIXTURE.marginal([0])


def rows_of(weights, means, covariances, num_rows):
    rng = np.random.default_rng(1)
    labels = rng.choice(len(weights), num_rows, p=weights)
    steps = rng.normal(size=(num_rows, means.shape[1]))
    return means[labels] + np.einsum("nij,nj->ni", np.linalg.cholesky(covariances)[labels], steps)


X = rows_of(WEIGHTS, MEANS, COVARIANCES, 160)


def noise(shape, seed):
    """Standard normal numbers, always the same."""
    return np.random.default_rng(seed).normal(size=shape)


def draws_about(mixture, num_draws=80, spread=1.0):
    """Two chains of draws that wander about a mixture."""
    shape = (2, num_draws // 2)
    k, d = mixture.means.shape
    weights = mixture.weights * np.exp(0.12 * spread * noise((*shape, k), 1))
    means = mixture.means + 0.14 * spread * mixture.scales * noise((*shape, k, d), 2)
    scale = np.exp(0.2 * spread * noise((*shape, k), 3))[..., None, None]
    return Mixture.from_covariances(weights / weights.sum(-1, keepdims=True), means, mixture.covariances * scale)


def fit_of(mixture, engine="em", trace=(-30.0, -20.0, -15.0), draws=None, result=0):
    trace = np.asarray(trace, float)
    steps = np.int32(trace.shape[-1] - 1)
    return Fit(engine, "full", mixture, np.float64(-15.0), np.int32(result), steps, trace, draws)


EM = fit_of(MIXTURE)
POSTERIOR = fit_of(MIXTURE, "nuts", np.zeros((2, 40)), draws_about(MIXTURE))
EM_PLANE, EM_LINE = fit_of(PLANE), fit_of(LINE)
POSTERIOR_PLANE = fit_of(PLANE, "nuts", np.zeros((2, 40)), draws_about(PLANE))
POSTERIOR_LINE = fit_of(LINE, "nuts", np.zeros((2, 40)), draws_about(LINE))


def partition():
    """What k-means makes of columns of which the second has the larger numbers: the nearest of three centres."""
    centres = np.array([[2.1, 54.0], [4.4, 81.0], [4.6, 63.0]])
    labels = np.abs(X[:, 1, None] - centres[:, 1]).argmin(1)
    return KMeansFit(labels, np.bincount(labels) / len(X), centres, 5.0, np.ones(2), 4, ResultCode.successful)


def climb(start, end, rate, num_steps):
    """A log-likelihood that rises to its end."""
    return end - (end - start) * np.exp(-rate * np.arange(num_steps + 1))


def runs():
    """Thirteen starts with three optima, a few others, and one that collapsed."""
    ends = [-612.4, -612.4, -625.0, -612.4, -640.2, -612.4, -625.0, -612.4, -633.0, -612.4, -655.0, -640.2]
    traces = [climb(-760.0 - 9 * i, end, 0.55 - 0.03 * i, 18 + 3 * i) for i, end in enumerate(ends)]
    collapsed = np.concatenate([climb(-700.0, -660.0, 0.2, 20), [-600.0, -500.0]])
    return [*(fit_of(MIXTURE, trace=trace) for trace in traces), fit_of(MIXTURE, trace=collapsed, result=3)]


def criteria(families=("full",)):
    """Criteria as they often are: BIC chooses fewer parameters than AIC."""
    rows = []
    for position, family in enumerate(families):
        for k in range(1, 7):
            loss = 420.0 * np.exp(-1.3 * (k - 1)) + (4.0, 12.0, 30.0, 70.0)[position]
            size = (6 * k, 3 * k + 3, 5 * k, 4 * k)[position]
            rows.append({
                "family": family, "num_components": k, "bic": 2300 + loss + 4.8 * size, "aic": 2290 + loss + 1.6 * size,
                "icl": 2305 + loss + 4.8 * size + 9.0 * max(k - 3, 0) ** 1.2,
            })  # fmt: skip
    return pd.DataFrame(rows)


def elbo_fits():
    """Two noisy bounds that settle."""
    steps = np.arange(600)
    return {
        name: fit_of(MIXTURE, "vi", end - 80 * np.exp(-steps / 60) + 1.5 * noise(600, offset))
        for name, end, offset in (("vi (normal)", -640.0, 5), ("vi (full rank)", -634.0, 6))
    }


def tree():
    """A tree with what ArviZ's pictures need: three chains, replicated data, log-likelihoods of the rows."""
    draws = draws_about(PLANE, 120)
    few = thinned_draws(draws, 40)
    rng = np.random.default_rng(2)
    labels = np.stack([rng.choice(3, 120, p=weights / weights.sum()) for weights in few.weights])
    steps = rng.normal(size=(40, 120, 2))
    root = np.linalg.cholesky(few.covariances)
    which = np.arange(40)[:, None]
    replicated = few.means[which, labels] + np.einsum("snij,snj->sni", root[which, labels], steps)
    return arviz.from_dict(
        {
            "posterior": {"weights": draws.weights, "means": draws.means},
            "posterior_predictive": {"x": replicated.reshape(2, 20, 120, 2)},
            "observed_data": {"x": X[:120, :2]},
            "log_likelihood": {"x": draws.log_prob(X[:120, :2] + 2.2 * (np.arange(120) == 50)[:, None])},
        },
        dims={"x": ["row", "feature"], "weights": ["cluster"], "means": ["cluster", "feature"]},
        coords={"feature": list(NAMES[:2]), "cluster": np.arange(3)},
    )
