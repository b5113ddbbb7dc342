"""Nearest neighbours, found on as many cores as torch may use: what limits the one limits the other."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree


def nearest(
    tree: cKDTree, points: ArrayLike, count: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distances and numbers of the tree's points nearest to (N, 3) points: (N, count), or (N,) of one."""
    distances, numbers = tree.query(points, k=count, workers=torch.get_num_threads())
    return np.asarray(distances), np.asarray(numbers)
