r"""Priors on the parameters of a mixture.

The weakly informative prior, scaled from the data so that the units of a feature do not matter:

$$ w \sim \mathrm{Dirichlet}(\alpha), \quad \mu_{jl} \sim \mathcal N(m_l, s_l^2), \quad
   \log \sigma_{jl} \sim \mathcal N(\log t_l, \tau^2), \quad R_j \sim \mathrm{LKJ}(\eta), $$

with $\Sigma_j = \operatorname{diag}(\sigma_j) R_j \operatorname{diag}(\sigma_j)$. The log-normal scales vanish at zero
faster than any power, so a component cannot collapse onto a row: the posterior density is bounded, which it is not
under a half-normal or half-Cauchy scale.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bayesgmm.checks import as_rows, real_array, shown, whole_number
from bayesgmm.errors import InputError
from bayesgmm.precision import AnyArray, is_traced


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "concentration",
        "mean_loc",
        "mean_scale",
        "scale_median",
        "scale_sigma",
        "correlation_concentration",
        "column_mean",
        "column_scale",
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class Prior:
    """Numbers of the weakly informative prior; a pytree, so another number is not another compilation.

    Attributes:
        concentration: Dirichlet parameter of the weights, one for each component, shape (k).
        mean_loc: prior mean of the component means, in the units of the data, shape (d).
        mean_scale: prior standard deviation of the component means, in the units of the data, shape (d).
        scale_median: prior median of a component's standard deviation along each feature, shape (d).
        scale_sigma: standard deviation of the logarithm of those standard deviations, ().
        correlation_concentration: LKJ concentration; 1 is uniform over correlation matrices, larger favours none, ().
        column_mean: where the data lie, shape (d): the origin from which engines measure component means.
        column_scale: how wide the data are, shape (d): the unit in which engines measure them. Both are coordinates,
            no part of what the prior assumes: step sizes fit the data however vague the prior is.
    """

    concentration: Float[AnyArray, " k"]
    mean_loc: Float[AnyArray, " d"]
    mean_scale: Float[AnyArray, " d"]
    scale_median: Float[AnyArray, " d"]
    scale_sigma: Float[AnyArray, ""]
    correlation_concentration: Float[AnyArray, ""]
    column_mean: Float[AnyArray, " d"]
    column_scale: Float[AnyArray, " d"]

    def describe(self, feature_names: Any = None) -> str:
        """What the prior assumes, in words and numbers."""
        names = feature_names or [f"x{index}" for index in range(len(self.mean_loc))]
        spread = float(np.exp(1.96 * np.asarray(self.scale_sigma)))
        lines = [f"weights       Dirichlet({', '.join(f'{value:g}' for value in np.asarray(self.concentration))})"]
        for name, loc, scale in zip(names, self.mean_loc, self.mean_scale, strict=True):
            lines.append(f"means         Normal, {name}: mean {loc:.4g}, sd {scale:.4g}")
        for name, median in zip(names, self.scale_median, strict=True):
            interval = f"95% between {median / spread:.3g} and {median * spread:.3g}"
            lines.append(f"scales        LogNormal, {name}: median {median:.4g}, {interval}")
        lines.append(f"correlations  LKJ({float(self.correlation_concentration):g}), where a family has them")
        return "\n".join(lines)


def default_prior(
    x: Any,
    num_components: int,
    *,
    concentration: Any = 2.0,
    mean_loc: Any = None,
    mean_scale: Any = None,
    scale_median: Any = None,
    scale_sigma: Any = 1.0,
    correlation_concentration: Any = 2.0,
) -> Prior:
    r"""The weakly informative prior for rows x (n, d), with any of its numbers set by the caller.

    Defaults: means are centred on the column means with twice the columns' standard deviations; the median scale of a
    component is the column's standard deviation divided by $k^{1/d}$, so that k components of that size fill the
    volume of the data (the choice of Fraley & Raftery 2007, section 3, for their inverse-Wishart scale).

    Raises:
        InputError: for a number out of range or of a shape that fits neither k nor d.
    """
    x = as_rows(x)
    num_features = x.shape[1]
    num_components = whole_number("num_components", num_components)
    array = jnp if is_traced(x) else np
    dtype = x.dtype
    loc, sd = x.mean(0), x.std(0)

    by_feature = (num_features,)
    return Prior(
        concentration=prior_number("concentration", concentration, (num_components,), dtype),
        mean_loc=prior_number("mean_loc", loc if mean_loc is None else mean_loc, by_feature, dtype, positive=False),
        mean_scale=prior_number("mean_scale", 2.0 * sd if mean_scale is None else mean_scale, by_feature, dtype),
        scale_median=prior_number(
            "scale_median",
            sd / num_components ** (1 / num_features) if scale_median is None else scale_median,
            by_feature,
            dtype,
        ),
        scale_sigma=array.asarray(prior_number("scale_sigma", scale_sigma, (), dtype)),
        correlation_concentration=array.asarray(
            prior_number("correlation_concentration", correlation_concentration, (), dtype)
        ),
        column_mean=loc,
        column_scale=sd,
    )


def prior_number(name: str, value: Any, shape: tuple[int, ...], dtype: Any, *, positive: bool = True) -> Any:
    """A number of a prior, or an array of them, as an array of this shape.

    Raises:
        InputError: for another shape, or values that are not finite or, where they must be, not positive.
    """
    given = real_array(value, f"prior {name}")
    if given.shape not in ((), shape):
        expected = f"one number or an array of shape {shape}" if shape else "one number"
        raise InputError(f"prior {name} has shape {given.shape}; give {expected}")
    if is_traced(given):
        return jnp.broadcast_to(given, shape)
    given = np.asarray(given, dtype)
    if not np.isfinite(given).all() or (positive and (given <= 0).any()):
        raise InputError(f"prior {name}={shown(value)} must be finite{' and greater than 0' if positive else ''}")
    return np.broadcast_to(given, shape)
