"""Bringing shapes: a tiny catalogue made by hand, and the list that this repository ships."""

from __future__ import annotations

import csv
import shutil
import subprocess
import zipfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

trimesh = pytest.importorskip("trimesh")

from model.training import sources  # noqa: E402  (after importorskip)
from model.training.packages import read_member  # noqa: E402
from model.training.shapes import DRAWN, Shape, SourceError, read_shapes, write_shapes  # noqa: E402

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
CHAIRS = CHECKPOINTS / "chairs"
LISTS = sorted(path.parent for path in CHECKPOINTS.glob("*/shapes.csv"))
each_list = pytest.mark.parametrize("folder", LISTS, ids=lambda folder: folder.name)

# A wedge lying on its side: x up, as quads and triangles, with a doubled corner and a doubled face.
WEDGE = """\
# caf\xe9
v 0 0 0
v 2 0 0
v 2 3 0
v 0 3 0
v 0 0 5
v 0 3 5
v 9 9 9
v 0 0 0
vn 0 0 1
vt 0 0
g seat
usemtl wood
f 1/1/1 4/1/1 3/1/1 2/1/1
f 8//1 5//1 6 4
f 2 3 -3 -4
f 1 2 5
f 1 2 5
f 3 4 6
f 1 8 2
"""
SIDEWAYS = "0 -1 0 1 0 0 0 0 1"  # v·Rᵀ = (−y, x, z): x becomes up


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder with one shape, and a data folder whose package is unpacked already."""
    row = {
        "id": "wedge", "name": "Wedge", "category": "chair", "kind": "stool", "split": "train",
        "group": "wedge", "package": "toys", "file": "usr/share/Toys.sh3f!/toys/wedge.obj",
        "rotation": SIDEWAYS, "width": "0.3", "height": "0.4", "depth": "0.5",
        "author": "Ann", "licence": "CC0-1.0",
    }  # fmt: skip
    with (tmp_path / "shapes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    archive = tmp_path / "data" / "packages" / "toys" / "usr" / "share" / "Toys.sh3f"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as container:
        container.writestr("toys/wedge.obj", WEDGE.encode("latin-1"))
    return tmp_path


def run(folder, *more):
    return sources.main([str(folder), "--data", str(folder / "data"), *more])


def written(folder):
    return folder / "data" / "shapes" / "chair" / "wedge.ply"


def test_shape_has_the_catalogue_size_around_the_origin(folder):
    assert run(folder) == 0
    mesh = trimesh.load_mesh(written(folder), process=False)
    half = np.array([0.15, 0.20, 0.25])
    assert mesh.bounds == pytest.approx(np.array([-half, half]), abs=1e-6)


def test_shape_is_triangulated_and_welded(folder):
    run(folder)
    mesh = trimesh.load_mesh(written(folder), process=False)
    assert mesh.vertices.shape == (6, 3)  # the stray and the doubled corner are gone
    assert mesh.faces.shape == (8, 3)  # so are the doubled and the empty face
    assert mesh.is_watertight
    assert abs(mesh.volume) == pytest.approx(0.3 * 0.4 * 0.5 / 2, rel=1e-5)


def test_rotation_brings_the_sideways_shape_upright(folder):
    run(folder)
    mesh = trimesh.load_mesh(written(folder), process=False)
    top = mesh.vertices[mesh.vertices[:, 1] > 0.19]
    assert len(top) == 2  # the wedge's edge, x = 2 in the file
    assert top[:, 2] == pytest.approx(-0.25, abs=1e-6)


def test_shapes_that_are_there_are_kept_unless_forced(folder):
    written(folder).parent.mkdir(parents=True)
    written(folder).write_text("mine")
    run(folder)
    assert written(folder).read_text() == "mine"
    run(folder, "--force")
    assert written(folder).read_bytes().startswith(b"ply\nformat binary")


def test_nothing_half_written_is_left(folder):
    run(folder)
    assert [path.name for path in written(folder).parent.iterdir()] == ["wedge.ply"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb builds and unpacks packages")
def test_package_at_hand_is_unpacked_without_a_download(folder, tmp_path):
    packages = folder / "data" / "packages"
    root = packages / "toys"
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN" / "control").write_text(
        "Package: toys\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: toys\n"
    )
    command = ["dpkg-deb", "--root-owner-group", "-b", str(root), str(packages / "toys_1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(root)
    assert run(folder) == 0
    assert written(folder).exists()
    assert sorted(path.name for path in packages.iterdir()) == ["toys", "toys_1_all.deb"]


def test_missing_apt_get_is_said_clearly(folder, monkeypatch, capsys):
    shutil.rmtree(folder / "data" / "packages" / "toys")
    monkeypatch.setenv("PATH", str(folder))
    assert run(folder) == 1
    message = capsys.readouterr().err
    assert "apt-get is not installed" in message
    assert "toys_*.deb" in message


def test_missing_member_and_missing_list_are_said_clearly(folder, tmp_path, capsys):
    root = folder / "data" / "packages" / "toys"
    with pytest.raises(SourceError, match=r"nowhere\.obj"):
        read_member(root, "usr/share/Toys.sh3f!/toys/nowhere.obj")
    assert run(tmp_path / "elsewhere") == 1
    assert "shapes.csv" in capsys.readouterr().err


@each_list
def test_lists_can_be_read(folder):
    for shape in read_shapes(folder):
        # The catalogue's own rotations are this exact.
        assert shape.rotation @ shape.rotation.T == pytest.approx(np.eye(3), abs=2e-4)
        assert np.linalg.det(shape.rotation) == pytest.approx(1.0, abs=2e-4)
        assert np.all((shape.size > 0.01) & (shape.size < 100))


@each_list
def test_ids_and_files_are_unique(folder):
    shapes = read_shapes(folder)
    assert len({shape.id for shape in shapes}) == len(shapes)
    assert len({(shape.package, shape.file) for shape in shapes}) == len(shapes)


@each_list
def test_no_design_straddles_the_splits(folder):
    splits = defaultdict(set)
    for shape in read_shapes(folder):
        splits[shape.group].add(shape.split)
    assert all(len(sides) == 1 for sides in splits.values())


def made_by_people(folder):
    return [shape for shape in read_shapes(folder) if shape.package != DRAWN]


def test_chairs_are_in_the_same_splits_everywhere():
    chairs = {shape.id: shape.split for shape in made_by_people(CHAIRS)}
    among_furniture = {s.id: s.split for s in read_shapes(CHECKPOINTS / "furniture") if s.category == "chair"}
    assert chairs == among_furniture


@each_list
def test_every_split_is_there(folder):
    assert {shape.split for shape in read_shapes(folder)} == {"train", "val", "test"}


def test_the_chairs_are_those_that_were_published():
    shapes = made_by_people(CHAIRS)
    counts = {name: sum(shape.split == name for shape in shapes) for name in ("train", "val", "test")}
    assert counts == {"train": 48, "val": 6, "test": 11}
    assert len({shape.kind for shape in shapes if shape.split == "val"}) == 4


def test_what_a_program_drew_is_trained_on_alone():
    drawn = [shape for shape in read_shapes(CHAIRS) if shape.package == DRAWN]
    assert len(drawn) == 400 and {shape.split for shape in drawn} == {"train"}


COPYLEFT = {"planes", "cars"}


@each_list
def test_licences_are_free_of_copyleft_but_where_the_attribution_says_so(folder):
    free = {"CC0-1.0", "CC-BY-3.0", "CC-BY-3.0-US"}
    licences = {shape.licence for shape in read_shapes(folder)}
    assert licences <= free or folder.name in COPYLEFT
    attribution = (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(f"[{licence}](https://" in attribution for licence in licences)
    assert ("exception to this repository's rule" in attribution) == (folder.name in COPYLEFT)


@each_list
def test_every_shape_is_attributed(folder):
    attribution = (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    shapes = read_shapes(folder)
    assert any(shape.package == DRAWN for shape in shapes) == ("model/training/drawn/" in attribution)
    for shape in shapes:
        if shape.package == DRAWN:
            continue
        row = f"| {shape.id} | {shape.name} | {shape.author} | {shape.licence} | {shape.split} |"
        assert row in attribution


@each_list
def test_a_list_written_again_says_the_same(folder, tmp_path):
    before = read_shapes(folder)
    write_shapes(before, tmp_path)
    for a, b in zip(before, read_shapes(tmp_path), strict=True):
        assert np.array_equal(a.size, b.size) and a.rotation == pytest.approx(b.rotation, abs=1e-7)
        assert replace(a, size=None, rotation=None) == replace(b, size=None, rotation=None)


def test_own_files_need_no_package(tmp_path):
    (tmp_path / "wedge.obj").write_bytes(WEDGE.encode("latin-1"))
    shape = Shape(
        "w", "W", "chair", "stool", "train", "w", "", str(tmp_path / "wedge.obj"),
        np.eye(3), np.array([1, 2, 3.0]), "Ann", "CC0-1.0",
    )  # fmt: skip
    (path,) = sources.bring([shape], tmp_path / "data")
    assert trimesh.load_mesh(path).extents == pytest.approx([1, 2, 3])
    assert not (tmp_path / "data" / "packages").exists()


def test_a_shape_that_cannot_be_read_is_named(folder, capsys):
    archive = folder / "data" / "packages" / "toys" / "usr" / "share" / "Toys.sh3f"
    with zipfile.ZipFile(archive, "w") as container:
        container.writestr("toys/wedge.obj", "v 0 0 0")
    assert run(folder) == 1
    assert "wedge: no face in the OBJ file" in capsys.readouterr().err
