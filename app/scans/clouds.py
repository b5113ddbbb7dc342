"""Point clouds: PLY, XYZ, NPY and NPZ.

PLY is read here and not by a library: its header is data from outside, and we want to know how many
bytes the rows take before anyone allocates for them.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from app.scans.scan import Floats, Scan, ScanRefused, too_many_points

PLY_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
PLY_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
MAX_PLY_HEADER = 64 * 1024
MAX_NPZ_ENTRIES = 32


# PLY


@dataclass(frozen=True)
class PlyHeader:
    """What comes before the vertices, which must come first."""

    order: str  # "" for ascii, "<" or ">"
    count: int
    columns: list[tuple[str, str]]  # name and numpy type of each vertex property
    body: int  # offset of the first row

    @property
    def row(self) -> np.dtype[Any]:
        """One vertex of a binary file."""
        return np.dtype([(name, self.order + kind) for name, kind in self.columns])


def read_ply(data: bytes, max_points: int) -> Scan:
    """Vertices of a PLY, with normals (nx ny nz) and colours (red green blue) where there are any."""
    header = _ply_header(data)
    if header.count > max_points:
        raise too_many_points(header.count, max_points)
    room, row = len(data) - header.body, header.row.itemsize if header.order else 2 * len(header.columns) - 1
    if header.count * row > room:
        promised = f"The PLY header promises {header.count} vertices of at least {row} bytes"
        raise ScanRefused("truncated_ply", f"{promised}, but {room} bytes follow. Send the whole file.")
    columns = _binary_columns(data, header) if header.order else _ascii_columns(data, header)
    normals, colors = _triple(columns, ("nx", "ny", "nz")), _triple(columns, ("red", "green", "blue"))
    return Scan(
        points=_stacked(columns, ("x", "y", "z")),
        normals=normals,
        colors=None if colors is None else np.clip(np.nan_to_num(colors), 0, 255).astype(np.uint8),
    )


def _ply_header(data: bytes) -> PlyHeader:
    end = re.search(rb"\nend_header[ \t]*(\r\n|\n|\r)", data[:MAX_PLY_HEADER])
    if end is None:
        raise ScanRefused("invalid_ply", "The PLY header has no `end_header`. Send a whole PLY file.")
    lines = [line.split() for line in data[: end.start()].decode("latin-1").splitlines()[1:]]
    words = [line for line in lines if line and line[0] not in ("comment", "obj_info")]
    try:
        return _parsed_ply_header(words, end.end())
    except (ValueError, IndexError, KeyError):
        raise ScanRefused("invalid_ply", "The PLY header cannot be understood.") from None


def _parsed_ply_header(lines: list[list[str]], body: int) -> PlyHeader:
    order = PLY_ORDERS[lines[0][1]]
    if lines[0][0] != "format" or lines[1][:2] != ["element", "vertex"]:
        raise ScanRefused("invalid_ply", "The PLY must begin with its format and the element `vertex`.")
    columns = []
    for line in lines[2:]:
        if line[0] != "property":
            break
        if line[1] == "list":
            raise ScanRefused("invalid_ply", "A list property of vertices cannot be read. Leave it out.")
        columns.append((line[2], PLY_TYPES[line[1]]))
    names = [name for name, _ in columns]
    if len(set(names)) < len(names) or not {"x", "y", "z"} <= set(names):
        raise ScanRefused("invalid_ply", "The PLY's vertices must have the properties x, y and z, once each.")
    if (count := int(lines[1][2])) < 0:
        raise ScanRefused("invalid_ply", "The PLY promises fewer than zero vertices.")
    return PlyHeader(order, count, columns, body)


def _binary_columns(data: bytes, header: PlyHeader) -> dict[str, NDArray[Any]]:
    rows = np.frombuffer(data, header.row, header.count, header.body)
    return {name: rows[name] for name, _ in header.columns}


def _ascii_columns(data: bytes, header: PlyHeader) -> dict[str, NDArray[Any]]:
    rows = _table(data[header.body :], header.count, "invalid_ply")
    if rows.shape != (header.count, len(header.columns)):
        expected = f"{header.count} rows of {len(header.columns)} numbers"
        raise ScanRefused("truncated_ply", f"The PLY header promises {expected}; the file has {rows.shape}.")
    return {name: rows[:, i] for i, (name, _) in enumerate(header.columns)}


def _triple(columns: dict[str, NDArray[Any]], names: tuple[str, str, str]) -> Floats | None:
    return _stacked(columns, names) if set(names) <= columns.keys() else None


def _stacked(columns: dict[str, NDArray[Any]], names: tuple[str, str, str]) -> Floats:
    return np.stack([columns[name].astype(np.float64) for name in names], axis=1)


# XYZ


def read_xyz(data: bytes, max_points: int) -> Scan:
    """Text with x y z in each line, maybe followed by the unit normal nx ny nz; # begins a comment."""
    if b"\0" in data:
        raise ScanRefused("invalid_xyz", "The XYZ file is not text.")
    rows = _table(data.replace(b",", b" "), max_points + 1, "invalid_xyz")
    if len(rows) > max_points:
        raise too_many_points(len(rows), max_points)
    return _scan_of_rows(rows, "invalid_xyz")


def _table(text: bytes, max_rows: int, code: str) -> Floats:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of an empty table; too_few_points tells it better
            return np.loadtxt(io.BytesIO(text), max_rows=max_rows, ndmin=2, encoding="latin-1")
    except ValueError as error:
        raise ScanRefused(code, f"The rows cannot be read as numbers: {str(error)[:200]}.") from None


def _scan_of_rows(rows: Floats, code: str) -> Scan:
    if rows.ndim != 2 or (rows.size and rows.shape[1] < 3):
        raise ScanRefused(code, f"Expected rows of x y z, not an array of shape {rows.shape}.")
    if not rows.size:
        rows = rows.reshape(0, 3)
    points, rest = rows[:, :3], rows[:, 3:]
    if rest.shape[1] == 0:
        return Scan(points)
    with np.errstate(over="ignore", invalid="ignore"):
        unit = rest.shape[1] == 3 and np.abs(np.linalg.norm(rest, axis=1) - 1).max(initial=0) < 0.05
    if unit:
        return Scan(points, normals=rest)
    return Scan(points, warnings=[f"{rest.shape[1]} further columns ignored: they are not unit normals."])


# NPY and NPZ


def read_npy(data: bytes, max_points: int) -> Scan:
    """One array of shape (N, 3), or (N, 6) with unit normals."""
    return _scan_of_rows(_array(data, max_points), "invalid_npy")


def read_npz(data: bytes, max_points: int) -> Scan:
    """Either a single array as in an NPY, or `points` and maybe `normals`, each (N, 3)."""
    entries = _npz_entries(data, max_points)
    if "points" not in entries and len(entries) != 1:
        raise ScanRefused("invalid_npz", f"The NPZ has {sorted(entries)}; name the array `points`.")
    if "points" not in entries:
        return read_npy(next(iter(entries.values())), max_points)
    scan = _scan_of_rows(_array(entries["points"], max_points), "invalid_npz")
    if "normals" not in entries:
        return scan
    normals = _array(entries["normals"], max_points)
    if normals.shape != scan.points.shape:
        raise ScanRefused("invalid_npz", f"`normals` has shape {normals.shape}, not {scan.points.shape}.")
    return Scan(scan.points, normals=normals)


def _array(data: bytes, max_points: int) -> Floats:
    """The array of an NPY whose header promises no more than its bytes hold."""
    file = io.BytesIO(data)
    shape, dtype = _npy_header(file)
    if dtype.kind not in "fiu" or dtype.hasobject:
        raise ScanRefused("invalid_npy", f"The array must hold numbers, not {str(dtype)[:80]}.")
    if len(shape) != 2 or shape[1] not in (3, 6):
        raise ScanRefused("invalid_npy", f"The array must have shape (N, 3) or (N, 6), not {shape}.")
    if shape[0] > max_points:
        raise too_many_points(shape[0], max_points)
    if math.prod(shape) * dtype.itemsize > len(data) - file.tell():
        promised = f"The header promises {shape[0]} x {shape[1]} numbers of {dtype.itemsize} bytes"
        raise ScanRefused("truncated_npy", f"{promised}; the file has fewer. Send the whole file.")
    file.seek(0)
    return np.asarray(npy.read_array(file, allow_pickle=False), dtype=np.float64)


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as error:  # numpy evaluates the header: more than ValueError can come out of it
        raise ScanRefused("invalid_npy", f"The NPY header cannot be read: {str(error)[:200]}.") from None
    if any(not isinstance(side, int) or side < 0 for side in shape):
        raise ScanRefused("invalid_npy", f"The array has the impossible shape {shape}.")
    return shape, dtype


def _npz_entries(data: bytes, max_points: int) -> dict[str, bytes]:
    """Names and bytes of the arrays that we read, unpacked only once their sizes are known."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            _check_npz_sizes(entries, 2 * 6 * 8 * max_points)
            return {entry.filename.removesuffix(".npy"): _unpacked(archive, entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise ScanRefused("invalid_npz", f"The NPZ cannot be unpacked: {str(error)[:200]}.") from None


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as file:
        # ZipFile.read() would unpack up to 2 GiB at once, whatever size the archive states.
        data = file.read(entry.file_size)
        file.read(1)  # at the end the checksum is looked at
        return data


def _check_npz_sizes(entries: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if not entries or len(entries) > MAX_NPZ_ENTRIES:
        raise ScanRefused("invalid_npz", f"The NPZ holds {len(entries)} arrays; send `points` and `normals`.")
    plain = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without a bound
    if any(entry.flag_bits & 0x1 or entry.compress_type not in plain for entry in entries):
        raise ScanRefused("invalid_npz", "The NPZ is encrypted or packed in an unusual way. Use numpy.savez.")
    if (unpacked := sum(entry.file_size for entry in entries)) > max_bytes:
        detail = f"The NPZ would unpack to {unpacked} bytes and the limit is {max_bytes}. Send fewer points."
        raise ScanRefused("unpacks_too_large", detail, status=413)
