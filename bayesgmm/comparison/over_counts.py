"""The Bayesian answer beside the criteria: leave-one-out of one engine's fits over the numbers of components."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bayesgmm.comparison.plan import Plan, Run
from bayesgmm.diagnostics.datatree import to_datatree
from bayesgmm.diagnostics.leave_one_out import compare_loo, loo
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.runtime.progress import Listener

if TYPE_CHECKING:
    from xarray import DataTree


def loo_over_counts(
    plan: Plan,
    run: Run,
    optima: Mapping[int, Mixture],
    trees: Mapping[int, "DataTree"],
    failures: dict[str, BaseException],
    tell: Listener,
) -> pd.DataFrame | None:
    """Fit the run at each number of components that has an EM optimum and no tree yet, and compare all.

    What fails leaves its error in `failures`, by names such as "gibbs, k = 3". None where fewer than two are left.
    """
    made = dict(trees)
    for count, optimum in optima.items():
        if count in made:
            continue
        tell(f"{run.name}, k = {count}, for leave-one-out")
        prior, shared = plan.priors[count], {"family": plan.family, "on_failure": "ignore"}
        try:
            found = run(plan.rows, count, start=[optimum] if run.num_starts > 1 else optimum, prior=prior, **shared)
            x = np.asarray(plan.rows.values)
            made[count] = to_datatree(found, x, prior=prior, key=plan.tree_key, feature_names=plan.feature_names)
        except KeyboardInterrupt:
            tell("interrupted: leave-one-out of further numbers of components is left out")
            break
        except Exception as error:
            failures[f"{run.name}, k = {count}"] = error
    found = {count: one for count, tree in sorted(made.items()) if (one := loo(tree)) and np.isfinite(one.elpd)}
    if len(found) < 2:
        return None
    table = compare_loo({f"k = {count}": made[count] for count in found})
    counts = [int(count) for count in table["num_components"]]
    return table.assign(
        max_pareto_k=[found[count].max_pareto_k for count in counts], num_bad=[found[count].num_bad for count in counts]
    )
