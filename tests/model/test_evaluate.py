"""Evaluation on a tiny model of solids: true figures, resumed as if never stopped, compared fairly."""

from __future__ import annotations

import csv
import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from shapes import TINY_SOLIDS, ball_points, box

from model.checkpoint import read_card
from model.frame import BALL_RADIUS
from model.mesh import Mesh
from model.metrics import FAILED, distances_to_surface
from model.training.evaluate import __main__ as command
from model.training.evaluate import ledger, measuring, sheets
from model.training.evaluate.against import LOWER_IS_BETTER, bootstrap, differences, unseen_by_both
from model.training.evaluate.inputs import Truth, inside_of, noisy_view, several_views
from model.training.evaluate.ledger import Ledger, fingerprint, measured
from model.training.evaluate.measuring import IN_BETWEEN, Measured, Setup, measure
from model.training.evaluate.summary import by_category, summary
from model.training.evaluate.tasks import KNOWN_MOST, Selection, Task, evenly, pairs, tasks
from model.training.meshes import write_ply
from model.training.samples import sample_path
from model.training.shapes import COLUMNS, Shape, read_shapes

UNSEEN = {"crate": (0.9, 1.3, 1.0), "slab": (1.0, 1.16, 1.0)}
"""Width, height and depth; nearly of the size to which they are normalised, as the model knows solids."""


def body(name: str) -> trimesh.Trimesh:
    kind, *sizes = name.split("_")
    if kind == "sphere":
        return trimesh.creation.icosphere(3, float(sizes[0]))
    return trimesh.creation.box(UNSEEN.get(name) or (2 * float(sizes[0]), 2 * float(sizes[1]), 1.0))


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a list of what it was trained on and of two solids that it was not."""
    folder = tmp_path_factory.mktemp("evaluated") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    with (folder / "shapes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for name in [*TINY_SOLIDS, *UNSEEN]:
            row = dict.fromkeys(COLUMNS, "none") | {"id": name, "group": name, "category": name.split("_")[0]}
            row |= {"rotation": "", "drop": "", "width": 1, "height": 1, "depth": 1}
            writer.writerow(row | {"split": "test" if name in UNSEEN else "train"})
    return folder


@pytest.fixture(scope="module")
def data(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Meshes of all solids, and samples of the unseen ones."""
    data = tmp_path_factory.mktemp("data")
    for shape in read_shapes(folder):
        shape.path(data).parent.mkdir(parents=True, exist_ok=True)
        write_ply(body(shape.id), shape.path(data))
        if shape.id in UNSEEN:
            points = ball_points(4000, np.random.default_rng(0))
            scale = BALL_RADIUS / (np.linalg.norm(UNSEEN[shape.id]) / 2)
            distances = box(*(scale * np.array(UNSEEN[shape.id]) / 2))(points)
            rows = np.column_stack([points, distances]).astype(np.float32)
            path = sample_path(data / "samples" / "tiny", shape)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, pos=rows[rows[:, 3] >= 0], neg=rows[rows[:, 3] < 0])
    return data


@pytest.fixture
def setup(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """The tiny model, meshed coarsely."""
    monkeypatch.setattr("model.training.evaluate.methods.RESOLUTION", 32)
    return Setup(folder, data, "cpu", "no adam")


@pytest.fixture(scope="module")
def listed(folder: Path) -> dict[str, Shape]:
    return {shape.id: shape for shape in read_shapes(folder)}


# What is measured


def test_tasks_are_of_every_section_and_the_same_every_time(listed: dict[str, Shape]) -> None:
    known = [shape for name, shape in listed.items() if name in TINY_SOLIDS]
    unseen = [listed[name] for name in UNSEEN]
    found = tasks(known, unseen, {"crate"}, Selection(views=3))
    assert len({task.key for task in found}) == len(found)
    count = {section: sum(task.section == section for task in found) for section in Selection().sections}
    assert count == {
        "known": len(known), "unseen": 1, "completion": 6, "several": 4, "noise": 12, "interpolation": 5,
    }  # fmt: skip
    again = tasks(known[::-1], unseen, {"crate"}, Selection(views=3))
    assert [task.key for task in again] == [task.key for task in found]


def test_a_limit_keeps_so_many_shapes_of_each_section_with_all_their_views(listed: dict[str, Shape]) -> None:
    known = [shape for name, shape in listed.items() if name in TINY_SOLIDS]
    selection = Selection(("known", "completion"), views=3, limit=1)
    found = tasks(known, [listed[name] for name in UNSEEN], set(), selection)
    assert [task.section for task in found] == ["known", "completion", "completion", "completion"]
    assert not selection.whole and Selection().whole


def test_of_many_known_shapes_a_stated_number_is_drawn(listed: dict[str, Shape]) -> None:
    many = [replace(listed["crate"], id=f"shape_{index}") for index in range(3 * KNOWN_MOST)]
    found = tasks(many, [], set(), Selection(("known",)))
    assert len({task.shape.id for task in found}) == KNOWN_MOST


def test_pairs_are_of_one_category_and_no_shape_is_in_two(listed: dict[str, Shape]) -> None:
    found = pairs(list(listed.values()))
    assert found and all(first.category == last.category for first, last in found)
    names = [shape.id for pair in found for shape in pair]
    assert len(set(names)) == len(names)


def test_even_choice_has_both_ends() -> None:
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    assert evenly(range(3), 4) == [0, 1, 2]


# Against what


def test_volumes_of_a_box_and_a_shifted_one_overlap_as_they_do() -> None:
    cube = trimesh.creation.box((0.8, 0.8, 0.8))
    truth = Truth(cube, None)  # type: ignore[arg-type]
    for shift in (0.0, 0.2, 0.4):
        moved = Mesh(
            (cube.vertices + np.array([shift, 0, 0])).astype(np.float32), cube.faces.astype(np.int32)
        )
        shared = 0.8 - shift
        assert truth.iou(moved) == pytest.approx(shared / (1.6 - shared), abs=0.02)


def test_a_sheet_has_no_volume_to_compare() -> None:
    sheet = trimesh.creation.box((0.8, 0.8, 0.8))
    sheet.update_faces(np.abs(sheet.triangles_center[:, 1] - 0.4) < 1e-6)
    cube = trimesh.creation.box((0.8, 0.8, 0.8))
    generated = Mesh(cube.vertices.astype(np.float32), cube.faces.astype(np.int32))
    assert np.isnan(Truth(sheet, None).iou(generated))  # type: ignore[arg-type]


def test_what_a_leaky_mesh_does_not_say_is_left_out() -> None:
    """An open box of which few cameras see the bottom: inside for none, outside for many, or not said."""
    open_box = trimesh.creation.box((0.3, 1.2, 0.3))
    open_box.update_faces(open_box.triangles_center[:, 1] < 0.6 - 1e-6)
    truth = Truth(open_box, None)  # type: ignore[arg-type]
    depths = np.linspace(-0.55, 0.55, 23)
    points = np.column_stack([0 * depths, depths, 0 * depths])
    inside, known = truth.sides(points)
    cameras = truth.solid.sight.cameras(points)
    assert (inside == (cameras < 2)).all() and (known == ((cameras < 2) | (cameras > 4))).all()
    assert not known.all() and inside.any() and (known & ~inside).any()


def test_inside_of_a_closed_mesh_is_where_its_distance_is_negative() -> None:
    ball = trimesh.creation.icosphere(4, 0.7)
    mesh = Mesh(ball.vertices.astype(np.float32), ball.faces.astype(np.int32))
    points = np.random.default_rng(0).uniform(-1, 1, (2000, 3))
    far = np.abs(np.linalg.norm(points, axis=1) - 0.7) > 0.02
    assert (inside_of(mesh, points) == (np.linalg.norm(points, axis=1) < 0.7))[far].all()


def test_noise_is_on_the_inverse_depth_in_radii_whatever_the_unit(folder: Path, data: Path) -> None:
    truth = measuring.truth_of(read_shapes(folder)[-1].path(data))
    scale = truth.normalization.scale
    clean, noisy = (noisy_view(truth, 3, alpha).depth * scale for alpha in (0.0, 0.01))
    assert np.nanstd(1 / noisy - 1 / clean) == pytest.approx(0.01, rel=0.05)


def test_several_views_are_from_all_around(folder: Path, data: Path) -> None:
    truth = measuring.truth_of(read_shapes(folder)[-1].path(data))
    eyes = np.array([view.viewpoint for view in several_views(truth, 15)]) + truth.normalization.offset
    azimuths = np.sort(np.arctan2(eyes[:, 0], eyes[:, 2]))
    gaps = np.diff([*azimuths, azimuths[0] + 2 * np.pi])
    assert gaps.max() < np.radians(170)


# Sections


@pytest.mark.parametrize(
    ("section", "methods"), [("known", 1), ("unseen", 3), ("completion", 4), ("several", 2), ("noise", 1)]
)
def test_every_section_measures_its_methods_and_ours_is_near(
    setup: Setup, listed: dict[str, Shape], section: str, methods: int
) -> None:
    name = "sphere_0.95" if section == "known" else "crate"
    found = measure(Task(section, listed[name], 0, 0.01 if section == "noise" else 0.0), setup)
    assert len(found) == methods
    ours = found[0]
    assert ours.method.startswith("ours") and ours.category == listed[name].category
    assert ours.figures["chamfer"] < 40 and ours.figures["iou"] > 0.5


def test_between_shapes_are_closed_shapes_of_one_part(setup: Setup, listed: dict[str, Shape]) -> None:
    """From a cube to a longer box: what lies half-way is as near to no box as to the two."""
    task = Task("interpolation", listed["box_0.35_0.5"], other=listed["box_0.5_0.65"])
    found = measure(task, setup)
    assert len(found) == measuring.STEPS
    assert all(one.figures["closed"] == one.figures["one_part"] == 1 for one in found)
    assert all(one.figures["nearest"] >= 0 for one in found)
    steps = [one.figures["longest_step"] for one in found if one.method == IN_BETWEEN]
    assert len(steps) == 3 and all(0.25 <= step < 0.6 for step in steps)


def test_a_method_without_a_mesh_is_the_worst_there_is(setup: Setup, listed: dict[str, Shape]) -> None:
    def fails() -> Mesh:
        raise measuring.NoSurface

    figures = measuring.figures_of(fails, Truth(body("crate"), None))  # type: ignore[arg-type]
    assert np.isnan(figures["chamfer"]) and figures["iou"] == figures["completeness"] == 0
    good = FAILED.to_dict() | {"chamfer": 2.0, "emd": 0.1, "accuracy": 0.1, "iou": 1.0}
    one, other = (Measured("known", "solid", "a", 0, "ours", row) for row in (figures, good))
    row = summary([one, other, other])["known"]["ours"]
    assert row["count"] == 3 and row["failed"] == 1
    assert row["chamfer_median"] == row["chamfer_mean"] == 2.0
    assert row["iou"] == pytest.approx(2 / 3)
    assert summary([one, one, other])["known"]["ours"]["chamfer_median"] == np.inf


def test_figures_by_category_are_those_of_its_shapes_alone() -> None:
    rows = {"chair": 1.0, "table": 3.0}
    found = [
        Measured("known", category, category, 0, "ours", {"chamfer": value})
        for category, value in rows.items()
    ]
    split = by_category(found)
    assert {category: figures["known"]["ours"]["chamfer_mean"] for category, figures in split.items()} == rows
    assert by_category(found[:1]) == {}


# Resuming


def made_up(task: Task, setup: Setup) -> list[Measured]:
    """Figures that a task alone decides, at once."""
    value = 1 + zlib.crc32(task.key.encode()) / 2**32
    if task.other is not None:
        figures = {"closed": 1.0, "one_part": 1.0, "nearest": value, "longest_step": 0.3}
        return [Measured(task.section, task.shape.category, task.subject, 2, IN_BETWEEN, figures)]
    figures = {**FAILED.to_dict(), "chamfer": value, "emd": value, "accuracy": value, "iou": value}
    figures |= dict.fromkeys(measuring.WITHIN, 0.5)
    method = f"ours, α = {task.noise:g}" if task.noise else "ours"
    return [Measured(task.section, task.shape.category, task.shape.id, task.view, method, figures)]


def test_a_stopped_evaluation_goes_on_where_it_was(
    setup: Setup, listed: dict[str, Shape], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[Task] = []

    def noted(task: Task, setup: Setup) -> list[Measured]:
        worked.append(task)
        return made_up(task, setup)

    monkeypatch.setattr(ledger, "measure", noted)
    todo = [Task("known", listed[name]) for name in list(TINY_SOLIDS)[:3]]
    straight = measured(todo, setup, Ledger(None, "tiny"), 1)
    file = tmp_path / "ledger.jsonl"
    measured(todo[:2], setup, Ledger(file, "tiny"), 1)
    with file.open("a") as out:
        out.write('{"task": "known/cut off in wri')

    worked.clear()
    assert measured(todo, setup, Ledger(file, "tiny"), 1) == straight
    assert worked == todo[2:]
    assert measured(todo, setup, Ledger(file, "tiny"), 1) == straight
    assert worked == todo[2:], "nothing is done twice"


def test_what_is_read_back_is_what_was_measured_without_a_mesh_too(
    listed: dict[str, Shape], tmp_path: Path
) -> None:
    task, file = Task("known", listed["crate"]), tmp_path / "ledger.jsonl"
    figures = FAILED.to_dict() | {"iou": 0.25}
    Ledger(file, "one").add(task, "all", [Measured("known", "solid", "crate", 0, "ours", figures)])
    (read,) = Ledger(file, "one").found(task, "all") or []
    assert read.figures == pytest.approx(figures, nan_ok=True)


def test_another_checkpoint_or_a_fresh_start_forgets_what_was_measured(
    listed: dict[str, Shape], tmp_path: Path
) -> None:
    task, file = Task("known", listed["crate"]), tmp_path / "ledger.jsonl"
    Ledger(file, "one").add(task, "ours", [])
    assert Ledger(file, "one").found(task, "ours") == []
    assert Ledger(file, "one", fresh=True).found(task, "ours") is None
    Ledger(file, "one").add(task, "ours", [])
    assert Ledger(file, "other").found(task, "ours") is None


def test_what_was_measured_of_all_methods_serves_where_fewer_are_asked(
    listed: dict[str, Shape],
) -> None:
    task, book = Task("unseen", listed["crate"]), Ledger(None, "one")
    book.add(task, "no adam", [])
    assert book.found(task, "ours") == book.found(task, "no adam") == []
    assert book.found(task, "all") is None


def test_the_fingerprint_changes_with_the_weights_and_not_with_the_figures(
    folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "tiny"
    shutil.copytree(folder, other)
    assert fingerprint(other) == fingerprint(folder)
    card = read_card(other)
    (other / "card.json").write_text(json.dumps({**card, "evaluation": {"known": {}}}))
    assert fingerprint(other) == fingerprint(folder)
    (other / "card.json").write_text(json.dumps({**card, "lipschitz": 9.0}))
    assert fingerprint(other) != fingerprint(folder)


# Two checkpoints


def some_measured(shift: float = 0.0, seed: int = 0) -> list[Measured]:
    rng = np.random.default_rng(seed)
    found = []
    for shape in range(12):
        level = rng.uniform(1, 5)
        for view in range(3):
            value = level + rng.normal(scale=0.2)
            figures = dict.fromkeys(LOWER_IS_BETTER, 0.5) | {"chamfer": value + shift}
            found.append(Measured("completion", "solid", f"shape_{shape}", view, "ours", figures))
    return found


def test_a_checkpoint_against_itself_differs_by_nothing() -> None:
    for row in differences(some_measured(), some_measured()):
        assert row.difference == row.low == row.high == row.better == 0
        assert row.first == row.second and row.pairs == 36 and row.shapes == 12


def test_a_constant_difference_is_found_and_has_no_spread() -> None:
    row = differences(some_measured(), some_measured(0.5))[0]
    assert row.metric == "chamfer" and row.better == 1
    assert np.allclose([row.difference, row.low, row.high], -0.5)


def test_a_scan_without_a_mesh_is_no_pair_of_distances_but_counts_as_failed() -> None:
    second = some_measured()
    second[0] = replace(second[0], figures={**second[0].figures, "chamfer": np.nan, "iou": 0.0})
    rows = {row.metric: row for row in differences(some_measured(), second)}
    assert rows["chamfer"].pairs == 35 and rows["iou"].pairs == 36
    assert (rows["chamfer"].failed_first, rows["chamfer"].failed_second) == (0, 1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says_with_views_that_go_together() -> None:
    rng = np.random.default_rng(0)
    names = np.repeat([f"shape_{index}" for index in range(30)], 4)
    hits = 0
    for _ in range(60):
        low, high = bootstrap(np.repeat(rng.normal(size=30), 4) + 0.1 * rng.normal(size=120), names)
        hits += low <= 0 <= high
    assert 50 <= hits <= 60


def test_only_shapes_of_designs_that_neither_has_seen_are_compared(listed: dict[str, Shape]) -> None:
    shapes = [replace(listed["crate"], id=name, group=name[0]) for name in ("a1", "b1", "b2", "c1", "d1")]
    found = unseen_by_both(shapes, [["a1", "a1__v01"], ["b1__v03"]], [shapes, shapes])
    assert [shape.id for shape in found] == ["c1", "d1"]


# The command


def test_the_command_writes_the_report_and_then_compares_the_checkpoint_with_itself(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ledger, "measure", made_up)
    monkeypatch.setattr(sheets, "cells_of", lambda task, setup: [("", trimesh.creation.icosphere(1))] * 3)
    folder = tmp_path / "tiny"
    shutil.copytree(setup.folder, folder)
    common = [str(folder), "--data", str(setup.data), "--device", "cpu", "--jobs", "1", "--views", "1"]
    assert command.main(common) == 0
    card = read_card(folder)
    assert set(card["evaluation"]) == set(Selection().sections)
    assert card["evaluation_by_category"]["crate"]["completion"]["ours"]["count"] == 1
    report = (folder / "report.md").read_text()
    drawn = list((folder / "report").glob("*.png"))
    assert len(drawn) == 7 and all(f"report/{picture.name}" in report for picture in drawn)
    with (folder / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["section"] for row in rows} == set(Selection().sections)

    monkeypatch.setattr(ledger, "measure", lambda task, setup: pytest.fail("the ledger has them all"))
    other = tmp_path / "against.json"
    assert command.main([*common, "--against", str(folder), "--json", str(other)]) == 0
    found = json.loads(other.read_text())
    assert found and all(row["difference"] == row["low"] == row["high"] == 0 for row in found)
    assert "2 test shapes unseen by both" in capsys.readouterr().out


PARTS = [["--quick"], ["--limit", "1"], ["--sections", "known"], ["--methods", "ours"]]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_evaluation_is_not_published(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: list[str]
) -> None:
    monkeypatch.setattr(ledger, "measure", made_up)
    before = (setup.folder / "card.json").read_bytes()
    where = ["--data", str(setup.data), "--device", "cpu", "--jobs", "1", "--partial", str(tmp_path)]
    assert command.main([str(setup.folder), *where, *part]) == 0
    assert (setup.folder / "card.json").read_bytes() == before
    assert not (setup.folder / "report.md").exists()
    assert (tmp_path / "evaluation-tiny.jsonl").exists() == (part != ["--quick"])


def test_a_picture_shows_what_was_seen_what_ours_made_of_it_and_the_truth(
    setup: Setup, listed: dict[str, Shape]
) -> None:
    (_, seen), (_, made), (label, true) = sheets.cells_of(Task("completion", listed["crate"]), setup)
    assert label == "crate"
    assert np.abs(distances_to_surface(seen, true)).max() < 1e-4
    assert np.median(distances_to_surface(made.vertices.astype(float), true)) < 0.1


def test_missing_samples_end_with_the_command_that_makes_them(setup: Setup, tmp_path: Path) -> None:
    bare = tmp_path / "data"
    shutil.copytree(setup.data / "shapes", bare / "shapes")
    with pytest.raises(SystemExit, match=r"python -m model\.training\.samples .* --split test"):
        command.main([str(setup.folder), "--data", str(bare), "--quick", "--jobs", "1"])
    with pytest.raises(SystemExit, match=r"python -m model\.training\.sources"):
        command.main([str(setup.folder), "--data", str(tmp_path / "none"), "--quick", "--jobs", "1"])
