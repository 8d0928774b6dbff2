"""Effective draws per second of Gibbs sampling, against our own NUTS under the same conjugate prior, and NumPyro's.

As in the section on sampling: warm-up included, compilation apart, chains of each side by side or one after the other,
whichever is better for it, and the smallest bulk effective number of draws over parameters and log-likelihood. How
well Gibbs mixes depends on how far the clusters overlap, which NUTS hardly minds, so both cases are shown. NumPyro's
NUTS, with its defaults, samples the same mixture under the same prior, written with `MixtureSameFamily`.
"""

from collections.abc import Iterator

import numpy as np

from tests.benchmarks.rows import Row, Target
from tests.benchmarks.sampling import QUICK as QUICK_SAMPLERS
from tests.benchmarks.sampling import DataSet, draw, row

SECTION = "gibbs"
LEAST_SPEEDUP = 20.0
DISTANCES = {"separated clusters": 6.0, "overlapping clusters": 3.0}
QUICK = {"num_warmup": 100, "num_draws": 200}
QUICK_PEER = QUICK_SAMPLERS["MixtureSameFamily"]


def run(quick: bool) -> Iterator[Row]:
    settings = {"conjugate": True, **(QUICK if quick else {})}
    for name, distance in list(DISTANCES.items())[: 1 if quick else None]:
        data = DataSet(name, two_clusters(distance), 2, 1 if quick else 3, quick=quick)
        ours, target = draw("gibbs", data, settings), Target("ratio", at_least=LEAST_SPEEDUP)
        yield row(SECTION, data.name, data, ours, draw("nuts", data, settings), "our NUTS", target)
        theirs = draw("MixtureSameFamily", data, {"conjugate": True, **(QUICK_PEER if quick else {})})
        yield row(SECTION, data.name, data, ours, theirs, "NumPyro's NUTS", target)


def two_clusters(distance: float, num_rows: int = 1000) -> np.ndarray:
    """Rows (n, 1) of two normals of standard deviations 1 and 0.7."""
    rng = np.random.default_rng(5)
    second = rng.random((num_rows, 1)) < 0.4
    return np.where(second, distance, 0.0) + np.where(second, 0.7, 1.0) * rng.standard_normal((num_rows, 1))
