"""Which kernels stay: the paper's method, in PyTorch and NumPy; SciPy and Numba where they serve."""

from gkp.search.selection import GROUPINGS, STRATEGIES, Selection, check_rate, select

__all__ = ["GROUPINGS", "STRATEGIES", "Selection", "check_rate", "select"]
