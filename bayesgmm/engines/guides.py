r"""Guides of variational inference: those with a name, those made from a class, and those of one's own.

Guides that are made here move in units of the posterior: every unconstrained coordinate is measured from the start (the
EM fit), in multiples of a rough posterior standard deviation, one over the square root of the coordinate's information

$$ \mathcal I_a = 1 + \sum_i \Bigl(\frac{\partial \log p(x_i)}{\partial u_a}\Bigr)^2. $$

So one step size suits a hundred rows and a million, and a flow that begins as a standard normal begins at the EM fit.
Each coordinate has a unit of its own and they are not mixed: a mean-field guide stays one. Normal guides with
correlations begin with those of the whole information matrix.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import AffineTransform, ComposeTransform, IndependentTransform
from numpyro.handlers import reparam, seed, trace
from numpyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuide,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
)
from numpyro.infer.initialization import init_to_feasible
from numpyro.infer.reparam import Reparam

from bayesgmm.engines.minibatches import Minibatch, Tangent
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import matching_precision
from bayesgmm.numerics.validation import one_of, shown
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.target import unconstrained as space
from bayesgmm.target.numpyro_model import model

GUIDES: dict[str, Callable[..., AutoGuide]] = {
    "normal": AutoDiagonalNormal,
    "full_rank": AutoMultivariateNormal,
    "low_rank": AutoLowRankMultivariateNormal,
}
_MODEL_ARGUMENTS = "(x, num_components, family, prior)"
_INFORMATIVE_ROWS = 1024
_MOST_SCORES = 2**22

Units = dict[str, tuple[Array, Array]]
"""For every site of the standardised model where its unconstrained coordinates start, and their units."""


class Approximation(NamedTuple):
    """A model and the guide that approximates its posterior, both called with (x, k, family, prior, units, tangent).

    With a `tangent` the rows are a batch of those that it belongs to.
    """

    model: Callable[..., None]
    guide: Callable[..., Any]


def in_units(
    x: Any, num_components: int, family: Family, prior: AnyPrior, units: Units, tangent: Tangent | None = None
) -> None:
    """The model in units of the posterior: `<name>_units` for every free site of the standardised model."""

    def config(site: Any) -> Reparam | None:
        return InUnits(*units[site["name"]]) if site["name"] in units and not site["is_observed"] else None

    _of_rows(reparam(space.standardised_model, config=config), tangent)(x, num_components, family, prior)


def free_sites_in_units(
    x: Any, num_components: int, family: Family, prior: AnyPrior, units: Units, tangent: Tangent | None = None
) -> None:
    """The free sites of `in_units` and nothing else: enough of the model to make a guide of, and soon compiled."""
    for name, (loc, _) in units.items():
        numpyro.sample(f"{name}_units", dist.Normal(jnp.zeros_like(loc), 1.0).to_event(loc.ndim))


def in_own_sites(
    x: Any, num_components: int, family: Family, prior: AnyPrior, _units: Units, tangent: Tangent | None = None
) -> None:
    """The model with the sites that `bayesgmm.model` has, for guides that come with theirs."""
    _of_rows(model, tangent)(x, num_components, family, prior)


def _of_rows(function: Callable[..., Any], tangent: Tangent | None) -> Callable[..., Any]:
    return function if tangent is None else Minibatch(function, tangent=tangent)


class InUnits(Reparam):
    """A site by its unconstrained coordinates, measured from a point in units of their own."""

    def __init__(self, loc: Array, unit: Array) -> None:
        self.loc, self.unit = loc, unit

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Any]:
        """The value of the site, from a new site whose distribution is the same one in other coordinates."""
        constrain = biject_to(fn.support)
        affine = IndependentTransform(AffineTransform(self.loc, self.unit), constrain.domain.event_dim)
        to_site = ComposeTransform([affine, constrain])
        in_units: Any = numpyro.sample(f"{name}_units", dist.TransformedDistribution(fn, to_site.inv))
        return None, to_site(in_units)


class Neighbourhood(NamedTuple):
    """The posterior as the start sees it.

    Attributes:
        units: where guides start, and a rough posterior standard deviation of every coordinate given the others.
        information: the information matrix of all coordinates, sites in alphabetical order, in these units: its
            diagonal is 1. None where it was not asked for, or rows are too few to tell it.
    """

    units: Units
    information: Array | None


@functools.partial(jax.jit, static_argnames=("family", "with_correlations"))
def neighbourhood(
    start: Mixture, x: Array, family: Family, prior: AnyPrior, with_correlations: bool = False
) -> Neighbourhood:
    """What the scores of some of the rows tell about the posterior around the start."""
    loc = space.to_unconstrained(start, family, prior)
    size = sum(leaf.size for leaf in jax.tree.leaves(loc))
    with_correlations = with_correlations and 4 * size <= min(x.shape[0], _MOST_SCORES // size)
    num_rows = max(_INFORMATIVE_ROWS, 4 * size) if with_correlations else min(_INFORMATIVE_ROWS, _MOST_SCORES // size)
    rows = x[:: -(-x.shape[0] // max(num_rows, 64))]

    def log_prob(loc: space.Sites, row: Array) -> Array:
        sites = space.to_sites(loc, family, start.num_components, start.num_features)
        return space.mixture_of(sites, family, prior).log_prob(row[None])[0]

    scores = jax.vmap(jax.grad(log_prob), (None, 0))(loc, rows)
    share = x.shape[0] / rows.shape[0]
    units = {name: (loc[name], 1.0 / jnp.sqrt(1.0 + share * jnp.square(scores[name]).sum(0))) for name in sorted(loc)}
    if not with_correlations:
        return Neighbourhood(units, None)
    in_units = jnp.concatenate([(scores[name] * units[name][1]).reshape(len(rows), -1) for name in units], axis=1)
    information = share * jnp.matmul(in_units.T, in_units, precision="highest")
    return Neighbourhood(units, jnp.fill_diagonal(information, 1.0, inplace=False))


def parameters_at_start(guide: str, rank: int | None, around: Neighbourhood) -> dict[str, Array]:
    """Parameters of a guide with a name: centred on the start, and as correlated as the information matrix says.

    Correlations that have to be found by gradients alone take long where they are strong.
    """
    loc = jnp.concatenate([jnp.zeros(unit.size, unit.dtype) for _, unit in around.units.values()])
    parameters = {"auto_loc": loc}
    if around.information is None or guide == "normal":
        return parameters
    eigenvalues, vectors = jnp.linalg.eigh(around.information)
    eigenvalues = jnp.maximum(eigenvalues, jnp.finfo(loc.dtype).eps ** 0.5)
    if guide == "full_rank":
        covariance = jnp.matmul(vectors / eigenvalues, vectors.T, precision="highest")
        return parameters | {"auto_scale_tril": jnp.linalg.cholesky(covariance)}
    # NumPyro's covariance is D (I + W W^T) D: probabilistic principal components (Tipping & Bishop 1999), D constant.
    rank = min(rank or round(loc.size**0.5), loc.size)
    variances = 1.0 / eigenvalues
    least = variances[-1] if rank == loc.size else variances[rank:].mean()
    weights = vectors[:, :rank] * jnp.sqrt(jnp.maximum(variances[:rank] / least - 1.0, 1e-2))
    return parameters | {"auto_scale": jnp.full(loc.size, jnp.sqrt(least)), "auto_cov_factor": weights}


def check_guide(name: str, guide: Any) -> Any:
    """Refuse what cannot be a guide.

    Raises:
        InputError: saying what a guide is.
    """
    if isinstance(guide, str) or not callable(guide):
        own = f"a function of {_MODEL_ARGUMENTS} that samples the sites of bayesgmm.model"
        one_of(name, guide, GUIDES, f", or give a class of numpyro.infer.autoguide or {own}")
    elif not isinstance(guide, AutoGuide):
        _makes_guides(guide)
    return guide


def approximation_by(guide: Any, rank: int | None = None) -> Approximation:
    """The model in the coordinates that suit the guide, and a guide that has not seen it yet.

    Raises:
        InputError: for a function that makes no guide of the model.
    """
    options: dict[str, Any] = {"init_loc_fn": init_to_feasible, "init_scale": 1.0}  # feasible: at 0
    if isinstance(guide, str):
        options |= {} if rank is None else {"rank": rank}
        return Approximation(in_units, GUIDES[guide](free_sites_in_units, **options))
    if isinstance(guide, AutoGuide):
        own = copy.copy(guide)  # which remembers the rows that it has seen
        return Approximation(in_own_sites, lambda *arguments: own(*arguments[:4]))
    if not _makes_guides(guide):
        return Approximation(in_own_sites, lambda *arguments: guide(*arguments[:4]))
    already = getattr(guide, "keywords", {})
    taken = {name for name in inspect.signature(guide).parameters if name in options and name not in already}
    made = guide(in_units, **{name: options[name] for name in taken})
    if not callable(made):
        raise InputError(f"guide={shown(guide)} made {shown(made)} of the model, which is no guide")
    return Approximation(in_units, made)


def _makes_guides(guide: Any) -> bool:
    """Whether this takes a model and gives a guide. What can be called with the model's arguments is a guide itself."""
    if isinstance(guide, type):
        return True
    signature = inspect.signature(guide)

    def takes(*arguments: str) -> bool:
        try:
            signature.bind(*arguments)
        except TypeError:
            return False
        return True

    if takes("x", "num_components", "family", "prior"):
        return False
    if takes("model"):
        return True
    raise InputError(
        f"guide={shown(guide)} takes neither {_MODEL_ARGUMENTS}, as a guide does, nor a model, as a class of them does"
    )


@matching_precision
def check_sites(guide: Any, x: Any, num_components: int, family: Family, prior: AnyPrior) -> None:
    """Look at what a guide of the caller's own samples, without computing anything.

    Raises:
        InputError: naming the sites that are missing or too many; for a guide that cannot be run, and for a point.
    """
    start = any_mixture(num_components, x.shape[1], family)

    def look(x: Array, prior: AnyPrior, start: Mixture) -> None:
        found = approximation_by(guide)
        units = {name: (loc, loc) for name, loc in space.to_unconstrained(start, family, prior).items()}
        arguments = (x, num_components, family, prior, units)
        sites = trace(seed(found.model, jax.random.key(0))).get_trace(*arguments)
        try:
            guided = trace(seed(found.guide, jax.random.key(0))).get_trace(*arguments)
        except Exception as error:
            raise InputError(
                f"guide={shown(guide)} cannot be run with {_MODEL_ARGUMENTS}; mend it: {type(error).__name__}: "
                f"{' '.join(str(error).splitlines()[:1])}"
            ) from error
        _compare_sites(guide, sites, guided)

    jax.eval_shape(look, *jax.tree.map(jnp.asarray, (x[:2], prior, start)))


def _compare_sites(guide: Any, sites: dict[str, Any], guided: dict[str, Any]) -> None:
    wanted = {name for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]}
    sampled = {name: site for name, site in guided.items() if site["type"] == "sample"}
    own = {name for name, site in sampled.items() if not site["infer"].get("is_auxiliary")}
    if own != wanted:
        raise InputError(
            f"guide={shown(guide)} samples {', '.join(sorted(own)) or 'nothing'}; it must sample the sites of "
            f"bayesgmm.model for this family and prior, which are {', '.join(sorted(wanted))}"
        )
    if all(_is_point(site["fn"]) for site in sampled.values()):
        raise InputError(
            f"guide={shown(guide)} is a point and has no density; use fit_map, or a guide such as 'full_rank'"
        )


def _is_point(fn: Any) -> bool:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def any_mixture(num_components: int, num_features: int, family: Family) -> Mixture:
    """A mixture of the right shape, where no other is at hand."""
    factor = np.ones(num_features) if family.diagonal else np.eye(num_features)
    return Mixture(
        np.full(num_components, -np.log(num_components)),
        np.zeros((num_components, num_features)),
        np.broadcast_to(factor, (family.num_factors(num_components), *factor.shape)),
    )
