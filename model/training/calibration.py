"""Do the deviations come true? Shares of the true surface within so many standard deviations of the mesh."""

from __future__ import annotations

from collections.abc import Sequence
from math import erf, sqrt
from pathlib import Path

import numpy as np
import trimesh

from model.mesh import Mesh, distances_to
from model.metrics import sample_surface

LEVELS = (0.5, 1.0, 1.5, 2.0, 3.0)
"""Standard deviations at which coverage is counted."""

NOMINAL = tuple(erf(level / sqrt(2)) for level in LEVELS)
"""What a Gaussian promises: 0.68 within one, 0.95 within two."""

POINTS = 3000


def coverage(mesh: Mesh, true: trimesh.Trimesh) -> list[float]:
    """Share of the true surface within each of `LEVELS` deviations of the mesh, both in one frame.

    The deviation is that of the nearest vertex: whatever the mesh lacks counts as missed, though the
    deviation speaks only of how far the mesh may be off along its normal.
    """
    assert mesh.deviation is not None
    points, _ = sample_surface(true, POINTS, seed=3)
    distance, nearest = distances_to(mesh, points)
    return [float((distance <= level * mesh.deviation[nearest]).mean()) for level in LEVELS]


def draw_reliability(coverages: Sequence[Sequence[float]], file: Path) -> None:
    """Write a PNG of promised against found shares: the mean over completions and their middle half."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = np.array(coverages)
    figure, axes = plt.subplots(figsize=(4, 4), dpi=110)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="as promised")
    axes.fill_between(NOMINAL, *np.quantile(found, [0.25, 0.75], axis=0), alpha=0.25, label="middle half")
    axes.plot(NOMINAL, found.mean(axis=0), marker="o", label="mean over completions")
    for level, promised, share in zip(LEVELS, NOMINAL, found.mean(axis=0), strict=True):
        axes.annotate(
            f"{level:g} σ", (promised, share), textcoords="offset points", xytext=(6, -10), fontsize=8
        )
    axes.set(xlabel="share promised", ylabel="share of the true surface within", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left", fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)
