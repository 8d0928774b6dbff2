"""Every parameter on one line: its estimate and uncertainty by engine, and where the uncertainty
is unreliable.

Samplers of the posterior are the reference. An approximation whose standard deviations are far from theirs is named,
and so is the normal approximation of maximum likelihood where its 95 % interval holds too little of the posterior (with
few rows the prior has its part in that: then the two do not answer one question).
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayesgmm.engines.fit import Fit
from bayesgmm.engines.registry import BASE_ENGINE, ENGINES
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import get_family
from bayesgmm.mixtures.presentation import LEVEL, shown_entries, spread
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.numerics.thresholds import MIN_COVERAGE, OVERCONFIDENT, UNDERCONFIDENT
from bayesgmm.numerics.validation import name_features
from bayesgmm.standard_errors.intervals import Uncertainty
from bayesgmm.standard_errors.uncertainties import MOST_PARAMETERS, uncertainty


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
        found = [name for name in self.names if np.any(self.frame.filter([f"{name} sd"]) > 0)]
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
    points = [fit.mixture if fit.draws is None else fit.draws for fit in fits.values()]
    lines, stacks = shown_entries(
        shape, get_family(family), name_features(feature_names, shape[1], *fits.values()), points
    )
    values = dict(zip(fits, stacks, strict=True))
    samplers = [name for name, fit in fits.items() if fit.draws is not None and ENGINES[fit.engine].gives == "draws"]
    # The last in the table of engines: NUTS before Gibbs.
    reference = max(samplers, key=lambda name: list(ENGINES).index(fits[name].engine), default=None)
    likelihood = next((name for name, fit in fits.items() if not fit.has_prior), None)
    draws = None if reference is None else values[reference]
    columns: dict[str, Any] = {"cluster": [line.cluster for line in lines], "quantity": [line.label for line in lines]}
    for name, fit in fits.items():
        columns[name] = values[name].mean(1)
        if fit.draws is not None:
            sd, low, high = spread(values[name])
        elif name == likelihood and errors is not None:
            limits = errors.intervals(LEVEL, "normal")
            sd = np.array([errors.standard_errors[line.name][line.place] for line in lines], np.float64)
            low, high = np.array([limits[line.name][line.place] for line in lines], np.float64).T
        else:
            continue
        columns |= {f"{name} sd": sd, f"{name} low": low, f"{name} high": high}
        if draws is None or ENGINES[fit.engine].gives == "draws":
            continue
        # What is certain, such as the weight of a single component, is neither overconfident nor underconfident.
        yardstick = spread(draws)[0]
        columns[f"{name} ratio"] = np.divide(sd, yardstick, out=np.full(len(lines), np.nan), where=yardstick > 0)
        if name == likelihood:
            inside = ((low[:, None] <= draws) & (draws <= high[:, None])).mean(1)
            columns[f"{name} coverage"] = np.where(np.isfinite(low + high), inside, np.nan)
    frame = pd.DataFrame(columns)
    flags = [_flag_line(line, list(fits), likelihood) for line in frame.to_dict("records")]
    frame = frame.assign(flagged=[flagged for flagged, _ in flags], note=[note for _, note in flags])
    of_errors = likelihood or BASE_ENGINE
    remarks = [f"{of_errors}: {errors.message}"] if errors is not None and errors.message else []
    if errors is None:
        remarks.append(f"{of_errors}: it has no standard errors")
    if reference is not None and not fits[reference].successful:
        remarks.append(f"{reference}: {fits[reference].explanation}; comparisons with it are unreliable")
    return ParameterTable(frame, tuple(fits), reference, tuple(remarks), likelihood)


def errors_of_em(fit: Fit, x: ArrayLike) -> Uncertainty | None:
    """Standard errors of an EM fit by its observed information, None where it has too many parameters."""
    num_parameters = get_family(fit.family).num_parameters(fit.mixture.num_components, fit.mixture.num_features)
    if num_parameters > MOST_PARAMETERS:
        return None
    return uncertainty(fit, x, on_failure="ignore")


def _flag_line(line: Mapping[Hashable, Any], names: list[str], likelihood: str | None) -> tuple[tuple[str, ...], str]:
    """The fits that are far from the reference in a line, and how, in words."""
    ratios = {name: line.get(f"{name} ratio", np.nan) for name in names}
    narrow = {name: ratio for name, ratio in ratios.items() if ratio < OVERCONFIDENT}
    wide = {name: ratio for name, ratio in ratios.items() if ratio > UNDERCONFIDENT}
    flagged, notes = [*narrow, *wide], []
    for verdict, far in (("overconfident", narrow), ("underconfident", wide)):
        if far:
            notes.append(f"{verdict}: {', '.join(f'{name} {ratio:.2f}' for name, ratio in far.items())}")
    if likelihood is not None and (coverage := line.get(f"{likelihood} coverage", 1.0)) < MIN_COVERAGE:
        notes.append(f"{likelihood}'s 95 % interval holds {100 * coverage:.0f} %")
        flagged += [] if likelihood in flagged else [likelihood]
    return tuple(flagged), "; ".join(notes)
