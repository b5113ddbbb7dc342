"""Shapes of two: tables, whose slab and legs are boxes of known places."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from model.training.recombine import OVERLAP, Parted, above, below, parting_height, recombined
from model.training.samples import areas


def box(extents: tuple[float, float, float], centre: tuple[float, float, float]) -> trimesh.Trimesh:
    made = trimesh.creation.box(extents=extents)
    made.apply_translation(centre)
    return made


def table(width: float, leg: float, height: float = 0.0) -> np.ndarray:
    """A slab that begins at `height`, 0.1 thick, on four legs down to -0.6: triangles (T, 3, 3)."""
    parts = [box((width, 0.1, 0.8), (0, height + 0.05, 0))]
    for x in (-1, 1):
        for z in (-1, 1):
            at = (x * (width - leg) / 2, (height - 0.6) / 2, z * (0.8 - leg) / 2)
            parts.append(box((leg, height + 0.6, leg), at))
    return np.asarray(trimesh.util.concatenate(parts).triangles, np.float64)


def test_a_table_is_parted_just_below_its_top() -> None:
    for height in (-0.2, 0.0, 0.3):
        assert parting_height(table(1.0, 0.08, height)) == pytest.approx(height, abs=0.02)


def test_a_block_and_a_pillar_are_not_parted() -> None:
    for extents in ((0.8, 0.8, 0.8), (0.1, 1.2, 0.1)):
        assert parting_height(np.asarray(box(extents, (0, 0, 0)).triangles)) is None


def test_the_parts_above_and_below_have_the_area_of_the_whole() -> None:
    whole = table(1.0, 0.08)
    for height in (-0.31, 0.04, 0.099):
        top, bottom = above(whole, height), below(whole, height)
        assert areas(top).sum() + areas(bottom).sum() == pytest.approx(areas(whole).sum())
        assert top[:, :, 1].min() >= height - 1e-12
        assert bottom[:, :, 1].max() <= height + 1e-12


def test_a_table_on_the_legs_of_another_has_its_own_top_and_the_others_legs_in_place() -> None:
    wide, slim = Parted(table(1.1, 0.05), 0.0), Parted(table(0.9, 0.15), 0.0)
    made = recombined(wide, slim)
    corners = made.reshape(-1, 3)
    assert np.linalg.norm(corners, axis=1).max() == pytest.approx(1 / 1.03)
    extents = np.ptp(corners, axis=0)
    assert extents[0] / extents[2] == pytest.approx(1.1 / 0.8, rel=1e-3), "the top is that of the wide one"
    scale = extents[0] / 1.1
    legs = corners[corners[:, 1] < corners[:, 1].min() + 0.1 * scale]
    assert np.ptp(legs[:, 0]) == pytest.approx(extents[0], rel=1e-3), "legs stand where the top's corners are"
    inner = np.abs(legs[:, 0]).min() / scale
    assert inner == pytest.approx(0.55 - 0.15 * 1.1 / 0.9, rel=1e-3), (
        "and are as thick as the slim one's, fitted"
    )


def test_the_lower_part_reaches_into_the_upper_one() -> None:
    upright = Parted(table(1.0, 0.1), 0.0)
    made = recombined(upright, upright)
    scale = np.ptp(made.reshape(-1, 3)[:, 0]) / 1.0
    levels = np.unique(np.round(made.reshape(-1, 3)[:, 1] / scale, 6))
    slab = levels.max() - 0.1
    assert np.isclose(levels, slab + OVERLAP, atol=1e-5).any()
