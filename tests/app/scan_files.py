"""Uploads for the tests: sound ones, and ways to break them."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

INTRINSICS = json.dumps({"fx": 60.0, "fy": 60.0, "cx": 31.5, "cy": 23.5})


def sphere(count: int = 500, radius: float = 0.5) -> Array:
    """Points (N, 3) on the half of a sphere that faces +z; they are their own normals, scaled."""
    directions = np.random.default_rng(0).normal(size=(count, 3))
    directions[:, 2] = np.abs(directions[:, 2])
    return radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def ply(
    points: Array, order: str = "binary_little_endian", normals: Array | None = None, count: int = -1
) -> bytes:
    """A PLY; `count` lets the header lie."""
    names = ["x", "y", "z"] + ([] if normals is None else ["nx", "ny", "nz"])
    rows = points if normals is None else np.hstack([points, normals])
    header = [
        "ply",
        f"format {order} 1.0",
        "comment made for a test",
        f"element vertex {len(points) if count < 0 else count}",
        *(f"property float {name}" for name in names),
        "end_header\n",
    ]
    start = "\n".join(header).encode()
    if order == "ascii":
        return start + "\n".join(" ".join(f"{x:.6g}" for x in row) for row in rows).encode()
    return start + rows.astype("<f4" if "little" in order else ">f4").tobytes()


def npy(array: Array) -> bytes:
    """An NPY."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(shape: str, descr: str = "'<f8'") -> bytes:
    """An NPY that has only a header, of any shape one likes to promise."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def npz(**arrays: Array) -> bytes:
    """An NPZ."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npz_bomb(megabytes: int, stated: int | None = None, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An NPZ of zeros that unpacks to a thousand times its size, or to more than it has `stated`."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", packing) as archive,
        archive.open("points.npy", "w") as entry,
    ):
        entry.write(npy_header(f"({megabytes * 2**20 // 24}, 3)"))
        for _ in range(megabytes):
            entry.write(bytes(2**20))
    data = bytearray(buffer.getvalue())
    if stated is not None:
        at = data.rindex(b"PK\x01\x02") + 24
        data[at : at + 4] = struct.pack("<I", stated)
    return bytes(data)


def png(pixels: Array) -> bytes:
    """A greyscale PNG with as many bits as the array has."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def png_header(width: int, height: int, bits: int = 16) -> bytes:
    """A PNG that promises a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def jpeg(pixels: Array) -> bytes:
    """A JPEG of the highest quality."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def tiff(pixels: Array, **how: Any) -> bytes:
    """A TIFF, by another library than the one that reads it."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **how)
    return buffer.getvalue()


def tiff_header(**tags: int) -> bytes:
    """A TIFF of one page that has only tags, each of one whole number: width=…, height=…"""
    numbers = {
        "width": 256,
        "height": 257,
        "bits": 258,
        "packing": 259,
        "at": 273,
        "rows": 278,
        "size": 279,
        "tile_width": 322,
        "tile_height": 323,
        "kind": 339,
    }
    sound = {"width": 64, "height": 48, "bits": 16, "packing": 1, "at": 8, "size": 6144, "kind": 1}
    rows = sorted((numbers[name], value) for name, value in {**sound, **tags}.items())
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in rows)
    return b"II*\0" + struct.pack("<IH", 8, len(rows)) + entries + bytes(4)


def tiff_bomb(megabytes: int, width: int = 64, height: int = 48) -> bytes:
    """A TIFF whose only strip of zeros unpacks to a thousand times its size."""
    packer = zlib.compressobj()
    strip = b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()
    header = tiff_header(width=width, height=height, packing=8, rows=height, at=8, size=len(strip))
    return (
        tiff_header(width=width, height=height, packing=8, rows=height, at=len(header), size=len(strip))
        + strip
    )


def exr(channels: dict[str, Array], folder: Path, packing: str = "ZIP", **header: Any) -> bytes:
    """An EXR of scan lines, or of what the header says."""
    import OpenEXR

    about = {"compression": getattr(OpenEXR, f"{packing}_COMPRESSION"), "type": OpenEXR.scanlineimage}
    with OpenEXR.File({**about, **header}, channels) as file:
        file.write(str(folder / "made.exr"))
    return (folder / "made.exr").read_bytes()


def exr_header(width: int, height: int, channels: int = 1, flags: int = 0, kind: bytes = b"box2i") -> bytes:
    """An EXR that has only the header that we look at, with no pixel behind it."""
    names = [b"c%d" % number for number in range(channels)] if channels > 1 else [b"Z"]
    listed = b"".join(name + b"\0" + struct.pack("<iIii", 2, 0, 1, 1) for name in names) + b"\0"
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    attributes = [
        (b"channels", b"chlist", listed),
        (b"dataWindow", kind, window),
        (b"displayWindow", kind, window),
    ]
    packed = [name + b"\0" + kind + b"\0" + struct.pack("<i", len(v)) + v for name, kind, v in attributes]
    return struct.pack("<II", 20000630, 2 | flags) + b"".join(packed) + b"\0"


def depth_map(distance: float = 2.0, radius: float = 0.5) -> tuple[Array, Array]:
    """Depth in millimetres (48, 64) of a sphere before a wall 5 m away, and the sphere's mask."""
    rows, columns = np.mgrid[:48, :64]
    rays = np.stack([(columns - 31.5) / 60, (rows - 23.5) / 60, np.ones((48, 64))], axis=-1)
    a, b, c = (rays**2).sum(-1), -2 * distance * rays[..., 2], distance**2 - radius**2
    inside = b * b - 4 * a * c > 0
    hit = (-b - np.sqrt(np.maximum(b * b - 4 * a * c, 0))) / (2 * a)
    depth = np.where(inside, hit, 5.0)
    return (1000 * depth).round().astype(np.uint16), (255 * inside).astype(np.uint8)
