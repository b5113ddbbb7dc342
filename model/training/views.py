"""Virtual depth camera: what a sensor at one place would see of a mesh, ray by ray (Embree).

`python -m model.training.views SHAPE OUT` writes such a view as a scan to try; see examples/README.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import trimesh
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from model.training.meshes import write_ply
from model.training.shapes import Shape, SourceError, read_shapes

Floats = NDArray[np.float64]

GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))
LOWEST, HIGHEST = 10.0, 50.0  # degrees of elevation from which a person holds a sensor
DISTANCE = 2.5  # radii of the shape
MILLIMETRES = 1000.0  # units of a 16-bit depth map in a metre


class Surface(Protocol):
    """Anything with triangles: `model.mesh.Mesh`, `trimesh.Trimesh`."""

    @property
    def vertices(self) -> Any: ...  # (V, 3)
    @property
    def faces(self) -> Any: ...  # (F, 3)


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole camera: focal lengths and principal point in pixels; pixel (0, 0) has its centre at (0, 0)."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in the world. It looks along its +z, its y points down the image."""

    intrinsics: Intrinsics
    camera_to_world: Floats  # (4, 4), rigid

    @property
    def eye(self) -> Floats:
        """Centre of projection (3,), world frame."""
        return self.camera_to_world[:3, 3]

    def rays(self) -> Floats:
        """Directions (H, W, 3), world frame, of depth one: eye + depth · ray is the point a pixel sees."""
        k = self.intrinsics
        x = (np.arange(k.width) - k.cx) / k.fx
        y = (np.arange(k.height) - k.cy) / k.fy
        grid = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 1.0), axis=-1)
        return grid @ self.camera_to_world[:3, :3].T

    def project(self, points: ArrayLike) -> tuple[Floats, Floats]:
        """Pixels (N, 2) as (column, row) and depths (N,) of points (N, 3) in the world frame."""
        k = self.intrinsics
        local = (np.asarray(points, float) - self.eye) @ self.camera_to_world[:3, :3]
        depth = local[:, 2]
        pixels = local[:, :2] / depth[:, None] * (k.fx, k.fy) + (k.cx, k.cy)
        return pixels, depth

    def unproject(self, depth: Floats) -> Floats:
        """Points (N, 3), world frame, of the finite pixels of a depth image (H, W), row by row."""
        seen = np.isfinite(depth)
        return self.eye + depth[seen][:, None] * self.rays()[seen]


@dataclass(frozen=True)
class View:
    """One partial scan, in the frame and unit of the mesh it was taken of."""

    points: Floats  # (N, 3)
    viewpoint: Floats  # (3,)
    background: Floats  # (M, 3) unit directions of the rays that met nothing
    depth: Floats  # (H, W) along the camera's axis; NaN where nothing was met
    intrinsics: Intrinsics
    camera_to_world: Floats  # (4, 4)


@dataclass(frozen=True)
class Hits:
    """First hits of rays: `distance` in lengths of the ray's direction (inf: none), `face` (-1: none)."""

    distance: Floats  # (...)
    face: NDArray[np.int64]  # (...)
    barycentric: Floats  # (..., 2) weights of the face's second and third corner


class Rays:
    """An Embree scene of one mesh, asked for the first hits of rays."""

    def __init__(self, mesh: Surface) -> None:
        vertices = np.asarray(mesh.vertices, float)
        # Embree counts in float32: near the origin it has the most digits.
        self._centre = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
        self._scene = EmbreeScene()
        TriangleMesh(
            scene=self._scene,
            vertices=(vertices - self._centre).astype(np.float32),
            indices=np.asarray(mesh.faces, np.int32),
        )

    def first_hits(self, eye: ArrayLike, directions: Floats) -> Hits:
        """First hits of rays from one eye (3,) along directions (..., 3) of any length."""
        flat = np.ascontiguousarray(directions.reshape(-1, 3), np.float32)
        origins = np.tile(np.float32(np.asarray(eye, float) - self._centre), (len(flat), 1))
        found = self._scene.run(origins, flat, output=True)
        shape = directions.shape[:-1]
        missed = found["primID"] < 0
        distance = np.where(missed, np.inf, found["tfar"].astype(float))
        barycentric = np.stack([found["u"], found["v"]], axis=-1).astype(float)
        return Hits(
            distance.reshape(shape),
            found["primID"].astype(np.int64).reshape(shape),
            barycentric.reshape(*shape, 2),
        )


def look_at(eye: ArrayLike, target: ArrayLike, up: ArrayLike = (0.0, 1.0, 0.0)) -> Floats:
    """Pose camera_to_world (4, 4) of a camera at `eye` that looks at `target`, `up` upwards in the image."""
    eye, up = np.asarray(eye, float), np.asarray(up, float)
    forward = np.asarray(target, float) - eye
    forward /= np.linalg.norm(forward)
    if np.linalg.norm(np.cross(forward, up)) < 1e-6 * np.linalg.norm(up):
        up = np.roll(up, 1)  # straight up or down: any other axis serves as up
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.column_stack([right, np.cross(forward, right), forward, eye])
    return pose


def depth_view(
    mesh: Surface,
    eye: ArrayLike,
    *,
    target: ArrayLike = (0.0, 0.0, 0.0),
    fov_degrees: float = 50.0,
    width: int = 320,
    height: int = 240,
    rng: np.random.Generator | None = None,
    noise: float = 0.0,
) -> View:
    """Simulate one frame of a depth sensor at `eye` (3,), in the mesh's frame.

    `fov_degrees` is the smaller of the two fields of view. `noise` is the standard deviation of a
    Gaussian on the inverse depth, in 1/unit of the mesh (DeepSDF's completion experiments); `rng` draws it.
    """
    size = min(width, height)
    focal = size / (2 * np.tan(np.radians(fov_degrees) / 2))
    intrinsics = Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2, width, height)
    camera = Camera(intrinsics, look_at(eye, target))
    rays = camera.rays()
    depth = Rays(mesh).first_hits(camera.eye, rays).distance
    missed = np.isinf(depth)
    depth = np.where(missed, np.nan, depth)
    if noise > 0.0:
        depth = with_inverse_depth_noise(depth, noise, rng or np.random.default_rng(0))
    background = rays[missed]
    background = background / np.linalg.norm(background, axis=1, keepdims=True)
    return View(camera.unproject(depth), camera.eye, background, depth, intrinsics, camera.camera_to_world)


def with_inverse_depth_noise(depth: Floats, noise: float, rng: np.random.Generator) -> Floats:
    """A depth image with Gaussian noise of this standard deviation on 1/depth, in 1/unit."""
    inverse = 1 / depth + rng.normal(scale=noise, size=depth.shape)
    # A sensor reports no depth rather than one behind itself.
    return 1 / np.where(inverse > 0, inverse, np.nan)


def viewpoint_at(
    azimuth: float, elevation: float, distance: float, target: ArrayLike = (0.0, 0.0, 0.0)
) -> Floats:
    """Place (3,) at angles in degrees around `target`; azimuth 0 is the front (+z), 90 is +x; y is up."""
    a, e = np.radians(azimuth), np.radians(elevation)
    direction = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    return np.asarray(target, float) + distance * direction


def viewpoints(count: int, seed: int, *, radius: float = 1.0) -> Floats:
    """Well-spread places (count, 3) of a hand-held sensor around a shape of `radius` at the origin, y up.

    Azimuths advance by the golden angle, elevations are stratified over 10 to 50 degrees, distance 2.5 radii.
    """
    rng = np.random.default_rng(seed)
    azimuths = np.degrees(rng.uniform(0, 2 * np.pi) + GOLDEN_ANGLE * np.arange(count))
    strata = (rng.permutation(count) + rng.uniform(size=count)) / max(count, 1)
    elevations = LOWEST + (HIGHEST - LOWEST) * strata
    places = [viewpoint_at(a, e, DISTANCE * radius) for a, e in zip(azimuths, elevations, strict=True)]
    return np.array(places).reshape(count, 3)


def write_points(shape: trimesh.Trimesh, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write OUT.ply, a point cloud seen from one place, and return what its JSON says of the view."""
    rng = np.random.default_rng(options.seed)
    view = _view(shape, shape, options, rng, width=960, height=720)
    count = min(options.points, len(view.points))
    points = view.points[np.sort(rng.choice(len(view.points), count, replace=False))]
    cloud = trimesh.PointCloud(points.astype(np.float32))
    write_ply(cloud, out.with_suffix(".ply"))
    return {"scan": f"{out.name}.ply", "viewpoint": view.viewpoint.round(6).tolist()}


def write_depth_map(shape: trimesh.Trimesh, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write OUT_depth.png, the shape on a floor in 16-bit millimetres, and OUT_mask.png, 255 on the shape."""
    rng = np.random.default_rng(options.seed)
    place = shape.bounds.mean(axis=0)
    floor = trimesh.creation.box((8.0, 0.02, 8.0))
    floor.apply_translation((place[0], shape.bounds[0, 1] - 0.01, place[2]))
    scene = shape + floor
    view = _view(scene, shape, options, rng, width=320, height=240)
    camera = Camera(view.intrinsics, view.camera_to_world)
    face = Rays(scene).first_hits(camera.eye, camera.rays()).face
    mask = (face >= 0) & (face < len(shape.faces))
    depth = np.nan_to_num(np.rint(view.depth * MILLIMETRES)).astype(np.uint16)
    Image.fromarray(depth).save(f"{out}_depth.png", optimize=True)
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(f"{out}_mask.png", optimize=True)
    return {
        "scan": f"{out.name}_depth.png",
        "mask": f"{out.name}_mask.png",
        "depth_scale": MILLIMETRES,
        "intrinsics": asdict(view.intrinsics),
        "camera_to_world": (view.camera_to_world.round(6) + 0.0).tolist(),  # + 0.0: no "-0.0"
        "viewpoint": view.viewpoint.round(6).tolist(),
    }


def _view(
    scene: Surface, shape: trimesh.Trimesh, options: argparse.Namespace, rng: np.random.Generator, **size: int
) -> View:
    centre = shape.bounds.mean(axis=0)
    eye = viewpoint_at(options.azimuth, options.elevation, options.distance, centre)
    return depth_view(scene, eye, target=centre, noise=options.noise, rng=rng, **size)


def _placed(path: Path, at: Sequence[float]) -> trimesh.Trimesh:
    """The shape of a PLY standing on the floor (y = 0) of a room, moved by `at`."""
    shape = trimesh.load_mesh(path, process=False)
    shape.apply_translation(np.asarray(at) - (0.0, shape.bounds[0, 1], 0.0))
    return shape


def _listed(name: str, folder: Path) -> Shape:
    try:
        found = [shape for shape in read_shapes(folder) if shape.id == name]
    except SourceError as error:
        raise SystemExit(str(error)) from None
    if not found:
        raise SystemExit(f"{name} is not in {folder / 'shapes.csv'}: its author and licence are not known")
    return found[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model.training.views", description=__doc__)
    parser.add_argument("shape", type=Path, help="PLY that model.training.sources wrote")
    parser.add_argument("out", type=Path, help="where to write, without suffix")
    parser.add_argument("--list", type=Path, default=Path("checkpoints/chairs"), help="folder of shapes.csv")
    parser.add_argument("--at", type=float, nargs=3, default=(0.0, 0.0, 0.0), metavar=("X", "Y", "Z"))
    parser.add_argument("--azimuth", type=float, default=35.0, help="degrees; 0 is the front, 90 is +x")
    parser.add_argument("--elevation", type=float, default=25.0, help="degrees")
    parser.add_argument("--distance", type=float, default=1.5, help="metres from the shape's centre")
    parser.add_argument(
        "--noise", type=float, default=0.001, help="standard deviation of 1/depth, in 1/metre"
    )
    parser.add_argument("--points", type=int, default=18_000, help="points kept of the view")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth-map", action="store_true", help="a depth map and a mask, not a point cloud")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a simulated scan of one shape, the true shape in the scan's frame, and a JSON about both."""
    parser = _parser()
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(words)
    listed = _listed(options.shape.stem, options.list)
    shape = _placed(options.shape, options.at)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    facts = (write_depth_map if options.depth_map else write_points)(shape, options.out, options)
    truth = options.out.with_name(f"{options.out.name}_truth.ply")
    write_ply(shape, truth)
    facts |= {"truth": truth.name, "shape": listed.id, "author": listed.author, "licence": listed.licence}
    facts["command"] = f"{parser.prog} {shlex.join(words)}"
    options.out.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
