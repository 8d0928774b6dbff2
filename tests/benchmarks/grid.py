"""Many small fits in one fresh process, nothing compiled before: other numbers of components, folds and tables.

Ours and scikit-learn's mixture do the same job: as many starts, the same data, imports left out on both sides.
"""

import json
import statistics
from collections.abc import Iterator

from tests.benchmarks.processes import run_python
from tests.benchmarks.rows import Row, Target

SECTION = "grid"
REPEATS, QUICK_REPEATS = 5, 1
ROWS = 272

BEGIN = """
import json, os, time, warnings
import jax, numpy as np
import sklearn.mixture, sklearn.model_selection
import bayesgmm
warnings.simplefilter("ignore")
count = [0]
def listen(name, seconds, **_):
    count[0] += name == "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(listen)
x = bayesgmm.load_dataset("faithful").x
rng = np.random.default_rng(0)
tables = [rng.normal(size=(n, 2)) + 4.0 * (rng.random((n, 1)) < 0.4) for n in range(190, 210)]
theirs = sklearn.mixture.GaussianMixture
def grid(estimator):
    search = sklearn.model_selection.GridSearchCV(estimator, {"n_components": list(range(1, 7))}, cv=5)
    return search.fit(x)
began = time.perf_counter()
"""
END = """
print(json.dumps([time.perf_counter() - began, count[0]]), flush=True)
os._exit(0)
"""
JOBS = {
    "k = 1..9, default starts, the peer ten": (
        "for k in range(1, 10): bayesgmm.fit_em(x, k, key=jax.random.key(0), on_failure='ignore')",
        "for k in range(1, 10): theirs(k, n_init=10, init_params='k-means++', random_state=0, tol=1e-6, "
        "max_iter=1000).fit(x)",
        3.0,
    ),
    "GridSearchCV, k = 1..6, cv=5": (
        "from bayesgmm.estimators import GaussianMixture; grid(GaussianMixture(random_state=0))",
        "grid(theirs(random_state=0))",
        5.0,
    ),
    "20 tables of 190 to 209 rows, k = 2, default starts, the peer ten": (
        "for table in tables: bayesgmm.fit_em(table, 2, key=jax.random.key(0), on_failure='ignore')",
        "for table in tables: theirs(2, n_init=10, init_params='k-means++', random_state=0, tol=1e-6, "
        "max_iter=1000).fit(table)",
        None,
    ),
}


def run(quick: bool) -> Iterator[Row]:
    repeats = QUICK_REPEATS if quick else REPEATS
    for what, (ours, theirs, most) in JOBS.items():
        found = {"ours": [], "peer's": []}
        for _ in range(repeats):
            for name, job in (("ours", ours), ("peer's", theirs)):
                found[name].append(json.loads(run_python("-c", BEGIN + job + END).splitlines()[-1]))
        seconds, peer_seconds = (statistics.median(one[0] for one in runs) for runs in found.values())
        yield Row(
            section=SECTION,
            what=what,
            peer="scikit-learn",
            dtype="float64",
            family="full",
            seconds=seconds,
            peer_seconds=peer_seconds,
            ratio=seconds / peer_seconds,
            target=None if most is None else Target("seconds", at_most=most),
            note=f"{found['ours'][0][1]} programs compiled",
        )
