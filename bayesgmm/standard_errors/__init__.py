"""Standard errors and intervals of maximum-likelihood fits."""
