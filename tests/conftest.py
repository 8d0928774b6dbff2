"""Settings of every test: 8 CPU devices, checked annotations, a compilation cache, and seeds that can be replayed.

Float64 stays off, as it is for users: the package follows the precision of its input. Tests that use `jax.numpy`
themselves in float64 ask for the fixture `x64`.
"""

import gc
import itertools
import os
import zlib
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_ENABLE_X64"] = "0"
os.environ["MPLBACKEND"] = "Agg"

from typing import Self

import beartype
import hypothesis
import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook


def checked(function):
    """Annotations checked by beartype, where they can be.

    Constructors are left alone, because JAX rebuilds pytrees around placeholders that are no arrays; beartype knows
    `Self` only in classes that it decorates as a whole. A function inside another would be decorated anew in every call
    of that, which took a twentieth of all tests.
    """
    inner = "<locals>" in function.__qualname__
    if inner or function.__name__ == "__init__" or Self in function.__annotations__.values():
        return function
    return beartype.beartype(function)


# In tests only, so that users pay nothing; before the package is first imported.
install_import_hook("bayesgmm", f"{__name__}.checked")

jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

SEED = int(os.environ.get("BAYESGMM_TEST_SEED", "0"))
MEMORY_MAPS = Path("/proc/self/maps")
MOST_MEMORY_MAPS = 50_000  # Linux lets a process have 65,530; ten tests take some thousands


def pytest_configure(config):
    """Let the default tests compile without LLVM's optimisations, for nearly all of their time is compilation.

    Such programs compile in a bit more than half of the time, differ in the last digits, and are right or wrong like
    the others. Slow tests, the main job, the notebooks and BAYESGMM_TEST_OPTIMISED=1 run the programs of users.
    """
    quick = config.option.markexpr == "not slow" and not int(os.environ.get("BAYESGMM_TEST_OPTIMISED", "0"))
    jax.config.update("jax_disable_most_optimizations", quick)


def pytest_report_header():
    return f"seed of the random tests: BAYESGMM_TEST_SEED={SEED}"


_tests_run = itertools.count(1)


@pytest.fixture(autouse=True)
def few_memory_maps():
    """Programs that no later test needs are dropped in time: looked at after every tenth test, for it takes a while.

    Each compiled program holds several memory maps, and a process that asks for more than the system allows crashes.
    """
    yield
    if next(_tests_run) % 10 or not MEMORY_MAPS.exists():
        return
    if MEMORY_MAPS.read_bytes().count(b"\n") > MOST_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def seed(request):
    """A seed of the test's own, the same whatever else runs; shown when the test fails."""
    request.node.add_report_section("call", "seed", f"BAYESGMM_TEST_SEED={SEED}")
    # Of the file alone, not of its folder: a test that moves keeps its numbers.
    name = f"tests/{request.node.path.name}::{request.node.nodeid.partition('::')[2]}"
    return zlib.crc32(f"{SEED} {name}".encode())


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def key(seed):
    return jax.random.key(seed)


@pytest.fixture
def x64():
    """JAX's 64-bit types on, for tests that call jax.numpy in float64 themselves."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def strict():
    """No implicit promotion of dtypes or ranks, for modules of tests; not for NumPyro, which relies on both."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def pictures_alone():
    """No figure left open by a test of pictures, and no parameter of matplotlib changed by the package."""
    from matplotlib import pyplot, rcParams

    before = dict(rcParams)
    yield
    pyplot.close("all")
    assert dict(rcParams) == before
