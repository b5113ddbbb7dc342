"""Find the code of a whole mesh: `python -m model.training.encode checkpoints/chairs chair.ply chair.glb`.

Prints the nearest training shapes and how well the decoded shape agrees with the mesh, and writes it, in the
mesh's own frame. With `--to other.ply` the way from one to the other is written as an animated GLB. The
mesh must be upright (y up, front +z); it need not be watertight.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from model.checkpoint import BadCheckpoint, Checkpoint, load_checkpoint
from model.codes import between, decode, encode_samples, nearest_shapes
from model.frame import Normalization, Similarity
from model.mesh import animated_glb, export, to_trimesh
from model.metrics import compare
from model.training.recipe import SamplesRecipe
from model.training.samples import draw_points, read_normalised
from model.training.signs import Solid

POINTS = 24_000


def encode_mesh(checkpoint: Checkpoint, file: Path, seed: int = 0) -> tuple[Tensor, Normalization]:
    """The code (L,) of a mesh file, and the way from its frame into the canonical one."""
    triangles, normalization = read_normalised(file)
    recipe = SamplesRecipe(skin=checkpoint.skin, points=POINTS, variants=0)
    points = draw_points(triangles, recipe, np.random.default_rng(seed))
    distances: NDArray[np.float64] = Solid(triangles).signed_distance(points)
    return encode_samples(checkpoint, points, distances), normalization


def main(arguments: Sequence[str] | None = None) -> int:
    """Encode one mesh, or two and what lies between."""
    parser = argparse.ArgumentParser(prog="python -m model.training.encode", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("mesh", type=Path, help="PLY of a whole shape")
    parser.add_argument("output", type=Path, help="GLB to write")
    parser.add_argument("--to", type=Path, help="another PLY: write the way there, animated")
    parser.add_argument("--steps", type=int, default=12, help="shapes on the way, both ends among them")
    parser.add_argument("--resolution", type=int, default=128)
    options = parser.parse_args(arguments)
    try:
        checkpoint = load_checkpoint(options.checkpoint)
    except BadCheckpoint as error:
        parser.exit(1, f"{error}\n")
    code, normalization = encode_mesh(checkpoint, options.mesh)
    _tell(checkpoint, code, options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.to is None:
        made = decode(checkpoint, code, options.resolution)
        back = Similarity(1 / normalization.scale, np.eye(3), -normalization.offset)
        options.output.write_bytes(export(made.moved(back), "glb"))
    else:
        last, _ = encode_mesh(checkpoint, options.to)
        codes = between(code, last, options.steps)
        options.output.write_bytes(animated_glb([decode(checkpoint, z, options.resolution) for z in codes]))
    return 0


def _tell(checkpoint: Checkpoint, code: Tensor, options: argparse.Namespace) -> None:
    true, _ = read_normalised(options.mesh)
    body = trimesh.Trimesh(true.reshape(-1, 3), np.arange(3 * len(true)).reshape(-1, 3), process=False)
    figures = compare(to_trimesh(decode(checkpoint, code, options.resolution)), body).to_dict()
    console = Console()
    console.print(
        f"Chamfer distance x10^3 {figures['chamfer']:.2f}, completeness {figures['completeness']:.2f}"
    )
    for near in nearest_shapes(checkpoint, code):
        console.print(f"{near.distance:6.2f}  {near.shape}")


if __name__ == "__main__":
    raise SystemExit(main())
