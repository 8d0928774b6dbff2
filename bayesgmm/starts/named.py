"""Where an engine starts: made-up responsibilities, then the M-step.

A start is a partition of the rows, hard or soft. It is made on standardised columns, so that the unit of a feature does
not decide it; the mixture is then estimated in the original units by the same M-step that EM uses. `STARTS` holds the
starts that have a name; `given.py` reads those that a user gives.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import Rows, as_rows
from bayesgmm.mixtures.families import FAMILIES, Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.draws import draw_rows, uniform_numbers
from bayesgmm.numerics.keys import Keys
from bayesgmm.numerics.precision import AnyArray, ArrayLike, RandomKey, is_traced, matching_precision, namespace
from bayesgmm.numerics.validation import as_key, one_of
from bayesgmm.starts import kmeans
from bayesgmm.starts.given import StartLike
from bayesgmm.starts.hierarchical import cut_tree_of_rows
from bayesgmm.starts.sampling import centre_and_scale, standardise

MAX_HIERARCHICAL_ROWS = 2000
_ASSIGNED_AT_ONCE = 65536  # rows
_NUMBERS_AT_ONCE = 2**17  # rows x features x components of starts that are made together
_EXCHANGES = 4  # seeds for each one that may be exchanged


@dataclass(frozen=True)
class Start:
    """One way to make up the first responsibilities.

    Attributes:
        name: the name users give.
        description: the start in words.
        responsibilities: the responsibilities (n, k) from rows, the number of components and a keyword-only key. A row
            that a start leaves out has zeros; one that it draws counts by its draws, whatever its weight.
        random: whether another key gives another start.
        together: whether it takes several keys at once, where NumPy runs it, and gives responsibilities (r, n, k).
        turns: the starts that several restarts are made by in turn, where they are not all made by this one: others
            find other optima.
    """

    name: str
    description: str
    responsibilities: Callable[..., AnyArray]
    random: bool = True
    together: bool = False
    turns: tuple[str, ...] = ()


_ENTERED: dict[str, Start] = {}
STARTS: Mapping[str, Start] = MappingProxyType(_ENTERED)
"""The starts that have a name, by that name."""


def _start(
    name: str, description: str, *, together: bool = True, turns: tuple[str, ...] = ()
) -> Callable[[Callable[..., AnyArray]], Callable[..., AnyArray]]:
    """Enter a function of rows, number of components and key as a random start: by NumPy where values are known."""

    def enter(function: Callable[..., AnyArray]) -> Callable[..., AnyArray]:
        def responsibilities(rows: Rows, num_components: int, *, key: Keys) -> AnyArray:
            rows = jax.tree.map(jnp.asarray if is_traced((rows, key)) else np.asarray, rows)
            return function(rows, num_components, key=key)

        run = matching_precision(responsibilities)
        _ENTERED[name] = Start(name, description, run, together=together, turns=turns)
        return run

    return enter


def name_of_restart(start: str, number: int) -> str:
    """The start that a restart is made by."""
    turns = STARTS[start].turns or (start,)
    return turns[number % len(turns)]


def one_hot(labels: AnyArray, num_components: int, dtype: np.dtype) -> AnyArray:
    """Labels (..., n) as responsibilities (..., n, k)."""
    return (labels[..., None] == np.arange(num_components, dtype=labels.dtype)[None]).astype(dtype)


def _around_seeds(rows: Rows, num_components: int, key: Keys, draw: Callable[..., AnyArray]) -> AnyArray:
    labels = kmeans.kmeans_plus_plus(standardise(rows), num_components, rows.weights, key=key, draw=draw)
    return one_hot(labels, num_components, rows.dtype)


@_start(
    "k-means++",
    "nearest of k rows drawn far apart, the best of several for each, on standardised columns; in turn with drawn_rows "
    "and distant_rows",
    turns=("k-means++", "drawn_rows", "k-means++", "drawn_rows", "distant_rows"),
)
def _from_kmeans_plus_plus(rows: Rows, num_components: int, *, key: Keys) -> AnyArray:
    draw = functools.partial(kmeans.draw_seeds, num_exchanges=num_components // _EXCHANGES)
    return _around_seeds(rows, num_components, key, draw)


@_start("drawn_rows", "nearest of k rows drawn far apart, as k-means++ draws one row for each")
def _from_drawn_rows(rows: Rows, num_components: int, *, key: Keys) -> AnyArray:
    draw = functools.partial(kmeans.draw_seeds, num_trials=1)
    return _around_seeds(rows, num_components, key, draw)


@_start("distant_rows", "nearest of k rows drawn very far apart, as k-means++ by the eighth power of the distance")
def _from_distant_rows(rows: Rows, num_components: int, *, key: Keys) -> AnyArray:
    def attraction(distances: AnyArray) -> AnyArray:
        return distances**4

    draw = functools.partial(kmeans.draw_seeds, attraction=attraction)
    return _around_seeds(rows, num_components, key, draw)


@_start("kmeans", "k-means after k-means++, on whitened rows", together=False)
def _from_kmeans(rows: Rows, num_components: int, *, key: Keys) -> AnyArray:
    white = kmeans.whitened_rows(rows)
    draw = functools.partial(kmeans.draw_seeds, num_exchanges=num_components // _EXCHANGES)
    labels = kmeans.kmeans_plus_plus(white.T, num_components, rows.weights, key=key, draw=draw)
    return one_hot(kmeans.lloyd(white, labels, num_components, rows.weights), num_components, rows.dtype)


@_start(
    "random_responsibilities",
    "2 (d + 1) rows for each component, drawn at random; all others left out",
    together=False,
)
def _from_random_responsibilities(rows: Rows, num_components: int, *, key: Keys) -> AnyArray:
    # Shares of all rows would average out: the more rows, the more alike the components, down to a saddle where EM
    # is stuck. Of a few rows they do not, and twice as many as span the space have a covariance.
    xp, count = namespace(rows.weights), 2 * (rows.num_features + 1) * num_components
    drawn = draw_rows(rows.weights, uniform_numbers(key, (count, 2), rows.weights))
    # Rows are drawn by weight, so each draw counts once, as that of one of so many repeated rows would.
    by_draw = one_hot(np.arange(count) % num_components, num_components, rows.dtype)
    weights = xp.where(rows.weights > 0, rows.weights, xp.ones_like(rows.weights))[:, None]
    if xp is np:
        counts = np.zeros((len(rows), num_components), rows.dtype)
        np.add.at(counts, drawn, by_draw)
        return counts / weights
    return jnp.zeros((len(rows), num_components), rows.dtype).at[drawn].add(by_draw) / weights


@_start("random_rows", "nearest of k different rows drawn at random, on standardised columns")
def _from_random_rows(rows: Rows, num_components: int, *, key: Keys) -> AnyArray:
    def if_new(distances: AnyArray) -> AnyArray:
        return (distances > 0).astype(rows.dtype)

    draw = functools.partial(kmeans.draw_seeds, attraction=if_new, num_trials=1)
    return _around_seeds(rows, num_components, key, draw)


@matching_precision
def _from_hierarchy(rows: Rows, num_components: int, *, key: RandomKey | None = None) -> AnyArray:
    if is_traced(rows):
        raise InputError(
            "start='hierarchical' cannot be made inside jit, vmap or grad; make it outside, with fit_em(..., "
            "start='hierarchical', max_steps=1), and pass the .mixture of that fit as start"
        )
    x, weights = np.asarray(rows.values), np.asarray(rows.weights)
    used, shares = cut_tree_of_rows(x, num_components, weights, max_rows=MAX_HIERARCHICAL_ROWS, key=key)
    if (weights > 0).sum() == len(used):
        return np.where(weights[:, None] > 0, shares, np.asarray(1 / num_components, shares.dtype))
    part = jax.tree.map(np.asarray, rows.at(used))
    ridge = math.sqrt(jnp.finfo(part.dtype).eps) * np.square(centre_and_scale(part)[1])
    mixture = kmeans.mixture_of_partition(part, shares[used], FAMILIES["full"], ridge)
    blocks = (x[first : first + _ASSIGNED_AT_ONCE] for first in range(0, len(x), _ASSIGNED_AT_ONCE))
    return np.concatenate([mixture.responsibilities(block) for block in blocks])


_ENTERED["hierarchical"] = Start(
    "hierarchical",
    f"model-based agglomeration; above {MAX_HIERARCHICAL_ROWS} rows of a random part, whose mixture assigns the others",
    _from_hierarchy,
    random=False,
)

_SCIKIT_LEARN_NAMES = {"random": "random_responsibilities", "random_from_data": "random_rows"}


def get_start(start: str) -> Start:
    """The record of a start given by name, ours or scikit-learn's.

    Raises:
        InputError: for an unknown name, listing the known ones.
    """
    return STARTS[one_of("start", _SCIKIT_LEARN_NAMES.get(start, start), STARTS)]


def check_named_start(name: str, value: StartLike | None) -> StartLike:
    """A start whose name, if it is one, is known.

    Raises:
        InputError: for None, and for an unknown name.
    """
    if value is None:
        raise InputError(f"{name}=None is not a start; leave it out for random ones")
    return get_start(value).name if isinstance(value, str) else value


def start_from(
    x: ArrayLike | Rows,
    num_components: int,
    family: Family,
    reg_covar: ArrayLike,
    *,
    start: str = "k-means++",
    key: RandomKey | None = None,
) -> Mixture:
    """The mixture that a named start of `STARTS` gives: its responsibilities, then the M-step in the original units.

    Args:
        x: rows (n, d), or `Rows` where they have weights.
        num_components: k.
        family: covariance family.
        reg_covar: ridge added to the variances, one number or one for each feature (d).
        start: a name in `STARTS`, or scikit-learn's.
        key: a random key; the hierarchical start needs none up to 2,000 rows.

    Raises:
        InputError: for an unknown start, rows or weights that cannot be used, a missing key, or the hierarchical start
            inside the caller's `jit` or `vmap`.
    """
    record = get_start(start)
    rows, key = as_rows(x), as_key(key) if record.random else key
    responsibilities = record.responsibilities(rows, num_components, key=key)
    return kmeans.mixture_of_partition(rows, responsibilities, family, reg_covar)


def starts_together(
    rows: Rows, num_components: int, family: Family, reg_covar: AnyArray, *, start: str, keys: Keys
) -> Mixture:
    """`start_from` for each of several keys, by NumPy: mixtures with a first axis, in arrays of NumPy.

    Together they cost little more than one: what a start of few rows takes is calls of NumPy, not arithmetic.
    """
    record = get_start(start)
    at_once = max(1, _NUMBERS_AT_ONCE // (rows.values.size * num_components)) if record.together else 1
    made = []
    for first in range(0, len(keys), at_once):
        if at_once > 1:
            responsibilities = record.responsibilities(rows, num_components, key=keys[first : first + at_once])
        else:
            responsibilities = record.responsibilities(rows, num_components, key=keys[first])[None]
        made.append(kmeans.mixture_of_partition(rows, responsibilities, family, reg_covar))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *made)
