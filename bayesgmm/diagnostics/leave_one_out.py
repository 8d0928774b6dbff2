"""Leave-one-out cross-validation and sensitivity to the prior, by ArviZ, of the trees of `to_datatree`."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.errors import InputError
from bayesgmm.numerics.thresholds import MIN_DRAWS, pareto_k_limit
from bayesgmm.numerics.words import counted
from bayesgmm.runtime.printing import Lines, Printable
from bayesgmm.runtime.progress import waited_for

if TYPE_CHECKING:
    from arviz_stats.utils import ELPDData
    from pandas import DataFrame
    from xarray import DataTree


@dataclass(frozen=True)
class Loo(Printable):
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling.

    Attributes:
        elpd: expected log pointwise predictive density; larger is better.
        se: its standard error.
        p: effective number of parameters.
        max_pareto_k: largest Pareto k of a row's importance weights.
        num_bad: number of rows whose term is unreliable: their Pareto k is above `pareto_k_limit` of so many draws.
    """

    elpd: float
    se: float
    p: float
    max_pareto_k: float
    num_bad: int

    def shown(self) -> tuple[str, Lines]:
        """The density, its error, and whether it can be relied on."""
        bad = f"; {counted(self.num_bad, 'row')} unreliable" if self.num_bad else ""
        lines = [("effective parameters", f"{self.p:.1f}"), ("largest Pareto k", f"{self.max_pareto_k:.2f}{bad}")]
        return f"Leave-one-out: ELPD {self.elpd:.1f} ± {self.se:.1f}, larger is better", lines


def num_draws(tree: "DataTree") -> int:
    """Draws of all chains in the posterior of a tree.

    Raises:
        InputError: for what is no tree, or has no posterior.
    """
    if "posterior" not in getattr(tree, "children", ()):
        raise InputError(f"tree must be a DataTree of to_datatree; got {type(tree).__name__}")
    return tree.posterior.sizes["chain"] * tree.posterior.sizes["draw"]


def _not_finite(tree: "DataTree", *groups: str) -> int:
    """In how many draws some log-density of these groups, or of an approximation, is infinite or NaN."""
    stats = tree["sample_stats"] if "sample_stats" in tree.children else {}
    values = [stats[name] for name in ("log_p", "log_q") if "log_q" in stats]
    values += [value for group in groups for value in tree[group].data_vars.values()]
    each = [np.isfinite(np.asarray(value)).reshape(num_draws(tree), -1).all(1) for value in values]
    return int((~np.logical_and.reduce(each)).sum())


def _check_draws(tree: "DataTree", name: str, *groups: str) -> None:
    """Refuse draws that have no importance weights, or too few to smooth."""
    number = num_draws(tree)
    if number < MIN_DRAWS:
        raise InputError(
            f"{name} has a posterior of {number} draws, and importance weights need at least {MIN_DRAWS:g}; give one "
            "by fit_nuts or fit_vi"
        )
    if (bad := _not_finite(tree, *groups)) > 0:
        raise InputError(
            f"{name} has log-densities ({', '.join(groups)}) that are infinite or NaN in {bad} of {number} draws, so "
            "it has no importance weights; see how the fit ended by diagnose"
        )


@waited_for("leave-one-out")
def loo(tree: "DataTree") -> Loo | None:
    """Estimate the PSIS-LOO of a posterior by ArviZ, from its pointwise log-likelihoods.

    None for a point estimate, and for fewer than 25 draws in all: too few large weights to fit a Pareto distribution
    to. NaN, and all rows unreliable, where a log-likelihood is not finite.

    For draws from a variational approximation, the importance weights also correct for the approximation (they use
    the draws' `log_p` and `log_q`).

    Source: Vehtari, Gelman & Gabry (2017); Magnusson et al. (2019) for approximate posteriors.
    """
    if num_draws(tree) < MIN_DRAWS:
        return None
    if _not_finite(tree, "log_likelihood"):
        return Loo(np.nan, np.nan, np.nan, np.inf, tree.observed_data.sizes["row"])
    result = pointwise_loo(tree)
    pareto_k = np.asarray(result.pareto_k)
    num_bad = int((pareto_k > pareto_k_limit(num_draws(tree))).sum())
    return Loo(float(result.elpd), float(result.se), float(result.p), float(pareto_k.max()), num_bad)


@waited_for("leave-one-out")
def compare_loo(trees: Mapping[str, "DataTree"]) -> "DataFrame":
    """Rank posteriors of the same rows by PSIS-LOO and `arviz.compare`, best first: over k, families, priors, engines.

    Columns are those of ArviZ: `rank`, `elpd`, `p`, `elpd_diff` to the best, `weight` in the stacked predictive
    density, `se`, `dse` of the difference, `warning` where a Pareto k is too large; and `engine`, `family`,
    `num_components`, and `result`, so that a fit that failed is not mistaken for one that did not.

    Args:
        trees: trees of `to_datatree` by name, all of the same rows and with draws.

    Raises:
        InputError: for fewer than two trees, one of a point estimate or with log-likelihoods that are not finite, or
            trees of different rows.

    Source: Vehtari, Gelman & Gabry (2017); Yao et al. (2018), Using stacking to average Bayesian predictive
    distributions.
    """
    import arviz

    if len(trees) < 2:
        raise InputError(f"trees has {len(trees)} posteriors; give at least two to compare")
    first = None
    for name, tree in trees.items():
        _check_draws(tree, f"trees[{name!r}]", "log_likelihood")
        x = np.asarray(tree.observed_data["x"])
        first = x if first is None else first
        if not np.array_equal(x, first):
            raise InputError(f"trees[{name!r}] is of other rows than the first; compare fits of the same rows")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the column `warning` reports the same
        # As they are: rounded weights, as ArviZ gives by default, do not add up to 1.
        table = arviz.compare({name: pointwise_loo(tree) for name, tree in trees.items()}, round_to="none")
    for attribute in ("engine", "family", "num_components", "result"):
        table[attribute] = [trees[name].attrs[attribute] for name in table.index]
    return table


def pointwise_loo(tree: "DataTree") -> "ELPDData":
    """ArviZ's own result with the term of every row, in which draws of an approximation are corrected for.

    Raises:
        InputError: for fewer than 25 draws, and for log-likelihoods that are not finite.
    """
    import arviz

    _check_draws(tree, "tree", "log_likelihood")

    with warnings.catch_warnings():
        # High Pareto k is reported by number in place of a warning.
        warnings.simplefilter("ignore")
        stats = tree["sample_stats"] if "sample_stats" in tree.children else {}
        if "log_q" in stats:
            return arviz.loo_approximate_posterior(
                tree, log_p=stats["log_p"], log_q=stats["log_q"], pointwise=True, var_name="x"
            )
        return arviz.loo(tree, pointwise=True, var_name="x")  # pyright: ignore[reportReturnType]


@waited_for("sensitivity to the prior")
def prior_sensitivity(tree: "DataTree", *, var_names: Sequence[str] | None = None, **settings: Any) -> "DataFrame":
    r"""Estimate how much the posterior moves when the prior, or the likelihood, is raised to a power near 1, by ArviZ.

    A row for every parameter, with the sensitivities to `prior` and `likelihood` and a `diagnosis`. Above 0.05 both:
    prior and data are in conflict; the prior alone: it is strong, or the likelihood is weak; else a check mark.

    Args:
        tree: a tree of `to_datatree`, with draws.
        var_names: variables of the posterior, by default weights, means, scales and their rate, where they vary.
        settings: further arguments of `arviz.psense_summary`, such as `prior_var_names=["means"]`, which scales the
            prior of the means only.

    Raises:
        InputError: for a tree of a point estimate or of fewer than 25 draws, without the log prior density, of draws
            renumbered under a prior that distinguishes components, or with log-densities that are not finite.

    Source: Kallioinen et al. (2024), Detecting and diagnosing prior and likelihood sensitivity with power-scaling.
    """
    import arviz

    num_draws(tree)
    if "log_prior" not in tree.children:
        raise InputError("tree has no group log_prior; make it with to_datatree, which is given the prior")
    if number := tree.attrs.get("relabelled"):
        raise InputError(
            f"tree has {number} draws that were renumbered under a prior that distinguishes components, so their prior "
            "density is not the one they were drawn with; take equal concentrations and no stick_breaking"
        )
    _check_draws(tree, "tree", "log_prior", "log_likelihood")
    posterior = tree.posterior
    if var_names is None:  # the only weight of one component does not vary
        names = [name for name in ("weights", "means", "scales", "scale_rate") if name in posterior]
        var_names = [name for name in names if bool((posterior[name].std(("chain", "draw")) > 0).all())]
    logger = logging.getLogger("arviz_stats.psense")
    logger.addFilter(_is_news)
    try:
        return arviz.psense_summary(tree, var_names=list(var_names), **settings)
    finally:
        logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message of ArviZ's is more than a hint at the column `diagnosis`."""
    return not record.getMessage().startswith("We detected potential issues")
