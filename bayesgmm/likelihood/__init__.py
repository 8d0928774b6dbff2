"""Rows, and the one pass over them: expected moments, the shared log-likelihood, their derivatives."""
