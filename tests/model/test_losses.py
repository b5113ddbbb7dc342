"""The terms of the loss, against their definitions written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.training import losses
from model.training.losses import CODE_PRIORS, clamped_l1, eikonal


def values(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predicted, true = 0.3 * torch.randn(2, 4, 50, generator=generator)
    return predicted, true


def curriculum_loss(predicted: float, true: float, delta: float, tolerance: float, hardness: float) -> float:
    """Curriculum DeepSDF's loss of one sample: relu(|f − s| − ε) · (1 + λ · sgn(s) · sgn(s − f))."""
    f, s = (max(-delta, min(delta, value)) for value in (predicted, true))

    def sign(value: float) -> int:
        return (value > 0) - (value < 0)

    return max(abs(f - s) - tolerance, 0) * (1 + hardness * sign(s) * sign(s - f))


@pytest.mark.parametrize(("tolerance", "hardness"), [(0.0, 0.0), (0.025, 0.0), (0.0, 0.5), (0.01, 0.2)])
def test_the_data_term_is_the_mean_of_the_published_loss(tolerance: float, hardness: float) -> None:
    predicted, true = values()
    pairs = zip(predicted.flatten().tolist(), true.flatten().tolist(), strict=True)
    each = [curriculum_loss(f, s, 0.1, tolerance, hardness) for f, s in pairs]
    found = clamped_l1(predicted, true, 0.1, tolerance, hardness)
    assert float(found) == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_within_the_tolerance_nothing_is_learnt() -> None:
    predicted = torch.tensor([0.03, 0.05], requires_grad=True)
    clamped_l1(predicted, torch.tensor([0.02, 0.02]), 0.1, tolerance=0.02).backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [0, 0.5]


def test_a_wrong_sign_weighs_more_and_too_far_out_less() -> None:
    true = torch.tensor([0.05, 0.05, -0.05, -0.05])
    predicted = torch.tensor([-0.01, 0.08, 0.01, -0.08], requires_grad=True)
    clamped_l1(predicted, true, 0.1, hardness=0.5).backward()
    assert predicted.grad is not None
    assert torch.allclose(predicted.grad, torch.tensor([-1.5, 0.5, 1.5, -0.5]) / 4)


def test_a_signed_distance_has_no_eikonal_loss_and_one_of_slope_three_four() -> None:
    points = torch.randn(2, 20, 3)
    assert eikonal(lambda x: x.norm(dim=-1) - 0.5, points) < 1e-10
    assert torch.isclose(eikonal(lambda x: 3 * x[..., 0], points), torch.tensor(4.0))


def test_the_eikonal_term_can_be_learnt_from() -> None:
    """A field a·|x| has the loss (a − 1)², whose slope is 2 (a − 1)."""
    steepness = torch.tensor(3.0, requires_grad=True)
    eikonal(lambda x: steepness * x.norm(dim=-1), torch.randn(2, 9, 3)).backward()
    assert steepness.grad is not None
    assert torch.isclose(steepness.grad, torch.tensor(4.0))


def test_the_norms_are_the_mean_norm_and_the_mean_squared_norm() -> None:
    codes = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert CODE_PRIORS["norm"](codes, codes) == 3
    assert CODE_PRIORS["squared_norm"](codes, codes) == 13


def test_for_isotropic_centred_codes_the_gaussian_prior_is_the_squared_norm() -> None:
    directions = torch.eye(5)
    every = torch.cat([directions, -directions])
    some = torch.randn(7, 5)
    assert torch.allclose(losses.gaussian(some, every), losses.squared_norm(some, every), rtol=1e-4)


def test_the_gaussian_prior_wants_the_codes_near_their_mean_and_narrow_where_they_are() -> None:
    spread = torch.tensor([1.0, 0.1])
    every = torch.tensor([5.0, 0.0]) + spread * torch.randn(
        4000, 2, generator=torch.Generator().manual_seed(0)
    )

    def penalty(*offset: float) -> float:
        return float(losses.gaussian(every.mean(dim=0)[None] + torch.tensor([offset]), every))

    assert penalty(0, 0) == pytest.approx(0, abs=1e-6)
    assert penalty(0, 0.5) > 4 * penalty(0.5, 0)


def test_the_gaussian_prior_feels_the_size_of_the_codes_as_the_squared_norm_does() -> None:
    codes = torch.randn(50, 3)
    assert torch.allclose(losses.gaussian(2 * codes, 2 * codes), 4 * losses.gaussian(codes, codes), rtol=1e-4)
