"""Reading AC3D: files written by hand, and what their author meant."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("trimesh")

from model.training.ac3d import Ac3dError, read_parts
from model.training.meshes import read_mesh
from model.training.shapes import SourceError

# A body with a quad, a triangle and a line; a wing turned and placed within it; a shadow below.
PLANE = """\
AC3Db
MATERIAL "paint" rgb 1 1 1  amb 1 1 1  emis 0 0 0  spec 0 0 0  shi 1  trans 0
OBJECT world
kids 2
OBJECT poly
name "the body"
loc 10 0 0
data 13
OBJECT poly
1
texture "a.png"
crease 45.0
numvert 5
0 0 0
2 0 0
2 0 3
0 0 3
0 1 0
numsurf 3
SURF 0x30
mat 0
refs 4
0 0 0
1 0 0
2 0 0
3 0 0
SURF 0X10
mat 0
refs 3
0 0 0
1 0 0
4 0 0
SURF 0x2
mat 0
refs 2
0 0 0
4 0 0
kids 1
OBJECT poly
name "wing"
loc 0 5 0
rot 0 1 0 -1 0 0 0 0 1
numvert 3
1 0 0
0 1 0
0 0 1
numsurf 1
SURF 0x20
mat 0
refs 3
0 0 0
1 0 0
2 0 0
kids 0
OBJECT poly
name "shadow"
numvert 3
0 -1 0
1 -1 0
0 -1 1
numsurf 1
SURF 0x0
mat 0
refs 3
0 0 0
1 0 0
2 0 0
kids 0
"""

STRIP = """\
AC3Db
OBJECT world
kids 1
OBJECT poly
name "strip"
numvert 5
0 0 0 0 0 1
0 1 0 0 0 1
1 0 0 0 0 1
1 1 0 0 0 1
2 0 0 0 0 1
numsurf 1
SURF 0x14
mat 0
refs 5
0 0 0 0 0
1 0 0 0 0
2 0 0 0 0
3 0 0 0 0
4 0 0 0 0
kids 0
"""


def test_objects_come_with_their_names_in_the_order_of_the_file():
    assert [part.name for part in read_parts(PLANE.encode())] == ["the body", "wing", "shadow"]


def test_polygons_become_triangles_and_lines_nothing():
    body = read_parts(PLANE.encode())[0]
    assert body.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4]]


def test_an_object_stands_in_its_parents_place():
    body, wing, _ = read_parts(PLANE.encode())
    assert body.vertices[0] == pytest.approx([10, 0, 0])
    # v·turn + place, then the body's place: x̂ ↦ ŷ and ŷ ↦ −x̂
    assert wing.vertices == pytest.approx(np.array([[10, 6, 0], [9, 5, 0], [10, 5, 1]]))


def test_free_text_may_look_like_anything_and_lines_may_end_as_in_windows():
    unix, windows = PLANE.encode(), PLANE.replace("\n", "\r\n").encode()
    for a, b in zip(read_parts(unix), read_parts(windows), strict=True):
        assert a.name == b.name
        assert a.vertices == pytest.approx(b.vertices)


def test_triangles_of_a_strip_all_look_to_one_side():
    (part,) = read_parts(STRIP.encode())
    corners = part.vertices[part.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert normals == pytest.approx(np.tile([0, 0, -1], (3, 1)))


def test_children_that_were_promised_and_never_written_are_no_error():
    assert len(read_parts(PLANE.replace("kids 2", "kids 3", 1).encode())) == 3


def test_dropped_objects_are_named_or_numbered():
    whole = read_mesh(PLANE.encode(), "plane.ac")
    assert len(whole.faces) == 5
    assert len(read_mesh(PLANE.encode(), "plane.ac", ["shadow"]).faces) == 4
    without_wing = read_mesh(PLANE.encode(), "plane.AC", ["#1", "shadow"])
    assert without_wing.vertices[np.unique(without_wing.faces)].max(axis=0) == pytest.approx([12, 1, 3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"solid cube", "AC3D"),
        (b"", "ends early"),
        (PLANE[: PLANE.index("2 0 3")].encode(), "ends early"),
        (PLANE.replace("refs 3\n0 0 0", "refs 3\n77 0 0", 1).encode(), "the body"),
        (PLANE.replace("2 0 3", "2 x 3").encode(), "line 1"),
    ],
    ids=["another format", "empty", "cut off", "vertex out of range", "no number"],
)
def test_a_broken_file_is_refused_with_the_place(content, message):
    with pytest.raises(Ac3dError, match=message):
        read_parts(content)


def test_a_file_with_nothing_left_is_refused():
    with pytest.raises(SourceError, match="no face"):
        read_mesh(PLANE.encode(), "plane.ac", ["the body", "wing", "shadow"])
