"""What a comparison is to compute: everything is checked here, before anything is compiled."""

import inspect
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from bayesgmm.engines.registry import BASE_ENGINE, ENGINES, Engine
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import Rows, enough_rows
from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.keys import number_key, split_key
from bayesgmm.numerics.precision import RandomKey
from bayesgmm.numerics.validation import one_of, whole_number
from bayesgmm.numerics.words import listed
from bayesgmm.priors.checks import check_has_mode
from bayesgmm.priors.conjugate import AnyPrior, conjugate_prior
from bayesgmm.priors.weakly_informative import default_prior

if TYPE_CHECKING:
    Counts = int | Iterable[int]
else:
    Counts = object  # checked by `check_counts`, which says what is wrong in one line
"""Numbers of components, one or several."""

CRITERIA = ("bic", "aic", "icl")
PRIORS: Mapping[str, Callable[..., AnyPrior]] = {"weakly_informative": default_prior, "conjugate": conjugate_prior}
# Arguments of all fits, which are the comparison's own.
_SHARED = ("x", "num_components", "family", "row_weights", "prior", "on_failure")


@dataclass(frozen=True)
class Run:
    """One fit of a comparison.

    Attributes:
        name: name of the fit.
        engine: its engine.
        arguments: arguments of its function, but those that all fits share.
    """

    name: str
    engine: Engine
    arguments: dict[str, Any]

    @property
    def num_starts(self) -> int:
        """From how many EM optima it starts."""
        setting = self.engine.parameters.get("num_starts")
        return 1 if setting is None else self.arguments.get("num_starts", setting.default)

    def __call__(self, rows: Rows, num_components: int, **shared: Any) -> Any:
        """Fit, with those of the shared arguments that the engine takes."""
        return self.engine.fit(rows, num_components, **{**self.engine.taken_of(shared), **self.arguments})


@dataclass(frozen=True)
class Plan:
    """A comparison whose arguments have been checked.

    Attributes:
        rows: the rows, each of which counts once.
        feature_names: names of the d columns.
        family: covariance family.
        counts: numbers of components, ascending.
        select_by: criterion that picks one of them.
        labels: known classes of the rows, or None.
        priors: the prior for each number of components.
        base: the run of EM, made for each number of components; the other engines start at its optima.
        runs: the other runs, in their order; partitions first, for they take no time.
        tree_key: for the draws of predictions.
        loo_run: the run that fits every number of components, for leave-one-out; None if none does.
    """

    rows: Rows
    feature_names: tuple[str, ...]
    family: Family
    counts: list[int]
    select_by: str
    labels: Shaped[np.ndarray, " n"] | None
    priors: dict[int, AnyPrior]
    base: Run
    runs: list[Run]
    tree_key: RandomKey
    loo_run: Run | None = None


def check_counts(num_components: Counts, rows: Rows, family: Family) -> list[int]:
    """Numbers of components, ascending.

    Raises:
        InputError: for none, for what are no numbers, and for more than there are rows for.
    """
    several = isinstance(num_components, Iterable) and not isinstance(num_components, str)
    values: Iterable[Any] = num_components if several else [num_components]  # pyright: ignore[reportAssignmentType]
    counts = sorted({whole_number("num_components", count) for count in values})
    if not counts:
        raise InputError("num_components is empty; give one number or several")
    for count in counts:
        enough_rows(rows, count, family, takes_prior=False)
    return counts


def plan_runs(
    engines: Sequence[str], settings: Mapping[str, Mapping[str, Any]], offered: Mapping[str, Any], key: RandomKey
) -> tuple[list[Run], RandomKey]:
    """The runs of the engines, that of EM first and partitions last, each with its key and settings; and a further key.

    What is `offered` goes to the engines that take it.

    Raises:
        InputError: for unknown engines and settings, and for values that an engine refuses.
    """
    if isinstance(engines, str):
        raise InputError(f"engines={engines!r} is one text; give a list, such as engines=[{engines!r}]")
    for name in engines:
        one_of("engines", name, ENGINES)
    chosen = [name for name in ENGINES if name in (BASE_ENGINE, *engines)]
    if unread := [name for name in settings if name not in chosen]:
        raise InputError(f"settings has {unread[0]!r}, which is none of the engines {', '.join(chosen)}; drop it")
    em_key, *keys, further_key = split_key(key, 6)
    keys = [*keys, *split_key(number_key(key, 1), 4), em_key]
    runs = []
    for name in chosen:
        engine, own = ENGINES[name], settings.get(name, {})
        if "row_weights" in own:
            raise InputError(
                f"settings of {name} has row_weights, but a comparison counts every row once; compare weighted rows by "
                "fitting each engine directly, such as fit_em(x, num_components, row_weights=...)"
            )
        if engine.prior == "none" and "prior" in own:
            raise InputError(
                f"settings of {name} has a prior, but a comparison's {engine.label} has none: its criteria and "
                "standard errors are those of maximum likelihood; drop it, and compare with map, which takes the "
                "argument prior"
            )
        reserved = _SHARED if engine.prior == "none" else (*_SHARED, "start", *engine.start_settings)
        check_names(name, [each for each in engine.parameters if each not in reserved], own)
        for index, (fit, arguments) in enumerate(engine.variants_of({**engine.taken_of(offered), **own}).items()):
            stream = engine.streams[index] if index < len(engine.streams) else zlib.crc32(fit.encode())
            own_key = keys[stream] if stream < len(keys) else number_key(key, stream - len(keys))
            runs.append(Run(fit, engine, {**engine.taken_of({"key": own_key}), **arguments}))
    return sorted(runs, key=lambda run: (run.engine.name != BASE_ENGINE, run.engine.gives != "partition")), further_key


def check_loo_run(name: str | None, runs: Sequence[Run], counts: Sequence[int]) -> Run | None:
    """The first run of the engine that is to fit every number of components.

    Raises:
        InputError: for an engine that is not run, or has no draws, and where there is one number only.
    """
    if name is None:
        return None
    having = {run.engine.name: run for run in reversed(runs) if run.engine.gives in ("draws", "approximation")}
    if name not in having:
        there = f"of those that are run, {listed(having)} can" if having else "of those that are run, none can"
        raise InputError(f"loo_over_k={name!r} must be an engine with draws; {there}")
    if len(counts) < 2:
        raise InputError(f"loo_over_k={name!r} compares numbers of components, and num_components is {counts[0]} only")
    return having[name]


def check_names(what: str, known: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuse options that are not known.

    Raises:
        InputError: naming them, and those that there are.
    """
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"{what} has {unknown[0]!r}, which is no option of it here; there are {', '.join(known)}")


def make_priors(
    rows: Rows, counts: Sequence[int], family: Family, kind: str, settings: Mapping[str, Any], runs: Sequence[Run]
) -> dict[int, AnyPrior]:
    """The prior of all runs, for every number of components that may be chosen.

    Raises:
        InputError: for an unknown kind or settings, and a prior that one of the engines does not take.
    """
    maker = PRIORS[one_of("prior", kind, PRIORS)]
    needing = [run.engine.name for run in runs if run.engine.prior == "conjugate"]
    if needing and kind != "conjugate":
        raise InputError(f"engines has {needing[0]!r}, which needs a conjugate prior; set prior='conjugate' for all")
    known = inspect.signature(maker).parameters
    check_names("prior_settings", [name for name in known if name not in _SHARED], settings)
    arguments = {"family": family} if "family" in known else {}
    priors = {count: maker(rows, count, **arguments, **settings) for count in counts}
    if any(run.engine.prior == "mode" for run in runs):
        for prior in priors.values():
            check_has_mode(prior)
    return priors
