"""The shape of the package: imports point one way, its own import is light, and public names keep their promises."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sums

import bayesgmm

PACKAGE = Path(bayesgmm.__file__).parent
PUBLIC = sorted(bayesgmm.__all__)

# A package may import from those above it in this list, and from itself.
ORDER = [
    "errors",
    "numerics",
    "datasets",
    "runtime",
    "mixtures",
    "likelihood",
    "priors",
    "posterior",
    "starts",
    "target",
    "engines",
    "standard_errors",
    "diagnostics",
    "plots",
    "comparison",
    "estimators",
    "cli",
]
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_FLOORS = 12
MOST_LINES = 500
MOST_ANY = 28
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))

# Names that other packages have for an argument, and the one that it has everywhere here.
SYNONYMS = {
    **dict.fromkeys(("X", "data"), "x"),
    **dict.fromkeys(("n_components", "num_clusters", "k", "K"), "num_components"),
    **dict.fromkeys(("seed", "rng", "rng_key", "random_state"), "key"),
    **dict.fromkeys(("sample_weight", "sample_weights"), "row_weights"),
    **dict.fromkeys(("max_iter", "num_iterations", "num_steps"), "max_steps"),
    **dict.fromkeys(("num_samples", "n_draws"), "num_draws"),
    "covariance_type": "family",
    "n_samples": "num_rows",
    "n_init": "num_restarts",
    "columns_names": "feature_names",
    "regularisation": "reg_covar",
}


def _package_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path):
    """The packages of this package that a module imports from."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("bayesgmm.") for alias in node.names), "import bayesgmm.x as a whole"
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            parts = node.module.split(".")
            if parts[0] == "bayesgmm":
                yield from [parts[1]] if parts[1:] else [alias.name for alias in node.names]


@each_module
def test_imports_point_one_way(path):
    package = _package_of(path)
    if package == "__init__":
        assert not list(_imports(path))
        return
    below = len(ORDER) if package == "__main__" else ORDER.index(package)
    for imported in _imports(path):
        assert ORDER.index(imported) <= below, f"{package} imports {imported}, which stands below it"


def test_the_house_has_few_floors_and_an_empty_hall():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors"}
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ORDER) - {"errors"}
    assert not set(ORDER) & set(PUBLIC), "a package with the name of a public function"
    floor: dict[str, int] = {}
    for package in ORDER:
        files = [path for path in MODULES if _package_of(path) == package]
        below = {imported for path in files for imported in _imports(path)} - {package}
        floor[package] = 1 + max((floor[imported] for imported in below), default=0)
    assert max(floor.values()) <= MOST_FLOORS, floor


@each_module
def test_no_module_has_the_name_of_a_public_function(path):
    """Under lazy loading the module, once imported, could take the place of the function."""
    public = {*PUBLIC, *importlib.import_module("bayesgmm.plots").__all__}
    assert path.stem not in public


# Functions outside mixture.py that form such a sum, and of what, where it is not of densities over components.
OTHER_SUMS = {
    ("mixtures/coordinates.py", "normalise"): "log weights made to add up to one",
    ("plots/num_components.py", "_bic_weights"): "over numbers of components",
    ("priors/mixing_weights.py", "log_prob_of_weights"): "lengths of the sticks that weights leave",
    ("priors/mixing_weights.py", "log_weights_of_gammas"): "a Dirichlet draw from gamma draws",
    ("starts/hierarchical.py", "_terms"): "two terms of the cost of a merge",
    ("target/numpyro_model.py", "_sample_conjugate_sites"): "the prior of the means",
    ("target/numpyro_model.py", "floor_weights"): "weights made to add up to one",
}


def test_only_one_module_forms_a_density():
    """The normaliser of a Gaussian, and a sum over components, occur in mixture.py and nowhere else."""
    normaliser = re.compile(r"log\(2(\.0)? \* (math|np|jnp)\.pi\)")
    texts = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in MODULES}
    assert {name for name, text in texts.items() if normaliser.search(text)} == {"mixtures/mixture.py"}
    found = {(name, function) for name, text in texts.items() for function, _ in sums.find(text)}
    assert {one for one in found if one[0] != "mixtures/mixture.py"} == set(OTHER_SUMS)


@pytest.mark.parametrize(
    "body",
    [
        "return jax.nn.logsumexp(a, 0)",
        "return functools.reduce(np.logaddexp, a)",
        "return jnp.log(jnp.exp(a).sum(0))",
        "return jnp.log(jnp.sum(jnp.exp(a - a.max(0)), axis=0)) + a.max(0)",
        "e = jnp.exp(a)\n    total = e.sum(0)\n    return m + jnp.log(total)",
        "e = jnp.exp(a)\n    return jnp.log1p(jnp.dot(w, e))",
        "e = jnp.exp(a)\n    return jnp.log(w @ e)",
        "total = 0.0\n    for one in a:\n        total = total + jnp.exp(one).sum()\n    return np.log(total)",
        "e = jnp.exp(a)\n    return e / e.sum(0)",
        "return jnp.searchsorted(jnp.cumsum(jnp.exp(a)), u)",
        "return jax.nn.softmax(a)",
        "return stats.multivariate_normal(m, c).logpdf(a)",
        "return stats.norm.logpdf(a)",
        "return dist.MixtureSameFamily(w, d)",
    ],
)
def test_a_sum_over_components_is_found_however_it_is_written(body):
    assert sums.find(f"def f(a, m, u, w):\n    {body}\n")


@pytest.mark.parametrize(
    "body",
    ["return jnp.exp(a)", "return jnp.log(a.sum(0))", "e = jnp.exp(a)\n    return (e * m).sum(0)", "return a / w"],
)
def test_what_is_no_such_sum_is_not_found(body):
    assert not sums.find(f"def f(a, m, w):\n    {body}\n")


@each_module
def test_modules_stay_readable(path):
    """One idea may fill a file; none of this length is read."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_next_to_nothing_is_annotated_as_anything():
    """An argument, field or variable of type Any is checked by nobody. This limit is lowered and never raised."""
    counts = {str(path.relative_to(PACKAGE)): len(re.findall(r": Any\b", path.read_text("utf-8"))) for path in MODULES}
    assert sum(counts.values()) <= MOST_ANY, {name: count for name, count in counts.items() if count}


def test_package_import_is_light():
    """`import bayesgmm` pulls none of what takes a second to import; names load on first use."""
    code = (
        "import sys, bayesgmm; heavy = {'jax', 'numpyro', 'arviz', 'matplotlib', 'pandas', 'sklearn', 'scipy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


FUNCTIONS = {name: thing for name in PUBLIC if inspect.isfunction(thing := getattr(bayesgmm, name))}
CLASSES = {name: thing for name in PUBLIC if inspect.isclass(thing := getattr(bayesgmm, name))}
# Classes whose methods have the names of another package.
FACES = {"GaussianMixture", "BayesianGaussianMixture", "MixtureDistribution"}


def _methods(cls):
    """Public methods and properties that a class defines itself."""
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, function


CALLABLES = FUNCTIONS | {
    f"{name}.{method}": function
    for name, cls in CLASSES.items()
    if name not in FACES
    for method, function in _methods(cls)
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_loads_and_is_documented(name):
    thing = getattr(bayesgmm, name)
    if name != "FAMILIES":
        assert inspect.getdoc(thing)


def test_no_public_name_becomes_a_module():
    """Importing a module sets its name in its package, where it could take the place of a function."""
    for path in MODULES:
        if path.stem != "__main__":
            importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    assert [name for name in PUBLIC if inspect.ismodule(getattr(bayesgmm, name))] == []


def test_no_thing_has_two_public_names():
    things = [id(getattr(bayesgmm, name)) for name in PUBLIC]
    assert len(set(things)) == len(things)


@pytest.mark.parametrize("name", CALLABLES)
def test_docstrings_begin_with_a_sentence(name):
    """A first line of its own, with a capital or a symbol at its beginning and a period at its end."""
    first, *others = (inspect.getdoc(CALLABLES[name]) or "").splitlines() or [""]
    assert re.match(r"[A-Z`$\d]|\w\b", first), first
    assert first.endswith("."), first
    assert not others or not others[0]


@pytest.mark.parametrize("name", CALLABLES)
def test_arguments_have_the_names_used_everywhere(name):
    """The same thing is called the same everywhere, and randomness takes a keyword-only key."""
    parameters = inspect.signature(CALLABLES[name]).parameters
    assert not {found: SYNONYMS[found] for found in SYNONYMS.keys() & parameters.keys()}
    if "key" in parameters:
        assert parameters["key"].kind is inspect.Parameter.KEYWORD_ONLY
