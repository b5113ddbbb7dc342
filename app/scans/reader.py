"""One door for every format: recognise each file by its first bytes, then read it; several make one scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import PurePath
from typing import TypeVar

from app.scans import arrays, camera, clouds, e57, images, lidar, meshes
from app.scans.depth import DepthMap, read_depth_map
from app.scans.fields import parse_json, viewpoint_of
from app.scans.scan import Scan, ScanRefused, ScanView, checked, checked_view, too_many_points

FORMATS = (
    "PLY, PCD, LAS, LAZ, E57, XYZ, CSV, NPY or NPZ point clouds, OBJ, OFF, STL or GLB meshes, "
    "or PNG, TIFF, EXR or NPY depth maps with `intrinsics`"
)
MAX_FILES = 64
CloudReader = Callable[[bytes, int], tuple[ScanView, list[str]]]
T = TypeVar("T")


@dataclass(frozen=True)
class Upload:
    """One file of a scan: a point cloud or a depth map, and what it is called."""

    data: bytes
    name: str


@dataclass(frozen=True)
class Limits:
    """What this service takes at most, of all files of a scan together."""

    points: int = 2_000_000
    pixels: int = 16_000_000


@dataclass(frozen=True)
class Attachments:
    """What came beside the files, as it came: JSON texts, and the bytes of images.

    `viewpoint` is of the point clouds, in order; the others are of the depth maps, in order.
    """

    viewpoint: Sequence[str] = ()
    intrinsics: Sequence[str] = ()
    depth_scale: Sequence[str] = ()
    camera_to_world: Sequence[str] = ()
    mask: Sequence[bytes] = ()
    color_image: Sequence[bytes] = ()


def read_scan(
    uploads: Sequence[Upload], beside: Attachments | None = None, limits: Limits | None = None
) -> Scan:
    """Read the files of one scan, which are views of one object in one frame.

    Raises ScanRefused: 415 for an unknown format, 413 for one too large, 422 for one that cannot be read.
    """
    beside, limits = beside or Attachments(), limits or Limits()
    if len(uploads) > MAX_FILES:
        detail = f"{len(uploads)} scans are more than {MAX_FILES}. Send fewer views."
        raise ScanRefused("too_many_scans", detail, status=413)
    are_maps = [_is_depth_map(upload, beside) for upload in uploads]
    _check_kinds(are_maps, beside)
    places = iter(_each("viewpoint", beside.viewpoint, are_maps.count(False), "point clouds"))
    files = [upload.data for upload, is_map in zip(uploads, are_maps, strict=True) if is_map]
    maps = _depth_maps(files, beside, alone=len(uploads) == 1)
    reading, waiting = _Reading(limits, len(uploads)), iter(maps)
    for upload, is_map in zip(uploads, are_maps, strict=True):
        if is_map:
            reading.take_map(next(waiting))
        else:
            reading.take_cloud(upload, next(places))
    up = "-y" if any(given.camera_to_world is None for given in maps) else "+y"
    if all(upload.data.startswith((lidar.LAS, e57.E57)) for upload in uploads):
        up = "+z"  # whose third coordinate is the height
    return checked(Scan(reading.views, up, reading.told), limits.points)


class _Reading:
    """The views read so far, and what of the limits is used up."""

    def __init__(self, limits: Limits, files: int) -> None:
        self.limits, self.files = limits, files
        self.views: list[ScanView] = []
        self.told: list[str] = []
        self.taken = self.points = self.pixels = 0

    def take_cloud(self, upload: Upload, viewpoint: str | None) -> None:
        """Read a point cloud; what the form says of the sensor's place goes before what the file says."""
        view, told = _cloud_reader(upload)(upload.data, self.limits.points)
        if viewpoint is not None:
            view = replace(view, viewpoint=viewpoint_of(parse_json("viewpoint", viewpoint)))
        self._take(view, told)

    def take_map(self, given: DepthMap) -> None:
        """Read a depth map; each has its share of the points."""
        view, told, pixels = read_depth_map(given, self.limits.pixels, self.limits.points // self.files)
        self.pixels += pixels
        if self.pixels > self.limits.pixels:
            raise images.too_many_pixels("depth maps together", self.limits.pixels)
        self._take(view, told)

    def _take(self, view: ScanView, told: list[str]) -> None:
        view, more = checked_view(view)
        told = [*told, *more]
        self.taken += 1
        if self.files > 1:
            if not len(view.points):
                told.append("left out: it has no usable points.")
            told = [f"Scan {self.taken} of {self.files}: {words}" for words in told]
        self.told += told
        self.points += len(view.points)
        if self.points > self.limits.points:
            raise too_many_points(self.points, self.limits.points)
        # What passed an object that was not seen says nothing of where it ends.
        if len(view.points) or self.files == 1:
            self.views.append(view)


# What belongs to which file


def _is_depth_map(upload: Upload, beside: Attachments) -> bool:
    if not upload.data:
        raise ScanRefused("empty_file", "The file is empty. Send a scan in the field `scan`.")
    if images.is_depth_image(upload.data):
        return True
    _cloud_reader(upload)
    # Rows of numbers are points, unless a camera shows that they are the rows of an image.
    return bool(beside.intrinsics) and images.is_depth_array(upload.data)


def _check_kinds(are_maps: list[bool], beside: Attachments) -> None:
    """Whether what came beside belongs to anything that came."""
    if not any(are_maps):
        for field in fields(Attachments):
            if field.name != "viewpoint" and getattr(beside, field.name):
                told = f"`{field.name}` belongs to a depth map, and there is none."
                raise ScanRefused("not_a_depth_map", told)
    elif beside.viewpoint and all(are_maps):
        raise ScanRefused("viewpoint_twice", "A depth map is seen from its camera. Leave `viewpoint` out.")
    elif not beside.intrinsics:
        raise ScanRefused("intrinsics_missing", 'A depth map needs `intrinsics`: {"fx", "fy", "cx", "cy"}.')


def _depth_maps(files: list[bytes], beside: Attachments, alone: bool) -> list[DepthMap]:
    """Each depth map with its own of all that came beside."""
    what, count = "depth maps", len(files)
    cameras = _each("intrinsics", beside.intrinsics, count, what)
    scales = _each("depth_scale", beside.depth_scale, count, what)
    poses = _each("camera_to_world", beside.camera_to_world, count, what, shared=False)
    masks = _each("mask", beside.mask, count, what, shared=False)
    colors = _each("color_image", beside.color_image, count, what, shared=False)
    own = [len(beside.intrinsics) == count] * count  # one camera does not hold the poses of several
    given = zip(files, cameras, scales, poses, masks, colors, own, strict=True)
    maps = [_depth_map(*each) for each in given]
    if not alone and any(one.camera_to_world is None for one in maps):
        told = "Several scans need one frame. Send `camera_to_world` for each depth map, in their order."
        raise ScanRefused("camera_to_world_missing", told)
    return maps


def _depth_map(
    data: bytes,
    camera_: str | None,
    scale: str | None,
    pose: str | None,
    mask: bytes | None,
    color_image: bytes | None,
    posed: bool,
) -> DepthMap:
    told = parse_json("intrinsics", camera_ or "")
    camera_to_world = camera.extrinsic_of(told) if posed else None
    if pose is not None:
        camera_to_world = camera.pose_of(parse_json("camera_to_world", pose))
    return DepthMap(
        data, camera.intrinsics_of(told), camera.scale_of(told, scale), mask, color_image, camera_to_world
    )


BY_FIRST_BYTES: tuple[tuple[tuple[bytes, ...], CloudReader], ...] = (
    ((b"ply\n", b"ply\r"), clouds.read_ply),
    ((arrays.MAGIC,), clouds.read_npy),
    ((b"PK\x03\x04",), clouds.read_npz),
    ((lidar.LAS,), lidar.read_las),
    ((b"# .PCD", b"VERSION "), lidar.read_pcd),
    ((e57.E57,), e57.read_e57),
    ((b"glTF",), meshes.read_glb),
    ((b"OFF", b"COFF", b"NOFF", b"CNOFF"), meshes.read_off),
)
BY_SUFFIX: dict[str, CloudReader] = {
    ".xyz": clouds.read_xyz,
    ".txt": clouds.read_xyz,
    ".csv": clouds.read_csv,
    ".obj": meshes.read_obj,
    ".stl": meshes.read_stl,
}
"""Text, and STL, whose binary files begin with anything."""


def _cloud_reader(upload: Upload) -> CloudReader:
    """What reads this point cloud. Raises ScanRefused for an unknown format."""
    for beginnings, reader in BY_FIRST_BYTES:
        if upload.data.startswith(beginnings):
            return reader
    if reader_by_name := BY_SUFFIX.get(PurePath(upload.name).suffix.lower()):
        return reader_by_name
    told = f"The format of {upload.name[:100]!r} is not known here. Send {FORMATS}."
    raise ScanRefused("unknown_format", told, status=415)


def _each(field: str, values: Sequence[T], count: int, what: str, shared: bool = True) -> list[T | None]:
    """A value for each of `count` files: none, one for all of them, or one for each."""
    if not values:
        return [None] * count
    if len(values) == 1 and shared:
        return [values[0]] * count
    if len(values) != count:
        one = "one for all of them, or " if shared else ""
        found = f"{len(values)} value{'' if len(values) == 1 else 's'} of `{field}`"
        told = f"Found {found} for {count} {what}. Send {one}one for each, in their order."
        raise ScanRefused("wrong_count", told)
    return list(values)
