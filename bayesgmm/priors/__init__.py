"""Priors on the parameters of a mixture."""
