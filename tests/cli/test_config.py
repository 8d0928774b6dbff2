"""Settings: shipped files load, defaults are as documented, and every fault is one line with key, value and cure."""

import inspect
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bayesgmm
from bayesgmm.cli.config import _TABLES, DEFAULT_ENGINES, Config, ConfigError, load_config
from bayesgmm.comparison.plan import PRIORS
from bayesgmm.datasets import DataError
from bayesgmm.engines.registry import ENGINES
from bayesgmm.mixtures.families import FAMILIES

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
DATA = '[data]\ndataset = "faithful"\n'
MIXTURE = "[mixture]\nnum_components = 2\n"
MINIMAL = DATA + MIXTURE


@pytest.fixture
def load(tmp_path):
    def load(text: str) -> Config:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return load_config(path)

    return load


def lines(load, text: str) -> list[str]:
    """The problems of a file, without the file's name that starts each."""
    with pytest.raises(ConfigError) as caught:
        load(text)
    found = str(caught.value).split("\n")
    assert all("mine.toml: " in line for line in found)
    return [line.split("mine.toml: ", 1)[1] for line in found]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_load(path):
    config = load_config(path)
    assert config.output.directory == Path("results", path.stem)
    others = {"conjugate": tuple(name for name in ENGINES if name != "kmeans"), "iris": (*DEFAULT_ENGINES, "kmeans")}
    assert config.engines == others.get(path.stem, DEFAULT_ENGINES)
    dataset = config.data.load()
    assert len(dataset.x) > max(config.mixture.num_components)
    assert Config.model_validate(json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()


def test_shipped_files_are_there():
    assert {path.stem for path in SHIPPED} == {"old_faithful", "iris", "galaxies", "conjugate", "parts"}


def test_defaults(load):
    config = load(MINIMAL)
    assert config.to_dict() == {
        "title": "mine",
        "seed": 0,
        "dtype": "float64",
        "engines": ["em", "map", "vi", "nuts"],
        "data": {"dataset": "faithful", "path": None, "columns": None, "labels": None},
        "mixture": {"family": "full", "num_components": [2], "select_by": "bic", "loo_over_k": None},
        "prior": {
            "kind": "weakly_informative",
            "concentration": None,
            "mean_loc": None,
            "mean_scale": None,
            "scale_prior": None,
            "scale_median": None,
            "scale_sigma": None,
            "scale_sd": None,
            "precision_shape": None,
            "rate_shape": None,
            "rate_rate": None,
            "correlation_concentration": None,
            "mean": None,
            "shrinkage": None,
            "dof": None,
            "scale": None,
            "stick_breaking": None,
        },
        "em": {
            "start": "k-means++",
            "num_restarts": None,
            "accelerate": None,
            "tol": 1e-7,
            "stop_rule": "gain_left",
            "max_steps": 1000,
            "reg_covar": None,
        },
        "map": {"num_starts": 4, "gtol": None, "max_steps": 1000},
        "vi": {
            "guide": "full_rank",
            "rank": None,
            "batch_size": None,
            "num_draws": 2000,
            "num_particles": 8,
            "window": 500,
            "max_steps": 20000,
        },
        "nuts": {
            "num_chains": 4,
            "num_warmup": 300,
            "num_draws": 1000,
            "target_accept": 0.8,
            "jitter": 1.0,
            "num_starts": 4,
            "max_tree_depth": 10,
            "chain_method": None,
        },
        "output": {"directory": "results/mine", "figures": ["png", "svg"]},
    }


def test_every_key_is_described():
    for table in (Config, *_TABLES.values()):
        assert table.__doc__
        for name, field in table.model_fields.items():
            assert field.description or name in _TABLES, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_family_and_dtype_is_accepted(load, family, dtype):
    config = load(f'dtype = "{dtype}"\n{MINIMAL}family = "{family}"\n')
    assert (config.mixture.family, config.dtype) == (family, dtype)


def test_given_values_are_kept(load):
    config = load(
        'title = "T"\nseed = 7\nengines = ["nuts", "em"]\n'
        + MINIMAL
        + "[prior]\nscale_median = 1\n[em]\nreg_covar = 0\nstart = 'hierarchical'\naccelerate = true\n"
        + '[nuts]\ntarget_accept = 0.95\n[output]\ndirectory = "here"\n'
    )
    assert (config.title, config.seed, config.engines) == ("T", 7, ("em", "nuts"))
    assert (config.em.start, config.em.accelerate) == ("hierarchical", True)
    assert (config.prior.scale_median, config.em.reg_covar) == (1.0, 0.0)
    assert config.nuts.target_accept == 0.95
    assert config.output.directory == Path("here")
    assert set(config.to_dict()) == {
        "title",
        "seed",
        "dtype",
        "engines",
        "data",
        "mixture",
        "prior",
        "em",
        "nuts",
        "output",
    }


def test_prior_is_left_out_where_nothing_reads_it(load):
    assert not {"prior", "map", "vi", "nuts"} & set(load('engines = ["em"]\n' + MINIMAL).to_dict())


def test_frozen(load):
    config = load(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValueError, match="frozen"):
        config.em.tol = 1.0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=10, unique=True))
def test_num_components_are_sorted(values):
    config = Config.model_validate({"data": {"dataset": "iris"}, "mixture": {"num_components": values}})
    assert config.mixture.num_components == tuple(sorted(values))


def test_path_starts_at_the_folder_of_the_file(load, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "my.csv").write_text("a,b\n1,5\n2,4\n")
    config = load('[data]\npath = "my.csv"\ncolumns = ["b"]\n' + MIXTURE)
    assert config.data.path == tmp_path / "my.csv"
    np.testing.assert_array_equal(config.data.load().x, [[5.0], [4.0]])
    assert not config.output.directory.is_absolute()


def test_absolute_path_is_kept(load, tmp_path):
    config = load('[data]\npath = "/somewhere/my.csv"\n' + MIXTURE)
    assert config.data.path == Path("/somewhere/my.csv")
    with pytest.raises(DataError, match=r"^path='/somewhere/my.csv' does not exist"):
        config.data.load()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sed = 1\n" + MINIMAL, ["sed = 1", "not a known key", "did you mean 'seed'"]),
        ('"a\\nb" = 1\n' + MINIMAL, [r"a\nb = 1", "not a known key"]),
        ("xyzzy = 1\n" + MINIMAL, ["xyzzy = 1", "not a known key", "title, seed, dtype, engines"]),
        (MINIMAL + "famly = 'full'\n", ["mixture.famly = 'full'", "did you mean 'family'"]),
        ("family = 'full'\n" + MINIMAL, ["family = 'full'", "belongs in [mixture]"]),
        ("max_steps = 3\n" + MINIMAL, ["max_steps = 3", "belongs in [em] or [map] or [vi]"]),
        (MINIMAL + "seed = 1\n", ["mixture.seed = 1", "above the first table"]),
        (MINIMAL + "[mixture.em]\n", ["mixture.em", "write that table as [em]"]),
        (MINIMAL + "[emm]\n", ["emm", "did you mean 'em'"]),
        (MIXTURE, ["data is missing", 'dataset = "faithful"']),
        (DATA, ["mixture is missing", "num_components = [1, 2, 3]"]),
        (DATA + "[mixture]\n", ["mixture.num_components is missing", "num_components = [1, 2, 3]"]),
        ("data = 3\n" + MIXTURE, ["data = 3", "must be a table", "[data]"]),
        ("title = 3\n" + MINIMAL, ["title = 3", "text in quotes", "heading"]),
        ("seed = -1\n" + MINIMAL, ["seed = -1", "greater than or equal to 0"]),
        ("seed = 4294967296\n" + MINIMAL, ["seed = 4294967296", "less than 4294967296"]),
        ("seed = 1.5\n" + MINIMAL, ["seed = 1.5", "valid integer"]),
        ("seed = true\n" + MINIMAL, ["seed = True", "valid integer"]),
        ("dtype = 'float16'\n" + MINIMAL, ["dtype = 'float16'", "'float32' or 'float64'", "precision"]),
        ("engines = ['map']\n" + MINIMAL, ["engines = ['map']", 'lacks "em"', 'add "em"']),
        ("engines = []\n" + MINIMAL, ["engines = []", "is empty", "give at least one"]),
        ("engines = ['em', 'em']\n" + MINIMAL, ["engines = ['em', 'em']", "'em' more than once", "drop"]),
        ("engines = ['em', 'nutz']\n" + MINIMAL, ["engines[1] = 'nutz'", "did you mean 'nuts'"]),
        ("engines = 'em'\n" + MINIMAL, ["engines = 'em'", "valid list"]),
        ("engines = ['em']\n" + MINIMAL + "[vi]\n", ["[vi] is not read by engines = ['em']", 'add "vi"', "drop [vi]"]),
        (
            "engines = ['em', 'kmeans']\n" + MINIMAL + "[prior]\n",
            ["[prior] is not read", "add a Bayesian engine", "drop [prior]"],
        ),
        (
            "engines = ['em', 'gibbs']\n" + MINIMAL,
            ['engines has "gibbs"', "needs a conjugate prior", 'set kind = "conjugate" in [prior]'],
        ),
        (MINIMAL + "[prior]\ndof = 5.0\n", ["[prior] has dof", 'only kind = "conjugate" reads']),
        (
            MINIMAL + "[prior]\nkind = 'conjugate'\nmean_scale = 5.0\n",
            ["[prior] has mean_scale", 'only kind = "weakly_informative" reads'],
        ),
        (
            MINIMAL + "[prior]\nkind = 'conjugate'\nscale_prior = 'lognormal'\n",
            ["[prior] has scale_prior", 'only kind = "weakly_informative" reads'],
        ),
        (MINIMAL + "[prior]\nscale_prior = 'lognorml'\n", ["prior.scale_prior = 'lognorml'", "mean 'lognormal'"]),
        (MINIMAL + "[prior]\nmean_loc = ['a']\n", ["[prior] mean_loc must hold real numbers"]),
        (MINIMAL + "[prior]\nscale_sd = 1.0\n", ["[prior] has scale_sd", 'only scale_prior = "half_normal" reads']),
        ("[data]\n" + MIXTURE, ["[data] has neither", "give exactly one"]),
        (DATA + "path = 'a.csv'\n" + MIXTURE, ["[data] has both", "give exactly one"]),
        (DATA + "columns = ['a']\n" + MIXTURE, ["[data] has columns", "drop them, or give path"]),
        ("[data]\ndataset = 'fathful'\n" + MIXTURE, ["data.dataset = 'fathful'", "mean 'faithful'", "galaxies, iris"]),
        ("[data]\npath = 3\n" + MIXTURE, ["data.path = 3", "text in quotes", ".tsv, .xlsx, .parquet or .npy"]),
        ("[data]\npath = 'a.csv'\ncolumns = []\n" + MIXTURE, ["data.columns = []", "is empty"]),
        ("[data]\npath = 'a.csv'\ncolumns = 'a'\n" + MIXTURE, ["data.columns = 'a'", "valid list"]),
        ("[data]\npath = 'a.csv'\ncolumns = ['a', 'a']\n" + MIXTURE, ["data.columns", "'a' more than once"]),
        ("[data]\npath = 'a.csv'\ncolumns = [1]\n" + MIXTURE, ["data.columns[0] = 1", "text in quotes"]),
        (MINIMAL + "family = 'ful'\n", ["mixture.family = 'ful'", "did you mean 'full'", ", ".join(FAMILIES)]),
        (MINIMAL + "select_by = 'bik'\n", ["mixture.select_by = 'bik'", "'bic', 'aic' or 'icl'", "did you mean 'bic'"]),
        (DATA + "[mixture]\nnum_components = 0\n", ["mixture.num_components[0] = 0", "greater than or equal to 1"]),
        (DATA + "[mixture]\nnum_components = []\n", ["mixture.num_components = []", "give at least one"]),
        (DATA + "[mixture]\nnum_components = [2, 1, 2]\n", ["mixture.num_components = [2, 1, 2]", "2 more than once"]),
        (DATA + "[mixture]\nnum_components = true\n", ["mixture.num_components[0] = True", "valid integer"]),
        (DATA + "[mixture]\nnum_components = '3'\n", ["mixture.num_components[0] = '3'", "valid integer"]),
        (MINIMAL + "[em]\ntol = -1\n", ["em.tol = -1", "at least 0", "mean objective per row"]),
        (MINIMAL + "[em]\ntol = nan\n", ["em.tol = nan", "finite number"]),
        (MINIMAL + "[em]\nreg_covar = -1e-6\n", ["em.reg_covar = -1e-06", "at least 0"]),
        (
            MINIMAL + "[em]\nstart = 'k-mean'\n",
            ["em.start = 'k-mean'", "did you mean 'kmeans'", "k-means++, drawn"],
        ),
        (MINIMAL + "[em]\naccelerate = 1\n", ["em.accelerate = 1", "True or False", "SQUAREM"]),
        (MINIMAL + "[em]\nnum_restarts = 0\n", ["em.num_restarts = 0", "at least 1"]),
        (MINIMAL + "[cavi]\nnum_restarts = 3\n", ["cavi.num_restarts = 3 is not a known key", "[em] or [kmeans]"]),
        (MINIMAL + "[map]\ngtol = 'a'\n", ["[map] gtol must hold real numbers", "'a'"]),
        (MINIMAL + "[map]\nmax_steps = 0\n", ["map.max_steps = 0", "limit on steps"]),
        (MINIMAL + "[vi]\nguide = ['norml']\n", ["[vi] guide='norml'", "did you mean 'normal'"]),
        (MINIMAL + "[vi]\nguide = []\n", ["vi.guide = []", "give at least one"]),
        (MINIMAL + "[vi]\nnum_particles = 0\n", ["vi.num_particles = 0", "ELBO"]),
        (MINIMAL + "[nuts]\ntarget_accept = 1\n", ["nuts.target_accept = 1", "between 0 and 1", "0.8 is usual"]),
        (MINIMAL + "[nuts]\ntarget_accept = 0\n", ["nuts.target_accept = 0", "between 0 and 1"]),
        (MINIMAL + "[nuts]\nnum_draws = 3\n", ["[nuts] num_draws=3", "at least 4"]),
        (MINIMAL + "[prior]\nscale_sigma = inf\n", ["prior.scale_sigma = inf", "finite number"]),
        (MINIMAL + "[output]\ndirectory = 1\n", ["output.directory = 1", "text in quotes"]),
        ("title = old\n" + MINIMAL, ["not valid TOML", "line 1,", "correct it"]),
        ("seed = 1\nseed = 2", ["not valid TOML", "line 2,", "only once"]),
        ("seed = 1\ntitle = 'x", ["not valid TOML", "line 2,", "quotes"]),
    ],
)
def test_one_problem_is_one_line(load, text, parts):
    (line,) = lines(load, text)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    "name", ["concentration", "mean_scale", "scale_median", "scale_sigma", "correlation_concentration"]
)
@pytest.mark.parametrize("value", [0, -1.5])
def test_prior_must_be_positive(load, name, value):
    (line,) = lines(load, f"{MINIMAL}[prior]\n{name} = {value}\n")
    assert line.startswith(f"prior.{name} = {value} must be greater than 0; ")


def test_several_problems_are_a_line_each(load):
    found = lines(load, "seed = -1\n" + DATA + "[mixture]\nfamily = 'x'\n[em]\ntol = -1\n")
    assert [line.split(" ")[0] for line in found] == ["seed", "mixture.family", "mixture.num_components", "em.tol"]
    found = lines(load, "engines = ['em']\n" + MINIMAL + "[nuts]\n[map]\n")
    assert [line[:6] for line in found] == ["[map] ", "[nuts]"]


def test_files_that_cannot_be_read(tmp_path):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"title = '\xff'")
    faults = {tmp_path / "none.toml": "No such file", tmp_path: "directory", binary: "not UTF-8 text"}
    for path, fault in faults.items():
        with pytest.raises(ConfigError, match=fault) as caught:
            load_config(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_prior_becomes_keywords_of_its_function(load):
    spread = np.array([2.0, 10.0])
    text = MINIMAL + "[prior]\nscale_prior = 'half_normal'\nscale_sd = 0.5\nmean_scale = 3.0\n"
    found = load(text).prior.keywords(spread)
    assert set(found) == {"scale_prior", "scale_sd", "mean_scale"}
    np.testing.assert_array_equal(found["scale_sd"], [1.0, 5.0])
    np.testing.assert_array_equal(found["mean_scale"], [6.0, 30.0])
    bayesgmm.default_prior(np.random.default_rng(0).normal(size=(9, 2)), 2, **found)
    conjugate = load(MINIMAL + "[prior]\nkind = 'conjugate'\nshrinkage = 0.1\ndof = 7.0\n").prior.keywords(spread)
    assert conjugate == {"shrinkage": 0.1, "dof": 7.0}


def test_every_number_of_a_prior_is_a_key(load):
    """The keys are the arguments of the functions that make priors."""
    shared = {"x", "num_components", "family", "row_weights"}
    arguments = {name for maker in PRIORS.values() for name in inspect.signature(maker).parameters}
    assert set(_TABLES["prior"].model_fields) == {"kind", *arguments} - shared
    x, spread = np.random.default_rng(0).normal(size=(30, 2)) * [1.0, 5.0], np.array([1.0, 5.0])
    text = "[prior]\nscale_prior = 'hierarchical'\nmean_loc = [1.0, 2.0]\nprecision_shape = 3\nrate_rate = 0.5\n"
    prior = bayesgmm.default_prior(x, 2, **load(MINIMAL + text).prior.keywords(spread))
    np.testing.assert_array_equal(prior.mean_loc, [1.0, 2.0])
    np.testing.assert_allclose(jax.tree.leaves(prior.scales)[-1], [0.5, 0.02])
    text = "[prior]\nkind = 'conjugate'\nmean = 0\nscale = [[2.0, 0.5], [0.5, 1.0]]\nstick_breaking = true\n"
    prior = bayesgmm.conjugate_prior(x, 2, **load(MINIMAL + text).prior.keywords(spread))
    np.testing.assert_array_equal(prior.scale, [[2.0, 0.5], [0.5, 1.0]])
    assert prior.stick_breaking
