"""Point clouds as E57, where pye57 is installed: the extra `e57`."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from app.scans.confinement import may_write
from app.scans.scan import Bytes, Floats, ScanRefused, ScanView, too_many_points

E57 = b"ASTM-E57"
HEADER = struct.Struct("<8sIIQQQQ")
"""Signature, version (2), length of the file, offset and length of its XML, size of a page."""

PAGE, CHECKSUM = 1024, 4
COLORS = ("colorRed", "colorGreen", "colorBlue")
CARTESIAN = ("cartesianX", "cartesianY", "cartesianZ")
SPHERICAL = ("sphericalRange", "sphericalAzimuth", "sphericalElevation")


def read_e57(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
    """The points of all scans in the file, in its own frame, and colours where all have them."""
    try:
        import pye57
    except ImportError:
        told = "This service reads no E57: that takes its extra `e57`. Send a PLY or LAS instead."
        raise ScanRefused("unknown_format", told, status=415) from None
    _check_xml(data)
    try:
        with _as_file(data) as path, pye57.E57(path) as file:
            return _joined(file, max_points)
    except (ScanRefused, MemoryError):
        raise
    except Exception as error:
        raise ScanRefused("invalid_e57", f"The E57 cannot be read: {str(error)[:100]!r}.") from None


def _check_xml(data: bytes) -> None:
    """Its XML must be plain: entities could lead the parser to other files, or on for ever."""
    if len(data) < HEADER.size:
        raise ScanRefused("invalid_e57", "The E57 ends within its header. Send the whole file.")
    _, _, _, length, offset, xml_length, page = HEADER.unpack_from(data)
    if length != len(data) or page != PAGE or offset >= length or xml_length > length:
        raise ScanRefused("invalid_e57", f"The E57 promises {length} bytes and has {len(data)}.")
    first = offset // PAGE * PAGE
    pages = (data[start : start + PAGE - CHECKSUM] for start in range(first, length, PAGE))
    xml = b"".join(pages)[offset - first :][:xml_length]
    head = re.match(rb'\s*<\?xml [^>]*encoding="UTF-8"[^>]*\?>', xml, re.IGNORECASE)
    if head is None or b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise ScanRefused("invalid_e57", "The XML in the E57 must be UTF-8, without a document type.")


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path in memory under which the library finds the bytes."""
    descriptor = os.memfd_create("scan.e57")
    try:
        with may_write(), os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _joined(file: Any, max_points: int) -> tuple[ScanView, list[str]]:
    headers = [file.get_header(index) for index in range(file.scan_count)]
    count = sum(header.point_count for header in headers)
    if count > max_points:
        raise too_many_points(count, max_points)
    if not headers:
        raise ScanRefused("invalid_e57", "The E57 has no scan in it.")
    parts = [_scan(file, header) for header in headers]
    points, colors = [part[0] for part in parts], [part[1] for part in parts]
    told = [f"The E57 holds {len(parts)} scans: joined, without the places of their sensors."]
    place = headers[0].translation if len(headers) == 1 and headers[0].has_pose() else None
    view = ScanView(
        points=np.concatenate(points),
        viewpoint=None if place is None else np.asarray(place, dtype=np.float64),
        colors=None if any(one is None for one in colors) else np.concatenate(colors),  # type: ignore[arg-type]
    )
    return view, told if len(parts) > 1 else []


def _scan(file: Any, header: Any) -> tuple[Floats, Bytes | None]:
    """Points (N, 3) in the file's frame, and colours (N, 3), of one scan."""
    from pye57.utils import convert_spherical_to_cartesian

    there = set(header.point_fields)
    axes, kind = (CARTESIAN, "cartesian") if there.issuperset(CARTESIAN) else (SPHERICAL, "spherical")
    wanted = [name for name in (*axes, *COLORS, f"{kind}InvalidState") if name in there]
    columns, buffers = file.make_buffers(wanted, header.point_count)
    read = header.points.reader(buffers).read()
    if read < header.point_count:
        raise ScanRefused("truncated_e57", f"The E57 promises {header.point_count} points and has {read}.")
    valid = columns.get(f"{kind}InvalidState", np.zeros(read, np.int8)) == 0
    points = np.stack([columns[name][valid] for name in axes], axis=1)
    if kind == "spherical":
        points = convert_spherical_to_cartesian(points)
    if header.has_pose():
        points = file.to_global(points, header.rotation, header.translation)
    colors = np.stack([columns[name][valid] for name in COLORS], axis=1) if there.issuperset(COLORS) else None
    return points, colors
