"""Grouped kernel pruning: SR-GKP, its predecessor, and other stages and kernels than the published."""
