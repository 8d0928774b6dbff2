"""The Bayesian peers: `MixtureSameFamily` under NumPyro's NUTS, nutpie on PyMC's marginal mixture, scikit-learn's VI.

All are given the prior of `bayesgmm.default_prior` in its numbers, written out here in plain NumPy, and NumPyro and
PyMC the coordinates in which bayesgmm moves, standardised means, which only helps them.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.benchmarks.bayesian_subjects import conjugate_prior_of
from tests.benchmarks.posteriors import Draws


def peer(name: str) -> Any:
    """A module of the `benchmarks` dependency group, imported when it is needed.

    Raises:
        RuntimeError: where the group is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{error.name} is not installed; run the benchmarks with `uv run --group benchmarks python -m "
            "tests.benchmarks`"
        ) from error


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers of the prior: Dirichlet weights, normal means, log-normal scales, LKJ correlations.

    Hashed by identity, so that NumPyro knows again what it has compiled.
    """

    concentration: np.ndarray
    column_mean: np.ndarray
    column_scale: np.ndarray
    log_scale_median: np.ndarray
    correlation_concentration: float
    mean_scale: float = 2.0  # in column scales, about the column means
    scale_sigma: float = 1.0


def numbers_of(x: np.ndarray, num_components: int) -> Numbers:
    scale = x.std(0)
    return Numbers(
        concentration=np.full(num_components, 2.0, x.dtype),
        column_mean=x.mean(0),
        column_scale=scale,
        log_scale_median=np.log(scale) - np.log(num_components).astype(x.dtype) / x.shape[1],
        correlation_concentration=max(2.0, 1 + x.shape[1] / 2),
    )


def mixture_same_family(x: Any, numbers: Numbers) -> None:
    """The NumPyro model as its own examples write it, with a library distribution for the mixture."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions.transforms import AffineTransform

    num_rows, d = x.shape
    k = len(numbers.concentration)
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.asarray(numbers.concentration)))
    standardised = dist.Normal(0.0, jnp.asarray(numbers.mean_scale, x.dtype)).expand([k, d]).to_event(2)
    units = AffineTransform(jnp.asarray(numbers.column_mean), jnp.asarray(numbers.column_scale))
    means = numpyro.sample("means", dist.TransformedDistribution(standardised, units))
    scales = dist.LogNormal(jnp.asarray(numbers.log_scale_median), numbers.scale_sigma).expand([k, d]).to_event(2)
    scales = numpyro.sample("scales", scales)
    lower = scales[..., None] * jnp.ones((k, 1, 1), x.dtype)
    if d > 1:
        correlations = dist.LKJCholesky(d, numbers.correlation_concentration).expand([k]).to_event(1)
        lower = scales[..., None] * numpyro.sample("correlation_cholesky", correlations)
    with numpyro.plate("rows", num_rows):
        components = dist.MultivariateNormal(means, scale_tril=lower)
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(probs=weights), components), obs=x)


def conjugate_mixture_same_family(x: Any, prior: Any) -> None:
    """The same of one column under the conjugate prior, whose Wishart is then an inverse gamma of the variance."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    k = len(prior.concentration)
    half = 0.5 * jnp.ones(k, x.dtype)
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.asarray(prior.concentration)))
    of_variances = dist.InverseGamma(half * prior.dof, half * np.asarray(prior.scale).item())
    variances = numpyro.sample("variances", of_variances.to_event(1))
    of_means = dist.Normal(np.asarray(prior.mean).item(), jnp.sqrt(variances / prior.shrinkage))
    means = numpyro.sample("means", of_means.to_event(1))
    with numpyro.plate("rows", len(x)):
        components = dist.Normal(means, jnp.sqrt(variances))
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(probs=weights), components), obs=x[:, 0])


def standardised_mixture_same_family() -> Callable[..., None]:
    """The model in standardised means."""
    from numpyro.handlers import reparam
    from numpyro.infer.reparam import TransformReparam

    return reparam(mixture_same_family, config={"means": TransformReparam()})


class NumPyroSampler:
    """NumPyro's NUTS with its defaults (started by init_to_uniform), four chains of 1000 warm-up and 1000 draws."""

    def __init__(self, x: np.ndarray, num_components: int, settings: dict[str, Any]) -> None:
        import jax
        from numpyro.infer import MCMC, NUTS

        settings = dict(settings)
        conjugate = settings.pop("conjugate", False)
        counts = {"num_chains": 4, "num_warmup": 1000, "num_samples": 1000} | settings
        # Iterations cost more during warm-up, so that its share of the time is put low here.
        self.warmup_share = counts["num_warmup"] / (counts["num_warmup"] + counts["num_samples"])
        method = "parallel" if jax.local_device_count() >= counts["num_chains"] else "sequential"
        model = conjugate_mixture_same_family if conjugate else standardised_mixture_same_family()
        self.mcmc = MCMC(NUTS(model), chain_method=method, progress_bar=False, **counts)
        self.x = x
        self.numbers = conjugate_prior_of(x, num_components) if conjugate else numbers_of(x, num_components)

    def draw(self, seed: int) -> dict[str, np.ndarray]:
        import jax

        with jax.enable_x64(self.x.dtype == np.float64):
            self.mcmc.run(jax.random.key(seed), jax.numpy.asarray(self.x), self.numbers)
            return {name: np.asarray(value) for name, value in self.mcmc.get_samples(group_by_chain=True).items()}

    def draws(self, drawn: dict[str, np.ndarray]) -> Draws:
        if "variances" in drawn:
            return Draws(drawn["weights"], drawn["means"][..., None], drawn["variances"][..., None, None])
        lower = drawn["scales"][..., None] * drawn.get("correlation_cholesky", 1.0)
        return Draws(drawn["weights"], drawn["means"], lower @ np.swapaxes(lower, -1, -2))


class NutpieSampler:
    """nutpie with its defaults on PyMC's marginal mixture of normals with LKJ Cholesky covariances."""

    def __init__(self, x: np.ndarray, num_components: int, settings: dict[str, Any]) -> None:
        pymc, self.nutpie = peer("pymc"), peer("nutpie")
        self.settings = settings
        self.warmup_share = float("nan")  # known when it has drawn
        self.compiled = self.nutpie.compile_pymc_model(pymc_mixture(pymc, x, num_components))

    def draw(self, seed: int) -> Any:
        tree = self.nutpie.sample(self.compiled, seed=seed, progress_bar=False, **self.settings)
        warmup, drawn = (
            float(np.asarray(tree[group]["n_steps"]).sum()) for group in ("warmup_sample_stats", "sample_stats")
        )
        self.warmup_share = warmup / (warmup + drawn)
        return tree

    def draws(self, tree: Any) -> Draws:
        drawn = tree.posterior
        weights = np.asarray(drawn["weights"])
        scales, correlations = (
            np.stack([np.asarray(drawn[f"factor{j}_{part}"]) for j in range(weights.shape[-1])], 2)
            for part in ("stds", "corr")
        )
        return Draws(weights, np.asarray(drawn["means"]), scales[..., None] * correlations * scales[..., None, :])


def pymc_mixture(pymc: Any, x: np.ndarray, num_components: int) -> Any:
    """The same model in PyMC."""
    numbers, (_, d) = numbers_of(x, num_components), x.shape
    with pymc.Model() as model:
        weights = pymc.Dirichlet("weights", a=numbers.concentration)
        standardised = pymc.Normal("means_base", 0.0, numbers.mean_scale, shape=(num_components, d))
        means = pymc.Deterministic("means", numbers.column_mean + numbers.column_scale * standardised)
        components = []
        for j in range(num_components):
            scales = pymc.LogNormal.dist(mu=numbers.log_scale_median, sigma=numbers.scale_sigma, shape=d)
            factor, _, _ = pymc.LKJCholeskyCov(
                f"factor{j}", n=d, eta=numbers.correlation_concentration, sd_dist=scales, compute_corr=True
            )
            components.append(pymc.MvNormal.dist(mu=means[j], chol=factor))
        pymc.Mixture("x", w=weights, comp_dists=components, observed=x)
    return model


def sklearn_variational_steps(x: np.ndarray, responsibilities: np.ndarray, prior: Any) -> Any:
    """Variational steps of scikit-learn, one at a time, from responsibilities (n, k) and under a conjugate prior."""
    from sklearn.mixture import BayesianGaussianMixture

    from tests.benchmarks.peers import THREADS, SklearnSteps

    estimator = BayesianGaussianMixture(
        n_components=responsibilities.shape[1],
        covariance_type="full",
        weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=float(prior.concentration[0]),
        mean_precision_prior=float(prior.shrinkage),
        mean_prior=np.asarray(prior.mean),
        degrees_of_freedom_prior=float(prior.dof),
        covariance_prior=np.asarray(prior.scale),
        reg_covar=0.0,
    )
    estimator._check_parameters(x)
    estimator._initialize(x, responsibilities)
    steps = SklearnSteps.__new__(SklearnSteps)
    steps.x, steps.family, steps.estimator = x, "full", estimator
    steps.seconds = {threads: [] for threads in THREADS}
    return steps
