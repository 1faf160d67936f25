"""Grouped kernel pruning beyond the published: other stages, other kernels."""
