"""Euclidean distances between grouped kernels."""

from __future__ import annotations

import math

import numpy as np

from gkp.search.compiled.how import compiled

TILE = 64  # vectors that are compared with all others in a row


@compiled
def distances(vectors: np.ndarray) -> np.ndarray:
    """Euclidean distances (n, n) between vectors (n, d), exactly 0 between equal ones."""
    count, length = vectors.shape
    matrix = np.zeros((count, count))
    for tile in range(0, count, TILE):  # of vectors that stay in a core's cache
        for one in range(tile + 1, count):
            for other in range(tile, min(tile + TILE, one)):
                squares = 0.0
                for place in range(length):
                    difference = vectors[one, place] - vectors[other, place]
                    squares += difference * difference
                matrix[one, other] = matrix[other, one] = math.sqrt(squares)
    return matrix
