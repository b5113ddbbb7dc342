"""Every format of point clouds and meshes, written by other programs than the one that reads it."""

from __future__ import annotations

import asyncio
import io
import struct
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import laspy
import numpy as np
import pytest
import trimesh
from pypcd4 import Encoding, PointCloud
from scan_files import npy, npz, ply, sphere

from app.scans import Body, Limits, Readers, Scan, ScanRefused, Upload, read_scan

POINTS = sphere()
NORMALS = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)
COLORS = np.random.default_rng(0).integers(0, 256, POINTS.shape).astype(np.uint8)
BALL = trimesh.creation.icosphere(3, 0.5)


def read(data, name="a", **limits):
    return read_scan([Upload(data, name)], limits=Limits(**limits))


def las(packed=False, count=None, colors=None):
    header = laspy.LasHeader(point_format=2, version="1.2")
    header.offsets, header.scales = [500_000, 4_000_000, 0], [1e-4] * 3
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = (POINTS + header.offsets).T
    if colors is not None:
        cloud.red, cloud.green, cloud.blue = colors.T
    buffer = io.BytesIO()
    cloud.write(buffer, do_compress=packed)
    data = bytearray(buffer.getvalue())
    if count is not None:
        struct.pack_into("<I", data, 107, count)
    return bytes(data)


def pcd(encoding, fields=("x", "y", "z"), arrays=POINTS, kinds=np.float32):
    buffer = io.BytesIO()
    cloud = PointCloud.from_points(np.asarray(arrays, kinds), fields, [kinds] * len(fields))
    cloud.save(buffer, Encoding(encoding))
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_las_has_its_scale_and_offset_and_stands_on_its_height(packed):
    scan = read(las(packed, colors=COLORS.astype(np.uint16) * 257))
    np.testing.assert_allclose(scan.views[0].points, POINTS + np.array([500_000, 4_000_000, 0]), atol=1e-4)
    np.testing.assert_array_equal(scan.views[0].colors, COLORS)
    assert scan.up == "+z"


def test_colors_of_a_las_may_be_of_eight_bits():
    np.testing.assert_array_equal(read(las(colors=COLORS)).views[0].colors, COLORS)


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
def test_pcd_is_read_in_each_encoding(encoding):
    fields = ("x", "y", "z", "normal_x", "normal_y", "normal_z")
    view = read(pcd(encoding, fields, np.hstack([POINTS, NORMALS]))).views[0]
    np.testing.assert_allclose(view.points, POINTS, atol=1e-6)
    np.testing.assert_allclose(view.normals, NORMALS, atol=1e-6)
    assert view.viewpoint is None


def test_a_pcd_may_tell_colors_and_the_place_of_the_sensor():
    packed = (COLORS.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)).astype(np.uint32)
    rows = np.column_stack([POINTS.astype(np.float32), packed.view(np.float32)])
    data = pcd("binary", ("x", "y", "z", "rgb"), rows)
    view = read(data.replace(b"VIEWPOINT 0.0 0.0 0.0", b"VIEWPOINT 1.0 2.0 3.0")).views[0]
    np.testing.assert_array_equal(view.colors, COLORS)
    assert view.viewpoint.tolist() == [1, 2, 3]


@pytest.mark.parametrize("format", ["off", "stl", "stl_ascii", "obj", "glb", "ply"])
def test_the_vertices_of_a_mesh_are_the_points(format):
    data = BALL.export(file_type=format)
    data = data.encode() if isinstance(data, str) else data
    points = read(data, f"a.{format.partition('_')[0]}").views[0].points
    same = np.unique(points.round(5) + 0.0, axis=0)
    np.testing.assert_allclose(same, np.unique(BALL.vertices.round(5) + 0.0, axis=0), atol=2e-5)


def test_a_glb_is_moved_as_its_nodes_say():
    scene = trimesh.Scene()
    scene.add_geometry(BALL, transform=trimesh.transformations.translation_matrix([1, 2, 3]))
    points = read(scene.export(file_type="glb"), "a.glb").views[0].points
    np.testing.assert_allclose(points.mean(axis=0), [1, 2, 3], atol=1e-5)


def test_an_obj_may_have_colors_and_a_normal_for_each_vertex():
    lines = [
        f"v {' '.join(map(str, [*p, *(c / 255)]))}\nvn {' '.join(map(str, n))}"
        for p, c, n in zip(POINTS, COLORS, NORMALS, strict=True)
    ]
    view = read("\n".join(["# made for a test", *lines]).encode(), "a.obj").views[0]
    np.testing.assert_array_equal(view.colors, COLORS)
    np.testing.assert_allclose(view.normals, NORMALS)


@pytest.mark.parametrize("mark", [",", ";", "\t", ", "])
def test_a_csv_says_in_its_first_line_what_its_columns_are(mark):
    rows = np.hstack([COLORS, POINTS, NORMALS])
    head = mark.join(["R", "g", "B", '"X"', "y", "z", "normal_x", "normal_y", "normal_z"])
    text = "\n".join([head, *(mark.join(map(str, row)) for row in rows)])
    for data in (text.encode(), b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode()):
        view = read(data, "a.csv").views[0]
        np.testing.assert_allclose(view.points, POINTS)
        np.testing.assert_allclose(view.normals, NORMALS)
        np.testing.assert_array_equal(view.colors, COLORS)


def test_a_csv_without_names_is_rows_of_points():
    text = "\n".join(",".join(map(str, row)) for row in POINTS)
    np.testing.assert_allclose(read(text.encode(), "a.csv").views[0].points, POINTS)


LIES = {
    "las of too many": (las(count=10**9), 413, "too_many_points"),
    "las that promises more": (las(count=501), 422, "truncated_las"),
    "las of nothing": (b"LASF" + bytes(300), 422, "invalid_las"),
    "laz cut off": (las(packed=True)[:700], 422, "truncated_las"),
    "laz that promises more": (las(packed=True, count=2_000_000), 422, "invalid_las"),
    "pcd of too many": (
        pcd("binary").replace(b"POINTS 500", b"POINTS 999999999").replace(b"WIDTH 500", b"WIDTH 999999999"),
        413,
        "too_many_points",
    ),
    "pcd that promises more": (
        pcd("binary").replace(b"POINTS 500", b"POINTS 501").replace(b"WIDTH 500", b"WIDTH 501"),
        422,
        "truncated_pcd",
    ),
    "pcd without data": (b"# .PCD v0.7\nVERSION 0.7\n", 422, "invalid_pcd"),
    "pcd without z": (pcd("ascii").replace(b"FIELDS x y z", b"FIELDS x y w"), 422, "invalid_pcd"),
    "off of too many": (b"OFF\n999999999 0 0\n0 0 0\n", 413, "too_many_points"),
    "off that promises more": (b"OFF\n500 0 0\n0 0 0\n", 422, "truncated_off"),
    "off of words": (b"OFF\nmany 0 0\n", 422, "invalid_off"),
    "obj of nothing": (b"# nothing\n", 422, "invalid_obj"),
    "obj of words": (b"v a b c\n" * 100, 422, "invalid_obj"),
    "stl of nothing": (bytes(84), 422, "too_few_points"),
    "stl that promises more": (bytes(80) + struct.pack("<I", 10**9), 422, "invalid_stl"),
    "stl of words": (b"solid\nvertex a b c\n", 422, "invalid_stl"),
    "glb of the magic alone": (b"glTF", 422, "invalid_glb"),
    "csv that names too few": (b"x,y,z\n1,2,3,4\n", 422, "invalid_csv"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_file_that_lies_is_refused(case):
    data, status, code = LIES[case]
    name = {"obj": "a.obj", "stl": "a.stl", "csv": "a.csv"}.get(case[:3], "a")
    with pytest.raises(ScanRefused) as refused:
        read(data, name)
    assert (refused.value.status, refused.value.code) == (status, code), refused.value


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (las(), "a"),
        (pcd("binary"), "a"),
        (BALL.export(file_type="glb"), "a"),
        (BALL.export(file_type="off").encode(), "a"),
        (BALL.export(file_type="stl"), "a.stl"),
        (BALL.export(file_type="obj").encode(), "a.obj"),
        (ply(POINTS), "a"),
        (npy(POINTS), "a"),
        (npz(points=POINTS), "a"),
    ],
    ids=["las", "pcd", "glb", "off", "stl", "obj", "ply", "npy", "npz"],
)
def test_more_points_than_are_taken_are_refused(data, name):
    with pytest.raises(ScanRefused) as refused:
        read(data, name, points=100)
    assert (refused.value.status, refused.value.code) in (
        (413, "too_many_points"),
        (413, "unpacks_too_large"),
    )


# E57


has_e57 = pytest.mark.skipif(find_spec("pye57") is None, reason="pye57 is not installed")


def e57(*scans):
    """A file of one scan or several, each turned a quarter about z and moved to its place."""
    import pye57

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.e57"
        with pye57.E57(str(path), mode="w") as file:
            for columns, place in scans:
                axes = ("cartesianX", "cartesianY", "cartesianZ")
                names = dict(zip(axes, columns["points"].T, strict=True))
                if "colors" in columns:
                    names |= zip(("colorRed", "colorGreen", "colorBlue"), columns["colors"].T, strict=True)
                turn = np.array([np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4)])
                file.write_scan_raw(names, rotation=turn, translation=np.array(place, float))
        return path.read_bytes()


@has_e57
def test_e57_has_its_points_in_the_files_frame_its_colours_and_its_place():
    scan = read(e57(({"points": POINTS, "colors": COLORS}, [1, 2, 3])))
    x, y, z = POINTS.T
    turned = np.stack([1 - y, 2 + x, 3 + z], axis=1)
    np.testing.assert_allclose(scan.views[0].points, turned, atol=1e-9)
    np.testing.assert_array_equal(scan.views[0].colors, COLORS)
    np.testing.assert_allclose(scan.views[0].viewpoint, [1, 2, 3])
    assert scan.up == "+z" and not scan.warnings


@has_e57
def test_the_scans_of_an_e57_are_joined_and_that_is_told():
    scan = read(e57(({"points": POINTS}, [0, 0, 0]), ({"points": POINTS}, [5, 0, 0])))
    assert len(scan.views[0].points) == 2 * len(POINTS) and scan.views[0].viewpoint is None
    assert "2 scans" in scan.warnings[0]


@has_e57
def test_a_bad_e57_is_refused_before_its_library_sees_more_than_it_must():
    good = e57(({"points": POINTS}, [0, 0, 0]))
    offset = int.from_bytes(good[24:32], "little")
    utf16 = good.replace(b'"UTF-8"', b'"UTF16"')
    typed = bytearray(good)
    typed[offset + 60 : offset + 69] = b"<!DOCTYPE"
    for bad in (good[:-1024], good[:40], good + b"x", utf16, bytes(typed)):
        with pytest.raises(ScanRefused) as refusal:
            read(bytes(bad))
        assert refusal.value.code == "invalid_e57"
    with pytest.raises(ScanRefused, match="points"):
        read(good, points=100)


@has_e57
def test_an_e57_is_read_in_the_child_which_may_write_no_other_file_while_it_reads(tmp_path):
    readers, data = Readers(count=1, memory=2**31, seconds=60), e57(({"points": POINTS}, [0, 0, 0]))
    try:
        asyncio.run(readers.read(Body(data, "application/octet-stream"), tmp_path / "scan"))
    finally:
        readers.close()
    assert len(Scan.load(tmp_path / "scan").views[0].points) == len(POINTS)


@has_e57
def test_without_its_library_an_e57_is_refused_with_the_reason(monkeypatch):
    good = e57(({"points": POINTS}, [0, 0, 0]))
    monkeypatch.setitem(sys.modules, "pye57", None)
    with pytest.raises(ScanRefused, match="extra") as refusal:
        read(good)
    assert (refusal.value.status, refusal.value.code) == (415, "unknown_format")
