"""Effective draws per second of NUTS, warm-up included and compilation apart, against NumPyro and nutpie.

The peers are NumPyro's NUTS on the same model written with `MixtureSameFamily`, and nutpie on PyMC's marginal mixture;
all have the same prior and their own defaults. Every sampler has a process of its own. JAX's run their four chains one
after the other on one device, or side by side, whichever gives more effective draws per second; nutpie has its own
threads. What counts is the smallest bulk effective number of draws over weights, means, covariances and
log-likelihood, after the components of all draws were matched to the same fit by EM.

Means over draws have to agree within Monte Carlo error. Chains that sit in different modes (R-hat above 1.05) have
few effective draws, and the row says so; then only those of their chains that drew from our mode are compared with
ours, and the note gives the ratio if the others are left out of the draws but not of the time.
"""

import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.benchmarks import posteriors, subjects
from tests.benchmarks.data import simulate
from tests.benchmarks.rows import Row, Target, duration
from tests.benchmarks.sampler import Job, Run, sample

SECTION = "sampling"
DEVICES = {"MixtureSameFamily": (1, 4), "nutpie": (1,), "nuts": (1, 2), "gibbs": (1, 2)}
"""JAX's devices on two cores: NumPyro runs chains side by side only on one each; ours share two, which is faster."""
TARGETS = {"MixtureSameFamily": 5.0, "nutpie": 1.0}
QUICK = {
    "nuts": {"num_warmup": 100, "num_draws": 100},
    "MixtureSameFamily": {"num_warmup": 100, "num_samples": 100},
    "nutpie": {"tune": 100, "draws": 100},
}
NUTPIE_DRAWS = 1000  # its default; on large data it draws fewer, and the rest is reckoned at the rate of those


@dataclass(frozen=True)
class DataSet:
    name: str
    x: np.ndarray
    num_components: int
    num_repeats: int
    nutpie: dict[str, Any] = dataclasses.field(default_factory=dict)
    quick: bool = False


@dataclass(frozen=True)
class Sampled:
    """The runs of a sampler in its better arrangement, of which the median one is reported."""

    runs: list[Run]
    num_devices: int
    compile_seconds: float

    @property
    def median(self) -> Run:
        return sorted(self.runs, key=lambda run: run.seconds_per_draw)[(len(self.runs) - 1) // 2]

    @property
    def seconds_per_draw(self) -> float:
        return statistics.median(run.seconds_per_draw for run in self.runs)


def data_sets(quick: bool) -> tuple[DataSet, ...]:
    faithful = DataSet("faithful", subjects.shipped("faithful"), 2, 1 if quick else 3, quick=quick)
    if quick:
        return (faithful,)
    return (faithful, DataSet("simulated", simulate(10_000, 5, 4).x, 4, 1, {"chains": 4, "draws": 250}))


def run(quick: bool) -> Iterator[Row]:
    for data in data_sets(quick):
        ours = draw("nuts", data, QUICK["nuts"] if quick else {})
        for peer in TARGETS:
            settings = QUICK[peer] if quick else data.nutpie if peer == "nutpie" else {}
            theirs = draw(peer, data, settings)
            if "draws" in data.nutpie and peer == "nutpie":
                factor = NUTPIE_DRAWS / data.nutpie["draws"]
                theirs = dataclasses.replace(theirs, runs=[run.lengthened(factor) for run in theirs.runs])
            target = Target("ratio", at_least=TARGETS[peer])
            yield row(SECTION, data.name, data, ours, theirs, peer, target)


def draw(sampler: str, data: DataSet, settings: dict[str, Any]) -> Sampled:
    """Runs of a sampler, in the arrangement of chains that is better for it.

    Where runs are repeated, one more goes first, so that what is compiled once is compiled.
    """
    more = int(data.num_repeats > 1 and sampler != "nutpie")
    found = []
    for devices in DEVICES[sampler][: 1 if data.quick else None]:
        runs = sample(Job(sampler, data.num_components, devices, data.num_repeats + more, settings), data.x)
        found.append(Sampled(runs[more:], devices, runs[0].compile_seconds))
    return min(found, key=lambda sampled: sampled.seconds_per_draw)


def row(
    section: str,
    what: str,
    data: DataSet,
    ours: Sampled,
    theirs: Sampled,
    peer: str,
    target: Target,
) -> Row:
    """Seconds per effective draw of two samplers, side by side."""
    mine, other = ours.median, theirs.median
    # A short trial says nothing about the posterior.
    agrees, notes, extra = agreement(mine, other) if not data.quick else (None, [], {})
    if other.judged.num_chains > extra.get("peer_chains_in_our_mode", other.judged.num_chains) > 0:
        good = extra["ess_of_peer_chains_in_our_mode"]
        notes.append(f"without the others the ratio is {other.seconds / good / ours.seconds_per_draw:.3g}")
    return Row(
        section=section,
        what=f"{what}, per effective draw",
        peer=peer,
        dtype=str(data.x.dtype),
        family="full",
        shape=(*data.x.shape, data.num_components),
        seconds=ours.seconds_per_draw,
        peer_seconds=theirs.seconds_per_draw,
        ratio=theirs.seconds_per_draw / ours.seconds_per_draw,
        target=target,
        agrees=agrees,
        log_likelihood=float(mine.judged.log_likelihood.mean()),
        peer_log_likelihood=float(other.judged.log_likelihood.mean()),
        compile_seconds=ours.compile_seconds,
        note="; ".join([f"ours {account(ours)}", f"peer's {account(theirs)}", *notes]),
        extra={**extra, "ours": numbers(ours), "peer's": numbers(theirs)},
    )


def agreement(mine: Run, other: Run) -> tuple[bool | None, list[str], dict[str, Any]]:
    """Whether means over draws agree: True, False, or None where the peer has no draws of our mode; and what to say."""
    if mine.r_hat > posteriors.MIXED:
        return False, [f"our chains disagree (R-hat {mine.r_hat:.3g})"], {}
    same, notes, extra = other.judged, [], {}
    if other.r_hat > posteriors.MIXED:
        same = other.judged.chains_with(mine.judged)
        extra["peer_chains_in_our_mode"] = same.num_chains
        notes.append(
            f"the peer's chains disagree (R-hat {other.r_hat:.3g}): {same.num_chains} of {other.judged.num_chains} "
            "draw from our mode"
        )
        if not same.num_chains:
            return None, notes, extra
        extra["ess_of_peer_chains_in_our_mode"] = same.ess
        if same.r_hat > posteriors.MIXED:
            return None, notes, extra
    apart = posteriors.difference(mine.judged, same)
    return apart <= posteriors.STANDARD_ERRORS, notes, {**extra, "standard_errors_apart": apart}


def account(sampled: Sampled) -> str:
    run = sampled.median
    return f"{run.ess:,.0f} effective draws in {duration(run.seconds)} ({1 / sampled.seconds_per_draw:,.0f} a second)"


def numbers(sampled: Sampled) -> dict[str, Any]:
    names = ("seconds", "compile_seconds", "warmup_share", "ess", "r_hat")
    runs = [{name: getattr(run, name) for name in names} for run in sampled.runs]
    return {"num_devices": sampled.num_devices, "compile_seconds": sampled.compile_seconds, "runs": runs}
