"""Pictures of fitted mixtures: each function draws on the axes `ax` that it is given, or on new ones, and returns them.

New axes are in a figure of pyplot's, so that notebooks and `pyplot.show()` show it. Where a picture takes several
panels, `ax` and what is returned are arrays of axes. No setting of matplotlib is changed.

What each shows:

* the rows and the mixture: `plot_assignments`, `plot_partitions` (beside k-means), `plot_density_contours`,
  `plot_density_slice`, `plot_density_with_slice`, `plot_posterior_ellipses`;
* the certainty of assignments: `plot_responsibility_bars`, `plot_responsibility_heatmap`,
  `plot_responsibility_uncertainty`, `plot_assignment_entropy`, `plot_similarity_matrix`;
* how many components: `plot_criteria`, `plot_loo_over_k`, `plot_num_components`, `plot_occupied_components`;
* the engines: `plot_restarts`, `plot_traces`, `plot_elbo`, `plot_posterior_parameters`, `plot_parameter_forest`; by
  ArviZ `plot_chain_traces`, `plot_chain_ranks`;
* the model: `plot_prior_predictive`; by ArviZ `plot_posterior_predictive`, `plot_pareto_k`.

Clusters are numbered from 0, as `Mixture.predict` numbers them, and keep one colour and one marker in every figure.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
