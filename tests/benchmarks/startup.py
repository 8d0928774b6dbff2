"""What a user waits for before anything is computed: imports, the command line's help, first results, the main job.

Every time is that of a fresh process, or of a stretch of one; the subjects take turns and medians are reported.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bayesgmm.datasets import load_dataset
from tests.benchmarks.processes import ROOT, run_command, run_python
from tests.benchmarks.rows import Row, Target

SECTION = "startup"
REPEATS, QUICK_REPEATS = 7, 2
MOST_IMPORTS, MOST_HELP = 1.15, 0.5
MOST_FIRST_FIT, MOST_FIRST_FIT_CACHED = 1.2, 0.4
MOST_MAIN_JOB, MOST_MAIN_JOB_AGAIN = 30.0, 15.0

# Ends before the interpreter tears down, which is not what a user waits for and varies.
FIRST_FIT = """
import json, os, time
import jax
{settings}
began = time.perf_counter()
import bayesgmm
imported = time.perf_counter()
x = bayesgmm.load_dataset("faithful").x
loaded = time.perf_counter()
fit = bayesgmm.fit_em(x, 2, key=jax.random.key(0))
parts = {{"import": imported - began, "load": loaded - imported, "fit": time.perf_counter() - loaded}}
print(json.dumps([parts, float(fit.log_likelihood), int(fit.num_steps), fit.code.name]), flush=True)
os._exit(0)
"""
CACHE = """
jax.config.update("jax_compilation_cache_dir", {folder!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
"""

# A first result of an engine or a diagnostic, of which only the last part is timed.
FIRST = """
import json, os, time, warnings
import jax
import bayesgmm
warnings.simplefilter("ignore")
x, key = bayesgmm.load_dataset("faithful").x, jax.random.key(0)
{before}
began = time.perf_counter()
{timed}
print(json.dumps(time.perf_counter() - began), flush=True)
os._exit(0)
"""
FITTED = "prior = bayesgmm.default_prior(x, 2)\nfit = bayesgmm.fit_nuts(x, 2, key=key)"
FIRSTS = {
    "fit_map, fit_vi with both guides": (
        "",
        "bayesgmm.fit_map(x, 2, key=key)\nfor guide in ('normal', 'full_rank'):\n"
        "    bayesgmm.fit_vi(x, 2, key=key, guide=guide)",
        8.0,
    ),
    "fit_nuts": ("", "bayesgmm.fit_nuts(x, 2, key=key)", None),
    "fit_gibbs": ("", "bayesgmm.fit_gibbs(x, 2, key=key)", 5.0),
    "uncertainty, observed": ("fit = bayesgmm.fit_em(x, 2, key=key)", "bayesgmm.uncertainty(fit, x)", 0.1),
    "diagnose": (FITTED, "bayesgmm.diagnose(fit, x)", 2.0),
    "to_datatree": (FITTED, "bayesgmm.to_datatree(fit, x, prior=prior, key=key)", 2.0),
    "loo": (FITTED + "\ntree = bayesgmm.to_datatree(fit, x, prior=prior, key=key)", "bayesgmm.loo(tree)", 2.0),
}


def run(quick: bool) -> Iterator[Row]:
    repeats = QUICK_REPEATS if quick else REPEATS
    yield from main_job(1 if quick else 3)
    for what, (before, timed, most) in FIRSTS.items():
        script = FIRST.format(before=before, timed=timed)
        seconds = [json.loads(run_python("-c", script).splitlines()[-1]) for _ in range(1 if quick else 3)]
        target = None if most is None else Target("seconds", at_most=most)
        yield Row(section=SECTION, what=f"first {what}", seconds=statistics.median(seconds), target=target)
    yield from imports(repeats)
    yield command_line_help(repeats)
    yield first_fit("first fit of Old Faithful", "", repeats, MOST_FIRST_FIT)
    with tempfile.TemporaryDirectory() as folder:
        settings = CACHE.format(folder=folder)
        run_python("-c", FIRST_FIT.format(settings=settings))  # fills the cache
        yield first_fit("first fit, compilation cache on", settings, repeats, MOST_FIRST_FIT_CACHED)


def main_job(repeats: int) -> Iterator[Row]:
    """With an empty cache, once more, and once more on other rows of the same step."""
    command = str(Path(sys.executable).with_name("bayesgmm"))
    config = ROOT / "configs" / "old_faithful.toml"
    times: dict[str, list[float]] = {"main job, empty cache": [], "again": [], "again, on 260 other rows": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            x = np.random.default_rng(0).permutation(load_dataset("faithful").x)[:260] * [1.01, 0.99]
            np.savetxt(Path(folder) / "other.csv", x, delimiter=",", header="eruptions,waiting", comments="")
            other = Path(folder) / "other.toml"
            text = config.read_text().replace('dataset = "faithful"', 'path = "other.csv"')
            other.write_text(text)
            for what, settings in zip(times, (config, config, other), strict=True):
                arguments = ("compare", str(settings), "--out", str(Path(folder) / "results"), "--overwrite")
                times[what].append(_wall("env", f"XDG_CACHE_HOME={folder}", command, *arguments))
    for what, seconds in times.items():
        most = MOST_MAIN_JOB if "empty" in what else MOST_MAIN_JOB_AGAIN
        target = Target("seconds", at_most=most)
        yield Row(section=SECTION, what=what, seconds=statistics.median(seconds), target=target)


def _wall(*command: str) -> float:
    began = time.perf_counter()
    run_command(*command)
    return time.perf_counter() - began


def imports(repeats: int) -> Iterator[Row]:
    """The package alone, whose names load when first used, and with the one name that every user loads."""
    statements = ("import jax", "import bayesgmm", "from bayesgmm import fit_em")
    times = {statement: [] for statement in statements}
    for statement in statements:
        run_python("-c", statement)
    for _ in range(repeats):
        for statement, seconds in times.items():
            seconds.append(_wall(sys.executable, "-c", statement))
    theirs, *ours = (statistics.median(seconds) for seconds in times.values())
    for statement, seconds in zip(statements[1:], ours, strict=True):
        yield Row(
            section=SECTION,
            what=statement,
            peer=statements[0],
            seconds=seconds,
            peer_seconds=theirs,
            ratio=seconds / theirs,
            target=Target("ratio", at_most=MOST_IMPORTS) if statement == "import bayesgmm" else None,
        )


def command_line_help(repeats: int) -> Row:
    command = str(Path(sys.executable).with_name("bayesgmm"))
    run_command(command, "--help")
    return Row(
        section=SECTION,
        what="bayesgmm --help",
        seconds=statistics.median(_wall(command, "--help") for _ in range(repeats)),
        target=Target("seconds", at_most=MOST_HELP),
    )


def first_fit(what: str, settings: str, repeats: int, most: float) -> Row:
    """From the end of `import jax` to the fit: importing the package, reading the data, compiling, fitting."""
    script = FIRST_FIT.format(settings=settings)
    printed = [json.loads(run_python("-c", script).splitlines()[-1]) for _ in range(repeats)]
    _, log_likelihood, steps, result = printed[0]
    parts = {part: statistics.median(one[0][part] for one in printed) for part in printed[0][0]}
    return Row(
        section=SECTION,
        what=what,
        dtype="float64",
        family="full",
        shape=(272, 2, 2),
        seconds=statistics.median(sum(one[0].values()) for one in printed),
        target=Target("seconds", at_most=most),
        steps=steps,
        log_likelihood=log_likelihood,
        result=result,
        note="beyond import jax; " + ", ".join(f"{part} {seconds:.2f} s" for part, seconds in parts.items()),
        extra={"parts": parts},
    )
