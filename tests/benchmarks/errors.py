"""Standard errors of maximum likelihood: the public call, every method, on Old Faithful.

`bayesgmm.uncertainty` as a user calls it, from NumPy arrays to a result: the fits of 500 replicates (of 272 in a
jackknife), matching of labels and derived quantities. A method agrees when no replicate failed and its standard errors
of the means lie within a quarter of those by the sandwich, with which bootstraps share what they assume.
"""

import functools
import statistics
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import bayesgmm
from bayesgmm.standard_errors.intervals import BY_DRAWING, METHODS
from tests.benchmarks.rows import Row, Target
from tests.benchmarks.timing import seconds_of

SECTION = "errors"
NUM_REPLICATES, QUICK_NUM_REPLICATES = 500, 50
MOST_SECONDS = 3.0
FITS = {"full": 2, "tied": 3}  # in the second components overlap, and EM is slow
CLOSE = {"full": 0.25, "tied": 0.5}


def run(quick: bool) -> Iterator[Row]:
    x = bayesgmm.load_dataset("faithful").x
    for family, k in list(FITS.items())[: 1 if quick else None]:
        fit = bayesgmm.fit_em(x, k, family=family, key=jax.random.key(0), tol=1e-10, accelerate=True)
        reference = bayesgmm.uncertainty(fit, x, "sandwich").standard_errors["means"]
        for method in METHODS:
            yield timed(method, fit, x, reference, quick)


def timed(method: str, fit: bayesgmm.Fit, x: np.ndarray, reference: np.ndarray, quick: bool) -> Row:
    options: dict[str, Any] = {}
    if method in BY_DRAWING:
        options = {"key": jax.random.key(1), "num_replicates": QUICK_NUM_REPLICATES if quick else NUM_REPLICATES}
    call = functools.partial(bayesgmm.uncertainty, fit, x, method, on_failure="ignore", **options)
    jax.clear_caches()  # or programs that an earlier method has compiled would not be counted
    first, found = seconds_of(call)
    seconds = statistics.median(seconds_of(call)[0] for _ in range(2 if quick else 5))
    ratios = found.standard_errors["means"] / reference
    # Theory and parametric replicates assume the model, which is not quite so; they are shown, not judged.
    judged = method not in ("observed", "parametric") and not quick
    return Row(
        section=SECTION,
        what=f"{method}, {found.num_replicates} fits" if found.num_replicates else method,
        dtype="float64",
        family=fit.family,
        shape=(*x.shape, fit.mixture.num_components),
        seconds=seconds,
        target=Target("seconds", at_most=MOST_SECONDS),
        agrees=found.num_failed == 0 and bool(np.abs(ratios - 1).max() < CLOSE[fit.family]) if judged else None,
        result=found.code.name,
        compile_seconds=first - seconds,
        note=f"standard errors of means over the sandwich's: {ratios.min():.2f} to {ratios.max():.2f}",
    )
