"""The README's moving picture: the example scan turns and becomes a mesh: `python examples/animation.py`.

Points, then the coarse meshes of the fit as it went, then the mesh all around. Writes
docs/images/animation.webp (or --output). Needs the extra `train`, whose pictures it uses; no screen.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image

from model.checkpoint import load_checkpoint
from model.completion import Completer
from model.mesh import to_trimesh
from model.observation import View
from model.training.pictures import BACKGROUND, bounds_of, render

HERE = Path(__file__).resolve().parent
ELEVATION = 18.0
FRAME_MS = 60
SCAN, FIT, RISE, TURN = 14, 32, 20, 54
"""Frames: the scan alone, the fit under it, the mesh that takes its place from below, the mesh alone."""
START, SEEN = 20.0, 70.0
"""Degrees: where the camera begins, and how far it goes before the mesh is there: on the sensor's side."""
Picture = NDArray[np.uint8]


def main() -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "images" / "animation.webp")
    parser.add_argument("--size", type=int, default=400, help="pixels of a side")
    given = parser.parse_args()
    scan = np.asarray(trimesh.load(HERE / "chair.ply").vertices)
    first, *rest = [Image.fromarray(frame) for frame in draw(scan, *fitted(scan), given.size)]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    how = {"duration": FRAME_MS, "loop": 0, "quality": 72, "method": 4}
    first.save(given.output, save_all=True, append_images=rest, **how)
    print(f"{given.output}: {1 + len(rest)} frames, {given.output.stat().st_size / 1e6:.2f} MB")
    return 0


def fitted(scan: NDArray[np.float64]) -> tuple[list[trimesh.Trimesh], trimesh.Trimesh]:
    """The chair as it was fitted, and as it was completed."""
    viewpoint = np.array(json.loads((HERE / "chair.json").read_text())["viewpoint"])
    previews: list[trimesh.Trimesh] = []
    completer = Completer(load_checkpoint(HERE.parent / "checkpoints" / "chairs", "auto"))
    view = View(scan, viewpoint=viewpoint)
    done = completer.complete(view, on_preview=lambda mesh, _: previews.append(to_trimesh(mesh)))
    return previews, to_trimesh(done.mesh)


def draw(
    scan: NDArray[np.float64], fit: list[trimesh.Trimesh], mesh: trimesh.Trimesh, size: int
) -> list[Picture]:
    """All frames; the camera goes around once and ends where it began."""
    box, (low, high) = bounds_of([mesh]), mesh.bounds[:, 1]
    early, late = SCAN + FIT, RISE + TURN
    angles = [*np.linspace(0, SEEN, early, endpoint=False), *np.linspace(SEEN, 360, late, endpoint=False)]
    frames = []
    for number, angle in enumerate(angles):
        height = low + np.clip((number - early) / RISE, 0, 1.001) * (high - low)
        bodies = [below(mesh, height)]
        if SCAN <= number < early and fit:
            bodies = [fit[(number - SCAN) * len(fit) // FIT]]
        if early <= number < early + RISE and fit:
            bodies.append(above(fit[-1], height))
        body = render(trimesh.util.concatenate(bodies), START + angle, ELEVATION, size, bounds=box)
        seen = scan if number < SCAN else scan[::12]  # few enough to show the fit
        points = render(seen[seen[:, 1] > height], START + angle, ELEVATION, size, bounds=box)
        frames.append(over(body, points))
    return frames


def below(mesh: trimesh.Trimesh, height: float) -> trimesh.Trimesh:
    """The lower part of a mesh."""
    return trimesh.Trimesh(mesh.vertices, mesh.faces[mesh.triangles_center[:, 1] <= height], process=False)


def above(mesh: trimesh.Trimesh, height: float) -> trimesh.Trimesh:
    """The upper part of a mesh."""
    return trimesh.Trimesh(mesh.vertices, mesh.faces[mesh.triangles_center[:, 1] > height], process=False)


def over(body: Picture, points: Picture) -> Picture:
    """Points drawn over a picture of the mesh."""
    drawn = (points.astype(int) != np.array(BACKGROUND)).any(axis=2)[..., None]
    return np.where(drawn, points, body)


if __name__ == "__main__":
    sys.exit(main())
