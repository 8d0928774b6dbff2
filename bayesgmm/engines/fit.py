"""What a fit returns: result codes that are sentences, and `Fit`."""

import dataclasses
import enum
import functools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped

from bayesgmm.datasets.columns import combined_columns
from bayesgmm.engines.registry import ENGINES
from bayesgmm.errors import InputError
from bayesgmm.mixtures import presentation
from bayesgmm.mixtures.families import get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.mixtures.named import NOT_OF_JAX, Named
from bayesgmm.numerics.precision import AnyArray, is_traced
from bayesgmm.numerics.validation import name_features, short_repr
from bayesgmm.numerics.words import counted, listed
from bayesgmm.priors.normal_inverse_wishart import ConjugateDistribution
from bayesgmm.runtime.files import storable
from bayesgmm.runtime.printing import Lines, Printable

if TYPE_CHECKING:
    import pandas as pd

_STATIC = {"static": True}  # to JAX: no array
_PACKAGE = str(Path(__file__).parents[1])


class ResultCode(enum.IntEnum):
    """How a fit ended. Compiled code carries the number; `explanation` is for people."""

    successful = 0
    max_steps_reached = 1
    nonfinite = 2
    collapsed = 3
    decreased = 4
    not_mixed = 5
    divergent = 6
    interrupted = 7
    spurious = 8

    @property
    def explanation(self) -> str:
        """What happened and what to try, in one sentence; `Fit.explanation` has what applies to a fit."""
        return advise(_EXPLANATIONS[self])


_EXPLANATIONS = {
    ResultCode.successful: "converged",
    ResultCode.max_steps_reached: (
        "the step limit was reached before the stopping rule was met; raise max_steps, or loosen the tolerance"
    ),
    ResultCode.nonfinite: (
        "the objective became infinite or NaN; look for huge values in the data or rescale its columns"
    ),
    ResultCode.collapsed: (
        "a component shrank onto too few distinct rows, where the likelihood has no maximum, or is too narrow for this "
        "precision; use [fewer components|a more restricted family|a larger reg_covar|float64|an engine with a prior]"
    ),
    ResultCode.decreased: (
        "the objective fell by more than rounding, because a ridge (reg_covar) outweighs a component's own spread or a "
        "component is too narrow for this precision; use [a lower reg_covar|float64|fewer components]"
    ),
    ResultCode.not_mixed: (
        "the chains disagree (R-hat above 1.01 or fewer than 100 effective draws a chain); use [more draws|fewer "
        "components|a more restricted family]"
    ),
    ResultCode.divergent: (
        "there were divergent transitions, so parts of the posterior may be missing; raise target_accept or tighten "
        "the prior"
    ),
    ResultCode.interrupted: (
        "the run was interrupted and has only the draws made before; run it again, with a checkpoint to resume from, "
        "or ask for fewer draws"
    ),
    ResultCode.spurious: (
        "a component rests on so few rows, or is so narrow for them, that chance alone makes such a maximum; use "
        "[fewer components|more starts|a more restricted family|an engine with a prior]"
    ),
}


class FitWarning(UserWarning):
    """A fit ended without meeting its stopping rule; the message says what happened and what to try."""


@storable
@functools.partial(jax.tree_util.register_dataclass, drop_fields=NOT_OF_JAX)
@dataclass(frozen=True)
class Fit(Named, Printable):
    """One mixture fitted by one engine.

    Attributes:
        engine: name of the engine: "em", "map", "vi", "cavi", "gibbs" or "nuts".
        family: name of the covariance family.
        mixture: the point: the maximiser for EM and MAP; for posteriors the mixture of posterior means, taken after
            the components of every draw were matched to the labels of the EM fit.
        log_likelihood: total log-likelihood of exactly that mixture.
        result: a `ResultCode`.
        num_steps: steps taken (EM steps, optimiser steps, or draws including warm-up).
        trace: what the engine watched: EM the log-likelihood, or the log posterior density under a prior, of its start
            and after every step (of many rows without the short run, which sees a sample); MAP the log posterior
            density likewise; VI and CAVI the ELBO of every step; Gibbs and NUTS the log posterior density of every
            draw, with chains as the first axis. NaN past `num_steps`.
        draws: posterior draws, a mixture with leading axes (chain, draw); None for point estimates.
        sample_stats: sampler statistics of every draw, arrays (chain, draw) with ArviZ's names; else empty.
        summary: scalar diagnostics of the fit, such as NUTS's worst R-hat.
        approximation: the numbers of a conjugate approximation, a `ConjugateDistribution`; of CAVI only.
        prior_given: whether an engine that needs no prior was given one; not in older files.
        feature_names: names of the features, where the rows were a data frame.
    """

    engine: str = field(metadata=_STATIC)
    family: str = field(metadata=_STATIC)
    mixture: Mixture
    log_likelihood: Float[AnyArray, "*restarts"]
    result: Shaped[AnyArray, "*restarts"]
    num_steps: Shaped[AnyArray, "*restarts"]
    trace: Float[AnyArray, "*restarts steps"]
    draws: Mixture | None = None
    sample_stats: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    approximation: ConjugateDistribution | None = None
    prior_given: bool = field(default=False, metadata=_STATIC)

    def named(self, names: Iterable[str]) -> Self:
        """The same with these names of the features, which its mixture and its draws have too."""
        if not (names := tuple(names)):
            return self
        draws = None if self.draws is None else self.draws.named(names)
        return dataclasses.replace(super().named(names), mixture=self.mixture.named(names), draws=draws)

    @property
    def has_prior(self) -> bool:
        """Whether the parameters had a prior: if not, this is a fit by maximum likelihood."""
        return self.prior_given or ENGINES[self.engine].prior != "none"

    @property
    def code(self) -> ResultCode:
        """The result as an enumeration member, for a fit outside `jit` and `vmap`."""
        return ResultCode(int(self.result))

    @property
    def explanation(self) -> str:
        """What happened and what to try with this fit, in one sentence."""
        return advise(_EXPLANATIONS[self.code], self)

    @property
    def successful(self) -> Bool[AnyArray, "*restarts"] | np.bool:
        """Whether the stopping rule was met."""
        return self.result == int(ResultCode.successful)

    @property
    def steps(self) -> Float[np.ndarray, "..."]:
        """The trace without its unused end."""
        trace, used = np.asarray(self.trace), int(self.num_steps) + 1
        return trace[..., :used] if np.isnan(trace[..., used:]).all() else trace

    def summary_table(self, feature_names: Sequence[str] | None = None) -> "pd.DataFrame":
        """Tabulate the parameters, a line each: cluster, quantity and value; of draws their mean, sd and 95 % limits.

        Raises:
            InputError: for several fits at once, and for another number of names than features.
        """
        if np.ndim(self.result):
            raise InputError(f"fit holds {np.size(self.result)} fits; tabulate them one by one")
        names = name_features(feature_names, self.mixture.num_features, self)
        return presentation.summary_table(self.mixture, self.draws, get_family(self.family), names)

    def shown(self) -> tuple[str, Lines] | None:
        """What was fitted, how it ended and how well it fits; and each cluster."""
        if is_traced(self.result) or np.ndim(self.result) or not presentation.has_contents(self.mixture):
            return None
        return self._title, presentation.lines_of(self.summary_table())

    @property
    def _title(self) -> str:
        """What was fitted, how it ended, and how well it fits."""
        evidence = {"r_hat": "R-hat {:.3f}", "khat": "k-hat {:.2f}", "elbo": "ELBO {:.2f}"}
        found = [words.format(float(self.summary[name])) for name, words in evidence.items() if name in self.summary]
        k = self.mixture.num_components
        return "; ".join(
            [
                f"{ENGINES[self.engine].label}, {counted(k, 'component')} of family {self.family}",
                f"log-likelihood {float(self.log_likelihood):.2f}",
                *found,
                f"{int(self.num_steps)} steps, {self.explanation}",
            ]
        )


# Cures that do not apply to every fit, and to which they do.
_APPLIES: dict[str, Callable[[Fit], bool]] = {
    "fewer components": lambda fit: fit.mixture.num_components > 1,
    "a more restricted family": lambda fit: fit.family != "tied_spherical",
    "a larger reg_covar": lambda fit: fit.engine == "em",
    "a lower reg_covar": lambda fit: fit.engine == "em",
    "more starts": lambda fit: fit.engine == "em",
    "float64": lambda fit: fit.mixture.means.dtype != np.float64,
    "an engine with a prior": lambda fit: not fit.has_prior,
    "a prior": lambda fit: not fit.has_prior,
    "a tighter prior": lambda fit: fit.has_prior,
    "a richer guide": lambda fit: fit.engine == "vi",
}


def advise(words: str, fit: Fit | None = None) -> str:
    """Words with those of their cures, which are listed as [one|another], that apply to a fit; without one, with all.

    Whatever is advised goes through here, so that no fit is advised what it has already, or cannot have.
    """

    def chosen(found: re.Match[str]) -> str:
        cures = found[1].split("|")
        left = [cure for cure in cures if fit is None or cure not in _APPLIES or _APPLIES[cure](fit)]
        return listed(left, "or") if left else "more rows"

    return re.sub(r"\[([^\]]*\|[^\]]*)\]", chosen, words)


def explain(fit: Fit, x: Float[np.ndarray, "n d"]) -> tuple[str, str]:
    """What happened and what to try, in which columns of the rows x that are combinations of others are named."""
    detail, _, advice = fit.explanation.partition("; ")
    singular = fit.code in (ResultCode.collapsed, ResultCode.decreased) and not get_family(fit.family).diagonal
    if singular and (combined := combined_columns(x, [str(column) for column in range(x.shape[1])])):
        return "; ".join(combined), "leave one of them out, or choose a diagonal family"
    return detail, advice


def report_failure(fit: Fit, on_failure: str, x: AnyArray | None = None) -> Fit:
    """Warn once, or raise, when a fit did not succeed. Inside a caller's trace there is only the code.

    Of the rows x, if they are in memory, columns are named that make covariances singular.

    Raises:
        RuntimeError: for a fit that was not successful, when `on_failure` is "raise".
    """
    if on_failure == "ignore" or is_traced(fit.result) or jnp.ndim(fit.result):
        return fit
    if fit.code is not ResultCode.successful:
        title = f"{fit.engine} ({fit.family}, k={fit.mixture.num_components})"
        known = x is not None and not is_traced(x)
        message = "; ".join(explain(fit, np.asarray(x))) if known else fit.explanation
        warn_or_raise(f"{title}: {message}", on_failure)
    return fit


def warn_or_raise(message: str, on_failure: str) -> None:
    """A `FitWarning` at the line that called this package; or an error, or nothing.

    Raises:
        RuntimeError: when `on_failure` is "raise".
    """
    if on_failure == "raise":
        raise RuntimeError(message)
    if on_failure == "warn":
        warnings.warn(message, FitWarning, skip_file_prefixes=(_PACKAGE,))


def as_fit(value: object) -> Fit:
    """The value, if it is a fit.

    Raises:
        InputError: for anything else.
    """
    if isinstance(value, Fit):
        return value
    raise InputError(f"fit={short_repr(value)} is not a Fit; give the result of fit_em or another engine")
