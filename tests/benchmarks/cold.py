"""From data to 1,000 effective draws in a fresh process, nothing compiled before: what a user waits for.

The clock starts after NumPy and JAX (for nutpie only NumPy) are imported and covers importing the sampler, making the
model, compiling, warm-up and draws, with the defaults of each: `fit_nuts` four chains of 300 and 1000, NumPyro's NUTS
four of 1000 and 1000 (one after the other, or side by side on four devices, whichever is faster for it), nutpie its own
number of chains of 400 and 1000. The caches of JAX, PyTensor and Numba are empty. Where fewer draws than 1,000 are
effective, as many more as it takes are added at the rate of those after warm-up; warm-up gets no more than its share
of the iterations. No draws are taken away where more are effective.
"""

import statistics
from collections.abc import Iterator

from tests.benchmarks.rows import Row, Target
from tests.benchmarks.sampler import Job, Run, sample
from tests.benchmarks.sampling import DEVICES, QUICK, DataSet, Sampled, agreement, data_sets

SECTION = "cold"
ENOUGH = 1000
LEAST_SPEEDUP = 5.0
PEERS = ("MixtureSameFamily", "nutpie")


def run(quick: bool) -> Iterator[Row]:
    for data in data_sets(quick):
        yield from rows_of(data, quick)


def rows_of(data: DataSet, quick: bool) -> Iterator[Row]:
    ours = cold_starts("nuts", data, quick)
    for peer in PEERS:
        theirs = cold_starts(peer, data, quick)
        mine, other = ours.median, theirs.median
        seconds, peer_seconds = (statistics.median(map(until_enough, each.runs)) for each in (ours, theirs))
        agrees, notes, extra = (None, [], {}) if quick else agreement(mine, other)
        yield Row(
            section=SECTION,
            what=f"{data.name}, first {ENOUGH:,} effective draws",
            peer=peer,
            dtype="float64",
            family="full",
            shape=(*data.x.shape, data.num_components),
            seconds=seconds,
            peer_seconds=peer_seconds,
            ratio=peer_seconds / seconds,
            target=Target("ratio", at_least=LEAST_SPEEDUP),
            agrees=agrees,
            compile_seconds=ours.compile_seconds,
            note="; ".join([f"ours {account(mine)}", f"peer's {account(other)}", *notes]),
            extra={**extra, "ours": list(map(numbers, ours.runs)), "peer's": list(map(numbers, theirs.runs))},
        )


def cold_starts(sampler: str, data: DataSet, quick: bool) -> Sampled:
    """Fresh processes, in the arrangement of chains that is faster for the sampler."""
    settings = QUICK[sampler] if quick else data.nutpie if sampler == "nutpie" else {}
    repeats = 1 if sampler == "nutpie" else data.num_repeats
    found = []
    for devices in DEVICES[sampler][: 1 if quick else None]:
        jobs = (Job(sampler, data.num_components, devices, settings=settings, seed=seed) for seed in range(repeats))
        runs = [sample(job, data.x)[0] for job in jobs]
        found.append(Sampled(runs, devices, statistics.median(run.compile_seconds for run in runs)))
    return min(found, key=lambda sampled: statistics.median(map(until_enough, sampled.runs)))


def until_enough(run: Run) -> float:
    """Seconds until so many draws are effective."""
    return run.lengthened(max(1.0, ENOUGH / run.ess)).total_seconds


def account(run: Run) -> str:
    added = until_enough(run) - run.total_seconds
    more = f", {added:.3g} s more to {ENOUGH:,}" if added else ""
    return f"{run.ess:,.0f} effective in {run.total_seconds:.3g} s, {run.compile_seconds:.3g} s of it compiling{more}"


def numbers(run: Run) -> dict[str, float]:
    names = ("seconds", "compile_seconds", "total_seconds", "warmup_share", "ess", "r_hat")
    return {name: getattr(run, name) for name in names} | {"until_enough": until_enough(run)}
