"""The runs of engines that a comparison makes: what each is given, and refused before any of them begins."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array

from bayesgmm.engines.fit import Fit
from bayesgmm.engines.modes import NUM_STARTS
from bayesgmm.engines.registry import ENGINES
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.validation import shown
from bayesgmm.priors.checks import check_has_mode
from bayesgmm.priors.conjugate import AnyPrior, conjugate_prior
from bayesgmm.priors.weakly_informative import default_prior
from bayesgmm.runtime.progress import Listener

PRIORS = ("weakly_informative", "conjugate")
CONJUGATE_ENGINES = ("cavi", "gibbs")
GUIDES = ("normal", "full_rank", "low_rank")
SEVERAL_STARTS = ("map", "gibbs", "nuts")
"""Engines that start at several ends of EM, so that a mode that the best fit by EM does not lead to is found."""

_KEYS = {"map": 0, "nuts": 3, "cavi": 4, "gibbs": 5}
_KEYS_OF_GUIDES = (1, 2, 6)
_OF_THE_COMPARISON = ("x", "num_components", "family", "prior", "start", "on_failure")


@dataclass(frozen=True)
class Run:
    """One engine with its settings.

    Attributes:
        name: name of its fit in the comparison.
        engine: name of the engine.
        options: arguments of its function but those that all engines share.
    """

    name: str
    engine: str
    options: dict[str, Any]

    @property
    def function(self) -> Callable[..., Fit]:
        """The engine itself. NumPyro is imported only for those that need it."""
        return getattr(_module(self.engine), f"fit_{self.engine}")

    @property
    def num_starts(self) -> int:
        """How many ends of EM it starts from."""
        return self.options.get("num_starts", NUM_STARTS) if self.engine in SEVERAL_STARTS else 1


def planned_runs(
    engines: Sequence[str],
    guides: Sequence[str],
    keys: Sequence[Array],
    settings: Mapping[str, Mapping[str, Any] | None],
    on_step: Listener | None,
) -> list[Run]:
    """The Bayesian engines asked for, in one order, with their keys and settings.

    Raises:
        InputError: for settings that an engine does not take or cannot run with, and for guides without a name.
    """
    runs: list[Run] = []
    shows_progress = {} if on_step is None else {"progress": on_step}
    if "map" in engines:
        runs.append(Run("map", "map", {"key": keys[_KEYS["map"]]}))
    if "vi" in engines:
        unknown = [guide for guide in guides if guide not in GUIDES]
        if unknown or not guides or len(set(guides)) < len(guides):
            raise InputError(f"guides={shown(tuple(guides))} must name some of {', '.join(GUIDES)}, each once")
        for guide, key in zip(guides, _KEYS_OF_GUIDES, strict=False):
            options = {"key": keys[key], "guide": guide, **shows_progress}
            runs.append(Run(f"vi ({guide.replace('_', ' ')})", "vi", options))
    if "cavi" in engines:
        runs.append(Run("cavi", "cavi", {"key": keys[_KEYS["cavi"]]}))
    runs += [
        Run(engine, engine, {"key": keys[_KEYS[engine]], **shows_progress})
        for engine in ("gibbs", "nuts")
        if engine in engines
    ]
    for run in runs:
        given = settings[run.engine] or {}
        check_names(run.engine, run.function, given, (*_OF_THE_COMPARISON, *({"guide"} & set(run.options))))
        run.options.update(given)
        check_values(run.engine, run.function, run.options)
    return runs


def check_names(
    what: str, function: Callable[..., Any], given: Mapping[str, Any] | None, reserved: Sequence[str]
) -> None:
    """Refuse options that a function does not take, or that are not the caller's to set.

    Raises:
        InputError: naming them, and those that there are.
    """
    known = [name for name in inspect.signature(function).parameters if name not in reserved]
    for name in given or {}:
        if name not in known:
            raise InputError(f"{what} has {name!r}, which is no option of it here; there are {', '.join(known)}")


def check_values(engine: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse settings that an engine cannot run with, by its own `check_settings`.

    Raises:
        InputError: naming the setting, its value and the cure.
    """
    ENGINES[engine].check(given)


def make_prior(x: Any, num_components: int, family: Family, kind: str, settings: Mapping[str, Any]) -> AnyPrior:
    """The prior of all engines for k components."""
    if kind == "conjugate":
        return conjugate_prior(x, num_components, family, **settings)
    return default_prior(x, num_components, **settings)


def make_priors(
    x: Any,
    counts: Sequence[int],
    family: Family,
    kind: str,
    settings: Mapping[str, Any] | None,
    engines: Sequence[str],
) -> dict[int, AnyPrior]:
    """The prior of all engines, for every number of components that may be chosen.

    Raises:
        InputError: for a kind that is not known, engines that need another, and numbers that are no prior or, where
            the mode is asked for, have none.
    """
    if kind not in PRIORS:
        raise InputError(f"prior={kind!r} is not known; choose one of {', '.join(PRIORS)}")
    needing = [engine for engine in engines if engine in CONJUGATE_ENGINES]
    if needing and kind != "conjugate":
        raise InputError(f"engines has {needing[0]!r}, which needs a conjugate prior; set prior='conjugate' for all")
    maker = conjugate_prior if kind == "conjugate" else default_prior
    check_names("prior_settings", maker, settings, ("x", "num_components", "family"))
    priors = {count: make_prior(x, count, family, kind, settings or {}) for count in counts}
    if "map" in engines:
        for prior in priors.values():
            check_has_mode(prior)
    return priors


def _module(engine: str) -> Any:
    return importlib.import_module(f"bayesgmm.engines.{engine}")
