"""`bayesgmm init`: commented settings for one's own table."""

import json
from pathlib import Path

from bayesgmm.datasets.tables import Dataset, read_table
from bayesgmm.errors import InputError
from bayesgmm.numerics.paths import as_path

_MOST_COMPONENTS = 6
_ROWS_OF_EACH = 10  # at least, for a component of most tables to be worth its parameters

_TEXT = """\
# Settings of a comparison: bayesgmm compare {file}
# {columns}.
{notes}
title = {title}
seed = 0
engines = ["em", "map", "vi", "nuts"]  # also: "cavi" and "gibbs" (they need kind = "conjugate" in [prior]), "kmeans"

[data]
path = {path}
columns = [{names}]
{labels}
[mixture]
family = "full"  # full, tied, diag, spherical, ... or R's mclust's codes, such as "VVV"
num_components = {counts}  # the criterion picks one of them
select_by = "bic"  # bic, aic or icl
# loo_over_k = "nuts"  # leave-one-out at every number too, of one of the engines with draws: as many fits

[prior]
kind = "weakly_informative"  # or "conjugate"; every number of it can be set here

[em]
# num_restarts = 100  # where components are many or overlap; by default 40, and 10 of many rows

[vi]
guide = "full_rank"  # or "normal", or a list of both

[nuts]
num_chains = 4
num_warmup = 500
num_draws = 1000
"""


def write_config(table: Path, path: Path, *, overwrite: bool) -> Path:
    """Write settings for a table, which `bayesgmm compare` takes as they are.

    Raises:
        InputError: for a table that cannot be read, and for a file that exists, unless `overwrite`.
    """
    data = read_table(table)
    if as_path(path, "out").exists() and not overwrite:
        raise InputError(f"out={str(path)!r} exists; pass --overwrite, or choose another with --out")
    try:
        path.write_text(config_text(data, table, path), encoding="utf-8")
    except OSError as error:
        raise InputError(f"out={str(path)!r} cannot be written ({error.strerror}); choose another with --out") from None
    return path


def config_text(data: Dataset, table: Path, path: Path) -> str:
    """The settings for a table, as TOML with comments."""
    most = max(1, min(_MOST_COMPONENTS, len(data.x) // max(_ROWS_OF_EACH, 2 * data.x.shape[1])))
    quoted = json.dumps  # strings of JSON are strings of TOML
    labels = f"labels = {quoted(data.label_name)}  # known classes, which no engine sees" if data.label_name else ""
    beside = table.resolve().parent == path.resolve().parent
    return _TEXT.format(
        file=path.name,
        columns=data.columns,
        notes="".join(f"# {note}.\n" for note in data.notes),
        title=quoted(data.name, ensure_ascii=False),
        path=quoted(table.name if beside else str(table.resolve()), ensure_ascii=False),
        names=", ".join(quoted(name, ensure_ascii=False) for name in data.feature_names),
        labels=f"{labels}\n" if labels else "",
        counts=list(range(1, most + 1)),
    )
