"""Sound files of every format, and ways in which they go bad: the same number gives the same file."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scan_files import INTRINSICS, depth_map, exr, jpeg, npy, npz, ply, png, sphere, tiff
from test_formats import BALL, POINTS, e57, las, pcd

FLOATS = (depth_map()[0] / 1000).astype(np.float32)
HUGE = [
    b"4294967295",
    b"2147483648",
    b"-1",
    b"0",
    b"99999999999999999999",
    b"1e309",
    b"nan",
    b"inf",
    b"\xff" * 8,
]
Rng = np.random.Generator


@functools.cache
def sound() -> dict[str, bytes]:
    """A file of each format by its name."""
    depth, _ = depth_map()
    xyz = "\n".join(" ".join(f"{x:.5f}" for x in row) for row in POINTS).encode()
    with tempfile.TemporaryDirectory() as folder:
        exrs = {f"{packing}.exr": exr({"Z": FLOATS}, Path(folder), packing) for packing in ("ZIP", "PIZ")}
    return {
        "binary.ply": ply(sphere()),
        "ascii.ply": ply(sphere(), "ascii"),
        "a.npy": npy(sphere()),
        "a.npz": npz(points=sphere(), normals=sphere()),
        "a.xyz": xyz,
        "a.csv": b"x,y,z\n" + xyz.replace(b" ", b","),
        "a.las": las(),
        "a.laz": las(packed=True),
        **{f"{encoding}.pcd": pcd(encoding) for encoding in ("ascii", "binary", "binary_compressed")},
        **({"a.e57": e57(({"points": POINTS}, [0, 0, 0]))} if find_spec("pye57") else {}),
        "a.off": BALL.export(file_type="off").encode(),
        "a.stl": BALL.export(file_type="stl"),
        "ascii.stl": BALL.export(file_type="stl_ascii").encode(),
        "a.obj": BALL.export(file_type="obj").encode(),
        "a.glb": BALL.export(file_type="glb"),
        "depth.png": png(depth),
        "depth.tiff": tiff(depth, compression="zlib"),
        "float.tiff": tiff(FLOATS),
        "depth.npy": npy(depth),
        **exrs,
    }


def flipped(data: bytes, rng: Rng) -> bytes:
    """Some bytes anywhere."""
    return _changed(data, rng, len(data))


def flipped_header(data: bytes, rng: Rng) -> bytes:
    """Some bytes near the beginning, where the promises stand."""
    return _changed(data, rng, min(len(data), 400))


def _changed(data: bytes, rng: Rng, end: int) -> bytes:
    bad = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, end, rng.integers(1, 9))
    bad[places] = rng.integers(0, 256, len(places))
    return bad.tobytes()


def cut(data: bytes, rng: Rng) -> bytes:
    """Its end is missing."""
    return data[: rng.integers(0, len(data))]


def hollow(data: bytes, rng: Rng) -> bytes:
    """A part in the middle is missing, or there twice."""
    start, end = sorted(rng.integers(0, len(data), 2))
    return data[:start] + data[end:] if rng.random() < 0.5 else data[:end] + data[start:]


def numbers(data: bytes, rng: Rng) -> bytes:
    """A number in the text of its beginning becomes an impossible one."""
    import re

    places = list(re.finditer(rb"\d+", data[:600]))
    if not places:
        return flipped_header(data, rng)
    place = places[rng.integers(len(places))]
    return data[: place.start()] + HUGE[rng.integers(len(HUGE))] + data[place.end() :]


def counts(data: bytes, rng: Rng) -> bytes:
    """Four bytes of its beginning become a large number."""
    place = int(rng.integers(0, min(len(data) - 4, 400)))
    value = int(rng.choice([2**32 - 1, 2**31, 2**31 - 1, 2**24, 2**16, 0]))
    return data[:place] + value.to_bytes(4, "little" if rng.random() < 0.7 else "big") + data[place + 4 :]


def spliced(data: bytes, rng: Rng) -> bytes:
    """It goes on as a file of another format."""
    other = list(sound().values())[rng.integers(len(sound()))]
    return data[: rng.integers(1, len(data))] + other[rng.integers(len(other)) :]


def zeroed(data: bytes, rng: Rng) -> bytes:
    """A part of it is zeros."""
    start, end = sorted(rng.integers(0, len(data), 2))
    return data[:start] + bytes(int(end - start)) + data[end:]


WAYS: tuple[Callable[[bytes, Rng], bytes], ...] = (
    flipped,
    flipped_header,
    cut,
    hollow,
    numbers,
    counts,
    spliced,
    zeroed,
)


def bad_file(number: int) -> tuple[str, bytes, dict[str, str]]:
    """Name, bytes and form of a bad upload: every format in turn, and every way."""
    rng = np.random.default_rng(number)
    names = list(sound())
    name, way = names[number % len(names)], WAYS[number // len(names) % len(WAYS)]
    is_depth = name.endswith((".png", ".tiff", ".exr")) or name == "depth.npy"
    return name, way(sound()[name], rng), {"intrinsics": INTRINSICS} if is_depth else {}


def bad_image(number: int) -> bytes:
    """A mask or colour image that is bad."""
    rng = np.random.default_rng(number)
    good = png(depth_map()[1]) if number % 2 else jpeg(np.zeros((48, 64, 3), np.uint8))
    return WAYS[number % len(WAYS)](good, rng)
