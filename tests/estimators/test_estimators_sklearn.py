"""Scikit-learn's own tests of its mixtures, run with our classes in the place of theirs.

The installed modules are loaded once more, under other names, while `sklearn.mixture` has our classes; then every test
function in them is a test here, with its own parameters. Those that cannot apply are in `EXCLUDED`.
"""

import dataclasses
import importlib.util
from types import CodeType, ModuleType
from unittest import mock

import numpy as np
import pytest
import sklearn.mixture
from sklearn.mixture import tests as sklearn_tests

import bayesgmm

pytestmark = pytest.mark.filterwarnings("default")  # as in scikit-learn's own runs


def from_kmeans(cls):
    """The class, with scikit-learn's default start, limits and ridge in place of its own."""
    init_params = ("init_params", cls.__dataclass_fields__["init_params"].type, dataclasses.field(default="kmeans"))
    return dataclasses.make_dataclass(cls.__name__, [init_params], bases=(cls,), eq=False, repr=False, kw_only=True)


OURS = {name: from_kmeans(getattr(bayesgmm, name)) for name in ("GaussianMixture", "BayesianGaussianMixture")}

# What cannot apply: the name that the test uses and we do not have, and what for. None: it names neither class.
EXCLUDED = {
    "test_gaussian_mixture": {
        "test_suffstat_sk_full": (None, "private functions of scikit-learn's M-step"),
        "test_suffstat_sk_tied": (None, "private functions of scikit-learn's M-step"),
        "test_suffstat_sk_diag": (None, "private functions of scikit-learn's M-step"),
        "test_gaussian_suffstat_sk_spherical": (None, "private functions of scikit-learn's M-step"),
        "test_compute_log_det_cholesky": (None, "private functions of scikit-learn's density"),
        "test_gaussian_mixture_log_probabilities": (None, "private functions of scikit-learn's density"),
        "test_gaussian_mixture_precisions_init": ("_initialize", "private methods; the same is tested in public below"),
        "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": (
            "_estimate_gaussian_parameters",
            "counts calls of a private function; that no start is made is tested in public below",
        ),
        "test_gaussian_mixture_array_api_compliance": (
            "config_context",
            "arrays of other libraries come back as NumPy's",
        ),
        "test_gaussian_mixture_raises_where_array_api_not_implemented": (
            "config_context",
            "arrays of other libraries come back as NumPy's, from every start",
        ),
    },
    "test_bayesian_mixture": {
        "test_log_dirichlet_norm": (None, "a private function of scikit-learn's bound"),
        "test_log_wishart_norm": (None, "a private function of scikit-learn's bound"),
        "test_compare_covar_type": ("_initialize_parameters", "private methods; the same is tested in public below"),
    },
    "test_mixture": {},
}


def load_with_our_classes(name: str) -> ModuleType:
    path = f"{sklearn_tests.__path__[0]}/{name}.py"
    spec = importlib.util.spec_from_file_location(f"ours_in_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.multiple(sklearn.mixture, **OURS):
        spec.loader.exec_module(module)
    return module


MODULES = {name: load_with_our_classes(name) for name in EXCLUDED}
FUNCTIONS = {
    module: {name: value for name, value in vars(contents).items() if name.startswith("test_") and callable(value)}
    for module, contents in MODULES.items()
}
for _module, _functions in FUNCTIONS.items():
    for _name, _function in _functions.items():
        if _name not in EXCLUDED[_module]:
            globals()[f"{_module}__{_name}"] = _function


# Scikit-learn's own runs skip float32 too, unless they are asked for it.
DTYPES = [pytest.param(np.float32, marks=pytest.mark.slow, id="float32"), pytest.param(np.float64, id="float64")]


@pytest.fixture(params=DTYPES)
def global_dtype(request):
    return request.param


# Most tests of scikit-learn go over these types. By default one of each representation is compiled; that the estimator
# of every type does what scikit-learn's does is tested in `test_estimators.py` too.
ALL_TYPES = MODULES["test_gaussian_mixture"].COVARIANCE_TYPE
TYPES = [
    pytest.param(["full", "spherical"], id="two_types"),
    pytest.param(ALL_TYPES, marks=pytest.mark.slow, id="all_types"),
]


@pytest.fixture(params=TYPES, autouse=True)
def covariance_types(request, monkeypatch):
    """The types that a test goes over in a loop of its own; where the type is a parameter, all run by default."""
    if {"covar_type", "covariance_type"} & set(request.node.callspec.params):
        return
    for module in ("test_gaussian_mixture", "test_bayesian_mixture"):
        assert MODULES[module].COVARIANCE_TYPE == ALL_TYPES
        monkeypatch.setattr(MODULES[module], "COVARIANCE_TYPE", request.param)


@pytest.fixture
def global_random_seed():
    return 42  # the one that scikit-learn's runs use by default


def names_used(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(names_used, inner))


@pytest.mark.parametrize("module", EXCLUDED)
def test_nothing_else_is_left_out(module):
    """Every test of the module runs here or is excluded by a name that exists, for what it does use."""
    functions = FUNCTIONS[module]
    run = {name.removeprefix(f"{module}__") for name in globals() if name.startswith(f"{module}__")}
    assert run | set(EXCLUDED[module]) == set(functions)
    assert not run & set(EXCLUDED[module])
    for name, (used, reason) in EXCLUDED[module].items():
        assert reason
        used_here = names_used(functions[name].__code__)
        assert used in used_here if used else not set(OURS) & used_here
    for name, ours in OURS.items():
        assert getattr(MODULES[module], name, ours) is ours


def test_excluded_precisions_init(rng):
    """In public: precisions that are given are those of the start, of every covariance type."""
    x = rng.uniform(size=(100, 3))
    for covariance_type in ("full", "tied", "diag", "spherical"):
        options = {"covariance_type": covariance_type, "random_state": 0}
        made = bayesgmm.GaussianMixture(4, init_params="kmeans", max_iter=3, tol=0, **options)
        with pytest.warns(Warning, match="did not converge"):
            made.fit(x)
        given = bayesgmm.GaussianMixture(4, precisions_init=made.precisions_, max_iter=0, **options).fit(x)
        np.testing.assert_allclose(given.precisions_cholesky_, made.precisions_cholesky_, rtol=1e-9, atol=1e-9)


def test_excluded_all_init_does_not_estimate(rng):
    """In public: where all of the start is given, the generator that makes starts is not asked."""
    x = rng.normal(size=(60, 2))
    given = {"weights_init": np.ones(2) / 2, "means_init": x[:2], "precisions_init": np.array([np.eye(2)] * 2)}
    for parts, is_asked in ((given, False), ({"means_init": x[:2]}, True)):
        generator = np.random.RandomState(3)
        bayesgmm.GaussianMixture(2, random_state=generator, tol=1.0, **parts).fit(x)
        fresh = np.random.RandomState(3)
        assert (generator.get_state()[2] != fresh.get_state()[2]) == is_asked
    start = bayesgmm.GaussianMixture(2, max_iter=0, **given).fit(x)
    np.testing.assert_allclose(start.means_, x[:2])
    np.testing.assert_allclose(start.covariances_, [np.eye(2)] * 2, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:Best performing")
@pytest.mark.parametrize("prior_type", ["dirichlet_process", "dirichlet_distribution"])
def test_excluded_compare_covar_type(prior_type, rng):
    """In public: after one step from the same responsibilities, families are averages of the covariances of `full`."""
    x = np.concatenate([rng.normal(size=(50, 2)), 30 + rng.normal(size=(40, 2))])
    fits = {
        name: bayesgmm.BayesianGaussianMixture(
            n_components=2,
            covariance_type=name,
            weight_concentration_prior_type=prior_type,
            init_params="kmeans",
            max_iter=1,
            random_state=0,
        ).fit(x)
        for name in ("full", "tied", "diag", "spherical")
    }
    dof = {name: fit.degrees_of_freedom_ for name, fit in fits.items()}
    full = fits["full"].covariances_ * dof["full"][:, None, None]
    np.testing.assert_allclose(fits["tied"].covariances_ * dof["tied"], full.mean(0), rtol=1e-6)
    diagonals = np.diagonal(full, axis1=1, axis2=2)
    np.testing.assert_allclose(fits["diag"].covariances_ * dof["diag"][:, None], diagonals, rtol=1e-6)
    np.testing.assert_allclose(fits["spherical"].covariances_ * dof["spherical"], diagonals.mean(1), rtol=1e-6)
