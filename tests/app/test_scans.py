"""Every format gives the same points back, and a depth map lies where its camera saw it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scan_files import INTRINSICS, depth_map, npy, npz, ply, png, sphere

from app.scans import Attachments, Limits, Scan, ScanRefused, read_scan


def xyz(points: np.ndarray, separator: str = " ") -> bytes:
    return "\n".join(["# a comment", *(separator.join(map(repr, row)) for row in points.tolist())]).encode()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.ply", ply),
        ("a.ply", lambda p: ply(p, "binary_big_endian")),
        ("a.ply", lambda p: ply(p, "ascii")),
        ("a.xyz", xyz),
        ("a.txt", lambda p: xyz(p, ", ")),
        ("a.npy", npy),
        ("a.npy", lambda p: npy(p.astype(np.float32))),
        ("a.npz", lambda p: npz(points=p)),
        ("a.npz", lambda p: npz(anything=p)),
        ("no-suffix", ply),
    ],
)
def test_points_come_back_from_every_format(name, make):
    scan = read_scan(make(sphere()), name)
    np.testing.assert_allclose(scan.points, sphere(), atol=1e-6)
    assert scan.normals is None
    assert scan.up == "+y"


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.ply", lambda p: ply(p, normals=2 * p)),
        ("a.ply", lambda p: ply(p, "ascii", normals=2 * p)),
        ("a.npy", lambda p: npy(np.hstack([p, 2 * p]))),
        ("a.npz", lambda p: npz(points=p, normals=7 * p)),
        ("a.xyz", lambda p: xyz(np.hstack([p, 2 * p]))),
    ],
)
def test_normals_come_back_as_unit_vectors(name, make):
    scan = read_scan(make(sphere()), name)
    np.testing.assert_allclose(scan.normals, 2 * sphere(), atol=1e-5)


def test_a_ply_with_faces_and_colours_after_its_vertices():
    header = (
        b"ply\r\nformat ascii 1.0\r\nelement vertex 64\r\nproperty double x\r\nproperty double y\r\n"
        b"property double z\r\nproperty uchar red\r\nproperty uchar green\r\nproperty uchar blue\r\n"
        b"element face 1\r\nproperty list uchar int vertex_indices\r\nend_header\r\n"
    )
    rows = "".join(f"{x} {y} {z} 1 2 255\r\n" for x, y, z in sphere(64)) + "3 0 1 2\r\n"
    scan = read_scan(header + rows.encode(), "mesh.ply")
    np.testing.assert_allclose(scan.points, sphere(64))
    assert scan.colors.tolist() == [[1, 2, 255]] * 64


def test_points_that_are_not_finite_are_left_out_and_told():
    points = sphere(100)
    points[3, 1], points[50, 0] = np.nan, np.inf
    scan = read_scan(npy(points), "a.npy")
    assert len(scan.points) == 98
    assert scan.warnings == ["2 of 100 points left out: not finite."]


def test_unusable_normals_are_ignored_and_told():
    normals = sphere()
    normals[7] = 0
    scan = read_scan(npz(points=sphere(), normals=normals), "a.npz")
    assert scan.normals is None
    assert "Normals ignored" in scan.warnings[0]


def test_a_viewpoint_goes_with_points():
    scan = read_scan(npy(sphere()), "a.npy", Attachments(viewpoint="[0, 0.5, 2]"))
    assert scan.viewpoint.tolist() == [0, 0.5, 2]


def test_a_scan_survives_storage_exactly():
    scan = read_scan(npz(points=sphere(), normals=sphere()), "a.npz", Attachments(viewpoint="[1, 2, 3]"))
    again = Scan.from_bytes(scan.to_bytes())
    for name in ("points", "normals", "viewpoint"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scan, name))
    assert (again.background, again.colors, again.up, again.warnings) == (None, None, "+y", [])


# Depth maps


def test_a_depth_map_lies_on_the_sphere_that_was_seen():
    depth, mask = depth_map()
    scan = read_scan(png(depth), "d.png", Attachments(intrinsics=INTRINSICS, mask=png(mask)))
    assert len(scan.points) == (mask > 0).sum()
    distances = np.linalg.norm(scan.points - [0, 0, 2.0], axis=1)
    np.testing.assert_allclose(distances, 0.5, atol=0.002)
    assert scan.viewpoint.tolist() == [0, 0, 0]
    assert scan.up == "-y"


def test_background_rays_pass_the_sphere():
    depth, mask = depth_map()
    depth[:3] = 0
    scan = read_scan(png(depth), "d.png", Attachments(intrinsics=INTRINSICS, mask=png(mask)))
    assert len(scan.background) == (mask == 0).sum()
    np.testing.assert_allclose(np.linalg.norm(scan.background, axis=1), 1)
    along = scan.background @ np.array([0, 0, 2.0])
    nearest = np.linalg.norm(scan.background * along[:, None] - [0, 0, 2.0], axis=1)
    assert nearest.min() > 0.49


def test_what_stands_before_the_object_gives_no_background():
    depth, mask = depth_map()
    depth[:, :5] = 1000
    scan = read_scan(png(depth), "d.png", Attachments(intrinsics=INTRINSICS, mask=png(mask)))
    assert len(scan.background) == (mask == 0).sum() - 5 * 48


def test_without_a_mask_there_is_no_background():
    depth, _ = depth_map()
    assert read_scan(png(depth), "d.png", Attachments(intrinsics=INTRINSICS)).background is None


@pytest.mark.parametrize("flat", [True, False])
def test_a_pose_moves_points_rays_and_viewpoint(flat):
    depth, mask = depth_map()
    turn = np.array([[0, 0, 1.0], [0, -1, 0], [1, 0, 0]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, [1, 2, 3]
    text = json.dumps(pose.ravel().tolist() if flat else pose.tolist())
    beside = Attachments(intrinsics=INTRINSICS, mask=png(mask), camera_to_world=text)
    here = read_scan(png(depth), "d.png", Attachments(intrinsics=INTRINSICS, mask=png(mask)))
    there = read_scan(png(depth), "d.png", beside)
    np.testing.assert_allclose(there.points, here.points @ turn.T + [1, 2, 3])
    np.testing.assert_allclose(there.background, here.background @ turn.T)
    assert there.viewpoint.tolist() == [1, 2, 3]
    assert there.up == "+y"


@pytest.mark.parametrize(
    "intrinsics",
    [
        "[[60, 0, 31.5], [0, 60, 23.5], [0, 0, 1]]",
        '{"fx": 60, "fy": 60, "cx": 31.5, "cy": 23.5, "width": 64, "height": 48}',
    ],
)
def test_intrinsics_are_numbers_or_a_matrix(intrinsics):
    depth, _ = depth_map()
    scan = read_scan(png(depth), "d.png", Attachments(intrinsics=intrinsics))
    same = read_scan(png(depth), "d.png", Attachments(intrinsics=INTRINSICS))
    np.testing.assert_array_equal(scan.points, same.points)


@pytest.mark.parametrize("inside", [True, False])
def test_the_depth_scale_is_units_per_metre(inside):
    depth, _ = depth_map()
    told = json.dumps({**json.loads(INTRINSICS), "depth_scale": 5000}) if inside else INTRINSICS
    beside = Attachments(intrinsics=told, depth_scale=None if inside else "5000")
    scan = read_scan(png(depth), "d.png", beside)
    same = read_scan(png(depth), "d.png", Attachments(intrinsics=INTRINSICS))
    np.testing.assert_allclose(scan.points, same.points / 5)


def test_a_large_depth_map_is_thinned_out_and_told():
    depth, _ = depth_map()
    scan = read_scan(png(depth), "d.png", Attachments(intrinsics=INTRINSICS), Limits(points=1000))
    assert len(scan.points) == 1000
    assert scan.warnings == ["3072 pixels thinned out to 1000 points."]


def test_a_refusal_says_what_to_do():
    with pytest.raises(ScanRefused) as refusal:
        read_scan(npy(sphere(10)), "a.npy")
    assert (refusal.value.status, refusal.value.code) == (422, "too_few_points")
    assert "at least 64" in refusal.value.detail
