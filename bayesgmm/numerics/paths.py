"""Paths, checked before anything is read, computed or written."""

import os
from pathlib import Path

from bayesgmm.errors import InputError


def as_path(path: object, name: str = "path") -> Path:
    """A path that a file system can have, whether or not something is there.

    Raises:
        InputError: for what is no path, a character that none has, and a name that is too long.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"{name}={path!r} is no path; give one as text")
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        shown = repr(os.fspath(path))
        shown = shown if len(shown) <= 80 else f"{shown[:60]}...{shown[-17:]}"
        raise InputError(f"{name}={shown} is no path ({why}); give another") from None
    return Path(path)
