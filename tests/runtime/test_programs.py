"""Compiled programs on disk: for later processes, and for workers."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

import bayesgmm

COUNT = """
    import jax, json, os
    counts = {"hits": 0, "misses": 0}
    def listen(event, **_):
        if event.endswith("compilation_cache/cache_hits"):
            counts["hits"] += 1
        elif event.endswith("compilation_cache/cache_misses"):
            counts["misses"] += 1
    jax.monitoring.register_event_listener(listen)
"""

FIT = """
    import bayesgmm
    folder = bayesgmm.cache(FOLDER)
    bayesgmm.fit_em(bayesgmm.load_dataset("faithful").x, 2, key=jax.random.key(0))
    bayesgmm.cache()
    assert folder == bayesgmm.cache()  # a second call keeps it
    print(json.dumps(counts))
"""

WORKERS = """
    import bayesgmm
    bayesgmm.cache(FOLDER)
    x = bayesgmm.load_dataset("faithful").x

    def fold():
        import jax
        misses = []
        jax.monitoring.register_event_listener(
            lambda event, **_: misses.append(event) if event.endswith("compilation_cache/cache_misses") else None
        )
        bayesgmm.GaussianMixture(2, random_state=0).fit(x[:217])
        return len(misses)

    fold()
    from joblib import Parallel, delayed  # as cross_val_score(n_jobs=2) does

    print(json.dumps(Parallel(n_jobs=2)(delayed(fold)() for _ in range(4))))
"""


def run(code, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    program = textwrap.dedent(COUNT) + textwrap.dedent(code).replace("FOLDER", repr(str(folder)))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder.parent)
    return json.loads(done.stdout)


def test_a_later_process_compiles_nothing(tmp_path):
    folder = tmp_path / "programs"
    first, second = run(FIT, folder), run(FIT, folder)
    assert first["misses"] > 0
    assert first["hits"] == 0
    assert second == {"hits": first["misses"], "misses": 0}


@pytest.mark.slow
def test_workers_compile_nothing_that_has_been_compiled(tmp_path):
    assert run(WORKERS, tmp_path / "programs") == [0, 0, 0, 0]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(bayesgmm.InputError, match=r"folder='.*file/programs' cannot be made .*; name one that can"):
        bayesgmm.cache(tmp_path / "file" / "programs")
    with pytest.raises(bayesgmm.InputError, match="is no path"):
        bayesgmm.cache("a\0b")
