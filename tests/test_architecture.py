"""The shape of the package: imports point one way, its own import is light, and public names keep their promises."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    "comparison",
    "estimators",
    "plots",
    "cli",
]
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_FLOORS = 12


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
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


def test_only_one_module_forms_a_density():
    """The normaliser of a Gaussian and the sum over components in logarithms occur in mixture.py and nowhere else."""
    pattern = re.compile(
        r"logsumexp|log\(2(\.0)? \* (math|np|jnp)\.pi\)|multivariate_normal|MixtureSameFamily|norm\.logpdf"
    )
    found = {path.name for path in MODULES if pattern.search(path.read_text(encoding="utf-8"))}
    assert found == {"mixture.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_package_import_is_light():
    """`import bayesgmm` pulls none of what takes a second to import; names load on first use."""
    code = (
        "import sys, bayesgmm; heavy = {'jax', 'numpyro', 'arviz', 'matplotlib', 'pandas', 'sklearn', 'scipy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_loads_and_is_documented(name):
    thing = getattr(bayesgmm, name)
    if name != "FAMILIES":
        assert inspect.getdoc(thing)


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isfunction(getattr(bayesgmm, name))])
def test_arguments_have_the_names_used_everywhere(name):
    """The same thing is called the same everywhere, and randomness takes a keyword-only key."""
    parameters = inspect.signature(getattr(bayesgmm, name)).parameters
    synonyms = {"X", "data", "n_components", "k", "seed", "rng", "random_state", "sample_weight", "covariance_type"}
    assert not synonyms & set(parameters)
    if "key" in parameters:
        assert parameters["key"].kind is inspect.Parameter.KEYWORD_ONLY
