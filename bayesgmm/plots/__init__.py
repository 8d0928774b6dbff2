"""Figures of fitted mixtures: each function returns a matplotlib `Figure` and never touches pyplot's state.

Clusters are numbered from 0, as `Mixture.predict` numbers them, and keep one colour and one marker in every figure.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
