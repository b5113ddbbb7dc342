"""Several views of one object on the page: dropped together, seen together, sent as one completion."""

from __future__ import annotations

import io
import json

import numpy as np
import trimesh
from PIL import Image
from test_page import drawn, half_ball

CAMERA = {"fx": 60.0, "fy": 60.0, "cx": 31.5, "cy": 23.5}
FROM_THE_FRONT = [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2], [0, 0, 0, 1]]
FROM_THE_RIGHT = [[0, 0, -1, 2], [0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]]


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def depth_of_a_ball() -> tuple[bytes, bytes, int]:
    """Depth map and mask of a ball of radius 0.5 m, seen from 2 m; how many pixels see it."""
    rows, columns = np.mgrid[:48, :64]
    rays = np.stack([(columns - 31.5) / 60, (rows - 23.5) / 60, np.ones_like(rows)], axis=-1)
    square = (rays**2).sum(axis=-1)
    inside = 4 - square * (4 - 0.25)  # the discriminant of |z·ray − (0, 0, 2)|² = 0.25, over 4
    depth = np.where(inside > 0, (2 - np.sqrt(np.abs(inside))) / square, 0)
    seen = depth > 0
    return (
        png((1000 * depth).astype(np.uint16)),
        png(np.where(seen, 255, 0).astype(np.uint8)),
        int(seen.sum()),
    )


def test_depth_maps_with_masks_and_cameras_in_json_are_one_completion(window):
    depth, mask, seen = depth_of_a_ball()
    window.open()
    page = window.page
    window.drop(
        ("front_depth.png", depth),
        ("right_depth.png", depth),
        ("front_mask.png", mask),
        ("right_mask.png", mask),
        ("front.json", json.dumps({"camera_to_world": FROM_THE_FRONT}).encode()),
        ("right.json", json.dumps({"camera_to_world": FROM_THE_RIGHT}).encode()),
    )
    views = page.get_by_role("list", name="Views").get_by_role("listitem")
    views.nth(1).get_by_text("64 × 48 pixels · masked · needs its camera").wait_for()
    assert drawn(window) == 0
    views.nth(0).locator("summary").click()
    for name, value in CAMERA.items():
        views.nth(0).get_by_label(name, exact=True).fill(str(value))
    views.nth(0).get_by_label("cy", exact=True).press("Tab")
    for number in range(2):  # one camera took both
        views.nth(number).get_by_text(f"64 × 48 pixels · {seen} points · masked").wait_for()
    assert drawn(window) > 500
    assert len(hues(window)) == 2
    views.nth(0).locator("summary").click()
    assert not window.violations()
    window.keep("views")

    with page.expect_response("**/v1/completions?*") as answered:
        page.get_by_role("button", name="Complete it").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("heading", name="Cancelled").wait_for()
    accepted = answered.value.json()
    assert not accepted["warnings"]
    kept = page.request.get(f"{window.url.rstrip('/')}{accepted['links']['scan']}").body()
    points = np.asarray(trimesh.load(io.BytesIO(kept), file_type="ply").vertices)
    assert len(points) == 2 * seen
    # Both cameras saw the same ball about the origin, each its own side of it.
    assert np.abs(np.linalg.norm(points, axis=1) - 0.5).max() < 0.002
    assert points[:, 2].max() > 0.49 and points[:, 0].max() > 0.49
    assert page.get_by_role("button", name="front_depth.png + 1 cancelled").is_visible()
    assert not window.console


def hues(window) -> set[str]:
    """Which of the colours of the first three views are seen."""
    colors = {"orange": (0xD8, 0x63, 0x2B), "blue": (0x3B, 0x82, 0xB0), "green": (0x4F, 0x9D, 0x69)}
    pixels = window.pixels()
    solid = pixels[pixels[..., 3] > 250][:, :3].astype(int)
    near = {name: (np.abs(solid - color).max(axis=1) < 12).sum() for name, color in colors.items()}
    return {name for name, count in near.items() if count > 20}


def test_a_view_is_added_and_removed_again(window):
    window.open()
    page = window.page
    window.drop(
        ("one.npy", half_ball(0)), ("two.npy", half_ball(1)), ("two.json", b'{"viewpoint": [10, 0, 9]}')
    )
    views = page.get_by_role("list", name="Views").get_by_role("listitem")
    views.nth(1).wait_for()
    page.get_by_role("button", name="Complete it").click()
    alert = page.get_by_role("alert")
    alert.get_by_text("Of one.npy, where the sensor stood is missing").wait_for()
    page.get_by_label("Files of further views").set_input_files(
        {"name": "three.npy", "mimeType": "application/octet-stream", "buffer": half_ball(2)}
    )
    views.nth(2).wait_for()
    assert alert.inner_text() == ""
    assert hues(window) == {"orange", "blue", "green"}
    page.get_by_role("button", name="Remove two.npy").click()
    views.nth(2).wait_for(state="detached")
    assert hues(window) == {"orange", "blue"}
    page.get_by_role("button", name="Remove three.npy").click()
    page.get_by_text("600 points", exact=True).wait_for()
    page.get_by_role("list", name="Views").wait_for(state="detached")
    assert page.get_by_label("x, y, z").count() == 1
    page.get_by_role("button", name="Remove one.npy").click()
    page.get_by_role("button", name="Chair, points").wait_for()
    assert drawn(window) == 0


def test_files_dropped_on_the_right_of_the_stage_are_further_views(window):
    window.open()
    window.drop(("one.npy", half_ball(0)))
    window.page.get_by_text("600 points", exact=True).wait_for()
    window.drop(("two.npy", half_ball(1)), at=(700, 400))
    views = window.page.get_by_role("list", name="Views").get_by_role("listitem")
    views.nth(1).wait_for()
    window.drop(("three.npy", half_ball(1)), at=(200, 400))
    window.page.get_by_text("three.npy").wait_for()
    assert views.count() == 0


def test_what_cannot_be_put_together_is_told_with_what_would_help(window):
    depth, mask, _ = depth_of_a_ball()
    one, two, here = ("a.npy", half_ball(0)), ("b.npy", half_ball(1)), b'{"viewpoint": [1, 2, 3]}'
    refused = {
        "a.json cannot be read as JSON": [one, ("a.json", b"fx = 525")],
        "a.json tells nothing of a camera": [one, ("a.json", b'{"model": "chairs"}')],
        "Which view is x.json of?": [one, two, ("x.json", here)],
        "A picture of 8 bits is a mask": [one, ("a_mask.png", mask)],
        "Which depth map is m.png the mask of?": [("a.png", depth), ("b.png", depth), ("m.png", mask)],
        "There is no scan among these files": [("m.png", mask)],
    }
    window.open()
    for words, files in refused.items():
        window.drop(*files)
        window.page.get_by_role("alert").get_by_text(words).wait_for()
        assert not window.page.get_by_text("Reading").is_visible()
