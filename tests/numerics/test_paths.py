"""Paths that no file system has, and files that claim more than they hold: one line, before anything is computed."""

import io

import fits
import numpy as np
import pytest
import xarray

import bayesgmm
from bayesgmm.cli.config import load_config
from bayesgmm.cli.outputs import check_folder
from bayesgmm.errors import InputError
from bayesgmm.numerics.paths import as_path
from bayesgmm.runtime.chains import check_checkpoint

ONE = bayesgmm.Mixture.from_covariances([1.0], [[0.0]], [[1.0]])
DOORS = {
    "read_table": bayesgmm.read_table,
    "load_fit": bayesgmm.load_fit,
    "save_fit": lambda path: bayesgmm.save_fit(fits.em("faithful", 2), path),
    "load_mixture": bayesgmm.load_mixture,
    "save_mixture": lambda path: bayesgmm.save_mixture(ONE, path),
    "load_datatree": bayesgmm.load_datatree,
    "save_datatree": lambda path: bayesgmm.save_datatree(xarray.DataTree(), path),
    "estimator": bayesgmm.GaussianMixture.load,
    "settings": load_config,
    "output folder": lambda path: check_folder(as_path(path), overwrite=True),
    "checkpoint": check_checkpoint,
}


@pytest.mark.parametrize("door", DOORS.values(), ids=list(DOORS))
@pytest.mark.parametrize(("name", "why"), [("a\0b.csv", "null"), (f"{'a' * 300}.csv", "File name too long")])
def test_what_is_no_path_is_refused_in_one_line(door, name, why, tmp_path):
    with pytest.raises(InputError, match=rf"='/.*csv' is no path \(.*{why}.*\); give another$") as caught:
        door(str(tmp_path / name))
    assert len(str(caught.value)) < 300


def test_a_name_that_is_too_long_for_its_neighbour_only_is_refused(tmp_path):
    """The file is written beside its place first, under a longer name."""
    with pytest.raises(InputError, match=r"cannot be written \(File name too long\)"):
        bayesgmm.save_mixture(ONE, tmp_path / ("a" * 250))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_text_is_no_path():
    for value in (None, 5, b"mixture.npz"):
        with pytest.raises(InputError, match="is no path; give one as text"):
            as_path(value)


def test_trees_that_are_not_there_or_damaged_are_refused(tmp_path):
    path = tmp_path / "tree.nc"
    with pytest.raises(InputError, match="cannot be read as NetCDF"):
        bayesgmm.load_datatree(path)
    path.write_bytes(b"no tree")
    with pytest.raises(InputError, match="cannot be read as NetCDF"):
        bayesgmm.load_datatree(path)


def test_an_array_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    header = io.BytesIO()
    claimed = {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(header, claimed)
    path = tmp_path / "mine.npy"
    path.write_bytes(header.getvalue() + bytes(64))
    with pytest.raises(InputError, match="is not a readable NPY file: Unable to allocate"):
        bayesgmm.read_table(path)
