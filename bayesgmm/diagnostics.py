"""ArviZ: a fit as a `DataTree` with named dimensions, saved and read back, and leave-one-out cross-validation.

Dimensions are `cluster`, `feature` and `row`. (Not `component`: `arviz.psense_summary` uses that name itself.)
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesgmm.checks import as_rows
from bayesgmm.conjugate import AnyPrior
from bayesgmm.criteria import pointwise_log_likelihood
from bayesgmm.engines.model import mixture_of_sites, sample_sites
from bayesgmm.families import Family, get_family
from bayesgmm.mixture import Mixture
from bayesgmm.precision import RandomKey, matching_precision
from bayesgmm.results import Fit

if TYPE_CHECKING:
    from xarray import DataTree

NUM_PRIOR_DRAWS = 1000
_MAX_PREDICTIVE = 2_000_000  # numbers kept in the posterior_predictive group, 16 MB


def to_datatree(
    fit: Fit, x: Any, *, prior: AnyPrior, key: RandomKey, feature_names: Sequence[str] | None = None
) -> "DataTree":
    """A Bayesian fit as an ArviZ `DataTree`.

    Groups: `posterior` (weights, means, scales and, for families with correlations, covariances), `sample_stats`
    where the engine has them, `log_likelihood` of every row, `observed_data`, `posterior_predictive` (replicated data
    sets, thinned for many rows), `prior` and `optimization` (the trace of MAP and VI). A point estimate is a posterior
    of one draw.

    Raises:
        ValueError: for a fit by EM, which has no posterior.
    """
    import arviz

    if fit.engine == "em":
        raise ValueError("fit is by EM, which has no posterior; give a fit by fit_map, fit_vi or fit_nuts")
    x = np.asarray(as_rows(x))
    names = [f"x{index}" for index in range(x.shape[1])] if feature_names is None else list(feature_names)
    family = get_family(fit.family)
    draws = jax.tree.map(lambda leaf: np.asarray(leaf)[None, None], fit.mixture) if fit.draws is None else fit.draws
    prior_key, predictive_key = jax.random.split(key)
    prior_draws = draw_prior(prior, family, fit.mixture.num_components, NUM_PRIOR_DRAWS, key=prior_key)
    every = max(1, -(-draws.means.shape[0] * draws.means.shape[1] * x.size // _MAX_PREDICTIVE))
    groups: dict[str, dict[str, Any]] = {
        "posterior": _variables(draws, family),
        "log_likelihood": {"x": np.asarray(pointwise_log_likelihood(draws, x))},
        "posterior_predictive": {"x": np.asarray(draws[:, ::every].sample(x.shape[0], key=predictive_key))},
        "prior": _variables(prior_draws, family),
        "observed_data": {"x": x},
    }
    if fit.sample_stats:
        groups["sample_stats"] = {name: np.asarray(value) for name, value in fit.sample_stats.items()}
    dims = {
        "weights": ["cluster"],
        "means": ["cluster", "feature"],
        "scales": ["cluster", "feature"],
        "covariances": ["cluster", "feature", "feature_other"],
    }
    coords = {
        "cluster": np.arange(fit.mixture.num_components),
        "feature": names,
        "feature_other": names,
        "row": np.arange(x.shape[0]),
    }
    rows = {"log_likelihood": ["row"], "posterior_predictive": ["row", "feature"], "observed_data": ["row", "feature"]}
    tree = None
    for group, variables in groups.items():
        part = arviz.from_dict({group: variables}, dims={**dims, "x": rows.get(group, [])}, coords=coords)
        tree = part if tree is None else tree.assign({group: part[group]})
    assert tree is not None
    if fit.engine != "nuts":
        import xarray

        trace = xarray.Dataset({"objective": ("step", np.asarray(fit.trace))})
        tree = tree.assign({"optimization": xarray.DataTree(trace)})
    tree.attrs = {
        "engine": fit.engine,
        "family": fit.family,
        "num_components": fit.mixture.num_components,
        "result": fit.code.name,
        "inference_library": "bayesgmm",
    }
    return tree


def _variables(draws: Mixture, family: Family) -> dict[str, np.ndarray]:
    variables = {"weights": draws.weights, "means": draws.means, "scales": draws.scales}
    if family.has_correlations(draws.num_features):
        variables["covariances"] = draws.covariances
    return {name: np.asarray(value) for name, value in variables.items()}


@matching_precision
def draw_prior(prior: AnyPrior, family: Family, num_components: int, num_draws: int, *, key: RandomKey) -> Mixture:
    """Mixtures drawn from the prior, with leading axes (1, num_draws); their labels carry no meaning."""
    return _draw_prior(jax.tree.map(jnp.asarray, prior), family, num_components, num_draws, key)


@functools.partial(jax.jit, static_argnames=("family", "num_components", "num_draws"))
def _draw_prior(prior: AnyPrior, family: Family, num_components: int, num_draws: int, key: RandomKey) -> Mixture:
    from numpyro.infer import Predictive

    predictive = Predictive(sample_sites, num_samples=num_draws, parallel=True)
    latent = predictive(key, num_components, family, prior)
    draws = jax.vmap(lambda sites: mixture_of_sites(sites, family))(latent)
    return jax.tree.map(lambda leaf: leaf[None], draws)


def save_datatree(tree: "DataTree", path: str | Path) -> None:
    """Write a `DataTree` as NetCDF; it reads back equal."""
    tree.to_netcdf(path, engine="h5netcdf")


def load_datatree(path: str | Path) -> "DataTree":
    """Read a `DataTree` written by `save_datatree`, into memory."""
    import xarray

    with xarray.open_datatree(path, engine="h5netcdf") as tree:
        return tree.load()


@dataclass(frozen=True)
class Loo:
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling.

    Attributes:
        elpd: expected log pointwise predictive density; larger is better.
        se: its standard error.
        p: effective number of parameters.
        max_pareto_k: largest Pareto shape; above 0.7 the estimate of that row's term is unreliable.
        num_bad: number of rows above that threshold.
    """

    elpd: float
    se: float
    p: float
    max_pareto_k: float
    num_bad: int


def loo(tree: "DataTree") -> Loo | None:
    """PSIS-LOO of a posterior by ArviZ, from its pointwise log-likelihoods; None for a point estimate.

    For draws from a variational approximation, the importance weights also correct for the approximation (they use
    the draws' `log_p` and `log_q`).

    Source: Vehtari, Gelman & Gabry (2017); Magnusson et al. (2019) for approximate posteriors.
    """
    import arviz

    if tree.posterior.sizes["draw"] * tree.posterior.sizes["chain"] < 2:
        return None
    with warnings.catch_warnings():
        # High Pareto k is reported by number, below, in place of a warning.
        warnings.simplefilter("ignore")
        stats = tree["sample_stats"] if "sample_stats" in tree.children else {}
        if "log_q" in stats:
            result: Any = arviz.loo_approximate_posterior(
                tree, log_p=stats["log_p"], log_q=stats["log_q"], pointwise=True, var_name="x"
            )
        else:
            result = arviz.loo(tree, pointwise=True, var_name="x")
    pareto_k = np.asarray(result.pareto_k)
    return Loo(
        elpd=float(result.elpd),
        se=float(result.se),
        p=float(result.p),
        max_pareto_k=float(pareto_k.max()),
        num_bad=int((pareto_k > result.good_k).sum()),
    )
