"""Pictures of fitted mixtures: each function draws on the axes `ax` that it is given, or on new ones, and returns them.

New axes are in a figure of pyplot's, so that notebooks and `pyplot.show()` show it. Where a picture takes several
panels, `ax` and what is returned are arrays of axes. No setting of matplotlib is changed.

Clusters are numbered from 0, as `Mixture.predict` numbers them, and keep one colour and one marker in every figure.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
