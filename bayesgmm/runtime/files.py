"""Files of arrays and of fits: NumPy's npz without pickle, with a header in JSON. Reading one runs no code.

A file is an uncompressed zip archive: `header.json`, and one `.npy` for each array. The header says what the file is
(`format`, `kind`), which layout it has (`format_version`), who wrote it (`package_version`), which arrays belong to it
(`arrays`), and holds what the caller put there.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from bayesgmm.errors import InputError
from bayesgmm.numerics.paths import as_path
from bayesgmm.numerics.precision import is_traced
from bayesgmm.numerics.validation import short_repr

FORMAT = "bayesgmm"
FORMAT_VERSION = 1
_HEADER = "header.json"
_RESERVED = ("format", "format_version", "package_version", "kind", "arrays")
_KINDS_OF_DTYPE = "biufcSU"  # truth values, numbers and text: what NumPy writes without pickle and reads back the same
_TYPES: dict[str, Callable[..., Any]] = {}  # filled by `storable` and `stored_as`
_DAMAGE = (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, RecursionError, MemoryError)


def storable[T](cls: type[T]) -> type[T]:
    """Let `pack` and `unpack` store a dataclass under its name."""
    _TYPES[cls.__name__] = cls
    return cls


def stored_as[F: Callable[..., Any]](name: str) -> Callable[[F], F]:
    """Register a function that makes a value of today from the fields that older files hold under this name."""

    def register(upgrade: F) -> F:
        _TYPES[name] = upgrade
        return upgrade

    return register


def save_value(value: object, path: str | Path, kind: str) -> None:
    """Write one value that `pack` can, as a file of this kind.

    The file is written beside its place and moved there whole: a crash leaves the old file, or none.

    Raises:
        InputError: as `pack`, and for a path that cannot be written to.
    """
    arrays: dict[str, np.ndarray] = {}
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": importlib.metadata.version("bayesgmm"),
        "kind": kind,
        "content": pack(value, arrays, kind),
        "arrays": list(arrays),
    }
    with written_whole(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_HEADER, json.dumps(header, indent=1, allow_nan=False))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def load_value[T](path: str | Path, cls: type[T], kind: str) -> T:
    """Read a value of this class from a file of this kind.

    Raises:
        InputError: for no path, a file that is not there, is damaged, comes from elsewhere, is of another `kind` than
            asked for, holds something else, or has a format newer than this version of the package knows.
    """
    where = f"file {str(as_path(path))!r}"
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(_contents(archive, _HEADER).read()) if _HEADER in archive.namelist() else None
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise InputError(f"{where} is not of bayesgmm; give one that bayesgmm has written")
            _check_version(header, where)
            if header["kind"] != kind:
                raise InputError(f"{where} holds a {header['kind']}, not a {kind}; read it as what it is")
            arrays = {name: _read_array(archive, f"{name}.npy") for name in header["arrays"]}
        # Estimators once had the entries of their content in the header itself.
        entries = {name: part for name, part in header.items() if name not in _RESERVED}
        value = unpack(entries.get("content", {"dict": entries}), arrays)
        if not isinstance(value, cls):
            raise ValueError(f"it holds {short_repr(value)}")
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror or error}); check the path") from None
    except InputError:
        raise
    except _DAMAGE as error:
        if not zipfile.is_zipfile(path) and not _begins_as_zip(path):
            raise InputError(f"{where} is not of bayesgmm; give one that bayesgmm has written") from None
        said = " ".join(str(error).split())[:100]
        raise InputError(f"{where} is damaged ({said}); take another copy, or fit again") from None
    return value


def _check_version(header: Mapping[str, object], where: str) -> None:
    version = header["format_version"]
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"format_version={short_repr(version)}")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{where} was written by bayesgmm {header.get('package_version')} in format {version}, and this version "
            f"reads formats up to {FORMAT_VERSION}; upgrade bayesgmm"
        )


def _contents(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A member that is stored as it is: what is compressed could be of any size, and is not ours."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.open(name)


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with _contents(archive, name) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # the checksum is compared at the end only
            raise ValueError(f"{name} is longer than its array")
    return array


def _begins_as_zip(path: str | Path) -> bool:
    with Path(path).open("rb") as file:
        return file.read(2) == b"PK"


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` when all is written, and is deleted when anything fails.

    Raises:
        InputError: for a path that cannot be written to.
    """
    target = Path(os.path.realpath(as_path(path)))  # a link stays a link
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except OSError as error:
        raise InputError(f"file {str(path)!r} cannot be written ({error.strerror or error}); choose another") from None
    finally:
        with contextlib.suppress(OSError):  # of a name too long to be there
            beside.unlink()


def pack(value: object, arrays: dict[str, np.ndarray], name: str = "value") -> object:
    """Turn a value into what JSON can hold; its arrays go into `arrays` under names that begin with `name`.

    The value is made of numbers, text, None, arrays, lists, tuples, mappings with words as keys, and the package's own
    dataclasses that are `storable`. `unpack` gives it back, dtypes included.

    Raises:
        InputError: for anything else, such as a fit inside the caller's own `jit`.
    """
    if isinstance(value, jax.Array) and is_traced(value):
        raise InputError(f"{name} is being traced by jit, vmap or grad and has no contents; store it outside")
    if isinstance(value, jax.Array | np.ndarray | np.generic):  # before numbers: NumPy's float64 is one of Python's too
        while name in arrays:  # a dot in a word can make two names alike
            name += "'"
        arrays[name] = np.asarray(value)
        if arrays[name].dtype.kind not in _KINDS_OF_DTYPE:
            raise InputError(f"{name} has dtype {arrays[name].dtype}, which cannot be stored; convert it to numbers")
        return {"scalar" if isinstance(value, np.generic) else "array": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(float(value))}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        items = [pack(item, arrays, f"{name}.{index}") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {"dict": {key: pack(item, arrays, f"{name}.{key}") for key, item in value.items()}}
    if dataclasses.is_dataclass(value) and _TYPES.get(type(value).__name__) is type(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        packed = {field: pack(item, arrays, f"{name}.{field}") for field, item in fields.items()}
        return {"type": type(value).__name__, "fields": packed}
    raise InputError(f"{name}={short_repr(value)} cannot be stored; convert it to arrays, numbers and text")


def unpack(packed: object, arrays: Mapping[str, np.ndarray]) -> Any:
    """Restore the value that `pack` was given; its arrays are NumPy's."""
    if isinstance(packed, list):
        return [unpack(item, arrays) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if "type" in packed:
        cls = _TYPES[packed["type"]]
        fields = {name: unpack(item, arrays) for name, item in packed["fields"].items()}
        return cls(**fields)
    ((tag, content),) = packed.items()
    if tag == "array":
        return arrays[content]
    if tag == "scalar":
        return arrays[content][()]
    if tag == "float":
        return float(content)
    if tag == "tuple":
        return tuple(unpack(item, arrays) for item in content)
    if tag == "dict":
        return {key: unpack(item, arrays) for key, item in content.items()}
    raise ValueError(f"tag {tag!r}")
