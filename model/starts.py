"""Where a fit may start: training shapes as grids of signed distances, and hypotheses screened on them.

A scan's place, size and turn are unknown, and the objective has a valley for each way in which a seat may
be taken for a backrest. Every start shape is therefore tried at every turn, size and place, by looking its
signed distances up in a coarse grid: the decoder would take a thousand times longer. The best are moved
into place by Levenberg-Marquardt, still on the grids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from model import kernels
from model.batch import Steps
from model.decoder import Decoder
from model.field import at_a_time
from model.fused import grids as fused_grids
from model.latent import LevenbergMarquardt, objective
from model.placement import ExpectedPlacements, Placements, boxes_of, rotations_all_around, yaws
from model.problems import CodePrior, FitSettings, Problems, Rows

GRID_CELLS = 32
HALF_WIDTH = 1.04
"""Grids span [-HALF_WIDTH, HALF_WIDTH]³: the unit ball and a margin."""

FARTHEST = 0.5
"""Distances are clamped here: how wrong a start is beyond it says nothing."""

UNIT = FARTHEST / 127
"""Of the values of grids, a byte each."""

SCALE_SHARES = (1.2, 1.1, 1.0, 0.9)
"""Scales tried for each start: shares of the largest at which the scan fits its bounding box. Above 1
because the start's shape is not the scanned one, and its tightest side may be tighter."""

YAWS, ROTATIONS = 24, 360
FREE_SHAPES = 16
"""Under a free pose only so many start shapes, the most different ones, are tried at every rotation."""

LOOKUPS = (4_000_000, 64_000_000)
"""Grid values looked up at a time, on a CPU and on a GPU."""


@dataclass(frozen=True)
class StartShapes:
    """S shapes that a fit may start from. As `CodedFields` the code of a shape is its number, (B, 1)."""

    codes: Tensor  # (S, L)
    extents: Tensor  # (S, 2, 3) lower and upper corner, canonical frame
    grids: Tensor  # (S, G, G, G) int8 signed distances at cell corners, ±127 for ±FARTHEST; x, y, z
    recorded_rows: int = 400_000  # see `CodedFields`: to look up many takes a GPU little longer than few

    def __len__(self) -> int:
        return len(self.codes)

    def of(self, picks: Tensor) -> StartShapes:
        """The given ones."""
        return StartShapes(self.codes[picks], self.extents[picks], self.grids[picks])

    def spread(self, count: int) -> Tensor:
        """Numbers of `count` shapes, each as far from those before it as any."""
        features = self.grids.flatten(1)[:, ::7].float()
        chosen = [int((features - features.mean(dim=0)).norm(dim=1).argmin())]
        nearest = (features - features[chosen[0]]).norm(dim=1)
        while len(chosen) < min(count, len(self)):
            chosen.append(int(nearest.argmax()))
            nearest = torch.minimum(nearest, (features - features[chosen[-1]]).norm(dim=1))
        return torch.tensor(chosen, device=self.codes.device)

    def __call__(self, codes: Tensor, points: Tensor) -> Tensor:
        """Signed distances (B, K) of the shapes numbered `codes` (B, 1) at (B, K, 3) points."""
        values, share = self._corners(codes, points)
        for axis in range(3):
            values = torch.lerp(values[:, :, 0], values[:, :, 1], _beside(share[..., axis], values[:, :, 0]))
        return values

    def distance_and_gradients(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signed distances (B, K), zeros (B, K, 1) for the code, and gradients in the point (B, K, 3)."""
        if kernels.usable(points.device):
            values, by_point = fused_grids.looked_up(self.grids, codes, points, HALF_WIDTH, UNIT)
            return values, torch.zeros_like(values)[..., None], by_point
        values, share = self._corners(codes, points)
        slopes: list[Tensor] = []
        for axis in range(3):
            low, high = values[:, :, 0], values[:, :, 1]
            at = _beside(share[..., axis], low)
            slopes = [torch.lerp(part[:, :, 0], part[:, :, 1], at) for part in slopes] + [high - low]
            values = torch.lerp(low, high, at)
        by_point = torch.stack(slopes, dim=-1) * (self.grids.shape[1] - 1) / (2 * HALF_WIDTH)
        return values, torch.zeros_like(values)[..., None], by_point

    def _corners(self, codes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Values (B, K, 2, 2, 2) around each point, and where in its cell it lies (B, K, 3)."""
        size = self.grids.shape[1]
        where = ((points + HALF_WIDTH) * ((size - 1) / (2 * HALF_WIDTH))).clamp(0, size - 1.001)
        cell = where.long()
        corner = torch.arange(8, device=points.device)
        near = _number(corner // 4, corner // 2 % 2, corner % 2, size)
        first = codes.long() * size**3 + _number(cell[..., 0], cell[..., 1], cell[..., 2], size)
        values = self.grids.flatten()[first[..., None] + near].float() * UNIT
        return values.unflatten(-1, (2, 2, 2)), where - cell


def _number(x: Tensor, y: Tensor, z: Tensor, size: int) -> Tensor:
    """Where the value at a corner of a grid stands among all of its values."""
    return (x * size + y) * size + z


def _beside(share: Tensor, values: Tensor) -> Tensor:
    """(B, K) shares, shaped to multiply (B, K, …) values."""
    return share.reshape(share.shape + (1,) * (values.dim() - 2))


def grids_of(decoder: Decoder, codes: Tensor, clamping_distance: float) -> Tensor:
    """Grids (S, G, G, G) of `StartShapes` for (S, L) codes.

    Beyond the clamping distance the decoder says only "farther": there the distance is carried on from
    the nearest corner within it.
    """
    steps = torch.linspace(-HALF_WIDTH, HALF_WIDTH, GRID_CELLS + 1, device=codes.device)
    corners = torch.cartesian_prod(steps, steps, steps)
    return torch.stack([_grid(decoder, code, corners, clamping_distance) for code in codes])


@torch.no_grad()
def _grid(decoder: Decoder, code: Tensor, corners: Tensor, clamping_distance: float) -> Tensor:
    chunks = corners.split(16_384)
    values = torch.cat([decoder(code[None], chunk[None])[0] for chunk in chunks])
    field = values.reshape((GRID_CELLS + 1,) * 3).cpu().numpy()
    far = np.abs(field) >= 0.9 * clamping_distance
    beyond = np.sign(field) * (
        0.9 * clamping_distance + distance_transform_edt(far) * 2 * HALF_WIDTH / GRID_CELLS
    )
    known = np.where(far & ~far.all(), beyond, field)
    scaled = np.clip(known / FARTHEST, -1, 1) * 127
    return torch.from_numpy(np.round(scaled).astype(np.int8)).to(code.device)


@dataclass(frozen=True)
class Hypotheses:
    """H ways in which a scan may lie in a start shape."""

    origin: Tensor  # (H,) number of the start shape
    placements: Placements
    turn: Tensor  # (H,) number of the rotation it came from

    def __len__(self) -> int:
        return len(self.origin)

    def of(self, picks: Tensor) -> Hypotheses:
        """The given ones."""
        return Hypotheses(self.origin[picks], self.placements.of(picks), self.turn[picks])


@cache
def turns(pose: str, device: torch.device) -> Tensor:
    """Rotations (T, 3, 3) of the observation that a pose mode asks to try."""
    if pose == "upright":
        return yaws(YAWS, device)
    if pose == "free":
        return rotations_all_around(ROTATIONS, device)
    return torch.eye(3, device=device)[None]


def hypotheses(starts: StartShapes, surface: Tensor, rotations: Tensor, numbers: Tensor) -> Hypotheses:
    """The start shapes `numbers` at every rotation (T, 3, 3), at each of these every scale and place.

    They are for (K, 3) scan points, and in this order.

    A partial scan's bounding box fits into the shape's, so the largest scale is where it touches in one
    axis; along each axis the scan lies at the low end, the high end or in the middle of the slack.
    """
    extents = starts.extents[numbers][:, None]  # (C, 1, 2, 3)
    boxes = boxes_of(surface, rotations)
    low, size = boxes.low, boxes.size
    room = extents[:, :, 1] - extents[:, :, 0]  # (C, 1, 3)
    largest = (room / size.clamp(min=0.05)).amin(dim=-1)  # (C, T)
    scales = largest[..., None] * surface.new_tensor(SCALE_SHARES)  # (C, T, 4)
    ends = surface.new_tensor([0.0, 0.5, 1.0])
    places = torch.cartesian_prod(ends, ends[::2], ends)  # low, middle, high; objects are cut at one end of y
    slack = room[:, :, None] - scales[..., None] * size[:, None]  # (C, T, 4, 3)
    corner = extents[:, :, None, None, 0] + places * slack[..., None, :]  # (C, T, 4, P, 3)
    translations = corner - (scales[..., None] * low[:, None])[..., None, :]
    shape = translations.shape[:-1]
    turn = torch.arange(len(rotations), device=surface.device)[:, None, None].expand(shape).reshape(-1)
    placements = Placements(
        scales.log()[..., None].expand(shape).reshape(-1), rotations[turn], translations.reshape(-1, 3)
    )
    return Hypotheses(numbers[:, None, None, None].expand(shape).reshape(-1), placements, turn)


def screening(
    starts: StartShapes,
    pose: str,
    few: Rows,
    some: Rows,
    surface: Tensor,
    expected: ExpectedPlacements,
    settings: FitSettings,
    kept: int,
) -> Steps[Hypotheses]:
    """The best hypotheses, best first, moved into place on the grids.

    `few` and `some` are rows of the observation (B = 1): for all hypotheses, and for the `kept` best, of
    which each pair of start shape and rotation has at most one. Placements are `expected` for each of the
    `turns` of the pose mode.
    """
    device = surface.device
    numbers = torch.arange(len(starts), device=device)
    if pose == "free" and len(starts) > FREE_SHAPES:
        numbers = starts.spread(FREE_SHAPES)
    tried = hypotheses(starts, surface, expected.placements.rotation, numbers)
    cost = yield from _costs(starts, few, tried, expected, settings)
    tried = tried.of(_best_of_each(cost, len(tried) // (len(numbers) * len(expected.deviation)), kept))
    problems = _problems(some, tried, pose, settings, expected)
    fit = LevenbergMarquardt(starts, problems, settings)
    yield fit
    while not fit.finished:
        yield fit
    order = fit.cost.argsort()
    return Hypotheses(tried.origin[order], fit.placements.of(order), tried.turn[order])


def _problems(
    rows: Rows, tried: Hypotheses, pose: str, settings: FitSettings, expected: ExpectedPlacements
) -> Problems:
    numbers, flat = tried.origin[:, None].float(), _flat_prior(rows.points.device)
    return Problems.start(rows, numbers, flat, tried.placements, pose, settings, expected.of(tried.turn))


@cache
def _flat_prior(device: torch.device) -> CodePrior:
    return CodePrior(torch.zeros(1, device=device), torch.zeros(1, 1, device=device))


def _costs(
    starts: StartShapes, rows: Rows, tried: Hypotheses, expected: ExpectedPlacements, settings: FitSettings
) -> Steps[Tensor]:
    device, costs = rows.points.device, []
    if kernels.usable(device):
        return fused_grids.judged(
            starts.grids,
            rows,
            tried.origin,
            tried.turn,
            tried.placements,
            expected,
            settings,
            HALF_WIDTH,
            UNIT,
        )
    together = max(1, at_a_time(device, *LOOKUPS) // (8 * len(rows)))
    for part in torch.arange(len(tried), device=device).split(together):
        problems = _problems(rows, tried.of(part), "known", settings, expected)
        costs.append(objective(starts, problems, settings))
        yield None
    return torch.cat(costs)


def _best_of_each(cost: Tensor, hypotheses: int, count: int) -> Tensor:
    """Of every so many hypotheses the best, and of these the `count` best, best first: their indices."""
    least, which = cost.view(-1, hypotheses).min(dim=1)
    pairs = least.topk(min(count, len(least)), largest=False).indices
    return pairs * hypotheses + which[pairs]
