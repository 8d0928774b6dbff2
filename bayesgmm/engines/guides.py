r"""Guides of variational inference: those with a name, those made from a class, and user-supplied ones.

Guides that are made here approximate the target density in units of the posterior: every coordinate of the flat vector
is measured from the mode of the Laplace approximation, in multiples of a posterior standard deviation given the others,
one over the root of the curvature along the coordinate. So one step size suits a hundred rows and a million, and a flow
that begins as a standard normal begins at the mode. Each coordinate has a unit of its own and they are not mixed: a
mean-field guide stays one. Normal guides with correlations begin with those of the Laplace approximation.

User-supplied guides sample the sites of `bayesgmm.model`.
"""

import copy
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ScaledUnitLowerCholeskyTransform, biject_to
from numpyro.handlers import seed, trace
from numpyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuide,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
)
from numpyro.infer.initialization import init_to_feasible

from bayesgmm.engines.elbo import Program, Tangent, log_likelihood_of_batch
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import Rows
from bayesgmm.likelihood.scores import log_likelihood_of_rows
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike, matching_precision
from bayesgmm.numerics.validation import one_of, short_repr
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.target.laplace import NormalApproximation
from bayesgmm.target.numpyro_model import mixture_of_sites, sample_sites
from bayesgmm.target.problem import Problem
from bayesgmm.target.transforms import values_in_rows
from bayesgmm.target.unconstrained import Target


class _MovedNormal(dist.Distribution):
    """Standard normal noise, multiplied and moved: its log-density is that of the noise, less the logarithm of volume.

    NumPyro's own solve for the noise that they have drawn. Values and gradients are the same, for in both the noise is
    what does not depend on the parameters.
    """

    support = constraints.real_vector  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, loc: Float[Array, " p"], scale: Float[Array, "*p p"]) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(event_shape=loc.shape, validate_args=False)

    def sample_with_intermediates(
        self, key: Array | None, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Any]]:
        """A draw, and its noise."""
        assert key is not None
        noise = jax.random.normal(key, (*sample_shape, *self.event_shape), self.loc.dtype)
        if self.scale.ndim == 1:
            return self.loc + self.scale * noise, [noise]
        return self.loc + jnp.matmul(noise, self.scale.T, precision="highest"), [noise]

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape (*sample_shape, p)."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log-density of a draw, whose noise is given."""
        assert intermediates
        widths = self.scale if self.scale.ndim == 1 else jnp.diagonal(self.scale)
        of_noise = dist.Normal(jnp.zeros_like(self.loc), 1.0, validate_args=False).log_prob(intermediates[0])
        return jnp.sum(of_noise - jnp.log(widths), -1)


class _LowerTriangles(type(constraints.scaled_unit_lower_cholesky)):  # pyright: ignore[reportGeneralTypeIssues]
    """NumPyro's constraint, for a map that knows the places of entries beforehand."""


class _ToLowerTriangles(ScaledUnitLowerCholeskyTransform):
    def __call__(self, x: Array) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Triangles with softplus of the last entries as diagonal, and its multiples of the others beside it."""
        size = self.forward_shape(x.shape)[-1]
        below = values_in_rows(x[..., :-size], size) if size > 1 else jnp.zeros((*x.shape[:-1], 1, 1), x.dtype)
        unit = jnp.where(np.tri(size, k=-1, dtype=bool), below, np.eye(size, dtype=x.dtype))
        return unit * jax.nn.softplus(x[..., -size:])[..., None]


biject_to.register(_LowerTriangles)(lambda _: _ToLowerTriangles())


class _DiagonalNormal(AutoDiagonalNormal):
    def _get_posterior(self) -> dist.Distribution:
        normal = super()._get_posterior()
        return _MovedNormal(normal.loc, normal.scale)


class _FullRankNormal(AutoMultivariateNormal):
    scale_tril_constraint = _LowerTriangles()

    def _get_posterior(self) -> dist.Distribution:
        loc = numpyro.param(f"{self.prefix}_loc", self._init_latent)
        first = jnp.identity(self.latent_dim) * self._init_scale
        scale = numpyro.param(f"{self.prefix}_scale_tril", first, constraint=self.scale_tril_constraint)
        return _MovedNormal(jnp.asarray(loc), jnp.asarray(scale))


GUIDES: dict[str, type[AutoGuide]] = {
    "normal": _DiagonalNormal,
    "full_rank": _FullRankNormal,
    "low_rank": AutoLowRankMultivariateNormal,
}
_MODEL_ARGUMENTS = "(x, num_components, family, prior)"


class Units(NamedTuple):
    """Where guides start in the flat vector, shape (p), and the unit of every coordinate, (p)."""

    loc: Float[Array, " p"]
    scale: Float[Array, " p"]


class Approximation(NamedTuple):
    """A model and the guide that approximates its posterior, both called with (target, units, tangent).

    With a `tangent` the rows of the target are a batch of those that it belongs to. The model is one of the flat vector
    in units of the posterior, or of the sites of `bayesgmm.model`.
    """

    model: Program
    guide: Program
    in_units: bool


def _log_likelihood(mixture: Mixture, target: Target, tangent: Tangent | None) -> Array:
    if tangent is None:
        return log_likelihood_of_rows(mixture, target.rows, target.prepared)
    return log_likelihood_of_batch(mixture, target.rows, tangent)


def coordinates(target: Target, units: Units, tangent: Tangent | None = None) -> Array:
    """The flat vector in units of the posterior, without a density: all of the model that a guide is made of."""
    flat = dist.Normal(jnp.zeros_like(units.loc), 1.0).to_event(1).mask(False)
    return jnp.asarray(numpyro.sample("vector", flat))


def target_in_units(target: Target, units: Units, tangent: Tangent | None = None) -> None:
    """The target density as a NumPyro model of the flat vector in units of the posterior."""
    vector = units.loc + units.scale * coordinates(target, units)
    mixture, log_prior = target.mixture_and_log_prior(vector)
    density = log_prior + _log_likelihood(mixture, target, tangent)
    numpyro.factor("density", density + jnp.log(units.scale).sum())


def target_of_sites(target: Target, units: Units, tangent: Tangent | None = None) -> None:
    """The target density in the sites of `bayesgmm.model`, for guides that sample these."""
    mixture = mixture_of_sites(sample_sites(target.num_components, target.family, target.prior), target.family)
    numpyro.factor("x", _log_likelihood(mixture, target, tangent))


def parameters_at_start(guide: str, rank: int | None, around: NormalApproximation, units: Units) -> dict[str, Array]:
    """Parameters of a guide with a name: centred on the mode, as correlated as the Laplace approximation.

    Correlations that have to be found by gradients alone take long where they are strong.
    """
    dtype = units.loc.dtype
    parameters = {"auto_loc": np.zeros(len(units.loc))}
    if around.root.ndim == 2 and guide != "normal":
        root = around.root / np.asarray(units.scale, np.float64)[:, None]
        vectors, deviations, _ = np.linalg.svd(root)  # largest first
        if guide == "full_rank":
            parameters["auto_scale_tril"] = np.linalg.cholesky(root @ root.T)
        else:
            # NumPyro's covariance is D (I + W W^T) D: probabilistic principal components (Tipping & Bishop 1999).
            size = len(deviations)
            rank = min(rank or round(size**0.5), size)
            variances = deviations**2
            least = variances[-1] if rank == size else variances[rank:].mean()
            parameters["auto_scale"] = np.full(size, np.sqrt(least))
            excess = np.maximum(variances[:rank] / least - 1.0, 1e-2)
            parameters["auto_cov_factor"] = vectors[:, :rank] * np.sqrt(excess)
    return {name: jnp.asarray(value, dtype) for name, value in parameters.items()}


def units_of(around: NormalApproximation, dtype: jnp.dtype) -> Units:
    """Units in which the curvature along every coordinate is 1."""
    root = around.root
    scale = root if root.ndim == 1 else 1.0 / np.sqrt(np.square(np.linalg.inv(root)).sum(0))
    return Units(jnp.asarray(around.mode, dtype), jnp.asarray(scale, dtype))


def check_guide(name: str, guide: object) -> object:
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


def approximation_by(guide: str | Program, rank: int | None = None) -> Approximation:
    """The model whose sites the guide samples, and a guide that has not seen it yet.

    Raises:
        InputError: for a function that makes no guide of the model.
    """
    options: dict[str, Any] = {"init_loc_fn": init_to_feasible, "init_scale": 1.0}  # feasible: at 0
    if isinstance(guide, str):
        options |= {} if rank is None else {"rank": rank}
        return Approximation(target_in_units, GUIDES[guide](coordinates, **options), in_units=True)
    if isinstance(guide, AutoGuide) or not _makes_guides(guide):
        own = copy.copy(guide) if isinstance(guide, AutoGuide) else guide

        def on_sites(target: Target, *_: Any) -> Any:
            return own(target.rows.values, target.num_components, target.family, target.prior)

        return Approximation(target_of_sites, on_sites, in_units=False)
    already = getattr(guide, "keywords", {})
    taken = {name for name in inspect.signature(guide).parameters if name in options and name not in already}
    made = guide(target_in_units, **{name: options[name] for name in taken})
    if not callable(made):
        raise InputError(f"guide={short_repr(guide)} made {short_repr(made)} of the model, which is no guide")
    return Approximation(target_in_units, made, in_units=True)


def _makes_guides(guide: Program) -> bool:
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
        f"guide={short_repr(guide)} takes neither {_MODEL_ARGUMENTS}, as a guide does, nor a model, as a class of them "
        "does"
    )


@matching_precision
def check_sites(guide: Program, problem: Problem) -> None:
    """Check what a user-supplied guide samples, without computing anything.

    Raises:
        InputError: naming the sites that are missing or too many; for a guide that cannot be run, and for a point.
    """

    def look(rows: Rows, prior: AnyPrior) -> None:
        found, target = approximation_by(guide), Target(rows, prior, problem.num_components, problem.family)
        units = Units(jnp.zeros(target.size, rows.dtype), jnp.ones(target.size, rows.dtype))
        sites = trace(seed(found.model, jax.random.key(0))).get_trace(target, units)
        try:
            guided = trace(seed(found.guide, jax.random.key(0))).get_trace(target, units)
        except Exception as error:
            raise InputError(
                f"guide={short_repr(guide)} cannot be run with {_MODEL_ARGUMENTS}; mend it: {type(error).__name__}: "
                f"{' '.join(str(error).splitlines()[:1])}"
            ) from error
        _compare_sites(guide, sites, guided)

    jax.eval_shape(look, *jax.tree.map(jnp.asarray, (problem.rows.at(np.arange(2)), problem.prior)))


def _compare_sites(guide: Program, sites: dict[str, Any], guided: dict[str, Any]) -> None:
    wanted = {name for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]}
    sampled = {name: site for name, site in guided.items() if site["type"] == "sample"}
    own = {name for name, site in sampled.items() if not site["infer"].get("is_auxiliary")}
    if own != wanted:
        raise InputError(
            f"guide={short_repr(guide)} samples {', '.join(sorted(own)) or 'nothing'}; it must sample the sites of "
            f"bayesgmm.model for this family and prior, which are {', '.join(sorted(wanted))}"
        )
    if all(_is_point(site["fn"]) for site in sampled.values()):
        raise InputError(
            f"guide={short_repr(guide)} is a point and has no density; use fit_map, or a guide such as 'full_rank'"
        )


def _is_point(fn: dist.Distribution) -> bool:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)
