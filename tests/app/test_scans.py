"""Every format gives the same points back, and a depth map lies where its camera saw it."""

from __future__ import annotations

import io
import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from scan_files import INTRINSICS, depth_map, exr, jpeg, npy, npz, ply, png, sphere, tiff

from app.scans import Attachments, Limits, Scan, ScanRefused, Upload, read_scan

DEPTH, MASK = depth_map()
pytestmark = pytest.mark.filterwarnings("ignore:.*contained no data")  # pytest lifts the app's own filter


def read(data, name="d.png", limits=None, **beside):
    """The scan of one file; what comes beside it is given once."""
    given = Attachments(**{field: [value] for field, value in beside.items()})
    return read_scan([Upload(data, name)], given, limits)


def view(data, name="d.png", **beside):
    """Its only view."""
    (only,) = read(data, name, **beside).views
    return only


def code_of(refused):
    """How a reading is refused."""
    with pytest.raises(ScanRefused) as refusal:
        refused()
    return refusal.value.code


def xyz(points: np.ndarray, separator: str = " ") -> bytes:
    return "\n".join(["# a comment", *(separator.join(map(repr, row)) for row in points.tolist())]).encode()


# Point clouds


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
    scan = read(make(sphere()), name)
    np.testing.assert_allclose(scan.views[0].points, sphere(), atol=1e-6)
    assert scan.views[0].normals is None
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
    np.testing.assert_allclose(view(make(sphere()), name).normals, 2 * sphere(), atol=1e-5)


COLORS = np.random.default_rng(1).integers(0, 256, (500, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.xyz", lambda p: xyz(np.hstack([p, COLORS]))),
        ("a.npy", lambda p: npy(np.hstack([p, COLORS]))),
        ("a.npz", lambda p: npz(points=p, colors=COLORS)),
        ("a.npz", lambda p: npz(points=p, colors=COLORS.astype(np.int64))),
        ("a.npz", lambda p: npz(points=p, colors=COLORS / 255)),
    ],
)
def test_colours_come_back_as_bytes(name, make):
    colors = view(make(sphere()), name).colors
    assert colors.dtype == np.uint8
    np.testing.assert_array_equal(colors, COLORS)


@pytest.mark.parametrize("turned", [False, True])
def test_rows_of_text_may_have_both_colours_and_normals_in_either_order(turned):
    both = [2 * sphere(), COLORS] if turned else [COLORS, 2 * sphere()]
    only = view(xyz(np.hstack([sphere(), *both])), "a.xyz")
    np.testing.assert_array_equal(only.colors, COLORS)
    np.testing.assert_allclose(only.normals, 2 * sphere())


@pytest.mark.parametrize("further", [1, 2, 3, 4])
def test_columns_that_say_nothing_are_ignored_and_told(further):
    scan = read(xyz(np.hstack([sphere(), np.full((500, further), 0.5)])), "a.xyz")
    assert scan.views[0].normals is None and scan.views[0].colors is None
    assert scan.warnings[0].startswith(f"{further} further columns ignored")


def test_a_ply_with_faces_and_colours_after_its_vertices():
    header = (
        b"ply\r\nformat ascii 1.0\r\nelement vertex 64\r\nproperty double x\r\nproperty double y\r\n"
        b"property double z\r\nproperty uchar red\r\nproperty uchar green\r\nproperty uchar blue\r\n"
        b"element face 1\r\nproperty list uchar int vertex_indices\r\nend_header\r\n"
    )
    rows = "".join(f"{x} {y} {z} 1 2 255\r\n" for x, y, z in sphere(64)) + "3 0 1 2\r\n"
    only = view(header + rows.encode(), "mesh.ply")
    np.testing.assert_allclose(only.points, sphere(64))
    assert only.colors.tolist() == [[1, 2, 255]] * 64
    shares = header.replace(b"uchar red", b"float red").replace(b"uchar green", b"float green")
    rows = "".join(f"{x} {y} {z} 0.2 1 0\r\n" for x, y, z in sphere(64)) + "3 0 1 2\r\n"
    only = view(shares.replace(b"uchar blue", b"float blue") + rows.encode(), "mesh.ply")
    assert only.colors.tolist() == [[51, 255, 0]] * 64


def test_points_that_are_not_finite_are_left_out_and_told():
    points, normals = sphere(100), 2 * sphere(100)
    points[3, 1], points[50, 0] = np.nan, np.inf
    scan = read(npz(points=points, normals=normals, colors=COLORS[:100]), "a.npz")
    kept = np.isfinite(points).all(axis=1)
    np.testing.assert_array_equal(scan.views[0].points, points[kept])
    np.testing.assert_allclose(scan.views[0].normals, normals[kept])
    np.testing.assert_array_equal(scan.views[0].colors, COLORS[:100][kept])
    assert scan.warnings == ["2 of 100 points left out: not finite."]


def test_unusable_normals_are_ignored_and_told():
    normals = sphere()
    normals[7] = 0
    scan = read(npz(points=sphere(), normals=normals), "a.npz")
    assert scan.views[0].normals is None
    assert "Normals ignored" in scan.warnings[0]


def test_a_viewpoint_goes_with_points():
    assert view(npy(sphere()), "a.npy", viewpoint="[0, 0.5, 2]").viewpoint.tolist() == [0, 0.5, 2]


def test_an_archive_may_hold_the_viewpoint_and_the_form_goes_before_it():
    data = npz(points=sphere(), viewpoint=np.array([1.0, 2, 3]))
    assert view(data, "a.npz").viewpoint.tolist() == [1, 2, 3]
    assert view(data, "a.npz", viewpoint="[4, 5, 6]").viewpoint.tolist() == [4, 5, 6]


def test_a_scan_survives_storage_exactly(tmp_path):
    cloud = npz(points=sphere(), normals=sphere(), colors=COLORS)
    beside = Attachments(
        viewpoint=["[1, 2, 3]"], intrinsics=[INTRINSICS], mask=[png(MASK)], camera_to_world=[IDENTITY]
    )
    damaged = npy(np.vstack([sphere(80), [[np.nan] * 3]]))
    files = [Upload(cloud, "a.npz"), Upload(png(DEPTH), "d.png"), Upload(damaged, "b.npy")]
    scan = read_scan(files, beside)
    path = tmp_path / "folder" / "scan.safetensors"
    scan.save(path, {"scan-1": cloud, "mask-1": b""})
    again = Scan.load(path)
    assert (len(again.views), again.up) == (3, scan.up)
    assert again.warnings == scan.warnings == ["Scan 3 of 3: 1 of 81 points left out: not finite."]
    for one, other in zip(again.views, scan.views, strict=True):
        for name in ("points", "normals", "viewpoint", "background", "colors"):
            there, here = getattr(one, name), getattr(other, name)
            assert (there is None) == (here is None)
            if here is not None:
                assert there.dtype == here.dtype
                np.testing.assert_array_equal(there, here)


# Depth maps


def test_a_depth_map_lies_on_the_sphere_that_was_seen():
    scan = read(png(DEPTH), intrinsics=INTRINSICS, mask=png(MASK))
    assert len(scan.views[0].points) == (MASK > 0).sum()
    distances = np.linalg.norm(scan.views[0].points - [0, 0, 2.0], axis=1)
    np.testing.assert_allclose(distances, 0.5, atol=0.002)
    assert scan.views[0].viewpoint.tolist() == [0, 0, 0]
    assert scan.up == "-y"


@pytest.mark.parametrize(
    "make",
    [
        tiff,
        lambda d: tiff(d, byteorder=">"),
        lambda d: tiff(d, compression="zlib", predictor=True),
        lambda d: tiff(d, byteorder=">", compression="zlib"),
        lambda d: tiff(d, tile=(16, 32)),
        lambda d: tiff((d / 1000).astype(np.float32)),
        lambda d: tiff((d / 1000).astype(np.float32), byteorder=">"),
        lambda d: tiff((d / 1000).astype(np.float32), compression="zlib"),
        npy,
        lambda d: npy(d.astype(">u2")),
        lambda d: npy(np.asfortranarray(d)),
        lambda d: npy(d / 1000),
        lambda d: npy((d / 1000).astype(np.float32)),
    ],
)
def test_a_depth_map_is_the_same_in_every_format(make):
    same = view(png(DEPTH), intrinsics=INTRINSICS)
    np.testing.assert_allclose(view(make(DEPTH), intrinsics=INTRINSICS).points, same.points, rtol=1e-6)


def test_a_half_float_is_as_good_as_its_eleven_bits():
    same = view(png(DEPTH), intrinsics=INTRINSICS)
    half = view(npy((DEPTH / 1000).astype(np.float16)), intrinsics=INTRINSICS)
    np.testing.assert_allclose(half.points, same.points, rtol=2**-11)


@pytest.mark.parametrize("packing", ["NO", "RLE", "ZIPS", "ZIP", "PIZ"])
def test_an_exr_holds_metres(packing, tmp_path):
    metres = (DEPTH / 1000).astype(np.float32)
    same = view(png(DEPTH), intrinsics=INTRINSICS)
    found = view(exr({"Z": metres}, tmp_path, packing), intrinsics=INTRINSICS)
    np.testing.assert_allclose(found.points, same.points, rtol=1e-6)


def test_the_depth_of_an_exr_is_found_among_its_channels(tmp_path):
    metres, other = (DEPTH / 1000).astype(np.float32), np.ones((48, 64), np.float32)
    same = view(exr({"Z": metres}, tmp_path), intrinsics=INTRINSICS)
    for channels in (
        {"Y": metres},
        {"RGB": np.stack([metres] * 3, axis=-1)},
        {"View Layer.Depth.Z": metres, "View Layer.Combined.R": other},
        {"R": other, "G": other, "B": other, "A": other, "Z": metres},
    ):
        found = view(exr(channels, tmp_path), intrinsics=INTRINSICS)
        np.testing.assert_array_equal(found.points, same.points)


def test_what_a_float_says_beyond_a_distance_is_no_measurement():
    metres = DEPTH / 1000
    for number, nothing in enumerate((np.nan, np.inf, -np.inf, 0, -1, 1e10)):
        metres[0, number] = nothing
    only = view(npy(metres), intrinsics=INTRINSICS, mask=png(MASK))
    assert len(only.points) == (MASK > 0).sum()
    assert len(only.background) == (MASK == 0).sum()
    assert len(view(npy(metres), intrinsics=INTRINSICS).points) == DEPTH.size - 6


def test_rows_of_numbers_are_an_image_only_with_a_camera():
    assert code_of(lambda: read(npy(DEPTH), "d.npy")) == "invalid_npy"
    assert code_of(lambda: read(npy(sphere()), "a.npy", intrinsics=INTRINSICS)) == "not_a_depth_map"


def test_background_rays_pass_the_sphere():
    depth = DEPTH.copy()
    depth[:3] = 0
    only = view(png(depth), intrinsics=INTRINSICS, mask=png(MASK))
    assert len(only.background) == (MASK == 0).sum()
    np.testing.assert_allclose(np.linalg.norm(only.background, axis=1), 1)
    along = only.background @ np.array([0, 0, 2.0])
    nearest = np.linalg.norm(only.background * along[:, None] - [0, 0, 2.0], axis=1)
    assert nearest.min() > 0.49


def test_what_stands_before_the_object_gives_no_background():
    depth = DEPTH.copy()
    depth[:, :5] = 1000
    only = view(png(depth), intrinsics=INTRINSICS, mask=png(MASK))
    assert len(only.background) == (MASK == 0).sum() - 5 * 48


def test_without_a_mask_there_is_no_background():
    assert view(png(DEPTH), intrinsics=INTRINSICS).background is None


@pytest.mark.parametrize("flat", [True, False])
def test_a_pose_moves_points_rays_and_viewpoint(flat):
    turn = np.array([[0, 0, 1.0], [0, -1, 0], [1, 0, 0]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, [1, 2, 3]
    text = json.dumps(pose.ravel().tolist() if flat else pose.tolist())
    here = view(png(DEPTH), intrinsics=INTRINSICS, mask=png(MASK))
    scan = read(png(DEPTH), intrinsics=INTRINSICS, mask=png(MASK), camera_to_world=text)
    (there,) = scan.views
    np.testing.assert_allclose(there.points, here.points @ turn.T + [1, 2, 3])
    np.testing.assert_allclose(there.background, here.background @ turn.T)
    assert there.viewpoint.tolist() == [1, 2, 3]
    assert scan.up == "+y"


OPEN3D = {"width": 64, "height": 48, "intrinsic_matrix": [60, 0, 0, 0, 60, 0, 31.5, 23.5, 1]}


@pytest.mark.parametrize(
    "intrinsics",
    [
        [[60, 0, 31.5], [0, 60, 23.5], [0, 0, 1]],
        [60, 0, 31.5, 0, 60, 23.5, 0, 0, 1],
        {"fx": 60, "fy": 60, "cx": 31.5, "cy": 23.5, "width": 64, "height": 48},
        OPEN3D,
        {
            "class_name": "PinholeCameraParameters",
            "version_major": 1,
            "version_minor": 0,
            "intrinsic": OPEN3D,
        },
    ],
)
def test_intrinsics_come_in_every_form(intrinsics):
    found = view(png(DEPTH), intrinsics=json.dumps(intrinsics))
    np.testing.assert_array_equal(found.points, view(png(DEPTH), intrinsics=INTRINSICS).points)


def test_the_extrinsic_of_open3d_is_the_pose_the_other_way_round():
    turn = np.array([[0, 0, 1.0], [0, -1, 0], [1, 0, 0]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, [1, 2, 3]
    to_camera = np.linalg.inv(pose).T.ravel().tolist()  # world to camera, column by column
    both = read(png(DEPTH), intrinsics=json.dumps({"intrinsic": OPEN3D, "extrinsic": to_camera}))
    same = read(png(DEPTH), intrinsics=INTRINSICS, camera_to_world=json.dumps(pose.tolist()))
    np.testing.assert_allclose(both.views[0].points, same.views[0].points)
    assert both.up == same.up == "+y"


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(("make", "unit"), [(png, 1), (tiff, 1), (lambda d: npy(d / 1000), 1000)])
def test_the_depth_scale_is_units_per_metre(inside, make, unit):
    told = json.dumps({**json.loads(INTRINSICS), "depth_scale": 5000 / unit}) if inside else INTRINSICS
    beside = {} if inside else {"depth_scale": str(5000 / unit)}
    found = view(make(DEPTH), intrinsics=told, **beside)
    np.testing.assert_allclose(found.points, view(png(DEPTH), intrinsics=INTRINSICS).points / 5)


def test_a_large_depth_map_is_thinned_out_and_told():
    scan = read(png(DEPTH), limits=Limits(points=1000), intrinsics=INTRINSICS)
    assert len(scan.views[0].points) == 1000
    assert scan.warnings == ["3072 pixels thinned out to 1000 points."]


# Colours of a depth map

POSITIONS = np.stack([*np.mgrid[:48, :64], np.full((48, 64), 7)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("make", [png, jpeg, lambda c: png(np.dstack([c, np.full((48, 64), 255, np.uint8)]))])
def test_the_colour_of_a_pixel_goes_to_its_point(make):
    only = view(make_holes(), intrinsics=INTRINSICS, mask=png(MASK), color_image=make(POSITIONS))
    rows, columns = np.nonzero((MASK > 0) & (np.arange(64) % 3 > 0))
    x = (columns - 31.5) / 60
    np.testing.assert_allclose(only.points[:, 0] / only.points[:, 2], x)
    told = np.stack([rows, columns, np.full(len(rows), 7)], axis=1)
    assert np.abs(only.colors.astype(int) - told).max() <= (3 if make is jpeg else 0)


def make_holes():
    depth = DEPTH.copy()
    depth[:, ::3] = 0
    return png(depth)


def test_a_grey_colour_image_is_grey():
    only = view(png(DEPTH), intrinsics=INTRINSICS, color_image=png(MASK))
    np.testing.assert_array_equal(only.colors, np.repeat(MASK.reshape(-1, 1), 3, axis=1))


def test_colours_of_another_size_are_refused():
    wrong = png(POSITIONS[:40])
    assert code_of(lambda: read(png(DEPTH), intrinsics=INTRINSICS, color_image=wrong)) == "color_size"


# Several files

IDENTITY = json.dumps(np.eye(4).tolist())
MOVED = json.dumps([1, 0, 0, 5, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1])


def several(count, **beside):
    return read_scan([Upload(png(DEPTH), "d.png")] * count, Attachments(**beside))


def test_several_files_are_views_of_one_scan_in_their_order():
    files = [Upload(ply(sphere()), "a.ply"), Upload(png(DEPTH), "d.png"), Upload(npy(2 * sphere()), "b.npy")]
    beside = Attachments(
        viewpoint=["[1, 2, 3]", "[4, 5, 6]"],
        intrinsics=[INTRINSICS],
        camera_to_world=[MOVED],
        color_image=[png(POSITIONS)],
    )
    scan = read_scan(files, beside)
    assert [len(view.points) for view in scan.views] == [500, DEPTH.size, 500]
    assert [view.viewpoint.tolist() for view in scan.views] == [[1, 2, 3], [5, 0, 0], [4, 5, 6]]
    assert [view.colors is None for view in scan.views] == [True, False, True]
    assert scan.up == "+y"


def test_what_is_given_once_is_meant_for_all():
    scan = several(3, intrinsics=[INTRINSICS], depth_scale=["500"], camera_to_world=[IDENTITY] * 3)
    for one in scan.views:
        np.testing.assert_allclose(one.points, 2 * view(png(DEPTH), intrinsics=INTRINSICS).points)
    files = [Upload(npy(sphere()), "a.npy")] * 2
    scan = read_scan(files, Attachments(viewpoint=["[1, 2, 3]"]))
    assert [view.viewpoint.tolist() for view in scan.views] == [[1, 2, 3]] * 2


def test_what_is_given_for_each_is_taken_in_order():
    other = MASK[::-1].copy()
    scan = several(
        2,
        intrinsics=[INTRINSICS, json.dumps({**json.loads(INTRINSICS), "fx": 120})],
        depth_scale=["1000", "2000"],
        camera_to_world=[IDENTITY, MOVED],
        mask=[png(MASK), png(other)],
        color_image=[png(POSITIONS), png(POSITIONS[:, ::-1].copy())],
    )
    first, second = scan.views
    assert (len(first.points), len(second.points)) == ((MASK > 0).sum(), (other > 0).sum())
    assert second.points[:, 0].mean() == pytest.approx(5, abs=0.02)
    assert np.ptp(second.points[:, 2]) < np.ptp(first.points[:, 2]) * 40
    np.testing.assert_array_equal(first.colors[:, 1], np.nonzero(MASK)[1])
    np.testing.assert_array_equal(second.colors[:, 1], 63 - np.nonzero(other)[1])


@pytest.mark.parametrize("field", ["intrinsics", "depth_scale", "camera_to_world", "mask", "color_image"])
def test_counts_that_do_not_fit_are_refused_in_words(field):
    good = {"intrinsics": INTRINSICS, "depth_scale": "1000", "camera_to_world": IDENTITY}
    good |= {"mask": png(MASK), "color_image": png(POSITIONS)}
    beside = {name: [value] * 3 for name, value in good.items()} | {field: [good[field]] * 2}
    with pytest.raises(ScanRefused) as refusal:
        several(3, **beside)
    assert refusal.value.code == "wrong_count"
    assert f"2 values of `{field}` for 3 depth maps" in refusal.value.detail
    shared = field in ("intrinsics", "depth_scale")
    assert ("one for all of them" in refusal.value.detail) == shared


def test_viewpoints_are_counted_by_the_point_clouds():
    files = [Upload(npy(sphere()), "a.npy")] * 3
    with pytest.raises(ScanRefused) as refusal:
        read_scan(files, Attachments(viewpoint=["[1, 2, 3]"] * 2))
    assert "2 values of `viewpoint` for 3 point clouds" in refusal.value.detail


def test_several_scans_need_one_frame():
    assert code_of(lambda: several(2, intrinsics=[INTRINSICS])) == "camera_to_world_missing"
    files = [Upload(png(DEPTH), "d.png"), Upload(npy(sphere()), "a.npy")]
    refused = lambda: read_scan(files, Attachments(intrinsics=[INTRINSICS]))  # noqa: E731
    assert code_of(refused) == "camera_to_world_missing"


def test_one_camera_with_a_pose_inside_is_not_the_pose_of_several():
    inside = json.dumps({"intrinsic": OPEN3D, "extrinsic": json.loads(MOVED)})
    assert code_of(lambda: several(2, intrinsics=[inside])) == "camera_to_world_missing"
    moved = [json.dumps({"intrinsic": OPEN3D, "extrinsic": np.diag([s, s, 1, 1]).tolist()}) for s in (1, -1)]
    first, second = several(2, intrinsics=moved).views
    np.testing.assert_allclose(second.points, first.points * [-1, -1, 1])


def test_a_view_that_saw_nothing_is_left_out_with_its_rays_and_told():
    nothing = DEPTH.copy()
    nothing[MASK > 0] = 0
    files = [Upload(png(nothing), "d.png"), Upload(png(DEPTH), "d.png")]
    beside = Attachments(intrinsics=[INTRINSICS], mask=[png(MASK)] * 2, camera_to_world=[IDENTITY, IDENTITY])
    scan = read_scan(files, beside)
    assert len(scan.views) == 1
    assert scan.warnings == ["Scan 1 of 2: left out: it has no usable points."]
    assert code_of(lambda: read_scan(files[:1] * 2, beside)) == "too_few_points"


def test_few_points_are_enough_if_there_are_many_together():
    parts = np.array_split(sphere(80), 4)
    scan = read_scan([Upload(npy(part), "a.npy") for part in parts])
    assert [len(view.points) for view in scan.views] == [20] * 4
    assert code_of(lambda: read_scan([Upload(npy(parts[0]), "a.npy")] * 3)) == "too_few_points"


def test_limits_hold_for_the_sum():
    clouds = [Upload(npy(sphere(400)), "a.npy")] * 3
    assert len(read_scan(clouds, limits=Limits(points=1200)).views) == 3
    assert code_of(lambda: read_scan(clouds, limits=Limits(points=1199))) == "too_many_points"
    maps = [Upload(png(DEPTH), "d.png")] * 3
    beside = Attachments(intrinsics=[INTRINSICS], camera_to_world=[IDENTITY] * 3)
    scan = read_scan(maps, beside, Limits(points=3000, pixels=3 * DEPTH.size))
    assert [len(view.points) for view in scan.views] == [1000] * 3
    assert scan.warnings[2] == "Scan 3 of 3: 3072 pixels thinned out to 1000 points."
    too_many = lambda: read_scan(maps, beside, Limits(pixels=3 * DEPTH.size - 1))  # noqa: E731
    assert code_of(too_many) == "too_many_pixels"
    assert code_of(lambda: read_scan(clouds * 30)) == "too_many_scans"


# Everything


def test_a_refusal_says_what_to_do():
    with pytest.raises(ScanRefused) as refusal:
        read(npy(sphere(10)), "a.npy")
    assert (refusal.value.status, refusal.value.code) == (422, "too_few_points")
    assert "at least 64" in refusal.value.detail


def test_reading_in_several_threads_leaves_no_trace_in_the_process():
    """A worker of the API that had been told to turn warnings into errors would break somewhere else."""
    before = list(warnings.filters)
    large = io.BytesIO()
    Image.fromarray(np.zeros((480, 640), np.uint16)).save(large, "PNG")
    text = xyz(sphere(2000))

    def one(number):
        if number % 2:
            return len(view(text, "a.xyz").points)
        return code_of(lambda: view(large.getvalue(), intrinsics='{"fx":600,"fy":600,"cx":320,"cy":240}'))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(64))) == {2000, "too_few_points"}
    assert warnings.filters == before
