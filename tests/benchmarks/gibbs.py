"""Effective draws per second of Gibbs sampling, against our own NUTS under the same conjugate prior.

As in the section on sampling: warm-up included, compilation apart, chains of each side by side or one after the other,
whichever is better for it, and the smallest bulk effective number of draws over parameters and log-likelihood.
"""

from collections.abc import Iterator

import numpy as np

from tests.benchmarks.rows import Row, Target
from tests.benchmarks.sampling import DataSet, draw, row

SECTION = "gibbs"
LEAST_SPEEDUP = 20.0
QUICK = {"num_warmup": 100, "num_draws": 200}


def run(quick: bool) -> Iterator[Row]:
    data = DataSet("Gibbs", two_clusters(), 2, 1 if quick else 3, quick=quick)
    settings = {"conjugate": True, **(QUICK if quick else {})}
    ours, theirs = draw("gibbs", data, settings), draw("nuts", data, settings)
    target = Target("ratio", at_least=LEAST_SPEEDUP)
    yield row(SECTION, data.name, data, ours, theirs, "our NUTS", target)


def two_clusters(num_rows: int = 1000) -> np.ndarray:
    """Rows (n, 1) of two normals that overlap a little."""
    rng = np.random.default_rng(5)
    second = rng.random((num_rows, 1)) < 0.4
    return np.where(second, 3.0, 0.0) + np.where(second, 0.7, 1.0) * rng.standard_normal((num_rows, 1))
