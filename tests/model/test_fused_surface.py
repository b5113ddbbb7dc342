"""Surfaces by the kernel for a GPU in Triton's interpreter, beside what a CPU does and the dense grid."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fields import TorchField
from torch import Tensor

from model import surface
from model.surface import HALF_WIDTH, zero_level

os.environ["TRITON_INTERPRET"] = "1"  # looked at when Triton is imported
pytest.importorskip("triton")


def torus(points: Tensor) -> Tensor:
    around = points[:, [0, 2]].norm(dim=1) - 0.6
    return torch.stack([around, points[:, 1] - 0.05], dim=1).norm(dim=1) - 0.21


def beyond(points: Tensor) -> Tensor:
    """A ball that is cut off by the grid, and one in it."""
    far = (points - points.new_tensor([0.9, -0.2, 0.3])).norm(dim=1) - 0.45
    return torch.minimum(far, (points + 0.4).norm(dim=1) - 0.1)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface, "usable", lambda device: True)


@pytest.mark.parametrize("slab", [1, 4_000_000])
@pytest.mark.parametrize("field", [torus, beyond, lambda points: points[:, 0] * torch.nan])
def test_the_mesh_is_that_of_the_dense_grid(
    field: Callable[[Tensor], Tensor], slab: int, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surface, "SLAB_VALUES", (slab, slab))
    try:
        expected = zero_level(TorchField(field), 50, dense=True)
    except surface.NoSurface:
        with pytest.raises(surface.NoSurface):
            zero_level(TorchField(field), 50)
        return
    found = zero_level(TorchField(field), 50)
    assert np.array_equal(found.vertices, expected.vertices)
    assert np.array_equal(found.faces, expected.faces)
    assert found.evaluations < 0.6 * expected.evaluations


@pytest.mark.parametrize(("lipschitz", "bend"), [(1.0, 1.0), (5.0, 2.3), (1.0, 3.0)])
def test_corners_are_bounded_as_on_a_cpu_and_no_worse_where_that_does_not_look(
    lipschitz: float, bend: float
) -> None:
    field = TorchField(torus, lipschitz, bend)
    sampler = surface._Sampler.of(field, lambda: None)
    coarse = surface._evaluated(sampler, 14, 0, 15, 15, None)
    least = 1e-3 * coarse.cell
    (plain, wanted), (kernel, to_evaluate) = (
        make(sampler, coarse, least) for make in (surface._bounded, surface._halved_at_once)
    )
    assert torch.equal(wanted.sort().values, to_evaluate) and len(wanted)
    assert torch.equal(plain.exact, kernel.exact)
    assert (plain.start, plain.cells) == (kernel.start, kernel.cells)
    sure = plain.values != 0
    assert torch.equal(plain.values[sure].sign(), kernel.values[sure].sign())
    assert (kernel.values.abs() >= plain.values.abs() - 1e-6).all()
    exact = torus(plain.points(plain.corners(torch.arange(plain.values.numel())))).view_as(plain.values)
    known = ~kernel.exact
    assert torch.equal(kernel.values[known].sign(), exact[known].sign())
    assert (kernel.values[known].abs() <= exact[known].abs() + 1e-6).all()


def test_a_grid_may_be_of_one_slab_that_is_thicker_than_long() -> None:
    """What the kernel is told of sizes is told apart: planes, and corners along an edge."""
    field = TorchField(torus)
    sampler = surface._Sampler.of(field, lambda: None)
    coarse = surface._evaluated(sampler, 5, 1, 6, 6, None)
    assert coarse.values.shape == (6, 7, 7)
    assert coarse.cell == 2 * HALF_WIDTH / 5
    slab, _ = surface._halved_at_once(sampler, coarse, 0.0)
    assert torch.equal(slab.values[::2, ::2, ::2], coarse.values[:-1, :-1, :-1])
    assert slab.values.shape == (10, 12, 12) and slab.start == 2
