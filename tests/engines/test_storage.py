"""Files of arrays and fits: what is read is what was written, and no file makes anything else than one clear error."""

import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fits import NUTS, em
from helpers import DATA, each_factor_shape, random_case, random_draws

import bayesgmm
from bayesgmm import Mixture
from bayesgmm.engines.cavi import fit_cavi
from bayesgmm.engines.em import fit_em
from bayesgmm.engines.gibbs import fit_gibbs
from bayesgmm.engines.map import fit_map
from bayesgmm.engines.nuts import fit_nuts
from bayesgmm.engines.storage import load_fit, load_mixture, save_fit, save_mixture
from bayesgmm.engines.vi import fit_vi
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.priors.conjugate import conjugate_prior
from bayesgmm.priors.weakly_informative import default_prior
from bayesgmm.runtime.files import load_value, pack, save_value, unpack

ARRAYS = {
    "float64": np.array([[1 / 3, -np.inf], [np.nan, -0.0]]),
    "float32": np.float32([1 / 3]),
    "whole": np.arange(3, dtype=np.int8),
    "truth": np.array([True, False]),
    "text": np.array(["eruptions", "Länge μ"]),
    "number": np.array(2.5),
    "nothing": np.empty((0, 3)),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">f8"),
}


def identical(one, other):
    """Same type of tree, same dtypes, same bits."""
    leaves, structure = jax.tree.flatten(one)
    others, other_structure = jax.tree.flatten(other)
    assert structure == other_structure
    for leaf, other_leaf in zip(leaves, others, strict=True):
        if isinstance(leaf, bool | int | float | str) and not isinstance(leaf, np.generic):
            assert type(leaf) is type(other_leaf)
        assert np.asarray(leaf).dtype == np.asarray(other_leaf).dtype
        assert np.asarray(leaf).shape == np.asarray(other_leaf).shape
        assert np.asarray(leaf).tobytes() == np.asarray(other_leaf).tobytes()


def test_arrays_come_back_to_the_bit(tmp_path):
    path = tmp_path / "arrays.anything"
    save_value({**ARRAYS, "names": ["a", "b"], "depth": {"of": 2}}, path, "table")
    value = load_value(path, dict, "table")
    identical({name: value[name] for name in ARRAYS}, ARRAYS)
    assert value["names"] == ["a", "b"]
    assert value["depth"] == {"of": 2}
    with np.load(path, allow_pickle=False) as plain:  # NumPy reads it alone, and without pickle
        np.testing.assert_array_equal(plain["table.float64"], ARRAYS["float64"])
        header = json.loads(plain["header.json"])
    assert header["kind"] == "table"
    assert header["package_version"] == bayesgmm.__version__
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@each_factor_shape
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mixtures_and_draws_come_back_to_the_bit(family, dtype, tmp_path, rng):
    for mixture in (random_case(family, 3, 2, rng).mixture, random_draws(family, 2, 3, (2, 5), rng)):
        mixture = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), mixture)
        save_mixture(mixture, tmp_path / "mixture.npz")
        read = load_mixture(tmp_path / "mixture.npz")
        identical(read, mixture)
        assert read.draw_shape == mixture.draw_shape


def test_a_mixture_of_jax_arrays_comes_back_in_numpy(tmp_path):
    mixture = Mixture(jnp.log(jnp.array([0.25, 0.75])), jnp.zeros((2, 1)), jnp.ones((1, 1)))
    save_mixture(mixture, tmp_path / "mixture.npz")
    identical(load_mixture(tmp_path / "mixture.npz"), mixture)


def _fits():
    """The same programs as in the tests of the engines."""
    x, key = DATA["faithful"], jax.random.key(0)
    weak, conjugate = default_prior(x, 2), conjugate_prior(x, 2, "full")
    start = em("faithful", 2).mixture
    common = {"family": "full", "start": start, "key": key, "on_failure": "ignore"}
    return {
        "em": lambda: em("faithful", 2, "diag"),
        "em under a prior": lambda: fit_em(x, 2, prior=conjugate, **common),
        "em of float32": lambda: fit_em(x.astype(np.float32), 2, key=key, on_failure="ignore"),
        "map": lambda: fit_map(x, 2, prior=weak, **common),
        "vi": lambda: fit_vi(x, 2, prior=weak, max_steps=1000, num_draws=1000, **common),
        "cavi": lambda: fit_cavi(x, 2, prior=conjugate, **common),
        "gibbs": lambda: fit_gibbs(x, 2, prior=conjugate, checkpoint=False, **common),
        "nuts": lambda: fit_nuts(x, 2, prior=weak, **NUTS, **common),
    }


@pytest.mark.parametrize("name", ["em", "em under a prior", "em of float32", "map", "vi", "cavi", "gibbs", "nuts"])
def test_fits_of_every_engine_come_back_whole(name, tmp_path):
    fit = _fits()[name]()
    save_fit(fit, tmp_path / "fit.npz")
    read = load_fit(tmp_path / "fit.npz")
    identical(read, fit)
    assert read.code is fit.code
    assert (read.engine, read.family) == (fit.engine, fit.family)
    assert read.has_prior == fit.has_prior == (name not in ("em", "em of float32"))
    assert type(read.approximation) is type(fit.approximation)
    assert list(read.sample_stats) == list(fit.sample_stats)
    assert bayesgmm.bic(read, DATA["faithful"]) == bayesgmm.bic(fit, DATA["faithful"])


@pytest.mark.parametrize(
    ("name", "means", "log_likelihood"),
    [
        ("em", [[2.0364013661372, 54.4786462931291], [4.2896733961997, 79.9682533134648]], -1130.2639611752895),
        ("gibbs", [[9.9598585499382], [21.6652281920264]], -230.7057490624675),
    ],
)
def test_fits_of_earlier_versions_are_read(name, means, log_likelihood):
    """Written before the package had its present layout; their numbers were noted then."""
    fit = load_fit(Path(__file__).parent / "data" / f"{name}_format_1.fit")
    np.testing.assert_allclose(fit.mixture.means, means, rtol=1e-9)
    assert fit.log_likelihood == pytest.approx(log_likelihood, rel=1e-12)
    assert (fit.engine, fit.family) == (name, {"em": "full", "gibbs": "tied"}[name])
    assert fit.has_prior == (name == "gibbs")
    x = DATA["faithful"] if name == "em" else DATA["galaxies"]
    assert float(bayesgmm.log_likelihood(fit.mixture, x)) == pytest.approx(log_likelihood, rel=1e-9)
    if name == "gibbs":
        assert fit.draws.draw_shape == (2, 10)
        assert fit.draws.means.sum() == pytest.approx(632.5017348392918, rel=1e-12)
        assert fit.summary["num_relabelled"] == 0
        assert fit.summary["r_hat"] == pytest.approx(1.1817076793720287)


@pytest.mark.parametrize("make", [default_prior, conjugate_prior])
def test_priors_and_plain_values_come_back(make):
    x = DATA["faithful"]
    value = {
        "prior": make(x, 2),
        "a.b": np.float64(0.1),
        "a": {"b": np.ones(2)},
        "t": (np.inf, -np.inf, 1, True),
        "l": [None, "µ"],
    }
    arrays = {}
    packed = json.loads(json.dumps(pack(value, arrays), allow_nan=False))
    read = unpack(packed, arrays)
    assert type(read["prior"]) is type(value["prior"])
    assert type(read["t"]) is tuple
    assert type(read["a.b"]) is np.float64
    identical(read, value)
    assert np.isnan(unpack(pack(float("nan"), {}), {}))


def _saved(tmp_path, rng):
    path = tmp_path / "mixture.npz"
    save_mixture(random_case(FAMILIES["full"], 3, 2, rng).mixture, path)
    return path


def _one_line(error, path):
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)  # what is wrong; the cure


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, tmp_path, rng):
    path = _saved(tmp_path, rng)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"is damaged|is not of bayesgmm") as error:
        load_mixture(path)
    _one_line(error, path)


def test_no_flipped_bit_goes_unseen(tmp_path, rng):
    """A byte is changed anywhere: the file is refused, or what it holds is the same."""
    path = _saved(tmp_path, rng)
    content, mixture, refused = path.read_bytes(), load_mixture(path), 0
    for position in range(0, len(content), 7):
        spoilt = bytearray(content)
        spoilt[position] ^= 1 << rng.integers(8)
        path.write_bytes(spoilt)
        try:
            identical(load_mixture(path), mixture)
        except InputError:
            refused += 1
    assert refused > 0.5 * len(range(0, len(content), 7))


def _rewritten(path, change, **options):
    """The same archive with its members changed: `change` maps names and contents to new ones."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in change(members).items():
            archive.writestr(name, content)


def _with_header(**changes):
    def change(members):
        header = json.loads(members["header.json"]) | changes
        return members | {"header.json": json.dumps(header)}

    return change


def test_a_newer_format_is_refused(tmp_path, rng):
    path = _saved(tmp_path, rng)
    _rewritten(path, _with_header(format_version=2, package_version="7.0", arrays="of another kind"))
    with pytest.raises(InputError, match=r"bayesgmm 7\.0 in format 2.*upgrade") as error:
        load_mixture(path)
    _one_line(error, path)


@pytest.mark.parametrize(
    "change",
    [
        _with_header(format_version="1"),
        _with_header(arrays=["gone"]),
        _with_header(arrays=None),
        _with_header(kind=None),
        _with_header(content={"type": "Fit", "fields": {}}),
        _with_header(content={"type": "os.system", "fields": {"command": "true"}}),
        _with_header(content={"array": "gone"}),
        _with_header(content=None),
        _with_header(content=3),
        lambda members: members | {"header.json": b"{"},
        lambda members: members | {"header.json": b"[" * 100_000},
        lambda members: members | {"mixture.means.npy": members["mixture.means.npy"] + b"more"},
        lambda members: members | {"mixture.means.npy": b"\x93NUMPY\x01\x00"},
    ],
)
def test_a_changed_file_is_refused(change, tmp_path, rng):
    path = _saved(tmp_path, rng)
    _rewritten(path, change)
    with pytest.raises(InputError) as error:
        load_mixture(path)
    assert "\n" not in str(error.value)


def test_what_is_compressed_is_refused_unread(tmp_path, rng):
    path = _saved(tmp_path, rng)
    _rewritten(path, lambda members: members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="compressed"):
        load_mixture(path)


def test_pickled_objects_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code was run",))

    with pytest.raises(InputError, match="dtype object"):
        save_value({"x": np.array([Trap()], dtype=object)}, tmp_path / "trap.npz", "table")
    assert not list(tmp_path.iterdir())
    np.save(tmp_path / "x.npy", np.array([Trap()], dtype=object))
    path = tmp_path / "table.npz"
    save_value({"x": np.zeros(1)}, path, "table")
    _rewritten(path, lambda members: members | {"table.x.npy": (tmp_path / "x.npy").read_bytes()})
    with pytest.raises(InputError, match="is damaged") as error:
        load_value(path, dict, "table")
    _one_line(error, path)


@pytest.mark.parametrize("content", [b"", b"PK", b"a,b\n1,2\n", b"\x89HDF\r\n\x1a\n" + bytes(100), b"\x80\x04N."])
def test_foreign_files_are_refused(content, tmp_path):
    path = tmp_path / "foreign.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged|is not of bayesgmm") as error:
        load_fit(path)
    _one_line(error, path)


def test_npz_of_others_and_other_kinds_are_refused(tmp_path, rng):
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(InputError, match="is not of bayesgmm"):
        load_fit(tmp_path / "other.npz")
    with pytest.raises(InputError, match="holds a mixture, not a fit"):
        load_fit(_saved(tmp_path, rng))


@pytest.mark.parametrize("name", ["gone.npz", ".", "gone/fit.npz"])
def test_what_cannot_be_read_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="cannot be read") as error:
        load_fit(tmp_path / name)
    _one_line(error, tmp_path / name)


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    for name in ("gone/table.npz", "."):
        with pytest.raises(InputError, match="cannot be written") as error:
            save_value({}, tmp_path / name, "table")
        assert "\n" not in str(error.value)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.npz"
    save_value({"x": np.zeros(3)}, path, "table")
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(InputError, match="No space left"):
        save_value({"x": np.ones(3)}, path, "table")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["table.npz"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.npz").symlink_to(tmp_path / "file.npz")
    save_value({"x": np.zeros(3)}, tmp_path / "link.npz", "table")
    assert (tmp_path / "link.npz").is_symlink()
    assert load_value(tmp_path / "file.npz", dict, "table")["x"].shape == (3,)


def test_what_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"value\.f=.*cannot be stored"):
        pack({"f": object()}, {})
    with pytest.raises(InputError, match="is being traced"):
        jax.jit(lambda means: save_mixture(Mixture(jnp.zeros(1), means, jnp.ones((1, 1))), tmp_path / "m.npz"))(
            jnp.zeros((1, 1))
        )
