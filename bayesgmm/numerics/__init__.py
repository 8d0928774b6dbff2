"""Arithmetic that knows nothing of mixtures: precision, checks of values, small triangular matrices, blocks of rows."""
