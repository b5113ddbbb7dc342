"""Point clouds: PLY, XYZ, CSV, NPY and NPZ.

PLY is read here and not by a library: its header is data from outside, and we want to know how many
bytes the rows take before anyone allocates for them.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.scans.arrays import npy_header, npz_entries
from app.scans.fields import viewpoint_of
from app.scans.scan import Bytes, Floats, ScanRefused, ScanView, too_many_points

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

# Empty lines are fine, and a table of nothing else is refused in better words. This is not done by
# `catch_warnings`, which is of the whole process: two threads in it may leave the filter of one behind.
warnings.filterwarnings("ignore", message=".*contained no data")


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


def read_ply(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
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
    shares = any(kind.startswith("f") for name, kind in header.columns if name == "red")
    view = ScanView(
        points=_stacked(columns, ("x", "y", "z")),
        normals=normals,
        colors=None if colors is None else colors_of(colors, shares),
    )
    return view, []


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
    rows = table(data[header.body :], header.count, "invalid_ply")
    if rows.shape != (header.count, len(header.columns)):
        expected = f"{header.count} rows of {len(header.columns)} numbers"
        raise ScanRefused("truncated_ply", f"The PLY header promises {expected}; the file has {rows.shape}.")
    return {name: rows[:, i] for i, (name, _) in enumerate(header.columns)}


def _triple(columns: dict[str, NDArray[Any]], names: tuple[str, str, str]) -> Floats | None:
    return _stacked(columns, names) if set(names) <= columns.keys() else None


def _stacked(columns: dict[str, NDArray[Any]], names: tuple[str, str, str]) -> Floats:
    return np.stack([columns[name].astype(np.float64) for name in names], axis=1)


# XYZ


def read_xyz(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
    """Text with x y z in each line, then maybe normals, colours or both; # begins a comment.

    Three columns are normals if all have the length 1, and colours if all are whole numbers up to 255.
    """
    if b"\0" in data:
        raise ScanRefused("invalid_xyz", "The XYZ file is not text.")
    rows = table(data.replace(b",", b" "), max_points + 1, "invalid_xyz")
    if len(rows) > max_points:
        raise too_many_points(len(rows), max_points)
    return _view_of_rows(rows, "invalid_xyz")


# CSV

CSV_NAMES = {"normal_x": "nx", "normal_y": "ny", "normal_z": "nz", "r": "red", "g": "green", "b": "blue"}
"""Other names of columns, to those that a PLY has."""


def read_csv(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
    """As XYZ, or with names in the first line: x, y, z, and maybe nx, ny, nz and red, green, blue."""
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b";", b",").replace(b"\t", b",")
    first, _, rest = text.partition(b"\n")
    names = [name.strip().strip('"').lower() for name in first.decode("latin-1").split(",")]
    names = [CSV_NAMES.get(name, name) for name in names]
    if not {"x", "y", "z"} <= set(names):
        return read_xyz(text, max_points)
    rows = table(rest.replace(b",", b" "), max_points + 1, "invalid_csv")
    if len(rows) > max_points:
        raise too_many_points(len(rows), max_points)
    if rows.shape[1] != len(names):
        told = f"The first line names {len(names)} columns and the rows have {rows.shape[1]}."
        raise ScanRefused("invalid_csv", f"{told} Every row needs a number for each name.")
    return view_of_columns({name: rows[:, i] for i, name in enumerate(names)}), []


def view_of_columns(columns: dict[str, NDArray[Any]]) -> ScanView:
    """Points x y z, normals nx ny nz and colours red green blue, the last as shares of 1 or up to 255."""
    colors = _triple(columns, ("red", "green", "blue"))
    shares = colors is not None and bool(((colors >= 0) & (colors <= 1)).all() and (colors % 1 != 0).any())
    return ScanView(
        points=_stacked(columns, ("x", "y", "z")),
        normals=_triple(columns, ("nx", "ny", "nz")),
        colors=None if colors is None else colors_of(colors, shares),
    )


def table(text: bytes, max_rows: int, code: str) -> Floats:
    """Rows of numbers, up to so many. Raises ScanRefused with that code."""
    try:
        return np.loadtxt(io.BytesIO(text), max_rows=max_rows, ndmin=2, encoding="latin-1")
    except ValueError as error:
        raise ScanRefused(code, f"The rows cannot be read as numbers: {str(error)[:200]}.") from None


def _view_of_rows(rows: Floats, code: str) -> tuple[ScanView, list[str]]:
    """Points and what the further columns say, three by three; words on what they do not say."""
    if rows.ndim != 2 or (rows.size and rows.shape[1] < 3):
        raise ScanRefused(code, f"Expected rows of x y z, not an array of shape {rows.shape}.")
    if not rows.size:
        rows = rows.reshape(0, 3)
    normals = colors = None
    further = [rows[:, start : start + 3] for start in range(3, rows.shape[1], 3)]
    ignored = 0
    for triple in further:
        if normals is None and _are_unit(triple):
            normals = triple
        elif colors is None and _are_bytes(triple):
            colors = triple.astype(np.uint8)
        else:
            ignored += triple.shape[1]
    what = "neither unit normals nor colours of 0 to 255"
    told = [f"{ignored} further columns ignored: they are {what}."] if ignored else []
    return ScanView(rows[:, :3], normals, colors=colors), told


def _are_unit(columns: Floats) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(columns, axis=1)
    return columns.shape[1] == 3 and bool((np.abs(lengths - 1) < 0.05).all())


def _are_bytes(columns: Floats) -> bool:
    whole = (columns >= 0) & (columns <= 255) & (columns == np.round(columns))
    return columns.shape[1] == 3 and bool(whole.all())


def colors_of(values: NDArray[Any], shares: bool) -> Bytes:
    """RGB (N, 3) of whole numbers up to 255; or, if `shares`, of shares of full brightness up to 1."""
    bright = np.nan_to_num(values.astype(np.float64)) * (255 if shares else 1)
    return np.clip(bright.round(), 0, 255).astype(np.uint8)


# NPY and NPZ


def read_npy(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
    """One array of shape (N, 3), or (N, 6) with unit normals or with colours."""
    return _view_of_rows(_rows(data, max_points).astype(np.float64), "invalid_npy")


def read_npz(data: bytes, max_points: int) -> tuple[ScanView, list[str]]:
    """Either a single array as in an NPY, or `points`, maybe with `normals`, `colors` and `viewpoint`."""
    entries = npz_entries(data, 2 * 6 * 8 * max_points)
    if "points" not in entries and len(entries) != 1:
        raise ScanRefused("invalid_npz", f"The NPZ has {sorted(entries)}; name the array `points`.")
    if "points" not in entries:
        return read_npy(next(iter(entries.values())), max_points)
    view, told = read_npy(entries["points"], max_points)
    beside = {
        name: _beside(entries[name], name, view, max_points)
        for name in ("normals", "colors")
        if name in entries
    }
    normals, colors = beside.get("normals"), beside.get("colors")
    return ScanView(
        view.points,
        normals=view.normals if normals is None else normals.astype(np.float64),
        viewpoint=_viewpoint(entries["viewpoint"]) if "viewpoint" in entries else None,
        colors=view.colors if colors is None else colors_of(colors, colors.dtype.kind == "f"),
    ), told


def _rows(data: bytes, max_points: int) -> NDArray[Any]:
    header = npy_header(data)
    shape = header.shape
    if len(shape) != 2 or shape[1] not in (3, 6):
        wanted = "The array must have shape (N, 3) or (N, 6)"
        raise ScanRefused("invalid_npy", f"{wanted}, not {shape}; a depth map comes with `intrinsics`.")
    if shape[0] > max_points:
        raise too_many_points(shape[0], max_points)
    return header.array(data)


def _viewpoint(data: bytes) -> Floats:
    header = npy_header(data)
    return viewpoint_of(header.array(data).tolist() if header.shape == (3,) else None)


def _beside(data: bytes, name: str, view: ScanView, max_points: int) -> NDArray[Any]:
    """An array (N, 3) beside the points."""
    array = _rows(data, max_points)
    if array.shape != view.points.shape:
        raise ScanRefused("invalid_npz", f"`{name}` has shape {array.shape}, not {view.points.shape}.")
    return array
