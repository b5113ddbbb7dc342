"""What no one should send: each gets a precise refusal, quickly, and the service goes on."""

from __future__ import annotations

import json
import resource
import time
import zipfile

import numpy as np
import pytest
from scan_files import INTRINSICS, depth_map, npy, npy_header, npz, npz_bomb, ply, png, png_header, sphere

DEPTH, MASK = depth_map()
GOOD = json.loads(INTRINSICS)


def broken(**changes):
    return json.dumps({**GOOD, **changes})


def rigid(scale=1.0, last=1.0):
    return json.dumps(np.diag([scale, scale, scale, last]).tolist())


CLOUDS = {
    "empty": ("a.ply", b"", 422, "empty_file"),
    "unknown format": ("a.las", b"LASF" + bytes(100), 415, "unknown_format"),
    "jpeg": ("a.jpg", b"\xff\xd8\xff\xe0" + bytes(100), 415, "unknown_format"),
    "gzip": ("a.ply.gz", b"\x1f\x8b\x08" + bytes(100), 415, "unknown_format"),
    "no name": ("x", b"1 2 3\n" * 100, 415, "unknown_format"),
    "ply without end": ("a.ply", b"ply\nformat ascii 1.0\n" + b"comment x\n" * 10000, 422, "invalid_ply"),
    "ply promises too many": ("a.ply", ply(sphere(), count=10**12), 413, "too_many_points"),
    "ply promises more": ("a.ply", ply(sphere(), count=600), 422, "truncated_ply"),
    "ascii ply promises more": ("a.ply", ply(sphere(), "ascii", count=501), 422, "truncated_ply"),
    "ply promises less than nothing": ("a.ply", ply(sphere()).replace(b"500", b"-50"), 422, "invalid_ply"),
    "ply counts in words": ("a.ply", ply(sphere()).replace(b"500", b"many"), 422, "invalid_ply"),
    "ply of unknown order": ("a.ply", ply(sphere()).replace(b"little", b"medium"), 422, "invalid_ply"),
    "ply without z": ("a.ply", ply(sphere()).replace(b"float z", b"float w"), 422, "invalid_ply"),
    "ply with x twice": ("a.ply", ply(sphere()).replace(b"float y", b"float x"), 422, "invalid_ply"),
    "ply with list": ("a.ply", ply(sphere()).replace(b"float z", b"list uchar int z"), 422, "invalid_ply"),
    "ply without vertices": (
        "a.ply",
        b"ply\nformat ascii 1.0\nelement face 1\nend_header\n",
        422,
        "invalid_ply",
    ),
    "ply with words for rows": ("a.ply", ply(sphere(), "ascii").replace(b"0.", b"zz"), 422, "invalid_ply"),
    "ply of nothing": ("a.ply", ply(sphere(0)), 422, "too_few_points"),
    "npy promises terabytes": ("a.npy", npy_header("(1000000, 3)") + bytes(24), 422, "truncated_npy"),
    "npy promises too many": ("a.npy", npy_header("(10000000000000000000, 3)"), 413, "too_many_points"),
    "npy of negative shape": ("a.npy", npy_header("(-5, 3)"), 422, "invalid_npy"),
    "npy of objects": ("a.npy", npy_header("(100, 3)", "'|O'") + bytes(2400), 422, "invalid_npy"),
    "npy of records": ("a.npy", npy_header("(9, 3)", "[('x', '<f8')]") + bytes(2400), 422, "invalid_npy"),
    "npy that runs code": ("a.npy", npy_header("__import__('os').abort()"), 422, "invalid_npy"),
    "npy with a broken header": ("a.npy", npy(sphere())[:40], 422, "invalid_npy"),
    "npy of wrong shape": ("a.npy", npy(np.zeros((3, 100))), 422, "invalid_npy"),
    "npy of text": ("a.npy", npy(np.full((100, 3), "x")), 422, "invalid_npy"),
    "npz bomb": ("a.npz", npz_bomb(1024), 413, "unpacks_too_large"),
    "npz bomb that lies": ("a.npz", npz_bomb(1024, stated=24128), 422, "invalid_npz"),
    "npz bomb of bzip2": ("a.npz", npz_bomb(64, 24128, zipfile.ZIP_BZIP2), 422, "invalid_npz"),
    "npz cut off": ("a.npz", npz(points=sphere())[:500], 422, "invalid_npz"),
    "npz of nothing": ("a.npz", npz(), 415, "unknown_format"),
    "npz of two unnamed": ("a.npz", npz(a=sphere(), b=sphere()), 422, "invalid_npz"),
    "npz with too few normals": ("a.npz", npz(points=sphere(), normals=sphere(9)), 422, "invalid_npz"),
    "npz of forty": ("a.npz", npz(**{f"a{i}": sphere(1) for i in range(40)}), 422, "invalid_npz"),
    "xyz of words": ("a.xyz", b"there are no numbers here\n" * 100, 422, "invalid_xyz"),
    "xyz with ragged rows": ("a.xyz", b"1 2 3\n1 2\n" * 100, 422, "invalid_xyz"),
    "xyz of zeros": ("a.xyz", bytes(1000), 422, "invalid_xyz"),
    "xyz with two columns": ("a.xyz", b"1 2\n" * 100, 422, "invalid_xyz"),
    "xyz of comments": ("a.xyz", b"# nothing\n" * 100, 422, "too_few_points"),
    "only NaN": ("a.npy", npy(np.full((100, 3), np.nan)), 422, "too_few_points"),
    "three points": ("a.npy", npy(sphere(3)), 422, "too_few_points"),
    "all at one place": ("a.npy", npy(np.ones((100, 3))), 422, "no_extent"),
    "all at zero": ("a.npy", npy(np.zeros((100, 3))), 422, "no_extent"),
    "astronomical": ("a.npy", npy(1e300 * sphere()), 422, "out_of_range"),
}

DEPTHS = {
    "no intrinsics": (png(DEPTH), {}, None, 422, "intrinsics_missing"),
    "intrinsics no JSON": (png(DEPTH), {"intrinsics": "{fx: 1}"}, None, 422, "invalid_intrinsics"),
    "intrinsics nested": (png(DEPTH), {"intrinsics": "[" * 100000}, None, 422, "invalid_intrinsics"),
    "intrinsics NaN": (png(DEPTH), {"intrinsics": '{"fx": NaN}'}, None, 422, "invalid_intrinsics"),
    "intrinsics a number": (png(DEPTH), {"intrinsics": "5"}, None, 422, "invalid_intrinsics"),
    "no focal length": (png(DEPTH), {"intrinsics": broken(fx=0)}, None, 422, "invalid_intrinsics"),
    "negative focal length": (png(DEPTH), {"intrinsics": broken(fy=-60)}, None, 422, "invalid_intrinsics"),
    "huge focal length": (png(DEPTH), {"intrinsics": broken(fx=1e300)}, None, 422, "invalid_intrinsics"),
    "focal length of text": (png(DEPTH), {"intrinsics": broken(fx="60")}, None, 422, "invalid_intrinsics"),
    "principal point far out": (png(DEPTH), {"intrinsics": broken(cx=1e5)}, None, 422, "invalid_intrinsics"),
    "intrinsics of another size": (
        png(DEPTH),
        {"intrinsics": broken(width=640)},
        None,
        422,
        "invalid_intrinsics",
    ),
    "unknown in intrinsics": (png(DEPTH), {"intrinsics": broken(k1=0.1)}, None, 422, "invalid_intrinsics"),
    "matrix with skew": (
        png(DEPTH),
        {"intrinsics": "[[60,1,31],[0,60,23],[0,0,1]]"},
        None,
        422,
        "invalid_intrinsics",
    ),
    "scale of zero": (png(DEPTH), {"depth_scale": "0"}, None, 422, "invalid_depth_scale"),
    "scale of text": (png(DEPTH), {"depth_scale": "mm"}, None, 422, "invalid_depth_scale"),
    "pose of 15": (
        png(DEPTH),
        {"camera_to_world": json.dumps([0] * 15)},
        None,
        422,
        "invalid_camera_to_world",
    ),
    "pose that scales": (png(DEPTH), {"camera_to_world": rigid(2)}, None, 422, "invalid_camera_to_world"),
    "pose that mirrors": (png(DEPTH), {"camera_to_world": rigid(-1)}, None, 422, "invalid_camera_to_world"),
    "pose that projects": (
        png(DEPTH),
        {"camera_to_world": rigid(1, 2)},
        None,
        422,
        "invalid_camera_to_world",
    ),
    "viewpoint too": (png(DEPTH), {"viewpoint": "[0,0,0]"}, None, 422, "viewpoint_twice"),
    "8 bits": (png((DEPTH // 256).astype(np.uint8)), {}, None, 422, "wrong_image_kind"),
    "colour": (png(np.zeros((48, 64, 3), np.uint8)), {}, None, 422, "wrong_image_kind"),
    "cut off": (png(DEPTH)[:100], {}, None, 422, "invalid_png"),
    "only the magic": (png(DEPTH)[:8], {}, None, 422, "invalid_png"),
    "header without pixels": (png_header(64, 48), {}, None, 422, "invalid_png"),
    "gigapixels": (png_header(100_000, 100_000), {}, None, 413, "too_many_pixels"),
    "no depth at all": (png(np.zeros_like(DEPTH)), {}, None, 422, "too_few_points"),
    "mask of another size": (png(DEPTH), {}, png(MASK[:40]), 422, "mask_size"),
    "mask all black": (png(DEPTH), {}, png(np.zeros_like(MASK)), 422, "empty_mask"),
    "mask of 16 bits": (png(DEPTH), {}, png(DEPTH), 422, "wrong_image_kind"),
    "mask no PNG": (png(DEPTH), {}, b"GIF89a" + bytes(50), 422, "invalid_png"),
    "mask of gigapixels": (png(DEPTH), {}, png_header(100_000, 100_000, 8), 413, "too_many_pixels"),
}


@pytest.mark.parametrize("case", CLOUDS)
def test_a_hostile_point_cloud_is_refused(api, case):
    name, data, status, code = CLOUDS[case]
    refused(api.post("/v1/completions?model=tiny", files={"scan": (name, data)}), status, code)


@pytest.mark.parametrize("case", DEPTHS)
def test_a_hostile_depth_map_is_refused(api, case):
    data, form, mask, status, code = DEPTHS[case]
    files = {"scan": ("d.png", data)} | ({} if mask is None else {"mask": ("m.png", mask)})
    form = form if case == "no intrinsics" else {"intrinsics": INTRINSICS, **form}
    refused(api.post("/v1/completions?model=tiny", files=files, data=form), status, code)


@pytest.mark.parametrize(
    "viewpoint", ["", "1,2,3", "[1,2]", "[1,2,null]", "[1,2,1e400]", '["a","b","c"]', "[true,1,2]"]
)
def test_a_viewpoint_is_three_numbers(api, viewpoint):
    files = {"scan": ("a.npy", npy(sphere()))}
    answer = api.post("/v1/completions?model=tiny", files=files, data={"viewpoint": viewpoint or "{}"})
    refused(answer, 422, "invalid_viewpoint")


def test_a_mask_beside_points_is_refused(api):
    files = {"scan": ("a.npy", npy(sphere())), "mask": ("m.png", png(MASK))}
    refused(api.post("/v1/completions?model=tiny", files=files), 422, "not_a_depth_map")


@pytest.mark.parametrize("stated", [None, 24128])
def test_a_bomb_costs_neither_time_nor_memory(api, stated):
    bomb = npz_bomb(1024, stated)
    assert len(bomb) < 1.6e6
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    api.post("/v1/completions?model=tiny", files={"scan": ("a.npz", bomb)})
    assert time.perf_counter() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_nothing_refused_is_kept_and_the_service_goes_on(api, settings):
    api.post("/v1/completions?model=tiny", files={"scan": ("a.npy", npy(sphere(3)))})
    assert not list(settings.data_dir.glob("completions/*"))
    answer = api.post("/v1/completions?model=tiny", files={"scan": ("../../../etc/a.npy", npy(sphere()))})
    assert answer.status_code == 202
    assert {path.name for path in settings.data_dir.glob("completions/*/*")} == {"original", "scan.npz"}


def refused(answer, status, code):
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["instance"] == "/v1/completions"
    assert len(problem["detail"]) > 15
