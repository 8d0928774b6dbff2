"""The table of engines: one record for each, made beside the function that it describes.

The signature of that function is the one place where an engine's settings are written: their names and defaults, their
ranges (by annotations such as `Count`) and, in the docstring, their meaning. The checks of a call, the tables of a
settings file, `compare(settings={...})`, the arguments of the scikit-learn estimators and the reference page are all
taken from there. Whatever treats engines differently asks the record, never the name.
"""

import functools
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, create_model, model_validator

from bayesgmm.errors import InputError
from bayesgmm.mixtures.named import Named
from bayesgmm.numerics.precision import is_traced
from bayesgmm.numerics.validation import check_bool, names_of, nonnegative, one_of, short_repr, whole_number
from bayesgmm.runtime.chains import CHAIN_METHODS, check_checkpoint
from bayesgmm.runtime.progress import Listener, check_progress, waiting
from bayesgmm.target.problem import Problem

BASE_ENGINE = "em"
"""The engine whose fits select the number of components, and at whose optima the others start."""

DEFAULT_ENGINES = ("em", "map", "vi", "nuts")
"""Those that are compared unless others are asked for."""

_SHIPPED = ("em", "map", "vi", "cavi", "gibbs", "nuts", "kmeans")  # modules, in the order of tables and figures
_RUN_ARGUMENTS = {"num_components", "progress", "checkpoint", "on_failure"}  # checked, but no settings of an engine


@dataclass(frozen=True)
class Rule:
    """What an argument must be, as metadata of its annotation.

    Attributes:
        check: of the argument's name and value; returns the value to use, or raises `InputError`.
    """

    check: Callable[[str, Any], Any]


def _number(name: str, value: object) -> object:
    number = nonnegative(name, value)
    return value if is_traced(value) else float(number)


def _positive(name: str, value: object) -> object:
    number = _number(name, value)
    if not is_traced(number) and number == 0:
        raise InputError(f"{name}={short_repr(value)} must be greater than 0")
    return number


def choice_of(*known: str) -> Rule:
    """One of these words."""
    return Rule(lambda name, value: one_of(name, value, known))


Count = Annotated[int, Rule(whole_number)]
CountOrZero = Annotated[int, Rule(lambda name, value: whole_number(name, value, 0))]
Number = Annotated[float | np.number | jax.Array, Rule(_number)]
Positive = Annotated[float, Rule(_positive)]
Flag = Annotated[bool, Rule(check_bool)]
ChainMethod = Annotated[Literal["parallel", "sequential", "vectorized"], choice_of(*CHAIN_METHODS)]
OnFailure = Annotated[Literal["warn", "raise", "ignore"], choice_of("warn", "raise", "ignore")]
ProgressOption = Annotated[bool | Listener | None, Rule(lambda _, value: check_progress(value))]
CheckpointOption = Annotated[str | Path | bool, Rule(lambda _, value: check_checkpoint(value))]
"""Types of the arguments of engines, each with its rule."""


class Settings(BaseModel):
    """The settings of one engine, frozen. `Engine.settings` makes a class of them from the engine's function."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


@dataclass(frozen=True, eq=False)
class Engine:
    """One way to fit a mixture, or to partition rows.

    Attributes:
        name: the name that users give.
        fit: its function.
        label: name in figures, such as "k-means".
        method: the method in words, heading of its trace.
        gives: "point" (one mixture), "draws" (chains of posterior draws), "approximation" (a distribution in closed
            form, and draws from it) or "partition" (rows in clusters, without a mixture).
        prior: "none" (it needs none), "any", "mode" (any that has a mode) or "conjugate".
        trace: what its trace shows, such as "ELBO"; empty where it has none.
        variants: the setting of which a comparison takes several values, for one fit each.
        streams: numbers of the random streams that a comparison gives its fits; by default from their names.
        start_settings: settings that look for a start. A comparison hands it one, so they are no settings there.
        together: checks settings against each other; its arguments are named as they are.
        ahead: compiles in a thread what a fit will need, from its problem and its arguments.
        inside_jit: whether it runs inside the caller's `jit` and `vmap`.
    """

    name: str
    fit: Callable[..., Any]
    label: str
    method: str
    gives: Literal["point", "draws", "approximation", "partition"]
    prior: Literal["none", "any", "mode", "conjugate"] = "any"
    trace: str = ""
    variants: str | None = None
    streams: tuple[int, ...] = ()
    start_settings: tuple[str, ...] = ()
    together: Callable[..., None] | None = None
    ahead: Callable[[Problem, Mapping[str, Any]], None] | None = None
    inside_jit: bool = False

    def compile_ahead(self, problem: Problem, given: Mapping[str, Any]) -> None:
        """Begin to compile what a fit with these arguments, and defaults for the others, will need."""
        if self.ahead is not None:
            defaults = {name: parameter.default for name, parameter in self.parameters.items()}
            self.ahead(problem, {**defaults, **given})

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of its function by name."""
        return inspect.signature(self.fit).parameters

    def taken_of(self, offered: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the arguments that its function has."""
        return {name: value for name, value in offered.items() if name in self.parameters}

    @property
    def takes_weights(self) -> bool:
        """Whether rows may have weights."""
        return "row_weights" in self.parameters

    @property
    def makes_starts(self) -> bool:
        """Whether it makes its starts of the rows; others start at optima of `BASE_ENGINE`."""
        return "num_restarts" in self.parameters

    @property
    def takes_starts(self) -> bool:
        """Whether it starts from several optima."""
        return "num_starts" in self.parameters

    @functools.cached_property
    def rules(self) -> dict[str, Rule]:
        """The rules of its arguments by name."""
        found = {name: rule_of(parameter.annotation) for name, parameter in self.parameters.items()}
        return {name: rule for name, rule in found.items() if rule is not None}

    @functools.cached_property
    def settings(self) -> type[Settings]:
        """The pydantic class of its settings in a comparison: names, defaults, checks and descriptions, as its
        function has them.
        """
        text = inspect.getdoc(self.fit) or ""
        block = text.partition("Args:\n")[2].partition("\n\n")[0]
        descriptions = dict(re.findall(r"^    (\w+): (.+(?:\n        .+)*)", block, flags=re.MULTILINE))
        fields: dict[str, Any] = {}
        for name, rule in self.rules.items():
            if name in _RUN_ARGUMENTS or name in self.start_settings:
                continue
            parameter = self.parameters[name]
            description = " ".join(descriptions.get(name, "").split()).removesuffix(".")
            if name == self.variants:
                description += ". Of several, in a list, a comparison makes a fit each"
            check = PlainValidator(_validator(name, rule, several=name == self.variants))
            fields[name] = (Annotated[parameter.annotation, check], Field(parameter.default, description=description))

        def together(settings: Settings) -> Settings:
            for variant in self._each_variant(dict(settings)):
                self.check(variant)
            return settings

        validators: dict[str, Any] = {"together": model_validator(mode="after")(together)}
        name, about = f"{self.name.capitalize()}Settings", text.partition("\n")[0]
        return create_model(name, __base__=Settings, __doc__=about, __validators__=validators, **fields)

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments as the function takes them, those that have a rule checked.

        Raises:
            InputError: naming the argument, its value and the cure.
        """
        checked = {name: self.rules[name].check(name, value) if name in self.rules else value
                   for name, value in given.items()}  # fmt: skip
        if self.together is not None:
            names = inspect.signature(self.together).parameters
            self.together(**{name: checked.get(name, self.parameters[name].default) for name in names})
        return checked

    def variants_of(self, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Checked arguments of every fit that a comparison makes with these settings, by the name of the fit.

        Raises:
            InputError: as `check`, and for several values that are none, or not distinct.
        """
        checked = [self.check(variant) for variant in self._each_variant(given)]
        if self.variants is None:
            return {self.name: checked[0]}
        words = [arguments[self.variants] for arguments in checked]
        words = [word if isinstance(word, str) else getattr(word, "__name__", type(word).__name__) for word in words]
        if not words or len(set(words)) < len(words):
            raise InputError(
                f"{self.variants}={short_repr(given[self.variants])} must be one value or several, each once"
            )
        return {f"{self.name} ({word.replace('_', ' ')})": one for word, one in zip(words, checked, strict=True)}

    def _each_variant(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.variants is None:
            return [dict(given)]
        values = given.get(self.variants, self.parameters[self.variants].default)
        values = values if isinstance(values, list | tuple) else [values]
        return [{**given, self.variants: value} for value in values]


def rule_of(annotation: Any) -> Rule | None:
    """The rule in an annotation; where the annotation allows None, so does the rule."""
    if typing.get_origin(annotation) is Annotated:
        return next((item for item in annotation.__metadata__ if isinstance(item, Rule)), None)
    parts = typing.get_args(annotation)
    rule = next(filter(None, map(rule_of, parts)), None)
    if rule is None or type(None) not in parts:
        return rule
    return Rule(lambda name, value: None if value is None else rule.check(name, value))


def _validator(name: str, rule: Rule, several: bool) -> Callable[[Any], Any]:
    def check(value: object) -> object:
        if several and isinstance(value, list | tuple):
            if not value:
                raise InputError(f"{name}={short_repr(value)} is empty; give at least one")
            return tuple(rule.check(name, one) for one in value)
        return rule.check(name, value)

    return check


def engine[**P, R](name: str, **record: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate an engine's function, `fit(x, num_components, *, ...)`: register its record and check its arguments.

    Args:
        name: the engine's name.
        **record: the attributes of `Engine` other than `fit`.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **keywords: P.kwargs) -> R:
            bound = signature.bind(*args, **keywords)
            if not made.inside_jit and is_traced(bound.arguments):
                raise InputError(
                    f"fit_{name} cannot run inside jit, vmap or grad; call it outside, or use fit_em, which can"
                )
            bound.arguments |= made.check(bound.arguments)
            with waiting(f"{made.label}, k = {bound.arguments['num_components']}", bound.arguments.get("progress")):
                found = function(*bound.args, **bound.kwargs)
            return found.named(names_of(bound.arguments["x"])) if isinstance(found, Named) else found

        made = _RECORDS[name] = Engine(name, checked, **record)
        return checked

    return register


_RECORDS: dict[str, Engine] = {}


class _Engines(Mapping[str, Engine]):
    """Engines by name. An engine's module is imported when its record is asked for: k-means needs no NumPyro."""

    def __getitem__(self, name: str) -> Engine:
        if name not in _RECORDS and name in _SHIPPED:
            importlib.import_module(f"bayesgmm.engines.{name}")
        return _RECORDS[one_of("engine", name, self, ", or import the module that registers it first")]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*_SHIPPED, *_RECORDS)))

    def __len__(self) -> int:
        return len({*_SHIPPED, *_RECORDS})

    def __contains__(self, name: object) -> bool:
        return name in _SHIPPED or name in _RECORDS


ENGINES: Mapping[str, Engine] = _Engines()
"""All engines by name, in the order in which they are run and shown."""
