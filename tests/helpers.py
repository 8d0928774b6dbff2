"""The tables that tests iterate over (families, data sets, random mixtures) and the oracles they are held to."""

import contextlib
from dataclasses import dataclass
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from scipy.signal import lfilter

from bayesgmm.mixtures.families import FAMILIES, Family
from bayesgmm.mixtures.mixture import Mixture

CONJUGATE = {name: family for name, family in FAMILIES.items() if family.conjugate is not None}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
each_conjugate_family = pytest.mark.parametrize("family", CONJUGATE.values(), ids=list(CONJUGATE))


def some_families(*names):
    """The mark of tests that run for these families alone."""
    return pytest.mark.parametrize("family", [FAMILIES[name] for name in names], ids=names)


def at_length(families):
    """The mark of long tests of an engine: both representations by default, the other families among the slow."""
    return pytest.mark.parametrize(
        "family",
        [
            pytest.param(family, id=name, marks=[] if name in ("full", "diag") else [pytest.mark.slow])
            for name, family in families.items()
        ],
    )


# For claims about the density and the engines, which see a family's representation and not its record: a triangular
# and a diagonal factor; and also one that all components share, where the shape of the factor matters.
each_representation = some_families("full", "diag")
each_factor_shape = some_families("full", "tied", "diag")
each_sklearn_family = some_families("full", "tied", "diag", "spherical")


def each_family_and(name, most, others):
    """The marks of tests that run for every family with one value of an argument, and for two with the others."""
    cases = [(family, most) for family in FAMILIES.values()]
    cases += [(FAMILIES[of], other) for other in others for of in ("full", "diag")]
    return pytest.mark.parametrize(("family", name), cases, ids=[f"{family.name}-{value}" for family, value in cases])


def target_of(x, num_components, family, prior, start):
    """The target density of rows that count once each."""
    from bayesgmm.likelihood.rows import as_rows
    from bayesgmm.target.problem import Problem
    from bayesgmm.target.unconstrained import make_target

    return make_target(Problem(as_rows(x), prior, num_components, family), start, in_steps=False)


def _columns(file_name, names):
    table = np.genfromtxt(str(resources.files("bayesgmm") / "datasets" / file_name), delimiter=",", names=True)
    return np.stack([table[name] for name in names], axis=1)


def _simulated():
    """Three well separated, correlated clusters in 5 dimensions, on scales from 0.1 to 100."""
    rng = np.random.default_rng(5)
    means = 4.0 * rng.normal(size=(3, 5))
    clusters = [
        mean + rng.normal(size=(num_rows, 5)) @ (np.eye(5) + 0.3 * rng.normal(size=(5, 5)))
        for mean, num_rows in zip(means, (150, 100, 50), strict=True)
    ]
    return np.concatenate(clusters) * np.array([0.1, 1.0, 10.0, 100.0, 1.0])


DATA = {
    "faithful": _columns("faithful.csv", ("eruptions", "waiting")),
    "iris": _columns("iris.csv", ("sepal_length", "sepal_width", "petal_length", "petal_width")),
    "galaxies": _columns("galaxies.csv", ("velocity",)),
    "simulated": _simulated(),
}
each_data_set = pytest.mark.parametrize("x", DATA.values(), ids=list(DATA))


@dataclass(frozen=True)
class Case:
    """A mixture of a family in float64, and the same parameters as plain NumPy arrays, covariances (k, d, d) dense."""

    mixture: Mixture
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def rows(self, num_rows, rng):
        """Rows drawn by NumPy."""
        labels = rng.choice(len(self.weights), num_rows, p=self.weights)
        factors = np.linalg.cholesky(self.covariances)
        return self.means[labels] + np.einsum(
            "nij,nj->ni", factors[labels], rng.normal(size=(num_rows, self.means.shape[1]))
        )

    def joint_log_prob(self, x):
        """The dense oracle, (n, k)."""
        return np.stack(
            [
                np.log(weight) + stats.multivariate_normal(mean, covariance).logpdf(x).reshape(len(x))
                for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True)
            ],
            axis=1,
        )


def random_covariances(family: Family, num_components, num_features, rng):
    """Covariances of the family in its own shape: its M-step of random scatter."""
    root = rng.normal(size=(num_components, num_features, 2 * num_features + 2)) / np.sqrt(2 * num_features + 2)
    scale = np.exp(0.5 * rng.normal(size=(num_components, num_features)))
    root = root * scale[:, :, None]
    scatter = root @ np.swapaxes(root, 1, 2)
    if family.diagonal:
        scatter = np.diagonal(scatter, axis1=1, axis2=2)
    count = rng.uniform(0.5, 2.0, size=num_components)
    spread = count[:, None] if family.diagonal else count[:, None, None]
    with jax.enable_x64(True):
        return np.asarray(family.maximise(jnp.asarray(count), jnp.asarray(spread * scatter)))


def dense(covariances, family: Family, num_components):
    """Covariances of a family in its own shape, expanded to (k, d, d)."""
    if family.diagonal:
        covariances = covariances[:, :, None] * np.eye(covariances.shape[1])
    return np.broadcast_to(covariances, (num_components, *covariances.shape[1:]))


def own_shape(covariances, family: Family):
    """The reverse of `dense`: covariances (k, d, d) of a family in the shape that it keeps."""
    covariances = np.asarray(covariances)[:1] if family.shared else np.asarray(covariances)
    return np.diagonal(covariances, axis1=1, axis2=2).copy() if family.diagonal else covariances


def random_case(family: Family, num_components, num_features, rng) -> Case:
    weights = rng.dirichlet(np.full(num_components, 5.0))
    means = 2.0 * rng.normal(size=(num_components, num_features))
    covariances = random_covariances(family, num_components, num_features, rng)
    return Case(
        Mixture.from_covariances(weights, means, covariances),
        weights,
        means,
        dense(covariances, family, num_components),
    )


def random_draws(family: Family, num_components, num_features, draw_shape, rng) -> Mixture:
    """Many random mixtures as one with leading axes."""
    mixtures = [random_case(family, num_components, num_features, rng).mixture for _ in range(np.prod(draw_shape))]
    return jax.tree.map(lambda *fields: np.stack(fields).reshape(*draw_shape, *fields[0].shape), *mixtures)


def assert_close(actual, expected, tolerance):
    """Every array within `tolerance` of the expected one, relative to that array's largest entry."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(np.abs(other).max(), 1e-300))


def to_float32(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


def to_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def autoregressive(phi, shape, rng):
    """Stationary normal chains (chain, draw) of variance 1 with autocorrelation phi."""
    noise = rng.normal(size=(shape[0], shape[1] + 300)) * np.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], noise, axis=1)[:, 300:]


def jittered(mixture, shape, rng, spread=0.02):
    """Independent draws around a mixture, with leading axes of this shape; its covariances are kept."""
    k, d = mixture.means.shape
    log_weights = np.asarray(mixture.log_weights) + spread * rng.normal(size=(*shape, k))
    return Mixture(
        log_weights - special.logsumexp(log_weights, axis=-1, keepdims=True),
        np.asarray(mixture.means) + spread * rng.normal(size=(*shape, k, d)),
        np.asarray(mixture.precision_factor)
        * np.exp(spread * rng.normal(size=(*shape, *(1,) * np.ndim(mixture.precision_factor)))),
    )


@contextlib.contextmanager
def compilations():
    """Seconds of every compilation that is begun and ended meanwhile."""
    events = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
