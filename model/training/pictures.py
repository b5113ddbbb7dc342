"""Pictures of meshes and point clouds: rays by Embree, light by NumPy, text by Pillow; no screen needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from model.training.views import Camera, Floats, Intrinsics, Rays, Surface, look_at, viewpoint_at

Color = tuple[int, int, int]
Item = Surface | NDArray[np.floating]  # a mesh, or points (N, 3)
Picture = NDArray[np.uint8]  # (H, W, 3), sRGB

BACKGROUND: Color = (247, 248, 250)
MESH: Color = (158, 182, 214)
POINTS: Color = (222, 110, 52)
INK: Color = (60, 66, 76)

SUPERSAMPLING = 2
FIELD_OF_VIEW = 24.0  # degrees: narrow, so that shapes look as on a drawing board
MARGIN = 0.06  # of the picture's side, left free all around
DOT = 0.0045  # radius of a point as a share of the picture's side

# In the camera's frame (x right, y down, z away): the light a surface facing it gets.
KEY, KEY_STRENGTH = np.array([-0.80, -0.85, -0.40]), 0.92
FILL, FILL_STRENGTH = np.array([0.60, -0.60, -0.50]), 0.20
AMBIENT = 0.17


def render(
    item: Item,
    eye_azimuth: float = 35.0,
    elevation: float = 20.0,
    size: int = 480,
    color: Color | None = None,
    bounds: ArrayLike | None = None,
) -> Picture:
    """Picture (size, size, 3) of a mesh, or of points (N, 3), y up; angles in degrees, azimuth 0 looks at +z.

    `bounds` (2, 3), lowest and highest corner, is what the picture frames: give the same to pictures that
    will stand side by side. Meshes with a `normals` array are shaded smoothly, others face by face.
    """
    box = np.asarray(bounds_of([item]) if bounds is None else bounds, float)
    camera = _framing(box, eye_azimuth, elevation, size * SUPERSAMPLING)
    if isinstance(item, np.ndarray):
        radiance = _draw_points(item.astype(float), camera, np.array(color or POINTS))
    else:
        radiance = _draw_mesh(item, camera, np.array(color or MESH))
    fine = radiance.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3)
    return _srgb(fine.mean(axis=(1, 3)))


def bounds_of(items: Iterable[Item]) -> Floats:
    """Lowest and highest corner (2, 3) of meshes and point clouds together; a unit cube if all are empty."""
    corners = [_positions(item) for item in items]
    corners = [c for c in corners if len(c)]
    if not corners:
        return np.array([[-0.5] * 3, [0.5] * 3])
    return np.array(
        [np.min([c.min(axis=0) for c in corners], axis=0), np.max([c.max(axis=0) for c in corners], axis=0)]
    )


def scan_and_mesh(
    points: NDArray[np.floating],
    meshes: Sequence[tuple[str, Surface]],
    path: Path,
    *,
    eye_azimuth: float = 35.0,
    elevation: float = 20.0,
    size: int = 480,
) -> None:
    """Write one row as a PNG: the scan's points (N, 3), then each labelled mesh, all from the same camera."""
    row: list[tuple[str, Item]] = [("scan", np.asarray(points)), *meshes]
    contact_sheet([row], path, eye_azimuth=eye_azimuth, elevation=elevation, size=size)


def contact_sheet(
    rows: Sequence[Sequence[tuple[str, Item]]],
    path: Path,
    *,
    eye_azimuth: float = 35.0,
    elevation: float = 20.0,
    size: int = 280,
) -> None:
    """Write labelled pictures, row by row, as one PNG; a row shares its camera and its scale."""
    columns = max((len(row) for row in rows), default=1)
    sheet = Image.new("RGB", (columns * size, max(len(rows), 1) * size), BACKGROUND)
    for y, row in enumerate(rows):
        box = bounds_of(item for _, item in row)
        for x, (label, item) in enumerate(row):
            picture = render(item, eye_azimuth, elevation, size, bounds=box)
            sheet.paste(labelled(picture, label), (x * size, y * size))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def labelled(picture: Picture, label: str) -> Image.Image:
    """The picture with a line of text in its lower left corner."""
    image = Image.fromarray(picture)
    side = picture.shape[1]
    font = ImageFont.load_default(size=max(11, side // 26))
    ImageDraw.Draw(image).text((side * 0.03, picture.shape[0] * 0.975), label, INK, font, anchor="ls")
    return image


def _positions(item: Item) -> Floats:
    return np.asarray(item if isinstance(item, np.ndarray) else item.vertices, float).reshape(-1, 3)


def _framing(box: Floats, azimuth: float, elevation: float, side: int) -> Camera:
    """Camera at a comfortable distance whose focal length and principal point fit the box to the picture."""
    centre, radius = box.mean(axis=0), max(float(np.linalg.norm(box[1] - box[0])) / 2, 1e-9)
    eye = viewpoint_at(azimuth, elevation, radius / np.sin(np.radians(FIELD_OF_VIEW / 2)), centre)
    pose = look_at(eye, centre)
    corners = np.array([[box[i, 0], box[j, 1], box[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    flat, _ = Camera(Intrinsics(1, 1, 0, 0, side, side), pose).project(corners)
    low, high = flat.min(axis=0), flat.max(axis=0)
    focal = side * (1 - 2 * MARGIN) / max(float((high - low).max()), 1e-9)
    cx, cy = (side - 1) / 2 - focal * (low + high) / 2
    return Camera(Intrinsics(focal, focal, cx, cy, side, side), pose)


def _canvas(side: int) -> Floats:
    return np.tile(_linear(np.array(BACKGROUND)), (side, side, 1))


def _draw_mesh(mesh: Surface, camera: Camera, color: NDArray[np.int_]) -> Floats:
    canvas = _canvas(camera.intrinsics.width)
    if len(mesh.faces) == 0:
        return canvas
    window = _window(_positions(mesh), camera)
    rays = camera.rays()[window]
    hits = Rays(mesh).first_hits(camera.eye, rays)
    struck = hits.face >= 0
    normals = _normals(mesh, hits.face[struck], hits.barycentric[struck]) @ camera.camera_to_world[:3, :3]
    toward = rays[struck] @ camera.camera_to_world[:3, :3]
    # Many designer meshes have inverted faces: light the side that is seen.
    normals = np.where((normals * toward).sum(axis=1, keepdims=True) > 0, -normals, normals)
    canvas[window][struck] = _linear(color) * _light(normals)[:, None]
    return canvas


def _window(points: Floats, camera: Camera) -> tuple[slice, slice]:
    """Rows and columns outside of which no ray can meet the points' hull."""
    pixels, _ = camera.project(points)
    low = np.maximum(np.floor(pixels.min(axis=0)).astype(int), 0)
    high = np.maximum(np.ceil(pixels.max(axis=0)).astype(int) + 1, 0)
    return slice(low[1], high[1]), slice(low[0], high[0])


def _normals(mesh: Surface, faces: NDArray[np.int64], barycentric: Floats) -> Floats:
    """Unit normals (N, 3) at hits: interpolated where the mesh brings vertex normals, else the face's."""
    corners = np.asarray(mesh.faces)[faces]
    smooth = getattr(mesh, "normals", None)
    if smooth is not None:
        u, v = barycentric[:, :1], barycentric[:, 1:]
        a, b, c = np.asarray(smooth, float)[corners].transpose(1, 0, 2)
        normals = (1 - u - v) * a + u * b + v * c
    else:
        a, b, c = np.asarray(mesh.vertices, float)[corners].transpose(1, 0, 2)
        normals = np.cross(b - a, c - a)
    return np.asarray(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30))


def _light(normals: Floats) -> Floats:
    """Light (N,) on surfaces with unit normals (N, 3) in the camera's frame: two soft lamps and the sky."""
    total = np.full(len(normals), AMBIENT)
    for lamp, strength in ((KEY, KEY_STRENGTH), (FILL, FILL_STRENGTH)):
        wrapped = (normals @ (lamp / np.linalg.norm(lamp)) + 0.25) / 1.25  # wraps softly past the terminator
        total += strength * np.maximum(wrapped, 0)
    return total


def _draw_points(points: Floats, camera: Camera, color: NDArray[np.int_]) -> Floats:
    """Points as small balls, the nearest in front; far ones are paler."""
    side = camera.intrinsics.width
    canvas, nearest = _canvas(side), np.full((side, side), np.inf)
    pixels, depth = camera.project(points)
    order = np.argsort(-depth)  # of several writes to one pixel NumPy keeps the last: the nearest
    columns, rows = np.rint(pixels[order]).astype(int).T
    depth = depth[order]
    haze = 0.25 * (depth - depth.min(initial=np.inf)) / max(np.ptp(depth) if len(depth) else 0, 1e-9)
    paint = _linear(color) * (1 - haze[:, None]) + _linear(np.array(BACKGROUND)) * haze[:, None]
    for dx, dy, light in _ball(DOT * side):
        x, y = columns + dx, rows + dy
        front = (x >= 0) & (x < side) & (y >= 0) & (y < side)
        front[front] = depth[front] < nearest[y[front], x[front]]
        nearest[y[front], x[front]] = depth[front]
        canvas[y[front], x[front]] = paint[front] * light
    return canvas


def _ball(radius: float) -> list[tuple[int, int, float]]:
    """Pixels (dx, dy) of a small ball and the light on each."""
    reach = np.arange(-int(radius), int(radius) + 1)
    dx, dy = (grid.ravel() for grid in np.meshgrid(reach, reach))
    inside = dx**2 + dy**2 <= radius**2
    dx, dy = dx[inside], dy[inside]
    z = -np.sqrt(np.maximum(radius**2 - dx**2 - dy**2, 0))
    light = _light(np.column_stack([dx, dy, z]) / max(radius, 1e-9))
    return [(int(x), int(y), float(s)) for x, y, s in zip(dx, dy, light, strict=True)]


def _linear(color: NDArray[np.int_]) -> Floats:
    return np.asarray((color / 255.0) ** 2.2)


def _srgb(radiance: Floats) -> Picture:
    return np.rint(255 * np.clip(radiance, 0, 1) ** (1 / 2.2)).astype(np.uint8)
