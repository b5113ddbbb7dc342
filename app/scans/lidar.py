"""Point clouds of scanners and robots: LAS and LAZ, and PCD of the Point Cloud Library."""

from __future__ import annotations

import io
import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.scans.clouds import view_of_columns
from app.scans.scan import Bytes, ScanRefused, ScanView, too_many_points

LAS, MIN_LAS_HEADER = b"LASF", 227
MAX_PCD_HEADER = 16 * 1024


# LAS


def read_las(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
    """Points with their scale and offset applied, and colours; packed (LAZ) or not."""
    import laspy

    _check_las(data)
    try:
        with laspy.open(io.BytesIO(data)) as file:
            header = file.header
            count, row = int(header.point_count), int(header.point_format.size)
            if count > max_points:
                raise too_many_points(count, max_points)
            room = len(data) - int(header.offset_to_point_data)
            if not header.are_points_compressed and count * row > room:
                raise _truncated("LAS", f"{count} points of {row} bytes, and {room} bytes follow")
            if header.are_points_compressed:
                _check_chunks(data, int(header.offset_to_point_data), count)
            points = file.read()
    except ScanRefused:
        raise
    except MemoryError:
        raise
    except BaseException as error:  # of laspy and its unpacker in Rust, whose panics are no Exception
        raise ScanRefused("invalid_las", f"The LAS cannot be read: {_brief(error)}.") from None
    xyz = np.stack([np.asarray(axis, dtype=np.float64) for axis in (points.x, points.y, points.z)], axis=1)
    return ScanView(points=xyz, colors=_las_colors(points)), []


def _check_las(data: bytes) -> None:
    """The records before and after the points, which laspy reads one by one, however many are promised."""
    if len(data) < MIN_LAS_HEADER:
        raise _truncated("LAS", f"{MIN_LAS_HEADER} bytes, and there are {len(data)}")
    size, start, before = struct.unpack_from("<HII", data, 94)
    after = struct.unpack_from("<QI", data, 235) if data[25] >= 4 and len(data) >= 247 else (len(data), 0)
    if size + 54 * before > start or start > len(data) or after[0] + 60 * after[1] > len(data):
        raise _truncated("LAS", f"{before} records before its points and {after[1]} after them")


def _check_chunks(data: bytes, start: int, count: int) -> None:
    """The table of the chunks of a LAZ, whose promises its unpacker would believe."""
    (place,) = struct.unpack_from("<q", data, start)
    if place == -1:  # written as a stream: then it stands at the end
        (place,) = struct.unpack_from("<q", data, len(data) - 8)
    if not start + 8 <= place <= len(data) - 8:
        raise _truncated("LAS", f"a table of chunks at byte {place}, and it has {len(data)} bytes")
    (chunks,) = struct.unpack_from("<I", data, place + 4)
    if chunks > min(count, len(data)):
        raise _truncated("LAS", f"{chunks} chunks of {count} points in {len(data)} bytes")


def _las_colors(points: Any) -> Bytes | None:
    """Of 16 bits, unless whoever wrote them used 8 of them."""
    if "red" not in set(points.point_format.dimension_names):
        return None
    colors = np.stack([np.asarray(points[name]) for name in ("red", "green", "blue")], axis=1)
    return (colors // 257 if colors.max(initial=0) > 255 else colors).astype(np.uint8)


# PCD

PCD_NAMES = {"normal_x": "nx", "normal_y": "ny", "normal_z": "nz"}


def read_pcd(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
    """Fields x y z, and where there are any normal_x …, rgb and the viewpoint of the header."""
    from pypcd4.pypcd4 import PointCloud

    header = re.match(rb"(?s).{0,%d}?\nDATA [a-z_]+\r?\n" % MAX_PCD_HEADER, data)
    if header is None:
        raise ScanRefused("invalid_pcd", "The PCD has no header that ends with DATA. Send a whole PCD file.")
    try:
        _check_pcd(header[0], data, max_points)
        cloud = PointCloud.from_fileobj(io.BufferedReader(io.BytesIO(data)))
        columns = {PCD_NAMES.get(name, name): _column(cloud, name) for name in cloud.fields}
    except (ScanRefused, MemoryError):
        raise
    except Exception as error:  # of its parser, and of numpy below it
        raise ScanRefused("invalid_pcd", f"The PCD cannot be read: {_brief(error)}.") from None
    if not {"x", "y", "z"} <= columns.keys():
        raise ScanRefused("invalid_pcd", f"The PCD has the fields {sorted(columns)[:20]}; name them x, y, z.")
    if len(columns["x"]) != cloud.metadata.points:
        raise _truncated("PCD", f"{cloud.metadata.points} points, and {len(columns['x'])} follow")
    if packed := columns.keys() & {"rgb", "rgba"}:
        columns |= _unpacked(columns[packed.pop()])
    viewpoint = np.array(cloud.metadata.viewpoint[:3], dtype=np.float64)
    told = viewpoint if viewpoint.any() and np.isfinite(viewpoint).all() else None
    view = view_of_columns(columns)
    return ScanView(view.points, view.normals, told, colors=view.colors), []


def _check_pcd(header: bytes, data: bytes, max_points: int) -> None:
    """Refuse what promises more than there is, before anyone allocates for it."""
    from pypcd4.pypcd4 import MetaData

    meta = MetaData.parse_header(header.decode("latin-1").splitlines())
    if meta.points > max_points:
        raise too_many_points(meta.points, max_points)
    values = sum(meta.count)
    row = sum(size * count for size, count in zip(meta.size, meta.count, strict=True))
    least = {"ascii": 2 * values - 1, "binary": row}.get(str(meta.data.value), 0)
    if meta.points * least > (room := len(data) - len(header)):
        raise _truncated("PCD", f"{meta.points} points of at least {least} bytes, and {room} bytes follow")
    if values > 256:
        raise ScanRefused("invalid_pcd", f"The PCD has {values} values a point. Send x, y and z alone.")


def _column(cloud: Any, name: str) -> NDArray[Any]:
    return np.asarray(cloud.pc_data[name]).reshape(-1)


def _unpacked(values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Red, green and blue out of the bits of one number."""
    if values.dtype.itemsize != 4:
        return {}
    bits = np.ascontiguousarray(values).view(np.uint32)
    shifts = {"red": 16, "green": 8, "blue": 0}
    return {color: (bits >> shift) & 255 for color, shift in shifts.items()}


def _truncated(format: str, told: str) -> ScanRefused:
    code = f"truncated_{format.lower()}"
    return ScanRefused(code, f"The {format} header promises {told}. Send the whole file.")


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
