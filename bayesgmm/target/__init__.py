"""The posterior density: the NumPyro model, its unconstrained coordinates, its normal approximation."""
