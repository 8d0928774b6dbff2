"""Gaussian mixtures by EM, MAP, variational inference and MCMC, on one shared likelihood."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
