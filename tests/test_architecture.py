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

# A module may import those above it in this list, and no other.
ORDER = [
    "errors",
    "precision",
    "families",
    "checks",
    "triangular",
    "marginals",
    "mixture",
    "univariate",
    "functionals",
    "coordinates",
    "statistics",
    "blocks",
    "natural",
    "moments",
    "likelihood",
    "quantities",
    "information",
    "intervals",
    "results",
    "progress",
    "labels",
    "allocations",
    "relabelling",
    "similarity",
    "point_partition",
    "convergence",
    "priors",
    "weights",
    "conjugate_distribution",
    "conjugate",
    "storage",
    "partitions",
    "hierarchical",
    "starting_values",
    "starts",
    "engines.devices",
    "engines.lanes",
    "engines.ascent",
    "engines.samples",
    "engines.streaming",
    "engines.em",
    "replicates",
    "uncertainty_findings",
    "standard_errors",
    "uncertainty",
    "engines.modes",
    "engines.draws",
    "engines.coordinate_ascent",
    "engines.cavi",
    "engines.kmeans",
    "engines.model",
    "predictive",
    "engines.space",
    "engines.potential",
    "engines.warm_start",
    "engines.chains",
    "engines.gibbs",
    "engines.posterior",
    "engines.map",
    "engines.minibatches",
    "engines.guides",
    "engines.settling",
    "engines.elbo",
    "engines.vi",
    "engines.nuts",
    "criteria",
    "agreement",
    "diagnostics",
    "findings",
    "chain_judgement",
    "judgement",
    "estimators.words",
    "estimators.arguments",
    "estimators.rows",
    "estimators.starts",
    "estimators.files",
    "estimators.base",
    "estimators.runs",
    "estimators.maximum_likelihood",
    "estimators.prior_arguments",
    "estimators.posterior",
    "estimators.inference",
    "estimators.bayesian",
    "estimators",
    "parameter_table",
    "engine_runs",
    "comparison",
    "plots",
    "tables",
    "report",
    "outputs",
    "datasets",
    "config",
    "cli",
]


def _module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] in ("plots", "datasets"):
        return parts[0]
    return ".".join(part for part in parts if part != "__init__")


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bayesgmm":
            module = node.module.removeprefix("bayesgmm").lstrip(".")
            for alias in node.names:
                full = f"{module}.{alias.name}".lstrip(".")
                yield full if full in ORDER else module
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative import"


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in ("__main__.py",)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    name = _module_name(path)
    if name in ("", "engines"):
        assert not list(_imports(path))
        return
    for imported in _imports(path):
        imported = imported if imported.split(".")[0] not in ("plots", "datasets") else imported.split(".")[0]
        assert ORDER.index(imported) <= ORDER.index(name), f"{name} imports {imported}, which stands below it"


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


PUBLIC = sorted(bayesgmm.__all__)


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
