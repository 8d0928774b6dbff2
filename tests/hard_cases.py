"""Mixtures and rows on which a density in floating point is hard to get right, and the exact answers.

`CASES` is the table: for each case a recipe in float64 and a milder one in float32, whose digits allow less. A recipe
made in a family is a `Problem`: a mixture whose stored fields are the truth, to the last bit, and rows likewise. The
answers are computed from those stored numbers with 50 decimal digits, so what separates them from the package's is
the package's rounding and nothing else.
"""

import functools
from dataclasses import dataclass

import mpmath
import numpy as np

from bayesgmm.mixtures.families import FAMILIES, Family
from bayesgmm.mixtures.mixture import Mixture

DIGITS = 50
ALL = ("full", "tied", "diag", "spherical")


@dataclass(frozen=True)
class Recipe:
    """How to make a hard case; lengths are in units of the data, before `units` multiplies the columns.

    Attributes:
        families: those in which the case makes sense.
        num_features: d.
        weights: mixing proportions; their number is k. Rows come from all components alike, whatever the weights.
        separation: standard deviation of the means along each column.
        widths: standard deviation of each component along its longest axis; a tied covariance takes the first.
        condition: condition number of each component's covariance (1 where it is spherical).
        units: factors of the columns, repeated as needed; a spherical covariance needs one unit, the first.
        offset: distance of the data from the origin along each column.
        tail: where positive, some rows are this many standard deviations away from a component.
        shrink: spread of the rows around the centre of their component, in standard deviations of the component.
        shift: distance of that centre from the component's mean, in standard deviations along each axis.
        rows_per_component: rows of each component.
    """

    families: tuple[str, ...] = ALL
    num_features: int = 4
    weights: tuple[float, ...] = (0.5, 0.3, 0.2)
    separation: float = 1.0
    widths: tuple[float, ...] = (1.0, 0.7, 0.5)
    condition: float = 10.0
    units: tuple[float, ...] = (1.0,)
    offset: float = 0.0
    tail: float = 0.0
    shrink: float = 1.0
    shift: float = 0.0
    rows_per_component: int = 20


# For each case the recipe in float64 and the one in float32.
CASES = {
    "ordinary": (Recipe(), Recipe()),
    "far from the origin": (Recipe(offset=1e8), Recipe(offset=1e3)),
    "mixed units": (Recipe(ALL[:3], units=(1e-8, 1.0, 1e8)), Recipe(ALL[:3], units=(1e-8, 1.0, 1e8))),
    "tiny units": (Recipe(units=(1e-8,)), Recipe(units=(1e-8,))),
    "huge units": (Recipe(units=(1e8,)), Recipe(units=(1e8,))),
    "one narrow component": (
        Recipe(separation=2.0, widths=(1e-4, 1.0, 1.0)),
        Recipe(separation=2.0, widths=(1e-2, 1.0, 1.0)),
    ),
    "widths of all sizes": (
        Recipe(("full", "diag", "spherical"), widths=(1e-3, 1.0, 1e3)),
        Recipe(("full", "diag", "spherical"), widths=(1e-2, 1.0, 1e2)),
    ),
    "ill-conditioned": (Recipe(ALL[:3], condition=1e10), Recipe(ALL[:3], condition=1e4)),
    "far in the tail": (Recipe(tail=1.7e3, condition=2.0), Recipe(tail=1.7e3, condition=2.0)),
    "weight near zero": (Recipe(weights=(0.6, 0.4, 1e-12)), Recipe(weights=(0.6, 0.4, 1e-12))),
    "far apart": (Recipe(separation=1e6), Recipe(separation=1e3)),
    # The M-step finds variances far below those of the mixture: about the mean that the component already has ...
    "rows nearly identical": (Recipe(separation=10.0, shrink=1e-8), Recipe(separation=10.0, shrink=1e-4)),
    # ... and about another one, which costs the square of the ratio.
    "rows nearly identical, off the mean": (
        Recipe(separation=10.0, shrink=1e-4, shift=0.5),
        Recipe(separation=10.0, shrink=1e-2, shift=0.5),
    ),
    "64 features": (
        Recipe(num_features=64, weights=(0.6, 0.4), widths=(1.0, 0.9), separation=0.3, rows_per_component=75),
        Recipe(num_features=64, weights=(0.6, 0.4), widths=(1.0, 0.9), separation=0.3, rows_per_component=75),
    ),
}


# How far each dtype's random problems go: offset, narrowest width, condition number, rows' spread within a component.
EXTREMES = {"float64": (1e8, 1e-4, 1e10, 1e-2), "float32": (1e3, 1e-2, 1e4, 0.1)}


def random_recipe(dtype, rng):
    """Every hardness at once, each anywhere between none and its extreme on a logarithmic scale."""
    offset, narrowest, condition, spread = (extreme ** rng.uniform() for extreme in EXTREMES[dtype])
    widths = narrowest ** rng.uniform(size=3)
    weights = np.array([0.6, 0.4, 1e-12 ** rng.uniform()])
    return Recipe(
        weights=tuple(rng.permutation(weights / weights.sum()).tolist()),
        separation=10.0 ** rng.uniform(-1.0, 1.0),
        widths=tuple((widths / widths.max()).tolist()),
        condition=condition,
        units=tuple((10.0 ** rng.uniform(-8.0, 8.0, size=4)).tolist()),
        offset=float(offset * rng.integers(2)),
        tail=float(rng.choice([0.0, 10.0 ** rng.uniform(0.0, 2.0)])),
        shrink=spread,
        shift=spread * float(rng.normal()),
    )


@dataclass(frozen=True)
class Reference:
    """Exact answers: log-densities (n); after one EM step weights, means and covariances (k, d, d). Mpmath numbers."""

    log_prob: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


@dataclass(frozen=True)
class Problem:
    """A recipe made in a family: the mixture and its rows (n, d), whose stored values are the truth."""

    family: Family
    mixture: Mixture
    x: np.ndarray

    @functools.cached_property
    def reference(self) -> Reference:
        return reference_em_step(self.mixture, self.x, np.ones(len(self.x)), self.family)


@functools.cache
def hard_case(name, family_name, dtype) -> Problem:
    """A case of the table, made once in a session, as its reference is."""
    recipe = CASES[name][dtype != "float64"]
    return make(recipe, FAMILIES[family_name], dtype, np.random.default_rng(7))


def make(recipe: Recipe, family: Family, dtype, rng) -> Problem:
    d, k = recipe.num_features, len(recipe.weights)
    units = np.resize(recipe.units[:1] if family.isotropic else recipe.units, d)
    means = recipe.separation * rng.normal(size=(k, d)) + recipe.offset * rng.choice([-1.0, 1.0], size=d)
    roots = [_root(width, recipe.condition, d, family, rng) for width in recipe.widths]
    roots = roots[:1] * k if family.shared else roots
    rows = []
    for mean, root in zip(means, roots, strict=True):
        noise = recipe.shrink * rng.normal(size=(recipe.rows_per_component, d)) + recipe.shift
        if recipe.tail:
            noise[:2] *= recipe.tail / np.linalg.norm(noise[:2], axis=1, keepdims=True)
        rows.append(mean + noise @ root.T)
    factors = np.stack([_precision_factor(root) for root in (roots[:1] if family.shared else roots)]) / units
    if family.diagonal:
        factors = np.diagonal(factors, axis1=1, axis2=2)
    fields = (np.log(recipe.weights), means * units, factors)
    return Problem(
        family, Mixture(*(field.astype(dtype) for field in fields)), (np.concatenate(rows) * units).astype(dtype)
    )


def _root(width, condition, num_features, family, rng):
    """A with covariance A A^T, its axes in random order, and in random directions unless the family is diagonal."""
    if family.isotropic:
        return width * np.eye(num_features)
    axes = width * rng.permutation(np.geomspace(1.0, condition**-0.5, num_features))
    rotation = np.eye(num_features) if family.diagonal else np.linalg.qr(rng.normal(size=(num_features,) * 2))[0]
    return rotation * axes


def _precision_factor(root):
    """Lower triangular F with F^T F the inverse of A A^T, by QL factorisation of the inverse of A."""
    reverse = slice(None, None, -1)
    lower = np.linalg.qr(np.linalg.inv(root)[:, reverse], mode="r")[reverse, reverse]
    return np.tril(lower * np.sign(np.diagonal(lower))[:, None])


_mpf, _exp, _log = (np.frompyfunc(function, 1, 1) for function in (mpmath.mpf, mpmath.exp, mpmath.log))


def exact(values):
    """An array of mpmath numbers, equal to those given: binary fractions have no need to be rounded."""
    with mpmath.workdps(DIGITS):
        return _mpf(np.asarray(values, np.float64).astype(object))


@mpmath.workdps(DIGITS)
def reference_log_prob(mixture: Mixture, x):
    """log p(x_i) of every row (n), at the stored parameters."""
    return _marginal(_joint(mixture, x))


@mpmath.workdps(DIGITS)
def reference_em_step(mixture: Mixture, x, row_weights, family: Family) -> Reference:
    """The log-densities, and the maximum-likelihood M-step of `family` with the responsibilities of the mixture."""
    joint = _joint(mixture, x)
    log_prob = _marginal(joint)
    shares = _exp(joint - log_prob) * exact(row_weights)
    x, count = exact(x), shares.sum(1)
    means = shares @ x / count[:, None]
    scatter = np.stack([_scatter(r, x - mean, family.diagonal) for r, mean in zip(shares, means, strict=True)])
    if family.shared:
        covariances = np.broadcast_to(scatter.sum(0) / count.sum(), scatter.shape)
    else:
        covariances = scatter / count[:, None, None]
    if family.isotropic:
        d = x.shape[1]
        covariances = (np.trace(covariances, axis1=1, axis2=2) / d)[:, None, None] * exact(np.eye(d))
    return Reference(log_prob, count / count.sum(), means, covariances)


def _joint(mixture, x):
    """(k, n)."""
    k, d = mixture.means.shape
    centred = exact(x)[None] - exact(mixture.means)[:, None]
    factor = exact(np.broadcast_to(mixture.precision_factor, (k, *mixture.precision_factor.shape[1:])))
    if mixture.is_diagonal:
        whitened, diagonal = centred * factor[:, None], factor
    else:
        diagonal = np.diagonal(factor, axis1=1, axis2=2)
        rows = [
            [[_dot(f[a, : a + 1], row) for a in range(d)] for row in c] for c, f in zip(centred, factor, strict=True)
        ]
        whitened = np.array(rows, dtype=object)
    constant = exact(mixture.log_weights) + _log(diagonal).sum(1) - d * mpmath.log(2 * mpmath.pi) / 2
    return constant[:, None] - (whitened * whitened).sum(2) / 2


def _marginal(joint):
    largest = joint.max(0)
    return largest + _log(_exp(joint - largest).sum(0))


def _scatter(shares, centred, diagonal):
    """(d, d)."""
    d = centred.shape[1]
    columns, weighted = list(centred.T), list((centred * shares[:, None]).T)
    scatter = exact(np.zeros((d, d)))
    for a in range(d):
        for b in range(a if diagonal else 0, a + 1):
            scatter[a, b] = scatter[b, a] = _dot(weighted[a], columns[b])
    return scatter


def _dot(a, b):
    """The sum of products, rounded once; of the shorter length."""
    return mpmath.fdot(zip(a, b, strict=False))
