"""A triangle mesh as plain arrays: what may be done to it, and its way into a file."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import igl
import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from torch import Tensor

from model.connected import connected_parts
from model.frame import Similarity
from model.neighbours import Neighbours
from model.proximity import nearest_on_mesh
from model.streams import device_here

Booleans = NDArray[np.bool_]

Format = Literal["glb", "ply", "obj", "stl"]
FORMATS: tuple[Format, ...] = ("glb", "ply", "obj", "stl")

SEEN_SHARE = 1e-3
"""Share of the observed points from which a connected part counts as seen: fewer may be strays."""

GAP = 0.03
"""Of the box's diagonal: a part that comes so near to another belongs to it: the joint was made too thin."""

DEVIATION = "_DEVIATION"
"""GLB vertex attribute of the standard deviation: glTF wants own names to begin with an underscore."""

LARGE_DEVIATION = 0.08
"""Deviation, as a share of half the mesh's diagonal, from which `deviation_colors` show the last colour."""

_SCALE = np.array([[49, 104, 142], [53, 183, 121], [253, 231, 37], [220, 50, 47]], dtype=float)
"""Blue, green, yellow, red: sure to unsure. Distinct in lightness too, for who sees no hues."""


@dataclass(frozen=True)
class Mesh:
    """Triangles with outward orientation (counter-clockwise seen from outside)."""

    vertices: NDArray[np.float32]  # (V, 3)
    faces: NDArray[np.int32]  # (F, 3)
    normals: NDArray[np.float32] | None = None  # (V, 3) unit, outward
    colors: NDArray[np.uint8] | None = None  # (V, 4) RGBA, sRGB
    deviation: NDArray[np.float32] | None = None  # (V,) std of the surface along its normal, mesh's unit

    def moved(self, to: Similarity) -> Mesh:
        """The same mesh in another frame."""
        normals = None if self.normals is None else to.turn(self.normals).astype(np.float32)
        deviation = None if self.deviation is None else (to.scale * self.deviation).astype(np.float32)
        vertices = to.apply(self.vertices).astype(np.float32)
        return replace(self, vertices=vertices, normals=normals, deviation=deviation)

    def with_vertices_of(self, source: NDArray[np.int64], faces: NDArray[np.int32]) -> Mesh:
        """Vertices `source` (V',) of this mesh, with all that they carry, under new faces (F', 3)."""

        def some(part: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if part is None else part[source]

        return Mesh(self.vertices[source], faces, some(self.normals), some(self.colors), some(self.deviation))


@dataclass(frozen=True)
class Triangles:
    """A mesh in the making: tensors, on the device where its surface was found."""

    vertices: Tensor  # (V, 3)
    faces: Tensor  # (F, 3) counter-clockwise from outside
    normals: Tensor  # (V, 3) unit, outward
    deviation: Tensor | None = None  # (V,) std of the surface along its normal, in the vertices' unit

    def moved(self, to: Similarity) -> Triangles:
        """The same mesh in another frame."""
        way = np.vstack([to.rotation.T, to.translation])
        turn, translation = torch.from_numpy(way).to(self.vertices.device).split([3, 1])
        vertices = (to.scale * (self.vertices.double() @ turn) + translation).float()
        deviation = None if self.deviation is None else to.scale * self.deviation
        return Triangles(vertices, self.faces, (self.normals.double() @ turn).float(), deviation)

    def of(self, kept: Tensor) -> Triangles:
        """Those of its vertices (V,), whole parts of it, with their faces."""
        rows, number = kept.nonzero().squeeze(1), kept.cumsum(dim=0) - 1
        faces = number[self.faces[kept[self.faces[:, 0]]]]
        deviation = None if self.deviation is None else self.deviation[rows]
        return Triangles(self.vertices[rows], faces, self.normals[rows], deviation)

    def mesh(self) -> Mesh:
        """As plain arrays, fetched at once."""
        parts = [part.flatten() for part in (self.vertices, self.normals, self.deviation) if part is not None]
        sizes = np.cumsum([part.numel() for part in parts])[:-1]
        vertices, normals, *deviation = np.split(torch.cat(parts).cpu().numpy(), sizes)
        faces = self.faces.int().cpu().numpy()
        return Mesh(vertices.reshape(-1, 3), faces, normals.reshape(-1, 3), None, *deviation)


def is_closed(mesh: Mesh) -> bool:
    """Whether every edge has exactly two faces: watertight."""
    starts, ends = (faces := _faces(mesh)).flatten(), faces.roll(-1, dims=1).flatten()
    edges = (torch.minimum(starts, ends) * len(mesh.vertices) + torch.maximum(starts, ends)).sort().values
    if len(edges) % 2:
        return False
    return bool((edges[::2] == edges[1::2]).all() & (edges[1:-1:2] != edges[2::2]).all())


def volume_of(mesh: Mesh) -> float:
    """What a closed mesh encloses, in cubic units: signed tetrahedra from its first vertex."""
    a, b, c = _corners(mesh)
    return float((a * torch.linalg.cross(b, c)).sum()) / 6


def _faces(mesh: Mesh) -> Tensor:
    """Its faces (F, 3) where the thread works."""
    return torch.from_numpy(mesh.faces).to(device_here()).long()


def _corners(mesh: Mesh) -> tuple[Tensor, Tensor, Tensor]:
    """The corners of its faces, (F, 3) each, from its first vertex on: a scan may be far from its origin."""
    vertices = torch.from_numpy(mesh.vertices).to(device_here()).double()
    a, b, c = (vertices - vertices[0])[_faces(mesh).T]
    return a, b, c


def to_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    """The mesh as a trimesh object that shares vertices exactly as ours does."""
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals, process=False)


def _parted(vertices: Tensor, faces: Tensor) -> tuple[Tensor, NDArray[np.float64]]:
    """To which connected part each vertex (V,) belongs, and how the areas of the parts compare."""
    first, second, third = faces.T  # two edges hold a face together
    labels = connected_parts(torch.cat([first, second]), torch.cat([second, third]), len(vertices))
    a, b, c = vertices[faces.T].double()
    areas = torch.bincount(labels[first], weights=torch.linalg.cross(b - a, c - a).norm(dim=1))
    return labels, areas.cpu().numpy()


def parts_of(mesh: Mesh, share: float = 0.01) -> int:
    """How many connected parts have at least this share of the area of the largest."""
    _, areas = _parted(torch.from_numpy(mesh.vertices).to(device_here()), _faces(mesh))
    return int(np.count_nonzero(areas >= share * areas.max()))


def components_of(whole: Triangles, share: float, seen: NDArray[np.float64] | None = None) -> Triangles:
    """The connected parts with at least this share of the area of the largest, as closed as they were.

    With (N, 3) points that were `seen` of the object, a part beside the largest must also be nearest to some
    of them, or stand next to such a one: what hangs in the air where nothing was seen is made up.
    """
    labels, areas = _parted(whole.vertices, whole.faces)
    large = areas >= share * areas.max()
    if seen is not None and np.count_nonzero(large) > 1:
        _, nearest = Neighbours(whole.vertices.double()).nearest_here(seen)
        of_part = torch.bincount(labels[nearest], minlength=len(areas)).cpu().numpy()
        sure = large & ((of_part >= SEEN_SHARE * len(seen)) | (areas == areas.max()))
        large &= sure | _beside(whole.vertices.double(), labels, large, sure)
    if large.all():
        return whole
    return whole.of(torch.from_numpy(large).to(labels.device)[labels])


def _beside(vertices: Tensor, labels: Tensor, parts: Booleans, others: Booleans) -> Booleans:
    """Which of the `parts` (P,) come near to one of the `others`: (P,)."""
    low, high = vertices.aminmax(dim=0)
    gap, near = GAP * float((high - low).norm()), np.zeros(len(parts), bool)
    them = Neighbours(vertices[torch.from_numpy(others).to(labels.device)[labels]])
    for part in np.flatnonzero(parts & ~others):
        near[part] = them.gap(vertices[labels == part]) < gap
    return near


def simplified(mesh: Mesh, target_faces: int) -> Mesh:
    """At most `target_faces` triangles by quadric edge collapse (Garland and Heckbert, 1997).

    A closed mesh stays closed. What vertices carry comes from the nearest old one.
    """
    if len(mesh.faces) <= target_faces:
        return mesh
    vertices, faces, *_ = igl.qslim(mesh.vertices.astype(float), mesh.faces, target_faces)
    _, old = Neighbours(mesh.vertices).nearest(vertices)
    smaller = mesh.with_vertices_of(old, faces.astype(np.int32))
    return replace(smaller, vertices=vertices.astype(np.float32))


def distances_to(mesh: Mesh, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distances (N,) of (N, 3) points to the surface, and the vertices (N,) nearest to where they meet it."""
    distance, hit, at = nearest_on_mesh(mesh.vertices.astype(float), mesh.faces, points)
    corners = mesh.faces[hit]  # (N, 3)
    apart = np.linalg.norm(mesh.vertices[corners] - at[:, None], axis=2)
    return distance, corners[np.arange(len(corners)), apart.argmin(axis=1)].astype(np.int64)


def deviation_colors(mesh: Mesh) -> NDArray[np.uint8]:
    """RGBA (V, 4) of the deviations: blue (0) over green and yellow to red (`LARGE_DEVIATION` and above)."""
    if mesh.deviation is None:
        raise ValueError("the mesh carries no deviation")
    radius = float(np.linalg.norm(np.ptp(mesh.vertices, axis=0))) / 2
    share = np.clip(mesh.deviation / max(LARGE_DEVIATION * radius, 1e-12), 0, 1)
    stops = np.linspace(0, 1, len(_SCALE))
    rgb = np.stack([np.interp(share, stops, channel) for channel in _SCALE.T], axis=1)
    return np.column_stack([rgb, np.full(len(rgb), 255)]).astype(np.uint8)


def export(
    mesh: Mesh, format: Format, *, up: NDArray[np.float64] | None = None, draco: bool = False
) -> bytes:
    """The bytes of a file; vertex data stay in the mesh's own frame and unit.

    `up` (3, 3) turns the frame's up axis to +y. glTF viewers take +y for up: a GLB gets the turn as the
    matrix of its root node, so that it stands upright there, and tools that turn +y back to their own up
    axis have the scan's coordinates again. `draco` compresses a GLB, which then carries no deviation. PLY
    carries normals, colours and deviation, OBJ normals and colours, STL shape alone. Colours are sRGB but
    in a GLB, where glTF wants linear ones.
    Raises ValueError for another format.
    """
    if format == "glb":
        return to_glb(mesh, up=up, draco=draco)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    body = to_trimesh(mesh)
    if mesh.colors is not None and format != "stl":
        body.visual = trimesh.visual.ColorVisuals(body, vertex_colors=mesh.colors)
    if format == "stl":
        return _bytes(body.export(file_type="stl"))
    if format == "obj":
        return _bytes(body.export(file_type="obj", include_normals=mesh.normals is not None))
    if mesh.deviation is not None:
        body.vertex_attributes["deviation"] = mesh.deviation
    return _bytes(body.export(file_type="ply", vertex_normal=mesh.normals is not None))


def _bytes(exported: Any) -> bytes:
    return exported.encode() if isinstance(exported, str) else bytes(exported)


def to_glb(mesh: Mesh, *, up: NDArray[np.float64] | None = None, draco: bool = False) -> bytes:
    """The mesh as binary glTF 2.0; see `export`."""
    if not draco:
        return _as_glb(_scene([mesh], up))
    # Trimesh leaves attributes of its users out of the compressed part, and their order is lost.
    return _as_glb(_scene([replace(mesh, deviation=None)], up), extension_draco=True)


def _scene(meshes: Sequence[Mesh], up: NDArray[np.float64] | None) -> trimesh.Scene:
    turn = np.eye(4)
    if up is not None:
        turn[:3, :3] = up
    scene = trimesh.Scene()
    for number, mesh in enumerate(meshes):
        scene.add_geometry(
            _body(mesh), node_name=f"mesh_{number}", geom_name=f"mesh_{number}", transform=turn
        )
    return scene


def _as_glb(scene: trimesh.Scene, **extra: bool) -> bytes:
    return _bytes(scene.export(file_type="glb", include_normals=True, **extra))


def _body(mesh: Mesh) -> trimesh.Trimesh:
    body = to_trimesh(mesh)
    material = trimesh.visual.material.PBRMaterial(
        baseColorFactor=[0.72, 0.74, 0.78, 1.0] if mesh.colors is None else [1.0, 1.0, 1.0, 1.0],
        metallicFactor=0.0,
        roughnessFactor=0.8,
    )
    body.visual = trimesh.visual.TextureVisuals(material=material)
    if mesh.colors is not None:
        body.visual.vertex_attributes["color"] = _linear(mesh.colors)
    if mesh.deviation is not None:
        body.vertex_attributes[DEVIATION] = mesh.deviation
    return body


def _linear(colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """sRGB as light: glTF takes the colours of vertices so, and viewers would show others too pale."""
    share = np.arange(256) / 255
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    table = np.round(255 * light).astype(np.uint8)
    return np.column_stack([table[colors[:, :3]], colors[:, 3]])


def animated_glb(meshes: Sequence[Mesh], seconds: float = 4.0) -> bytes:
    """Meshes as one GLB that plays through them once in `seconds`.

    Meshes of different codes share no topology, so morph targets do not fit; instead each node's scale
    steps from 0 to 1 for its share of the time, which every viewer that plays animations shows.
    """
    glb = _as_glb(_scene(meshes, None))
    length = struct.unpack_from("<I", glb, 12)[0]
    tree, rest = json.loads(glb[20 : 20 + length]), glb[20 + length + 8 :]
    times = np.linspace(0, seconds, len(meshes) + 1, dtype=np.float32)
    binary, inputs = _appended(tree, rest, times, "SCALAR", bounded=True)
    channels, samplers = [], []
    nodes = {node.get("name"): index for index, node in enumerate(tree["nodes"])}
    for number in range(len(meshes)):
        shown = np.zeros((len(times), 3), np.float32)
        shown[number] = 1
        shown[-1] = 1 if number == len(meshes) - 1 else 0
        binary, outputs = _appended(tree, binary, shown, "VEC3")
        node = tree["nodes"][nodes[f"mesh_{number}"]]
        node.pop("matrix", None)
        node["scale"] = shown[0].tolist()  # what is seen where nothing plays
        channels.append({"sampler": number, "target": {"node": nodes[f"mesh_{number}"], "path": "scale"}})
        samplers.append({"input": inputs, "output": outputs, "interpolation": "STEP"})
    tree["animations"] = [{"name": "interpolation", "channels": channels, "samplers": samplers}]
    tree["buffers"][0]["byteLength"] = len(binary)
    return _glb(tree, binary)


def _appended(
    tree: dict[str, Any], binary: bytes, values: NDArray[np.float32], kind: str, bounded: bool = False
) -> tuple[bytes, int]:
    """The binary chunk with further values, and the number of their accessor."""
    data = values.astype("<f4").tobytes()
    tree["bufferViews"].append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(data)})
    accessor: dict[str, Any] = {"bufferView": len(tree["bufferViews"]) - 1, "componentType": 5126}
    accessor |= {"count": len(values), "type": kind}
    if bounded:
        accessor |= {"min": [float(values.min())], "max": [float(values.max())]}
    tree["accessors"].append(accessor)
    return binary + data, len(tree["accessors"]) - 1


def _glb(tree: dict[str, Any], binary: bytes) -> bytes:
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    total = 12 + 8 + len(text) + 8 + len(binary)
    head = struct.pack("<4sII", b"glTF", 2, total)
    return (
        head
        + struct.pack("<I4s", len(text), b"JSON")
        + text
        + struct.pack("<I4s", len(binary), b"BIN\0")
        + binary
    )
