"""Settings of a comparison, from a TOML file: every key with its meaning, range and default.

The classes are the reference; `configs/` holds commented examples. Whatever is wrong with a file is reported at
once, one line for each problem, before any data are read.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, create_model, model_validator

from bayesgmm.comparison.plan import PRIORS
from bayesgmm.datasets import SHIPPED, Dataset, load_dataset, read_table
from bayesgmm.engines.registry import BASE_ENGINE, DEFAULT_ENGINES, ENGINES
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import NAMES, get_family
from bayesgmm.numerics.paths import as_path
from bayesgmm.numerics.validation import did_you_mean, one_of, real_array, short_repr
from bayesgmm.priors.scales import SCALE_PRIORS
from bayesgmm.priors.weakly_informative import default_prior


class ConfigError(InputError):
    """Settings that cannot be used; one line for each problem, with the key, the value and the cure."""


def _one_of(known: Iterable[str]) -> AfterValidator:
    return AfterValidator(lambda value, info: one_of(str(info.field_name), value, known))


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("is empty; give at least one")
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise ValueError(f"has {repeated[0]!r} more than once; drop the repetition")
    return values


def _engines_in_order(values: tuple[str, ...]) -> tuple[str, ...]:
    if BASE_ENGINE not in values:
        raise ValueError(f'lacks "{BASE_ENGINE}", from whose fit the other engines start; add "{BASE_ENGINE}"')
    return tuple(engine for engine in ENGINES if engine in values)


# TOML has no tuples and no paths, so these are exempt from strictness; the members of lists are not.
_List = (Field(strict=False), AfterValidator(_distinct))
_Path = Annotated[Path, Field(strict=False)]
_Counts = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    *_List,
    AfterValidator(lambda values: tuple(sorted(values))),
]
_Engines = Annotated[tuple[Annotated[str, _one_of(ENGINES)], ...], *_List, AfterValidator(_engines_in_order)]


class _Table(BaseModel, use_attribute_docstrings=True):
    """A table of the file; what stands below a key is its meaning, for messages and the documentation."""

    model_config = {"frozen": True, "extra": "forbid", "strict": True, "allow_inf_nan": False}


class DataConfig(_Table):
    """`[data]`: the rows to fit. Exactly one of `dataset` and `path`."""

    dataset: Annotated[str, _one_of(SHIPPED)] | None = Field(
        default=None, description=f"shipped data set: {', '.join(SHIPPED)}"
    )
    path: _Path | None = None
    """a .csv, .tsv, .xlsx, .parquet or .npy file; relative to the folder of the settings file"""
    columns: Annotated[tuple[str, ...], *_List] | None = None
    """list of names of the columns to use; by default the numeric ones that look like measurements; only with path"""
    labels: str | None = None
    """column of known classes, which no engine sees; by default "label", or the only one like it; only with path"""

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if (self.dataset is None) == (self.path is None):
            count = "neither" if self.dataset is None else "both"
            raise ValueError(f'[data] has {count} of dataset and path; give exactly one, such as dataset = "faithful"')
        for name in ("columns", "labels"):
            if getattr(self, name) is not None and self.path is None:
                raise ValueError(
                    f"[data] has {name}, which go with path only; drop them, or give path in place of dataset"
                )
        return self

    def load(self) -> Dataset:
        """Read the rows; a file that cannot be used raises `DataError`, in one line."""
        if self.path is None:
            return load_dataset(str(self.dataset))
        return read_table(self.path, self.columns, labels=self.labels)


class MixtureConfig(_Table):
    """`[mixture]`: which mixtures to fit."""

    family: Annotated[str, _one_of(NAMES), AfterValidator(lambda name: get_family(name).name)] = "full"
    """covariance structure, by its name or R's mclust's"""
    num_components: _Counts
    """number of components, or a list of numbers to compare; kept sorted"""
    select_by: Literal["bic", "aic", "icl"] = "bic"
    """criterion that picks one of several numbers of components, by the fits of em"""
    loo_over_k: Annotated[str, _one_of(ENGINES)] | None = None
    """one of the engines with draws, to fit every number of components, for leave-one-out of each; by default none"""


def _numbers(*, positive: bool) -> AfterValidator:
    """A finite number, or a list of them."""

    def check(name: str, value: object) -> object:
        found = f"{name}={short_repr(value)}"
        numbers = real_array(value, name)
        if not np.isfinite(numbers).all():
            raise InputError(f"{found} must be a finite number, or a list of them")
        if positive and not np.all(numbers > 0):
            raise InputError(f"{found} must be greater than 0")
        return value

    return AfterValidator(lambda value, info: check(str(info.field_name), value))


_Numbers = Annotated[Any, _numbers(positive=False)] | None
_Positives = Annotated[Any, _numbers(positive=True)] | None


class PriorConfig(_Table):
    """`[prior]`: one prior for all Bayesian engines, by `default_prior` or `conjugate_prior`; lists are by column."""

    kind: Literal["weakly_informative", "conjugate"] = "weakly_informative"
    """weakly_informative, or conjugate, which all Bayesian engines take and cavi and gibbs need"""
    concentration: _Positives = None
    """Dirichlet parameter of the weights; by default 2, under a conjugate prior 1"""
    mean_loc: _Numbers = None
    """weakly informative: centre of component means, in the data's units; by default the columns'"""
    mean_scale: _Positives = None
    """weakly informative: sd of component means, in sds of each column; by default 2"""
    scale_prior: Annotated[str, _one_of(SCALE_PRIORS)] | None = Field(
        default=None,
        description=f"weakly informative: prior of component scales, one of {', '.join(SCALE_PRIORS)}; "
        "by default lognormal",
    )
    scale_median: _Positives = None
    """lognormal: median of component scales, in sds of each column; by default k^(-1/d)"""
    scale_sigma: _Positives = None
    """lognormal: sd of the logarithms of component scales; by default 1"""
    scale_sd: _Positives = None
    """half_normal: sd of component scales, in sds of each column; by default 1"""
    precision_shape: _Positives = None
    """hierarchical: shape of the gamma prior of reciprocal variances; by default 2"""
    rate_shape: _Positives = None
    """hierarchical: shape of the gamma prior of their rate; by default 0.2"""
    rate_rate: _Positives = None
    """hierarchical: rate of that, over each column's variance; by default from its range"""
    correlation_concentration: _Positives = None
    """weakly informative: LKJ parameter of the correlations; by default 2, or 1 + d/2"""
    mean: _Numbers = None
    """conjugate: mean of component means, in the data's units; by default the columns' means"""
    shrinkage: _Positives = None
    """conjugate: rows that the prior mean counts for; by default 0.01"""
    dof: _Positives = None
    """conjugate: degrees of freedom; by default d + 2"""
    scale: _Numbers = None
    """conjugate: scale of the covariances, in the data's units; by default from the data's own"""
    stick_breaking: bool | None = None
    """conjugate: weights of a truncated Dirichlet process; by default false"""

    @model_validator(mode="after")
    def _read_by_kind(self) -> "PriorConfig":
        scale_prior = self.scale_prior or signature(default_prior).parameters["scale_prior"].default
        readers = {kind: signature(maker).parameters for kind, maker in PRIORS.items()}
        for name in self._given():
            if name not in readers[self.kind]:
                (kind,) = (kind for kind, read in readers.items() if name in read)
                raise ValueError(f'[prior] has {name}, which only kind = "{kind}" reads; drop it, or set kind')
            owners = [each for each, record in SCALE_PRIORS.items() if name in record.arguments]
            if owners and scale_prior not in owners:
                raise ValueError(
                    f'[prior] has {name}, which only scale_prior = "{owners[0]}" reads; drop it, or set that'
                )
        return self

    def _given(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True, exclude={"kind"})

    def keywords(self, column_scales: np.ndarray) -> dict[str, Any]:
        """Keyword arguments of `default_prior` or `conjugate_prior`; scales in units of the data."""
        powers = {"mean_scale": 1, "scale_median": 1, "scale_sd": 1, "rate_rate": -2}
        given = self._given()
        for name in powers.keys() & given.keys():
            given[name] = np.asarray(given[name]) * column_scales ** powers[name]
        return given


class OutputConfig(_Table):
    """`[output]`: where results go."""

    directory: _Path = Path("results")
    """folder, relative to the current one; by default results/<file's name>"""
    figures: Annotated[tuple[Literal["png", "svg", "pdf"], ...], Field(strict=False)] = ("png", "svg")
    """formats of the files of figures; [] for none"""


class CommonConfig(_Table):
    """Settings of one comparison of engines on one data set, frozen; `Config` adds a table for each engine."""

    title: str = ""
    """heading of the report; by default the settings file's name"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """seed of all randomness"""
    dtype: Literal["float32", "float64"] = "float64"
    """precision of the computation"""
    engines: _Engines = Field(
        default=DEFAULT_ENGINES,
        description=f"list of engines to run, em among them; kept in this order: {', '.join(ENGINES)}",
    )
    data: DataConfig
    mixture: MixtureConfig
    prior: PriorConfig = PriorConfig()
    output: OutputConfig = OutputConfig()

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Settings of the engines that are run, by engine, as `compare` takes them."""
        return {name: getattr(self, name).model_dump() for name in self.engines}

    def _tables_unread(self) -> set[str]:
        bayesian = any(ENGINES[name].prior != "none" for name in self.engines)
        return {*ENGINES, *([] if bayesian else ["prior"])} - {*self.engines}

    @model_validator(mode="after")
    def _tables_of_engines(self) -> "CommonConfig":
        unread = sorted(self.model_fields_set & self._tables_unread())
        cures = {name: f'"{name}"' for name in ENGINES} | {"prior": "a Bayesian engine"}
        if unread:
            ran = list(self.engines)
            lines = (f"[{name}] is not read by engines = {ran}; add {cures[name]}, or drop [{name}]" for name in unread)
            raise ValueError("\n".join(lines))
        needing = [name for name in self.engines if ENGINES[name].prior == "conjugate"]
        if needing and self.prior.kind != "conjugate":
            raise ValueError(
                f'engines has "{needing[0]}", which needs a conjugate prior; set kind = "conjugate" in [prior]'
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """All settings in force, defaults included, as JSON types; without the tables that no engine reads."""
        return self.model_dump(mode="json", exclude=self._tables_unread())


_ENGINE_TABLES: dict[str, Any] = {name: (engine.settings, engine.settings()) for name, engine in ENGINES.items()}

Config: type[CommonConfig] = create_model(
    "Config", __base__=CommonConfig, __doc__="Settings of a comparison, with a table for each engine.", **_ENGINE_TABLES
)
"""All settings of one comparison, with a table for each engine; `load_config` makes it from a file."""


def load_config(path: str | PathLike[str]) -> CommonConfig:
    """Read and check the settings in a TOML file.

    A relative `data.path` is resolved against the file's folder; `title` and `output.directory` default to the file's
    name.

    Raises:
        ConfigError: with one line for each problem.
    """
    try:
        path = as_path(path)
    except InputError as error:
        raise ConfigError(str(error)) from None
    config = make_config({"title": path.stem, **_read_toml(path)}, str(path))
    data, output = config.data, config.output
    if data.path is not None:
        data = data.model_copy(update={"path": path.parent / data.path})
    if "directory" not in output.model_fields_set:
        output = OutputConfig(directory=Path("results", path.stem))
    return config.model_copy(update={"data": data, "output": output})


def make_config(settings: Mapping[str, Any], where: str) -> CommonConfig:
    """Check settings by name.

    Raises:
        ConfigError: with one line for each problem, after where they come from.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        lines = [f"{where}: {line}" for problem in error.errors() for line in _explain(problem)]
        raise ConfigError("\n".join(lines)) from None


def parse_counts(text: str) -> list[int]:
    """Numbers of components from text: "3", "1,2,4" or "1:6", which has both ends.

    Raises:
        ConfigError: for text that is none of these.
    """
    first, colon, last = text.partition(":")
    try:
        found = list(range(int(first), int(last) + 1)) if colon else [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found:
        raise ConfigError(f"components={text!r} names no numbers; write 3, or 1,2,4, or 1:6")
    return found


def _read_toml(path: Path) -> dict[str, Any]:
    text = ""
    try:
        text = path.read_text(encoding="utf-8-sig")
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"path={str(path)!r} cannot be read ({error.strerror}); name an existing .toml file"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        fault = str(error).replace("at end of document", f"at line {len(text.splitlines())}, the last")
        cure = "correct it (text needs quotes, a key or table may come only once)"
        raise ConfigError(f"{path}: is not valid TOML: {fault}; {cure}") from None


_TABLES: dict[str, Any] = {
    name: field.annotation for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")
}
_EXAMPLES = {
    "data": 'a table [data] with dataset = "faithful" or path = "my.csv"',
    "mixture": "a table [mixture] with num_components = [1, 2, 3]",
    "mixture.num_components": "num_components = [1, 2, 3] to [mixture]",
}


def _explain(problem: Mapping[str, Any]) -> list[str]:
    """What pydantic found, as lines with the key, the value, what is wrong with it and what to write."""
    location, value, kind = problem["loc"], problem["input"], problem["type"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    key = key.lstrip(".").replace("\n", r"\n")
    shown = key if isinstance(value, Mapping) else f"{key} = {value!r}"
    names = [part for part in location if isinstance(part, str)]
    table = _TABLES[names[0]] if len(names) > 1 else Config
    if kind == "value_error":
        fault = str(problem["ctx"]["error"])
        if isinstance(value, Mapping):
            return [f"[{key}] {line}" if key in ENGINES else line for line in fault.splitlines()]
        if not isinstance(problem["ctx"]["error"], InputError):
            return [f"{shown} {fault}"]
        # Of a rule that functions have too: its words begin with the name and the value.
        begun = f"{names[-1]}={short_repr(value)} "
        fault = f"{shown} {fault.removeprefix(begun)}" if fault.startswith(begun) else f"[{names[0]}] {fault}"
        description = str(table.model_fields[names[-1]].description).partition(". ")[0]
        return [fault if "choose one of" in fault else f"{fault}; {names[-1]} is: {description}"]
    if kind == "extra_forbidden":
        return [f"{shown} is not a known key; {_home(names[-1], table)}"]
    if kind == "model_type":
        return [f"{shown} must be a table; write [{key}] on a line of its own and its keys below"]
    if kind == "missing":
        return [f"{key} is missing; add {_EXAMPLES[key]}"]
    fault = problem["msg"].replace("Input should", "must").replace("tuple", "list")
    fault = "must be text in quotes" if kind in ("path_type", "string_type") else fault
    hint = did_you_mean(value, re.findall("'(.*?)'", fault)) if kind == "literal_error" else ""
    return [f"{shown} {fault}; {hint}{names[-1]} is: {table.model_fields[names[-1]].description}"]


def _home(name: str, table: type[BaseModel]) -> str:
    """Where an unknown key belongs, or which key was meant."""
    if name in _TABLES:
        return f"write that table as [{name}]"
    if name in Config.model_fields:
        return f"{name} belongs above the first table"
    homes = [f"[{home}]" for home, kind in _TABLES.items() if name in kind.model_fields]
    if homes:
        return f"{name} belongs in {' or '.join(homes)}"
    return f"{did_you_mean(name, list(table.model_fields))}the keys here are {', '.join(table.model_fields)}"
