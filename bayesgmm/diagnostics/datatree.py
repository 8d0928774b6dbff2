"""ArviZ: a fit as a `DataTree` with named dimensions, saved and read back.

Dimensions are `cluster`, `feature` and `row`. (Not `component`: `arviz.psense_summary` uses that name itself.)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from bayesgmm.diagnostics.criteria import pointwise_log_likelihood
from bayesgmm.engines.fit import Fit, as_fit
from bayesgmm.engines.registry import ENGINES
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.keys import number_key, split_key
from bayesgmm.numerics.paths import as_path
from bayesgmm.numerics.precision import AnyArray, ArrayLike, RandomKey
from bayesgmm.numerics.validation import as_key, name_features
from bayesgmm.priors.checks import check_prior, distinguishes_components
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.priors.scales import HierarchicalScales
from bayesgmm.priors.weakly_informative import WeaklyInformativePrior
from bayesgmm.runtime.progress import waited_for
from bayesgmm.target.prior_simulation import compile_prior_draws, draw_scale_rates, log_prior_of_draws, prior_draws

if TYPE_CHECKING:
    from xarray import DataTree

NUM_PRIOR_DRAWS = 1000
_MAX_POINTWISE = 2**27  # log-likelihoods of rows by draw, 1 GB
_MAX_PREDICTIVE = 250_000  # numbers kept in the posterior_predictive group, 2 MB
_LEAN_DRAWS = 1000
_ROUNDED = ("log_likelihood", "posterior_predictive", "prior")


@waited_for("DataTree")
def to_datatree(
    fit: Fit, x: ArrayLike, *, prior: AnyPrior, key: RandomKey, feature_names: Sequence[str] | None = None
) -> "DataTree":
    """Convert a Bayesian fit to an ArviZ `DataTree`.

    Groups: `posterior` (weights, means, scales and, for families with correlations, covariances), `sample_stats`
    where the engine has them, `log_likelihood` of every row, `log_prior` (the log prior density of every draw, one
    variable for each site of the model), `observed_data`, `posterior_predictive` (replicated data sets, thinned for
    many rows), `prior` and `optimization` (the trace of MAP and VI). A point estimate is a posterior of one draw.

    Under hierarchical scales `posterior` and `prior` have the rates `scale_rate` too, drawn given the scales.

    Where the log-likelihoods of all rows and draws would take more than 1 GB, the tree has every second, third or so
    draw only, in all groups; its attribute `every` is the step.

    Raises:
        InputError: for a prior of another number of components or another family, for names that are not one for each
            column, and for a fit by EM without a prior, which has no posterior.
    """
    import xarray
    from arviz_base import from_dict  # not by ArviZ, which imports matplotlib

    if not as_fit(fit).has_prior:
        raise InputError(
            f"fit is by {ENGINES[fit.engine].label}, which has no posterior; give a fit by fit_map, fit_vi or fit_nuts"
        )
    names, key = list(name_features(feature_names, fit.mixture.num_features, x, fit)), as_key(key)
    x = np.asarray(as_rows(x).values)
    family = get_family(fit.family)
    draws = jax.tree.map(lambda leaf: np.asarray(leaf)[None, None], fit.mixture) if fit.draws is None else fit.draws
    thin = max(1, -(-int(np.prod(draws.draw_shape)) * len(x) // _MAX_POINTWISE))
    draws = draws[:, ::thin]
    prior_key, predictive_key = split_key(key)
    k = fit.mixture.num_components
    prior = check_prior(prior, k, None, family)
    compile_prior_draws(prior, family, k, NUM_PRIOR_DRAWS)  # while others are made
    scales, rate, prior_rate = prior.scales if isinstance(prior, WeaklyInformativePrior) else None, None, None
    if isinstance(scales, HierarchicalScales):
        rate = draw_scale_rates(draws, family, scales, key=number_key(predictive_key, 1))
    every = max(1, -(-int(np.prod(draws.draw_shape)) * x.size // _MAX_PREDICTIVE))
    stats = {name: np.asarray(value)[:, ::thin] for name, value in fit.sample_stats.items()}
    log_prior = jax.tree.map(np.asarray, log_prior_of_draws(draws, family, prior, rate))
    log_likelihoods = np.asarray(pointwise_log_likelihood(draws, x))
    predicted = np.asarray(draws[:, ::every].sample(len(x), key=predictive_key))
    from_prior = prior_draws(prior, family, k, NUM_PRIOR_DRAWS, key=prior_key)
    if isinstance(scales, HierarchicalScales):
        prior_rate = draw_scale_rates(from_prior, family, scales, key=number_key(prior_key, 1))
    each = ["cluster", "feature"]
    dims = {"weights": ["cluster"], "means": each, "scales": each, "covariances": [*each, "feature_other"]}
    dims["scale_rate"] = [] if family.isotropic else ["feature"]
    x_dims = {"x": ["row", "feature"]}
    groups: dict[str, tuple[dict[str, np.ndarray], dict[str, list[str]]]] = {
        "posterior": (_variables(draws, family, rate), dims),
        "log_likelihood": ({"x": log_likelihoods}, {"x": ["row"]}),
        "posterior_predictive": ({"x": predicted}, x_dims),
        "log_prior": (log_prior, {}),
        "prior": (_variables(from_prior, family, prior_rate), dims),
        "observed_data": ({"x": x}, x_dims),
        **({"sample_stats": (stats, {})} if stats else {}),
    }
    clusters = np.arange(k)
    coords = {"cluster": clusters, "feature": names, "feature_other": names, "row": np.arange(len(x))}
    parts = {
        name: from_dict({name: variables}, dims=of_group, coords=coords).children[name]
        for name, (variables, of_group) in groups.items()
    }
    if np.ndim(fit.trace) == 1:  # of a sampler's draws the trace is among the sample statistics
        parts["optimization"] = xarray.DataTree(xarray.Dataset({"objective": ("step", fit.steps)}))
    tree = xarray.DataTree(children=parts)
    what = {"engine": fit.engine, "family": fit.family, "num_components": k}
    if distinguishes_components(prior) and fit.summary.get("num_relabelled"):
        what["relabelled"] = int(
            fit.summary["num_relabelled"]
        )  # whose prior density is not the one they were drawn with
    tree.attrs = {**what, "result": fit.code.name, "every": thin, "inference_library": "bayesgmm"}
    return tree


def _variables(draws: Mixture, family: Family, scale_rates: AnyArray | None) -> dict[str, np.ndarray]:
    variables = {"weights": draws.weights, "means": draws.means, "scales": draws.scales}
    if family.has_correlations(draws.num_features):
        variables["covariances"] = draws.covariances
    if scale_rates is not None:
        variables["scale_rate"] = scale_rates[..., 0] if family.isotropic else scale_rates
    return {name: np.asarray(value) for name, value in variables.items()}


def save_datatree(tree: "DataTree", path: str | Path) -> None:
    """Write a `DataTree` as NetCDF; it reads back equal.

    Raises:
        InputError: for a path that cannot be written to.
    """
    try:
        tree.to_netcdf(as_path(path), engine="h5netcdf")
    except OSError as error:
        raise InputError(f"file {str(path)!r} cannot be written ({_one_line(error)}); choose another") from None


def lean_datatree(tree: "DataTree") -> "DataTree":
    """The tree with what takes most room in a file made small.

    Log-likelihoods of rows, and replicated and prior draws, have five digits, which files compress. Of an
    approximation, whose draws are independent, there are a thousand at most.
    """
    size = tree["posterior"].sizes["draw"]
    every = -(-size // _LEAN_DRAWS) if ENGINES[tree.attrs["engine"]].gives == "approximation" else 1
    lean = tree.copy()
    for name, group in tree.children.items():
        found = group.to_dataset()
        if "draw" in found.sizes and name != "prior":
            found = found.isel(draw=slice(None, None, every))
        if name in _ROUNDED:
            found = found.map(lambda values: values.copy(data=_rounded(values.to_numpy())))
            for variable in found.data_vars.values():
                variable.encoding.update(zlib=True, shuffle=True, complevel=4)
        lean[name] = lean[name].from_dict({"/": found})
    return lean


def _rounded(values: np.ndarray) -> np.ndarray:
    """Float32 with the last seven bits of the mantissa rounded away: an error of 1e-5 of the value at most."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x40)) & np.uint32(0xFFFFFF80)).view(np.float32)


def load_datatree(path: str | Path) -> "DataTree":
    """Read a `DataTree` written by `save_datatree`, into memory.

    Raises:
        InputError: for a file that is not there, or is no NetCDF.
    """
    import xarray

    try:
        with xarray.open_datatree(as_path(path), engine="h5netcdf") as tree:
            return tree.load()
    except OSError as error:
        why = _one_line(error)
        raise InputError(f"file {str(path)!r} cannot be read as NetCDF ({why}); give one of save_datatree") from None


def _one_line(error: OSError) -> str:
    return " ".join(str(error.strerror or error).split())[:100]
