"""From a folder of meshes to shapes.csv: one solid in every format, split files, copies, broken files."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import numpy as np
import pytest

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("igl")
pytest.importorskip("collada")

from model.training import collect, sources  # noqa: E402
from model.training.meshes import FORMATS  # noqa: E402
from model.training.shapes import SourceError, read_shapes  # noqa: E402
from model.training.splits import split_groups  # noqa: E402

SIZE = np.array([0.3, 0.4, 0.5])


def wedge(x=SIZE[0], y=SIZE[1], z=SIZE[2]):
    """A closed wedge of this size: its edge is low, its back is high."""
    corners = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1]]
    faces = [[0, 2, 1], [1, 2, 3], [0, 1, 4], [1, 5, 4], [0, 4, 2], [1, 3, 5], [2, 4, 3], [3, 4, 5]]
    return trimesh.Trimesh(np.array(corners) * [x, y, z] + [3, 2, 1], faces, process=False)


def ac3d(mesh):
    rows = [" ".join(map(str, vertex)) for vertex in mesh.vertices]
    surfaces = ["SURF 0x10\nmat 0\nrefs 3\n" + "\n".join(f"{i} 0 0" for i in face) for face in mesh.faces]
    body = [f"numvert {len(rows)}", *rows, f"numsurf {len(surfaces)}", *surfaces, "kids 0"]
    return "\n".join(["AC3Db", "OBJECT world", "kids 1", "OBJECT poly", 'name "wedge"', *body, ""]).encode()


def write(path, mesh=None):
    """A file in the format of its suffix."""
    mesh = mesh if mesh is not None else wedge()
    suffix = path.suffix.lower().removeprefix(".")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = ac3d(mesh) if suffix in ("ac", "acc") else mesh.export(file_type=suffix)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def run(folder, *more):
    return collect.main([str(folder / "meshes"), str(folder / "list"), *more])


def listed(folder):
    return read_shapes(folder / "list")


def brought(folder):
    """The PLYs that the list leads to, by id."""
    assert sources.main([str(folder / "list"), "--data", str(folder / "data")]) == 0
    return {s.id: trimesh.load_mesh(s.path(folder / "data"), process=False) for s in listed(folder)}


@pytest.mark.parametrize("suffix", [*FORMATS, "OBJ"])
def test_the_same_solid_comes_out_of_every_format(tmp_path, suffix):
    write(tmp_path / "meshes" / f"wedge.{suffix}")
    assert run(tmp_path) == 0
    (mesh,) = brought(tmp_path).values()
    assert mesh.bounds == pytest.approx(np.array([-SIZE / 2, SIZE / 2]), abs=1e-5)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(SIZE.prod() / 2, rel=1e-4)


def test_placed_parts_of_a_scene_are_put_together(tmp_path):
    scene = trimesh.Scene()
    for place in (0, 10):
        scene.add_geometry(wedge(), transform=trimesh.transformations.translation_matrix([place, 0, 0]))
    write(tmp_path / "meshes" / "two.glb", scene)
    run(tmp_path)
    assert listed(tmp_path)[0].size == pytest.approx([10.3, 0.4, 0.5], rel=1e-5)


def test_axes_and_unit_of_the_files_are_said(tmp_path):
    # In the file the wedge is in millimetres, and highest along z where y is smallest.
    write(tmp_path / "meshes" / "wedge.obj", wedge(300, 400, 500))
    assert run(tmp_path, "--up", "z", "--front=-y", "--scale", "0.001") == 0
    (mesh,) = brought(tmp_path).values()
    assert mesh.extents == pytest.approx([0.3, 0.5, 0.4], abs=1e-5)
    top = mesh.vertices[mesh.vertices[:, 1] > 0.249]
    assert top[:, 2] == pytest.approx(0.2, abs=1e-5)
    assert mesh.volume > 0  # a turn, no reflection


@pytest.mark.parametrize("axes", [("y", "-y"), ("up", "z"), ("", "z"), ("xy", "z")])
def test_axes_that_make_no_frame_are_refused(axes):
    with pytest.raises(SourceError, match="must be two of"):
        collect.rotation_from(*axes)


def test_shapenet_and_its_split_files(tmp_path):
    for name, z in (("1a", 0.5), ("2b", 0.6), ("3c", 0.7), ("4d", 0.8)):
        mesh = trimesh.creation.icosphere(subdivisions=1) if name == "3c" else wedge(z=z)
        write(tmp_path / "meshes" / "03001627" / name / "models" / "model_normalized.obj", mesh)
    (tmp_path / "train.json").write_text(json.dumps({"ShapeNetV2": {"03001627": ["3c", "lost"]}}))
    (tmp_path / "test.json").write_text(json.dumps({"ShapeNetV2": {"03001627": ["1a", "2b"]}}))
    more = ["--train", str(tmp_path / "train.json"), "--test", str(tmp_path / "test.json")]
    assert run(tmp_path, *more) == 0
    rows = [(s.id, s.category, s.name, s.split) for s in listed(tmp_path)]
    assert rows == [
        ("03001627_1a", "03001627", "1a", "test"),
        ("03001627_2b", "03001627", "2b", "test"),
        ("03001627_3c", "03001627", "3c", "train"),
    ]


def test_what_was_not_found_or_not_listed_is_said(tmp_path, capsys):
    write(tmp_path / "meshes" / "chair" / "a.obj")
    write(tmp_path / "meshes" / "chair" / "b.obj")
    (tmp_path / "train.json").write_text(json.dumps({"mine": {"chair": ["a", "lost"]}}))
    assert run(tmp_path, "--train", str(tmp_path / "train.json")) == 0
    printed = capsys.readouterr().out
    assert "b.obj: in no split file" in printed
    assert "1 shapes of the split files, such as chair/lost" in printed


def test_a_training_shape_of_a_tested_design_is_left_out(tmp_path, capsys):
    write(tmp_path / "meshes" / "chair" / "a.obj")
    write(tmp_path / "meshes" / "chair" / "taller.stl", wedge(y=0.9))
    for split, name in (("train", "taller"), ("test", "a")):
        (tmp_path / f"{split}.json").write_text(json.dumps({"mine": {"chair": [name]}}))
    run(tmp_path, *(word for s in ("train", "test") for word in (f"--{s}", str(tmp_path / f"{s}.json"))))
    assert [shape.id for shape in listed(tmp_path)] == ["chair_a"]
    assert "taller.stl: same design as chair_a, which is in test" in capsys.readouterr().out


def test_copies_share_a_group(tmp_path):
    write(tmp_path / "meshes" / "a.obj")
    write(tmp_path / "meshes" / "copy.ply", wedge(x=2))
    write(tmp_path / "meshes" / "other.ply", trimesh.creation.icosphere(subdivisions=1))
    run(tmp_path)
    assert [shape.group for shape in listed(tmp_path)] == ["meshes_a", "meshes_a", "meshes_other"]


def test_broken_files_are_named_and_the_others_kept(tmp_path, capsys):
    write(tmp_path / "meshes" / "good.obj")
    bad = {
        "cut.glb": b"glTF\x02\x00",
        "empty.obj": b"",
        "cloud.ply": trimesh.PointCloud(np.eye(3)).export(file_type="ply"),
        "nan.obj": b"v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
        "line.obj": b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n",
        "beyond.obj": b"v 0 0 0\nv 1 0 0\nf 1 2 9\n",
        "word.obj": b"v 0 0 zero\n",
        "words.ac": b"AC3Db\nOBJECT world\nkids one\n",
        "text.dae": b"no xml",
        "text.stl": b"",
    }
    for name, content in bad.items():
        (tmp_path / "meshes" / name).write_bytes(content)
    assert run(tmp_path) == 0
    assert [shape.id for shape in listed(tmp_path)] == ["meshes_good"]
    printed = capsys.readouterr().out
    for name in bad:
        assert f"{name}: " in printed


def test_ids_are_names_of_files_and_unique(tmp_path):
    names = ["chair/a__v01.obj", "chair/a v01.obj", "chair/a/v01.obj", "chair/é.obj", "chair/a_v01.ply"]
    for i, name in enumerate(names):
        write(tmp_path / "meshes" / name, trimesh.creation.cylinder(1, 1 + i, sections=3 + i))
    run(tmp_path)
    ids = [shape.id for shape in listed(tmp_path)]
    assert len(set(ids)) == len(names)
    assert not any("__" in name or "/" in name or " " in name for name in ids)


def test_a_list_that_is_there_is_kept_unless_forced(tmp_path, capsys):
    write(tmp_path / "meshes" / "a.obj")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "shapes.csv").write_text("mine")
    assert run(tmp_path) == 1
    assert "--force" in capsys.readouterr().err
    assert run(tmp_path, "--force", "--licence", "CC0-1.0", "--author", "Ann", "--category", "thing") == 0
    (shape,) = listed(tmp_path)
    assert (shape.licence, shape.author, shape.category) == ("CC0-1.0", "Ann", "thing")


def test_folders_without_meshes_and_split_files_of_another_form_are_refused(tmp_path, capsys):
    (tmp_path / "meshes").mkdir()
    assert run(tmp_path) == 1
    assert "no mesh files" in capsys.readouterr().err
    write(tmp_path / "meshes" / "a.obj")
    (tmp_path / "train.json").write_text('["a"]')
    assert run(tmp_path, "--train", str(tmp_path / "train.json")) == 1
    assert "{dataset: {class: [instance, …]}}" in capsys.readouterr().err


def test_designs_are_split_whole_and_by_share():
    groups = [f"design {i}" for i in range(200)]
    chosen = split_groups(groups * 3, {"test": 0.1, "val": 0.1})
    assert Counter(chosen.values()) == {"train": 160, "val": 20, "test": 20}
    assert chosen == split_groups(reversed(groups), {"test": 0.1, "val": 0.1})
    assert chosen != split_groups(groups, {"test": 0.1, "val": 0.1}, seed=1)


def test_few_designs_are_split_as_well_as_can_be():
    assert Counter(split_groups("abc", {"test": 0.1, "val": 0.1}).values()) == {
        "train": 1,
        "val": 1,
        "test": 1,
    }
    assert set(split_groups("ab", {"test": 0.1, "val": 0.1}).values()) == {"train"}
    assert split_groups([], {"val": 0.1}) == {}


def test_no_design_straddles_a_drawn_split(tmp_path):
    for i in range(8):
        for j, stretch in enumerate((1, 2)):
            mesh = trimesh.creation.cylinder(1, 1, sections=3 + i).apply_scale((1, stretch, 1))
            write(tmp_path / "meshes" / f"{i}{j}.ply", mesh)
    run(tmp_path)
    sides = defaultdict(set)
    for shape in listed(tmp_path):
        sides[shape.group].add(shape.split)
    assert all(len(side) == 1 for side in sides.values())
    assert {split for side in sides.values() for split in side} == {"train", "val", "test"}
