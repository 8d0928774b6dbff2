"""What a figure shows of the rows and of a mixture: some columns, or their first principal components."""

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int

from bayesgmm.engines.fit import Fit
from bayesgmm.engines.registry import ENGINES
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.mixtures.discrimination import column_separations, discriminant_coordinates
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.numerics.validation import name_features
from bayesgmm.numerics.words import counted, listed

MAX_COLUMNS = 4
_MAX_ON_REQUEST = 12
_NUM_LOADINGS = 3  # in the name of a coordinate

type Drawable = Mixture | Fit
"""A mixture, draws as a mixture with leading axes, or a fit."""

type Columns = Iterable[int | str] | str | None
"""Columns by number or name, "pca", "discriminant", or None for those that separate the components best."""

type Names = Iterable[str] | None
"""Names of all features, or None for those of a data frame, or numbers."""


@dataclass(frozen=True)
class View:
    """The rows (n, d), their coordinates that are shown (n, m), and the names of those.

    Coordinates are columns of the rows, or where there is a `rotation` (directions (m, d), origin (d)), and no columns,
    principal components or discriminant coordinates `(x - origin) @ directions.T`. All are affine maps, under which a
    Gaussian mixture stays one.
    """

    x: Float[np.ndarray, "n d"]
    names: tuple[str, ...]
    columns: tuple[int, ...]
    rotation: tuple[Float[np.ndarray, "m d"], Float[np.ndarray, " d"]] | None = None

    @property
    def num_shown(self) -> int:
        """m."""
        return len(self.names)

    @property
    def shown(self) -> Float[np.ndarray, "n m"]:
        """The coordinates of the rows."""
        return self.coordinates(self.x)

    def coordinates(self, rows: Float[np.ndarray, "r d"]) -> Float[np.ndarray, "r m"]:
        """The coordinates of any rows."""
        if self.rotation is None:
            return rows[:, list(self.columns)]
        directions, origin = self.rotation
        return (rows - origin) @ directions.T

    def marginal(self, mixture: Mixture, *which: int) -> Mixture:
        """The mixture of the shown coordinates with these numbers, in float64; leading axes stay."""
        # Pictures are computed in float64, whatever was fitted in.
        mixture = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), mixture)
        if self.rotation is None:
            return mixture.marginal([self.columns[index] for index in which])
        directions, origin = self.rotation[0][list(which)], self.rotation[1]
        means, covariances = np.asarray(mixture.means), np.asarray(mixture.covariances)
        turned = directions @ covariances @ directions.T
        return Mixture.from_covariances(mixture.weights, (means - origin) @ directions.T, turned)


def view_rows(
    mixture: Mixture, x: ArrayLike, columns: Columns, feature_names: Names, *, at_most: int = MAX_COLUMNS
) -> View:
    """The rows checked against the mixture, and what to show.

    By default all columns, of more than four those that separate the components best.

    Raises:
        InputError: for rows of another width than the mixture's, for a mixture that is not finite, for columns that
            do not exist, come twice, or are too many, for principal components of fewer than two columns, and for
            discriminant coordinates of these or of fewer than two components.
    """
    rows = np.asarray(as_rows(x).values)
    if rows.shape[1] != mixture.num_features:
        raise InputError(f"x has {rows.shape[1]} features, but the mixture has {mixture.num_features}")
    if not all(np.isfinite(np.asarray(field)).all() for field in (mixture.means, mixture.precision_factor)):
        raise InputError("the mixture has NaN or infinite parameters, so there is nothing to draw; look at fit.code")
    names = name_columns(feature_names, rows.shape[1], x, mixture)
    if isinstance(columns, str) and columns == "pca" and "pca" not in names:
        return _principal_view(rows)
    if isinstance(columns, str) and columns == "discriminant" and "discriminant" not in names:
        return _discriminant_view(mixture, rows, names)
    if columns is None:
        columns = best_columns(mixture, at_most)
    at_most = at_most if at_most < MAX_COLUMNS else max(at_most, _MAX_ON_REQUEST)
    chosen = tuple(_column(column, names) for column in ((columns,) if isinstance(columns, str) else columns))
    if len(set(chosen)) < len(chosen):
        raise InputError(f"columns {chosen} name a column twice; give different columns")
    if not 1 <= len(chosen) <= at_most:
        raise InputError(f"columns={chosen} must be one to {at_most} different columns")
    return View(rows, tuple(names[column] for column in chosen), chosen)


def best_columns(mixture: Mixture, at_most: int = MAX_COLUMNS) -> tuple[int, ...]:
    """The columns that separate the components best, at most so many, in their order."""
    if mixture.num_features <= at_most:
        return tuple(range(mixture.num_features))
    weights = np.asarray(mixture.weights, np.float64).reshape(-1, mixture.num_components).mean(0)
    merit = weights @ column_separations(mixture)
    return tuple(sorted(int(column) for column in np.argsort(-merit, kind="stable")[:at_most]))


def name_columns(feature_names: Names, num_features: int, *known: object) -> tuple[str, ...]:
    """Names of all features, numbered from 0 where neither the user nor a data frame nor a fit to one names them."""
    return name_features(feature_names, num_features, *known, default="feature {}" if num_features > 1 else "x")


def _column(column: int | str, names: tuple[str, ...]) -> int:
    if isinstance(column, str):
        if column not in names:
            raise InputError(f"columns has {column!r}, which is not among the features {', '.join(names)}")
        return names.index(column)
    if not -len(names) <= column < len(names):
        raise InputError(f"columns has {column}, but there are {len(names)} features, counted from 0")
    return int(column) % len(names)


def _principal_view(rows: Float[np.ndarray, "n d"]) -> View:
    """The first two principal components of the standardised columns, so that no unit decides what is seen."""
    if rows.shape[1] < 2:
        raise InputError('columns="pca" needs two features or more, and x has one; leave columns out')
    rows = rows.astype(np.float64)
    origin, spread = rows.mean(0), rows.std(0)
    spread[spread == 0] = 1.0
    _, strengths, vectors = np.linalg.svd((rows - origin) / spread, full_matrices=False)
    # The sign of a component is arbitrary: its largest loading is made positive, so that figures can be compared.
    top = vectors[:2] * np.sign(vectors[np.arange(2), np.abs(vectors[:2]).argmax(1)])[:, None]
    shares = strengths[:2] ** 2 / max(float(np.sum(strengths**2)), np.finfo(float).tiny)
    names = tuple(f"principal component {i + 1} ({100 * share:.0f}% of variance)" for i, share in enumerate(shares))
    return View(rows, names, (), (top / spread, origin))


def _discriminant_view(mixture: Mixture, rows: Float[np.ndarray, "n d"], names: tuple[str, ...]) -> View:
    """The plane in which the components differ most; its coordinates are named by their largest loadings."""
    if rows.shape[1] < 2 or mixture.num_components < 2:
        raise InputError(
            'columns="discriminant" needs two features and two components or more, and the mixture has '
            f"{counted(rows.shape[1], 'feature')} and {counted(mixture.num_components, 'component')}; leave columns out"
        )
    directions = discriminant_coordinates(mixture)[0][:2]
    loadings = directions * rows.std(0)
    loadings /= np.linalg.norm(loadings, axis=1, keepdims=True)
    titles = []
    for number, own in enumerate(loadings, 1):
        largest = np.argsort(-np.abs(own), kind="stable")[:_NUM_LOADINGS]
        titles.append(f"discriminant {number}: {', '.join(f'{own[one]:.2f} {names[one]}' for one in largest)}")
    return View(rows, tuple(titles), (), (directions, rows.mean(0, dtype=np.float64)))


def engines_giving(*kinds: str) -> str:
    """The labels of the engines that give "point", say, for a message; by default of those whose fits have draws."""
    kinds = kinds or ("approximation", "draws")
    return listed((engine.label for engine in ENGINES.values() if engine.gives in kinds), "or")


def thinned_draws(draws: Mixture, at_most: int) -> Mixture:
    """At most so many draws, evenly spaced over all chains, under one leading axis."""
    shape = draws.draw_shape
    flat = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *np.shape(leaf)[len(shape) :]), draws)
    return flat[evenly_spaced(int(np.prod(shape)), at_most)]


def evenly_spaced(total: int, at_most: int) -> Int[np.ndarray, " s"]:
    """At most so many of the numbers below `total`, from the first to the last."""
    return np.unique(np.linspace(0, total - 1, min(at_most, total)).round().astype(int))


def point_and_draws(mixture_or_fit: object, at_most: int) -> tuple[Mixture | None, Mixture]:
    """The point estimate, if there is one, and the mixture or thinned draws (one leading axis) about it.

    Raises:
        InputError: for what is neither a mixture nor a fit.
    """
    if isinstance(mixture_or_fit, Fit):
        point, draws = mixture_or_fit.mixture, mixture_or_fit.draws
        if point.draw_shape:
            raise InputError(f"fit has leading axes {point.draw_shape}; give one fit, such as that of one start")
        return point, point if draws is None else thinned_draws(draws, at_most)
    if isinstance(mixture_or_fit, Mixture) and mixture_or_fit.draw_shape:
        return None, thinned_draws(mixture_or_fit, at_most)
    single = one_mixture(mixture_or_fit)
    return single, single


def one_mixture(mixture_or_fit: object) -> Mixture:
    """A single mixture, of a fit its point.

    Raises:
        InputError: for leading axes, and for what is neither a mixture nor a fit.
    """
    mixture = mixture_or_fit.mixture if isinstance(mixture_or_fit, Fit) else mixture_or_fit
    if not isinstance(mixture, Mixture):
        raise InputError(f"a Mixture or a Fit is drawn; got {type(mixture).__name__}")
    if mixture.draw_shape:
        raise InputError(f"mixture has leading axes {mixture.draw_shape}; give one mixture, such as mixture[0, 0]")
    return mixture


def posterior_draws(fit_or_draws: object) -> Mixture:
    """The draws of a fit, or a mixture with leading axes as it is.

    Raises:
        InputError: for a fit without draws, or a single mixture.
    """
    if isinstance(fit_or_draws, Fit):
        if fit_or_draws.draws is None:
            raise InputError(f"fit of engine {fit_or_draws.engine!r} has no draws; give one by {engines_giving()}")
        return fit_or_draws.draws
    if not isinstance(fit_or_draws, Mixture) or not fit_or_draws.draw_shape:
        raise InputError(f"draws are needed: a fit by {engines_giving()}, or a mixture with leading axes")
    return fit_or_draws
