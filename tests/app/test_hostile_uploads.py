"""What no one should send: each gets a precise refusal, quickly, and the service goes on."""

from __future__ import annotations

import json
import resource
import time
import zipfile

import numpy as np
import pytest
from asking import client_of, kept, problem, submit
from processes import settings_at
from scan_files import (
    INTRINSICS,
    depth_map,
    exr,
    exr_header,
    npy,
    npy_header,
    npz,
    npz_bomb,
    ply,
    png,
    png_header,
    sphere,
    tiff,
    tiff_bomb,
    tiff_header,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*contained no data")  # pytest lifts the app's own filter


@pytest.fixture(scope="module")
def settings(valkey, tmp_path_factory):
    """One service for all of these: what is refused leaves nothing behind."""
    return settings_at(valkey, tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def api(settings):
    with client_of(settings) as client:
        yield client


DEPTH, MASK = depth_map()
GOOD = json.loads(INTRINSICS)


def broken(**changes):
    return json.dumps({**GOOD, **changes})


def rigid(scale=1.0, last=1.0):
    return json.dumps(np.diag([scale, scale, scale, last]).tolist())


CLOUDS = {
    "empty": ("a.ply", b"", 422, "empty_file"),
    "unknown format": ("a.rcp", b"AutoDesk" + bytes(100), 415, "unknown_format"),
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
    "npz with too many colours": ("a.npz", npz(points=sphere(), colors=sphere(600)), 422, "invalid_npz"),
    "npz of a viewpoint of rows": (
        "a.npz",
        npz(points=sphere(), viewpoint=sphere()),
        422,
        "invalid_viewpoint",
    ),
    "npz of a viewpoint nowhere": (
        "a.npz",
        npz(points=sphere(), viewpoint=np.full(3, np.nan)),
        422,
        "invalid_viewpoint",
    ),
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


FLOATS = (DEPTH / 1000).astype(np.float32)

RASTERS = {
    "tiff of gigapixels": (tiff_header(width=100_000, height=100_000), 413, "too_many_pixels"),
    "tiff of endless rows": (tiff_header(height=2**32 - 1), 413, "too_many_pixels"),
    "tiff of giant tiles": (tiff_header(tile_width=2**16, tile_height=2**16), 413, "too_many_pixels"),
    "tiff without pixels": (tiff_header(), 422, "invalid_tiff"),
    "tiff without sides": (tiff_header(width=0, height=0), 422, "invalid_tiff"),
    "tiff cut off": (tiff(DEPTH)[:2000], 422, "invalid_tiff"),
    "tiff of the magic alone": (b"II*\0", 422, "invalid_tiff"),
    "tiff that points outside": (b"II*\0" + b"\xff" * 100, 422, "invalid_tiff"),
    "tiff of tags that are the file again and again": (
        tiff_header().replace(b"\x03\x01\x04\x00\x01", b"\x03\x01\x04\x00\xff"),
        422,
        "invalid_tiff",
    ),
    "tiff with a list of tile widths": (
        tiff_header(tile_width=2**16, tile_height=2**16).replace(
            b"\x42\x01\x04\x00\x01", b"\x42\x01\x04\x00\x02"
        ),
        422,
        "invalid_tiff",
    ),
    "tiff with width twice": (tiff_header().replace(b"\x01\x01\x04", b"\x00\x01\x04"), 422, "invalid_tiff"),
    "tiff of two pages": (tiff(np.stack([DEPTH, DEPTH])), 422, "invalid_tiff"),
    "tiff of 8 bits": (tiff(MASK), 422, "wrong_image_kind"),
    "tiff of signed numbers": (tiff(DEPTH.astype(np.int16)), 422, "wrong_image_kind"),
    "tiff of double floats": (tiff(DEPTH / 1000), 422, "wrong_image_kind"),
    "tiff of colours": (tiff(np.zeros((48, 64, 3), np.uint16)), 422, "wrong_image_kind"),
    "tiff that would be misread": (tiff(FLOATS, byteorder=">", compression="zlib"), 422, "invalid_tiff"),
    "tiff larger than 4 GB": (tiff(DEPTH, bigtiff=True), 415, "unknown_format"),
    "exr of gigapixels": (exr_header(100_000, 100_000), 413, "too_many_pixels"),
    "exr of endless rows": (exr_header(64, 2**30), 413, "too_many_pixels"),
    "exr of many channels": (exr_header(3000, 1000, channels=60), 413, "too_many_pixels"),
    "exr of too many channels": (exr_header(64, 48, channels=1000), 422, "invalid_exr"),
    "exr less than nothing": (exr_header(-5, 48), 422, "invalid_exr"),
    "exr without pixels": (exr_header(64, 48), 422, "invalid_exr"),
    "exr of the magic alone": (b"\x76\x2f\x31\x01", 422, "invalid_exr"),
    "exr that is deep": (exr_header(64, 48, flags=0x800), 422, "invalid_exr"),
    "exr of many parts": (exr_header(64, 48, flags=0x1000), 422, "invalid_exr"),
    "exr of tiles": (exr_header(64, 48, flags=0x200), 422, "invalid_exr"),
    "exr without a header": (exr_header(64, 48)[:8] + b"\0", 422, "invalid_exr"),
    "exr of endless attributes": (exr_header(64, 48)[:8] + b"a\0b\0" + bytes(4), 422, "invalid_exr"),
    "exr of a million attributes": (
        exr_header(64, 48)[:8] + (b"a\0b\0" + bytes(4)) * 10**5,
        422,
        "invalid_exr",
    ),
    "exr of an endless name": (exr_header(64, 48)[:8] + b"a" * 10**5, 422, "invalid_exr"),
    "exr of an attribute beyond its end": (
        exr_header(64, 48)[:8] + b"a\0b\0" + b"\xff\xff\xff\x7f",
        422,
        "invalid_exr",
    ),
    "npy of gigapixels": (npy_header("(100000, 100000)", "'<u2'"), 413, "too_many_pixels"),
    "npy promises a whole image": (npy_header("(48, 64)", "'<u2'") + bytes(90), 422, "truncated_npy"),
    "npy of whole numbers of 64 bits": (npy(DEPTH.astype(np.int64)), 422, "wrong_image_kind"),
    "npy of no rows": (npy(np.zeros((0, 64))), 422, "invalid_intrinsics"),
    "npy of three sides": (npy(np.zeros((2, 48, 64))), 422, "not_a_depth_map"),
    "npy of NaN": (npy(np.full((48, 64), np.nan)), 422, "too_few_points"),
    "npy of 1e308": (npy(np.full((48, 64), 1e308)), 422, "too_few_points"),
}

IMAGES = {
    "colours of gigapixels": ("color_image", png_header(100_000, 100_000, 8), 413, "too_many_pixels"),
    "colours of another size": ("color_image", png(np.zeros((48, 65, 3), np.uint8)), 422, "color_size"),
    "colours of 16 bits": ("color_image", png(DEPTH), 422, "wrong_image_kind"),
    "colours cut off": ("color_image", png(np.zeros((48, 64, 3), np.uint8))[:60], 422, "invalid_png"),
    "colours in words": ("color_image", b"red", 422, "invalid_png"),
    "colours of nothing": ("color_image", b"", 422, "invalid_png"),
    "mask of colours": ("mask", png(np.zeros((48, 64, 3), np.uint8)), 422, "wrong_image_kind"),
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


@pytest.mark.parametrize("case", RASTERS)
def test_a_hostile_raster_is_refused(api, case):
    data, status, code = RASTERS[case]
    answer = api.post(
        "/v1/completions?model=tiny", files={"scan": ("d.x", data)}, data={"intrinsics": INTRINSICS}
    )
    refused(answer, status, code)


@pytest.mark.parametrize("case", IMAGES)
def test_a_hostile_image_beside_a_depth_map_is_refused(api, case):
    field, data, status, code = IMAGES[case]
    files = {"scan": ("d.png", png(DEPTH)), field: ("i.png", data)}
    answer = api.post("/v1/completions?model=tiny", files=files, data={"intrinsics": INTRINSICS})
    refused(answer, status, code)


@pytest.mark.parametrize("harm", ["cut", "scrambled", "whole numbers", "unknown channels", "cropped"])
def test_a_harmed_exr_is_refused(api, harm, tmp_path):
    good = exr({"Z": FLOATS}, tmp_path)
    window = np.array([4, 4], np.int32), np.array([67, 51], np.int32)
    data, code = {
        "cut": (good[:-100], "invalid_exr"),
        "scrambled": (good[:600] + bytes(400) + good[1000:], "invalid_exr"),
        "whole numbers": (exr({"Z": DEPTH.astype(np.uint32)}, tmp_path), "wrong_image_kind"),
        "unknown channels": (exr({"U": FLOATS, "V": FLOATS}, tmp_path), "wrong_image_kind"),
        "cropped": (exr({"Z": FLOATS}, tmp_path, dataWindow=window), "invalid_exr"),
    }[harm]
    files = {"scan": ("d.exr", data)}
    refused(api.post("/v1/completions?model=tiny", files=files, data={"intrinsics": INTRINSICS}), 422, code)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("cut", range(8, 700, 61))
def test_an_image_cut_anywhere_is_refused(api, cut, tmp_path):
    for data in (exr({"Z": FLOATS}, tmp_path), tiff(DEPTH), tiff(FLOATS, compression="zlib")):
        files = {"scan": ("d.x", data[:cut])}
        answer = api.post("/v1/completions?model=tiny", files=files, data={"intrinsics": INTRINSICS})
        assert answer.status_code == 422, answer.text


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bytes_of_an_image_never_break_the_service(api, tmp_path):
    random = np.random.default_rng(0)
    for data in (
        exr({"Z": FLOATS}, tmp_path, "PIZ"),
        tiff(DEPTH, compression="zlib"),
        tiff(FLOATS),
        png(DEPTH),
    ):
        for _ in range(40):
            harmed = np.frombuffer(data, np.uint8).copy()
            places = random.integers(8, 400, 4)
            harmed[places] = random.integers(0, 256, 4)
            files = {"scan": ("d.x", harmed.tobytes())}
            answer = api.post("/v1/completions?model=tiny", files=files, data={"intrinsics": INTRINSICS})
            assert answer.status_code in (202, 413, 422, 429), answer.text


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


def test_too_many_files_are_refused(api):
    files = [("scan", ("a.npy", npy(sphere())))] * 65
    refused(api.post("/v1/completions?model=tiny", files=files), 413, "too_many_scans")


BOMBS = {
    "npz": npz_bomb(1024),
    "npz that lies": npz_bomb(1024, 24128),
    "tiff": tiff_bomb(1024),
    "tiff in a giant strip": tiff_bomb(1024, width=60_000, height=60_000),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_costs_neither_time_nor_memory(api, case):
    bomb = BOMBS[case]
    assert len(bomb) < 1.6e6
    form = {} if case.startswith("npz") else {"intrinsics": INTRINSICS}
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    api.post("/v1/completions?model=tiny", files={"scan": ("a.npz", bomb)}, data=form)
    assert time.perf_counter() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_nothing_refused_is_kept_and_the_service_goes_on(api, settings):
    for name in kept(settings):
        assert api.delete(f"/v1/completions/{name}").status_code == 204
    api.post("/v1/completions?model=tiny", files={"scan": ("a.npy", npy(sphere(3)))})
    assert not kept(settings)
    answer = api.post("/v1/completions?model=tiny", files={"scan": ("../../../etc/a.npy", npy(sphere()))})
    assert answer.status_code == 202
    assert kept(settings) == {answer.json()["id"]}
    assert {path.name for path in settings.data_dir.iterdir()} == {"uploads"}


def refused(answer, status, code):
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["instance"] == "/v1/completions"
    assert len(problem["detail"]) > 15


# Forms


def part(name, value):
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
    return head.encode("latin-1") + value + b"\r\n"


@pytest.mark.parametrize(
    ("kind", "body", "status", "code"),
    [
        ("multipart/form-data; boundary=" + "\xff" * 15_000, b"--x", 400, "bad_request"),
        ("multipart/form-data; boundary=x", b"--x\r\n" * 100_000, 400, "bad_request"),
        ("multipart/form-data; boundary=x", part("scan", b"text") * 900 + b"--x--", 422, "invalid_request"),
        ("multipart/form-data; boundary=x", part("scan", b"text") * 1100 + b"--x--", 400, "bad_request"),
        ("multipart/form-data; boundary=x", part("\xff" * 4000, b"") * 99 + b"--x--", 400, "unknown_field"),
        ("multipart/form-data; boundary=x", part("scan", b"y" * 10**6), 422, "invalid_request"),
    ],
    ids=["long boundary", "no parts", "many texts", "many parts", "long names", "large text"],
)
def test_a_hostile_form_is_refused_and_its_reader_lives(api, kind, body, status, code):
    submit(api)
    readers = api.app.state.service.readers
    before = {child.process.pid for child in readers.free}
    headers = {"Content-Type": kind.encode("latin-1")}
    answer = api.post("/v1/completions?model=tiny", content=body, headers=headers)
    assert len(problem(answer, status, code).detail) < 5000
    assert {child.process.pid for child in readers.free} == before
