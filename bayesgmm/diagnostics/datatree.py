"""ArviZ: a fit as a `DataTree` with named dimensions, saved and read back, cross-validation, sensitivity to the prior.

Dimensions are `cluster`, `feature` and `row`. (Not `component`: `arviz.psense_summary` uses that name itself.)
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayesgmm.diagnostics.criteria import pointwise_log_likelihood
from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import RandomKey
from bayesgmm.numerics.validation import as_key, as_rows
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.priors.scales import HierarchicalScales
from bayesgmm.priors.weakly_informative import WeaklyInformativePrior
from bayesgmm.target.prior_predictive import draw_scale_rates, log_prior_of_draws, prior_draws

if TYPE_CHECKING:
    from pandas import DataFrame
    from xarray import DataTree

NUM_PRIOR_DRAWS = 1000
_FEWEST_DRAWS = 25  # for the tail of the importance weights
_MAX_POINTWISE = 2**27  # log-likelihoods of rows by draw, 1 GB
_MAX_PREDICTIVE = 2_000_000  # numbers kept in the posterior_predictive group, 16 MB


def to_datatree(
    fit: Fit, x: Any, *, prior: AnyPrior, key: RandomKey, feature_names: Sequence[str] | None = None
) -> "DataTree":
    """A Bayesian fit as an ArviZ `DataTree`.

    Groups: `posterior` (weights, means, scales and, for families with correlations, covariances), `sample_stats`
    where the engine has them, `log_likelihood` of every row, `log_prior` (the log prior density of every draw, one
    variable for each site of the model), `observed_data`, `posterior_predictive` (replicated data sets, thinned for
    many rows), `prior` and `optimization` (the trace of MAP and VI). A point estimate is a posterior of one draw.

    Under hierarchical scales `posterior` and `prior` have the rates `scale_rate` too, drawn given the scales.

    Of so many rows and draws that their log-likelihoods would take more than 1 GB only every second, third or so draw
    is in the tree, in all groups; which, its attribute `every` says.

    Raises:
        InputError: for a prior of another number of components or another family, for names that are not one for each
            column, and for a fit by EM, which has no posterior.
    """
    import arviz

    if fit.engine == "em":
        raise InputError("fit is by EM, which has no posterior; give a fit by fit_map, fit_vi or fit_nuts")
    x, key = np.asarray(as_rows(x)), as_key(key)
    names = [f"x{index}" for index in range(x.shape[1])] if feature_names is None else list(feature_names)
    if len(names) != x.shape[1]:
        raise InputError(f"feature_names has {len(names)} names for {x.shape[1]} columns; give one each")
    family = get_family(fit.family)
    draws = jax.tree.map(lambda leaf: np.asarray(leaf)[None, None], fit.mixture) if fit.draws is None else fit.draws
    thin = max(1, -(-int(np.prod(draws.draw_shape)) * len(x) // _MAX_POINTWISE))
    draws = draws[:, ::thin]
    prior_key, predictive_key = jax.random.split(key)
    from_prior = prior_draws(prior, family, fit.mixture.num_components, NUM_PRIOR_DRAWS, key=prior_key)
    rates: list[Any] = [None, None]
    if isinstance(prior, WeaklyInformativePrior) and isinstance(prior.scales, HierarchicalScales):
        keys = (jax.random.fold_in(predictive_key, 1), jax.random.fold_in(prior_key, 1))
        rates = [
            draw_scale_rates(part, family, prior.scales, key=key)
            for part, key in zip((draws, from_prior), keys, strict=True)
        ]
    every = max(1, -(-draws.means.shape[0] * draws.means.shape[1] * x.size // _MAX_PREDICTIVE))
    groups: dict[str, dict[str, Any]] = {
        "posterior": _variables(draws, family, rates[0]),
        "log_likelihood": {"x": np.asarray(pointwise_log_likelihood(draws, x))},
        "posterior_predictive": {"x": np.asarray(draws[:, ::every].sample(x.shape[0], key=predictive_key))},
        "log_prior": jax.tree.map(np.asarray, log_prior_of_draws(draws, family, prior, rates[0])),
        "prior": _variables(from_prior, family, rates[1]),
        "observed_data": {"x": x},
    }
    if fit.sample_stats:
        groups["sample_stats"] = {name: np.asarray(value)[:, ::thin] for name, value in fit.sample_stats.items()}
    dims: dict[str, list[str]] = {
        "weights": ["cluster"],
        "means": ["cluster", "feature"],
        "scales": ["cluster", "feature"],
        "covariances": ["cluster", "feature", "feature_other"],
        "scale_rate": [] if family.isotropic else ["feature"],
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
        shapes = {} if group == "log_prior" else {**dims, "x": rows.get(group, [])}
        part = arviz.from_dict({group: variables}, dims=shapes, coords=coords)
        tree = part if tree is None else tree.assign({group: part[group]})
    assert tree is not None
    if np.ndim(fit.trace) == 1:  # of a sampler's draws the trace is among the sample statistics
        import xarray

        trace = xarray.Dataset({"objective": ("step", np.asarray(fit.trace))})
        tree = tree.assign({"optimization": xarray.DataTree(trace)})
    tree.attrs = {
        "engine": fit.engine,
        "family": fit.family,
        "num_components": fit.mixture.num_components,
        "result": fit.code.name,
        "every": thin,
        "inference_library": "bayesgmm",
    }
    return tree


def _variables(draws: Mixture, family: Family, scale_rates: Any) -> dict[str, np.ndarray]:
    variables = {"weights": draws.weights, "means": draws.means, "scales": draws.scales}
    if family.has_correlations(draws.num_features):
        variables["covariances"] = draws.covariances
    if scale_rates is not None:
        variables["scale_rate"] = scale_rates[..., 0] if family.isotropic else scale_rates
    return {name: np.asarray(value) for name, value in variables.items()}


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
    if tree.posterior.sizes["draw"] * tree.posterior.sizes["chain"] < 2:
        return None
    result = pointwise_loo(tree)
    pareto_k = np.asarray(result.pareto_k)
    return Loo(
        elpd=float(result.elpd),
        se=float(result.se),
        p=float(result.p),
        max_pareto_k=float(pareto_k.max()),
        num_bad=int((pareto_k > result.good_k).sum()),
    )


def compare_loo(trees: Mapping[str, "DataTree"]) -> "DataFrame":
    """Posteriors of the same rows, best first, by PSIS-LOO and `arviz.compare`: over k, families, priors and engines.

    Columns are those of ArviZ: `rank`, `elpd`, `p`, `elpd_diff` to the best, `weight` in the stacked predictive
    density, `se`, `dse` of the difference, `warning` where a Pareto k is too large; and `engine`, `family`,
    `num_components`, and `result`, so that a fit that failed is not mistaken for one that did not.

    Args:
        trees: trees of `to_datatree` by name, all of the same rows and with draws.

    Raises:
        InputError: for fewer than two trees, one of a point estimate, or trees of different rows.

    Source: Vehtari, Gelman & Gabry (2017); Yao et al. (2018), Using stacking to average Bayesian predictive
    distributions.
    """
    import arviz

    if len(trees) < 2:
        raise InputError(f"trees has {len(trees)} posteriors; give at least two to compare")
    first = np.asarray(next(iter(trees.values())).observed_data["x"])
    for name, tree in trees.items():
        if tree.posterior.sizes["draw"] * tree.posterior.sizes["chain"] < _FEWEST_DRAWS:
            raise InputError(f"trees[{name!r}] has fewer than {_FEWEST_DRAWS} draws; give a fit by VI or a sampler")
        if not np.array_equal(np.asarray(tree.observed_data["x"]), first):
            raise InputError(f"trees[{name!r}] is of other rows than the first; compare fits of the same rows")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told by the column `warning`
        # As they are: rounded weights, as ArviZ gives by default, do not add up to 1.
        table = arviz.compare({name: pointwise_loo(tree) for name, tree in trees.items()}, round_to="none")
    attributes = ("engine", "family", "num_components", "result")
    for attribute in attributes:
        table[attribute] = [trees[name].attrs[attribute] for name in table.index]
    return table


def pointwise_loo(tree: "DataTree") -> Any:
    """ArviZ's own result with what it says of every row, in which draws of an approximation are corrected for."""
    import arviz

    with warnings.catch_warnings():
        # High Pareto k is reported by number in place of a warning.
        warnings.simplefilter("ignore")
        stats = tree["sample_stats"] if "sample_stats" in tree.children else {}
        if "log_q" in stats:
            return arviz.loo_approximate_posterior(
                tree, log_p=stats["log_p"], log_q=stats["log_q"], pointwise=True, var_name="x"
            )
        return arviz.loo(tree, pointwise=True, var_name="x")


def prior_sensitivity(tree: "DataTree", *, var_names: Sequence[str] | None = None, **settings: Any) -> "DataFrame":
    r"""How much the posterior moves when the prior, or the likelihood, is raised to a power near 1, by ArviZ.

    A row for every parameter, with the sensitivities to `prior` and `likelihood` and a `diagnosis`. Above 0.05 both:
    prior and data are in conflict; the prior alone: it is strong, or the likelihood is weak; else a check mark.

    Args:
        tree: a tree of `to_datatree`, with draws.
        var_names: variables of the posterior, by default weights, means, scales and their rate, where they vary.
        settings: further arguments of `arviz.psense_summary`, such as `prior_var_names=["means"]`, which scales the
            prior of the means only.

    Raises:
        InputError: for a tree of a point estimate, or without the log prior density.

    Source: Kallioinen et al. (2024), Detecting and diagnosing prior and likelihood sensitivity with power-scaling.
    """
    import arviz

    if "log_prior" not in tree.children:
        raise InputError("tree has no group log_prior; make it with to_datatree, which is given the prior")
    posterior = tree.posterior
    num_draws = posterior.sizes["chain"] * posterior.sizes["draw"]
    if num_draws < _FEWEST_DRAWS:
        raise InputError(
            f"tree has a posterior of {num_draws} draws, and power-scaling needs at least {_FEWEST_DRAWS}; give one by "
            "fit_nuts or fit_vi"
        )
    if var_names is None:  # the only weight of one component does not vary
        names = [name for name in ("weights", "means", "scales", "scale_rate") if name in posterior]
        var_names = [name for name in names if bool((posterior[name].std(("chain", "draw")) > 0).all())]
    logger = logging.getLogger("arviz_stats.psense")
    logger.addFilter(_not_told_by_the_table)
    try:
        return arviz.psense_summary(tree, var_names=list(var_names), **settings)
    finally:
        logger.removeFilter(_not_told_by_the_table)


def _not_told_by_the_table(record: logging.LogRecord) -> bool:
    """Whether a message of ArviZ's is more than that there is something in the column `diagnosis`."""
    return not record.getMessage().startswith("We detected potential issues")
