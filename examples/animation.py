"""The README's moving picture: the example scan turns and becomes a mesh: `python examples/animation.py`.

Writes docs/images/animation.webp (or --output). Needs the extra `train`, whose pictures it uses; no screen.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image

from model.training.pictures import BACKGROUND, bounds_of, render
from worker import local

HERE = Path(__file__).resolve().parent
ELEVATION = 18.0
FRAME_MS = 60
SCAN, RISE, TURN = 18, 24, 54  # frames: the scan alone, the mesh growing out of it, the mesh alone
START = 35.0  # degrees, from the sensor's side
Picture = NDArray[np.uint8]


def main() -> int:
    """Returns 0 with the picture written, else what the completion returned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "images" / "animation.webp")
    parser.add_argument("--mesh", type=Path, help="a completion of the chair; unless given, it is made here")
    parser.add_argument("--size", type=int, default=400, help="pixels of a side")
    given = parser.parse_args()
    scan = np.asarray(trimesh.load(HERE / "chair.ply").vertices)
    with TemporaryDirectory() as folder:
        mesh = given.mesh or Path(folder) / "chair.ply"
        if given.mesh is None and (code := complete(mesh)):
            return code
        frames = draw(scan, trimesh.load(mesh, force="mesh"), given.size)
    first, *rest = [Image.fromarray(frame) for frame in frames]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    how = {"duration": FRAME_MS, "loop": 0, "quality": 72, "method": 4}
    first.save(given.output, save_all=True, append_images=rest, **how)
    print(f"{given.output}: {len(frames)} frames, {given.output.stat().st_size / 1e6:.2f} MB")
    return 0


def complete(mesh: Path) -> int:
    """The chair completed as the demo does, without a server."""
    viewpoint = json.loads((HERE / "chair.json").read_text())["viewpoint"]
    return local.main([str(HERE / "chair.ply"), str(mesh), "--viewpoint", json.dumps(viewpoint)])


def draw(scan: NDArray[np.float64], mesh: trimesh.Trimesh, size: int) -> list[Picture]:
    """All frames; the camera goes around once and ends where it began."""
    box = bounds_of([mesh])
    count = SCAN + RISE + TURN
    angles = START + 360 * np.arange(count) / count
    frames = []
    for number, angle in enumerate(angles):
        low, high = mesh.bounds[:, 1]
        height = low + np.clip((number - SCAN) / RISE, 0, 1.001) * (high - low)
        body = render(below(mesh, height), angle, ELEVATION, size, bounds=box)
        points = render(scan[scan[:, 1] > height], angle, ELEVATION, size, bounds=box)
        frames.append(over(body, points))
    return frames


def below(mesh: trimesh.Trimesh, height: float) -> trimesh.Trimesh:
    """The lower part of a mesh."""
    return trimesh.Trimesh(mesh.vertices, mesh.faces[mesh.triangles_center[:, 1] <= height], process=False)


def over(body: Picture, points: Picture) -> Picture:
    """Points drawn over a picture of the mesh, from which they rise."""
    drawn = (points.astype(int) != np.array(BACKGROUND)).any(axis=2)[..., None]
    return np.where(drawn, points, body)


if __name__ == "__main__":
    sys.exit(main())
