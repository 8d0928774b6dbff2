"""The main job: one data set, one mixture, several engines, one table on one likelihood."""

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Array

from bayesgmm.checks import as_key, as_rows, enough_rows, whole_number
from bayesgmm.criteria import information_criteria
from bayesgmm.diagnostics import Loo, loo, to_datatree
from bayesgmm.engines.em import fit_em
from bayesgmm.errors import InputError
from bayesgmm.families import Family, get_family
from bayesgmm.priors import Prior, default_prior
from bayesgmm.results import ENGINES, Fit, ResultCode

if TYPE_CHECKING:
    from xarray import DataTree

CRITERIA = ("bic", "aic", "icl")
_PACKAGES = ("bayesgmm", "jax", "numpyro", "arviz", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib")

GOOD_PARETO_K = 0.7  # Vehtari et al. (2024): above it, importance sampling is unreliable

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """Several engines' fits of the same mixture to the same rows.

    Attributes:
        x: the rows, shape (n, d).
        feature_names: names of the columns.
        fits: the fits by name: "em", "map", "vi (normal)", "vi (full rank)", "nuts".
        trees: ArviZ DataTrees of the Bayesian fits, by the same names.
        table: one row for each fit: log-likelihood at its point, criteria, ELPD-LOO, seconds, and how it ended.
        candidates: EM fits over the numbers of components that were asked for, with their criteria.
        selected_by: criterion that picked the number of components, None where only one was given.
        prior: prior of the Bayesian fits.
    """

    x: np.ndarray
    feature_names: tuple[str, ...]
    fits: dict[str, Fit]
    trees: dict[str, "DataTree"]
    table: pd.DataFrame
    candidates: pd.DataFrame
    selected_by: str | None
    prior: Prior

    @property
    def num_components(self) -> int:
        """Number of components of the compared mixture."""
        return self.fits["em"].mixture.num_components

    @property
    def cautions(self) -> list[tuple[str, str]]:
        """What a reader of the table must know: (name of the fit, sentence), worst first."""
        failed = [
            (name, fit.code.explanation) for name, fit in self.fits.items() if fit.code is not ResultCode.successful
        ]
        rows = self.table.to_dict("records")
        approximate = [
            (
                row["engine"],
                f"Pareto k-hat is {row['khat']:.2f}, above {GOOD_PARETO_K}: the normal approximation misses part of "
                "the posterior, and its uncertainties are not to be trusted",
            )
            for row in rows
            if row["khat"] > GOOD_PARETO_K
        ]
        leaning = [
            (
                row["engine"],
                f"the largest Pareto k of leave-one-out is {row['max_pareto_k']:.2f}, above {GOOD_PARETO_K}: its "
                "ELPD-LOO leans on rows whose terms are unreliable",
            )
            for row in rows
            if row["max_pareto_k"] > GOOD_PARETO_K
        ]
        return failed + approximate + leaning


def compare(
    x: Any,
    num_components: Any,
    *,
    family: str | Family = "full",
    engines: Sequence[str] = ENGINES,
    key: Any,
    feature_names: Sequence[str] | None = None,
    select_by: str = "bic",
    guides: Sequence[str] = ("full_rank",),
    prior_settings: Mapping[str, Any] | None = None,
    em: Mapping[str, Any] | None = None,
    map: Mapping[str, Any] | None = None,
    vi: Mapping[str, Any] | None = None,
    nuts: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Fit one mixture by several engines and put the fits side by side.

    Args:
        x: rows (n, d); a pandas DataFrame gives its column names to the features.
        num_components: k, or several: then EM fits each, the criterion `select_by` picks one, and the other engines
            fit that one.
        family: covariance family.
        engines: which engines to run; "em" is always among them, because the others start from its fit.
        key: `jax.random.key(seed)`.
        feature_names: names of the columns.
        select_by: "bic", "aic" or "icl".
        guides: guides of the variational engine, "normal" and "full_rank".
        prior_settings: keyword arguments of `default_prior`.
        em: further keyword arguments of `fit_em`; likewise `map`, `vi` and `nuts` of their engines.
        on_progress: called with a sentence whenever something starts.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
    """
    family = get_family(family)
    if feature_names is None and isinstance(x, pd.DataFrame):
        feature_names = [str(name) for name in x.columns]
    x, key = np.asarray(as_rows(x)), as_key(key)
    names = tuple(f"x{index}" for index in range(x.shape[1])) if feature_names is None else tuple(feature_names)
    given: Any = num_components
    several = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    counts = sorted({whole_number("num_components", count) for count in several})
    if not counts:
        raise InputError("num_components is empty; give one number or several")
    unknown = [engine for engine in engines if engine not in ENGINES]
    if unknown:
        raise InputError(f"engines has {unknown[0]!r}; choose from {', '.join(ENGINES)}")
    if select_by not in CRITERIA:
        raise InputError(f"select_by={select_by!r} is not known; choose one of {', '.join(CRITERIA)}")
    if len(names) != x.shape[1]:
        raise InputError(f"feature_names has {len(names)} names for {x.shape[1]} columns; give one each")
    for count in counts:
        enough_rows(x, count, family)
    tell = on_progress or (lambda _: None)

    em_key, *engine_keys, tree_key = jax.random.split(key, 6)
    seconds: dict[str, float] = {}
    candidates: list[dict[str, Any]] = []
    em_fits: dict[int, Fit] = {}
    for count in counts:
        tell(f"EM, k = {count}")
        began = time.perf_counter()
        fit = fit_em(x, count, family=family, key=em_key, on_failure="ignore", **(em or {}))
        em_fits[count] = fit
        candidates.append(_candidate(fit, x, time.perf_counter() - began))
    frame = pd.DataFrame(candidates)
    selected = _select(frame, select_by)
    fits = {"em": em_fits[selected]}
    seconds["em"] = float(frame.loc[frame["num_components"] == selected, "seconds"].iloc[0])
    prior = default_prior(x, selected, **(prior_settings or {}))

    for name, run in _runs(engines, guides, engine_keys, map or {}, vi or {}, nuts or {}):
        tell(f"{name}, k = {selected}")
        began = time.perf_counter()
        fits[name] = run(x, selected, family=family, prior=prior, start=fits["em"].mixture, on_failure="ignore")
        seconds[name] = time.perf_counter() - began

    trees: dict[str, DataTree] = {}
    leave_one_out: dict[str, Loo | None] = {}
    for name, fit in fits.items():
        if fit.engine != "em":
            tell(f"diagnostics of {name}")
            trees[name] = to_datatree(fit, x, prior=prior, key=tree_key, feature_names=names)
            leave_one_out[name] = loo(trees[name])
    table = pd.DataFrame([_row(name, fit, x, leave_one_out.get(name), seconds[name]) for name, fit in fits.items()])
    return Comparison(
        x=x,
        feature_names=names,
        fits=fits,
        trees=trees,
        table=table,
        candidates=frame,
        selected_by=select_by if len(counts) > 1 else None,
        prior=prior,
    )


def _runs(
    engines: Sequence[str],
    guides: Sequence[str],
    keys: Sequence[Array],
    map_settings: Mapping[str, Any],
    vi_settings: Mapping[str, Any],
    nuts_settings: Mapping[str, Any],
) -> list[tuple[str, Callable[..., Fit]]]:
    """The Bayesian engines asked for, by name, in the order of `ENGINES`. NumPyro is imported only if one is."""
    runs: list[tuple[str, Callable[..., Fit]]] = []
    if "map" in engines:
        from bayesgmm.engines.map import fit_map

        runs.append(("map", lambda *args, **kwargs: fit_map(*args, key=keys[0], **kwargs, **map_settings)))
    if "vi" in engines:
        from bayesgmm.engines.vi import fit_vi

        for guide, key in zip(guides, keys[1:3], strict=False):
            settings = {**vi_settings, "guide": guide, "key": key}
            runs.append(
                (
                    f"vi ({guide.replace('_', ' ')})",
                    lambda *args, settings=settings, **kwargs: fit_vi(*args, **kwargs, **settings),
                )
            )
    if "nuts" in engines:
        from bayesgmm.engines.nuts import fit_nuts

        runs.append(("nuts", lambda *args, **kwargs: fit_nuts(*args, key=keys[3], **kwargs, **nuts_settings)))
    return runs


def _candidate(fit: Fit, x: np.ndarray, seconds: float) -> dict[str, Any]:
    found = information_criteria(fit, x)
    return {
        "num_components": fit.mixture.num_components,
        **vars(found),
        "num_steps": int(fit.num_steps),
        "result": fit.code.name,
        "seconds": seconds,
    }


def _select(candidates: pd.DataFrame, select_by: str) -> int:
    """The number of components of smallest criterion, among the fits that converged (all fits, if none did)."""
    converged = candidates[candidates["result"] == ResultCode.successful.name]
    pool = converged if len(converged) else candidates
    return int(np.asarray(pool["num_components"])[np.argmin(pool[select_by])])


def _row(name: str, fit: Fit, x: np.ndarray, leave_one_out: Loo | None, seconds: float) -> dict[str, Any]:
    found = information_criteria(fit, x)
    nothing = float("nan")
    return {
        "engine": name,
        "family": fit.family,
        "num_components": fit.mixture.num_components,
        **vars(found),
        "elpd_loo": leave_one_out.elpd if leave_one_out else nothing,
        "elpd_loo_se": leave_one_out.se if leave_one_out else nothing,
        "max_pareto_k": leave_one_out.max_pareto_k if leave_one_out else nothing,
        "r_hat": fit.summary.get("r_hat", nothing),
        "ess_bulk": fit.summary.get("ess_bulk", nothing),
        "divergences": fit.summary.get("divergences", nothing),
        "khat": fit.summary.get("khat", nothing),
        "num_steps": int(fit.num_steps),
        "seconds": seconds,
        "result": fit.code.name,
        "message": fit.code.explanation,
    }


def provenance() -> dict[str, Any]:
    """Versions, device and time: what a reader needs to run the same comparison again."""
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _PACKAGES},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "machine": platform.machine(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def parameters(fit: Fit) -> dict[str, Any]:
    """Weights, means and covariances of a fit's point, with posterior standard deviations where it has draws."""
    mixture = fit.mixture
    found: dict[str, Any] = {
        "weights": np.asarray(mixture.weights).tolist(),
        "means": np.asarray(mixture.means).tolist(),
        "covariances": np.asarray(mixture.covariances).tolist(),
    }
    if fit.draws is not None:
        found["weights_sd"] = np.asarray(fit.draws.weights).std((0, 1), ddof=1).tolist()
        found["means_sd"] = np.asarray(fit.draws.means).std((0, 1), ddof=1).tolist()
    return found
