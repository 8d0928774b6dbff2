"""Every parameter on one line: what each engine says of it, how sure it is, and where that cannot be believed.

Samplers of the posterior are the reference. An approximation whose standard deviations are far from theirs is named,
and so is the normal approximation of maximum likelihood where its 95 % interval holds too little of the posterior (with
few rows the prior has its part in that: then the two do not answer one question).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from bayesgmm.engines.fit import Fit
from bayesgmm.engines.registry import BASE_ENGINE, ENGINES
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import get_family
from bayesgmm.mixtures.quantities import Entry, entries, quantities_of
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.numerics.validation import name_features
from bayesgmm.posterior.thresholds import MIN_COVERAGE, OVERCONFIDENT, UNDERCONFIDENT
from bayesgmm.standard_errors.intervals import Uncertainty
from bayesgmm.standard_errors.uncertainty import MOST_PARAMETERS, uncertainty

SHOWN = ("weights", "means", "standard_deviations", "correlations")
LEVEL = 0.95
_TAILS = (0.5 - 0.5 * LEVEL, 0.5 + 0.5 * LEVEL)


@dataclass(frozen=True)
class ParameterTable:
    """Parameters by engine.

    Attributes:
        frame: a line for each parameter: "cluster", "quantity"; for every fit by name its value (of posteriors the
            mean), and where it has them "NAME sd" (of maximum likelihood the standard error), "NAME low" and "NAME
            high", 95 % limits, and "NAME ratio", its sd over the reference's; "NAME coverage", the share of
            the reference's draws in the limits of maximum likelihood; "flagged", the fits that are far from the
            reference; "note", how: by their ratios, or by their coverage.
        names: of the fits, in their order.
        reference: the fit whose standard deviations the others are held to; None where no sampler was run.
        remarks: what holds for whole columns, such as why there are no standard errors.
        likelihood: the fit by maximum likelihood, which the standard errors are of, if there is one.
    """

    frame: pd.DataFrame
    names: tuple[str, ...]
    reference: str | None
    remarks: tuple[str, ...]
    likelihood: str | None = None

    @property
    def measured_by(self) -> str | None:
        """The fit whose standard deviations others can be measured by: the reference, else the first that has any."""
        lines = self.frame.to_dict("records")
        found = [name for name in self.names if any(line.get(f"{name} sd", 0.0) > 0 for line in lines)]
        return self.reference if self.reference is not None else next(iter(found), None)

    @property
    def notes(self) -> list[str]:
        """The lines that carry a note, in words."""
        lines = self.frame.to_dict("records")
        return [f"cluster {line['cluster']}, {line['quantity']}: {line['note']}" for line in lines if line["note"]]


def parameter_table(
    fits: Mapping[str, Fit], errors: Uncertainty | None = None, *, feature_names: Iterable[str] | None = None
) -> ParameterTable:
    """Weights, means, standard deviations and correlations by engine, beside their uncertainties.

    Args:
        fits: fits by name, whose components have the same order, as those of `compare` have.
        errors: standard errors of the first of them that is by maximum likelihood.
        feature_names: names of the d features.

    Raises:
        InputError: for no fits, fits that differ in clusters, features or family, or another number of names.
    """
    shapes = {name: (fit.mixture.means.shape, fit.family) for name, fit in fits.items()}
    if len(set(shapes.values())) != 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
        raise InputError(f"fits must be at least one, and agree in clusters, features and family; they are {found}")
    ((shape, family),) = set(shapes.values())
    lines = [
        entry
        for entry in entries({"means": shape}, get_family(family), name_features(feature_names, shape[1]))
        if entry.name in SHOWN
    ]
    reference = _reference(fits)
    likelihood = next((name for name, fit in fits.items() if ENGINES[fit.engine].prior == "none"), None)
    values = {name: _values_of(fit, lines) for name, fit in fits.items()}
    limits = None if errors is None else errors.intervals(LEVEL, "normal")
    rows = []
    for index, entry in enumerate(lines):
        draws = None if reference is None else values[reference][index]
        row: dict[str, Any] = {"cluster": entry.cluster, "quantity": entry.label}
        narrow: dict[str, float] = {}
        wide: dict[str, float] = {}
        for name, fit in fits.items():
            found = values[name][index]
            row[name] = float(found.mean())
            if fit.draws is not None:
                sd, (low, high) = _sd(found), np.quantile(found, _TAILS)
            elif name == likelihood and errors is not None and limits is not None:
                sd = float(errors.standard_errors[entry.name][entry.place])
                low, high = limits[entry.name][entry.place]
            else:
                continue
            row |= {f"{name} sd": sd, f"{name} low": float(low), f"{name} high": float(high)}
            if draws is None or ENGINES[fit.engine].gives == "draws":
                continue
            # What is certain, such as the weight of a single component, is neither overconfident nor underconfident.
            yardstick = _sd(draws)
            row[f"{name} ratio"] = sd / yardstick if yardstick > 0 else np.nan
            if row[f"{name} ratio"] < OVERCONFIDENT:
                narrow[name] = row[f"{name} ratio"]
            elif row[f"{name} ratio"] > UNDERCONFIDENT:
                wide[name] = row[f"{name} ratio"]
            if name == likelihood:
                row[f"{name} coverage"] = (
                    float(((low <= draws) & (draws <= high)).mean()) if np.isfinite(low + high) else np.nan
                )
        notes = [_listed("overconfident", narrow), _listed("underconfident", wide)]
        flagged = [*narrow, *wide]
        if likelihood is not None and (coverage := row.get(f"{likelihood} coverage", 1.0)) < MIN_COVERAGE:
            notes.append(f"{likelihood}'s 95 % interval holds {100 * coverage:.0f} %")
            flagged += [] if likelihood in flagged else [likelihood]
        rows.append({**row, "flagged": tuple(flagged), "note": "; ".join(filter(None, notes))})
    of_errors = likelihood or BASE_ENGINE
    remarks = [f"{of_errors}: {errors.message}"] if errors is not None and errors.message else []
    if errors is None:
        remarks.append(f"{of_errors}: it has no standard errors")
    if reference is not None and not fits[reference].successful:
        remarks.append(f"{reference}: {fits[reference].code.explanation}; what is measured by it is in doubt")
    return ParameterTable(pd.DataFrame(rows), tuple(fits), reference, tuple(remarks), likelihood)


def with_uncertainty(value: float, sd: float | None) -> str:
    """`value ± sd`, both with the decimals that show two significant digits of the sd."""
    if sd is None or not math.isfinite(sd) or sd <= 0:
        return f"{value:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(sd)))
    return f"{value:.{decimals}f} ± {sd:.{decimals}f}"


def errors_of_em(fit: Fit, x: ArrayLike) -> Uncertainty | None:
    """Standard errors of an EM fit by its observed information, None where it has too many parameters."""
    num_parameters = get_family(fit.family).num_parameters(fit.mixture.num_components, fit.mixture.num_features)
    if num_parameters > MOST_PARAMETERS:
        return None
    return uncertainty(fit, x, on_failure="ignore")


def _reference(fits: Mapping[str, Fit]) -> str | None:
    """The sampler that the others are held to, the last in the table of engines: NUTS before Gibbs."""
    order = list(ENGINES)
    samplers = [name for name, fit in fits.items() if fit.draws is not None and ENGINES[fit.engine].gives == "draws"]
    return max(samplers, key=lambda name: order.index(fits[name].engine), default=None)


def _sd(draws: Float[np.ndarray, " s"]) -> float:
    """Standard deviation of draws; 0 where they differ by rounding only."""
    return float(draws.std(ddof=1)) if np.ptp(draws) > 1e-12 * np.abs(draws).max() else 0.0


def _listed(verdict: str, ratios: Mapping[str, float]) -> str:
    """The fits of a verdict with their ratios, in words."""
    return f"{verdict}: {', '.join(f'{name} {ratio:.2f}' for name, ratio in ratios.items())}" if ratios else ""


def _values_of(fit: Fit, lines: list[Entry]) -> list[Float[np.ndarray, " s"]]:
    """For each line the draws of it, or the one value of a point."""
    quantities = quantities_of(fit.mixture if fit.draws is None else fit.draws)
    return [np.asarray(quantities[line.name], np.float64)[(..., *line.place)].ravel() for line in lines]
