"""From an observation to the best code and placement: screen many hypotheses, fit some, finish a few.

A state of the solver knows no hypotheses, and this module no mesh. Every round is one batch of problems.
Each way to fit comes twice: `fitting` pauses at every step (see `model.batch`), `fit` goes to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from model.batch import Steps, aside, to_the_end
from model.checkpoint import Checkpoint
from model.consensus import central
from model.encoder import Suggestion
from model.frame import Similarity
from model.latent import Adam, LevenbergMarquardt
from model.observation import Observation, RowWeights, rows_of
from model.placement import ExpectedPlacements, Placements, by_outline
from model.problems import CodePrior, FitSettings, Problems, Rows
from model.starts import Hypotheses, StartShapes, grids_of, screening, turns
from model.streams import brought
from model.trees import mapped

Tell = Callable[[int, int, float | None], None]
"""Called after every step with its number, how many there are at most, and the best residual."""

Look = Callable[[Tensor, Placements], None]
"""Called with the best code (L,) and placement (B = 1) so far: once screened, and after each round."""

ADAM_LOOKS = 100
"""Steps of Adam's from one look to the next."""


def _nothing(*_: object) -> None: ...


@dataclass(frozen=True)
class Round:
    """One batch of the solver: how many problems, on how many rows (surface, free space), how long."""

    problems: int
    rows: tuple[int, int]
    steps: int


@dataclass(frozen=True)
class Effort:
    """How many hypotheses are tried, and on how many rows (surface, free space) each round looks."""

    screened_rows: tuple[int, int] = (60, 36)  # all hypotheses, on grids
    moved: int = 96
    moved_if_free: int = 192  # of so many more rotations
    moved_rows: tuple[int, int] = (192, 96)  # the best of them, moved into place on grids
    moved_steps: int = 12
    per_shape: int = 3  # hypotheses of one start shape that the first round takes at most
    suggested: int = 3  # turns that the encoder likes best: its codes in these come first
    rounds: tuple[Round, ...] = (
        Round(24, (256, 160), 12),
        Round(6, (800, 500), 12),
        Round(6, (1600, 1000), 12),
    )

    @property
    def steps(self) -> int:
        """Steps of all rounds at most."""
        return sum(one.steps for one in self.rounds)


@dataclass(frozen=True)
class Starts:
    """B codes and placements that fits start from."""

    codes: Tensor  # (B, L)
    placements: Placements

    def of(self, picks: Tensor | slice) -> Starts:
        """The given ones."""
        return Starts(self.codes[picks], self.placements.of(picks))

    @classmethod
    def joined(cls, parts: list[Starts]) -> Starts:
        """All of the parts, in order."""
        codes = torch.cat([part.codes for part in parts])
        return cls(codes, Placements.joined([part.placements for part in parts]))


@dataclass(frozen=True)
class Expected:
    """What a fit expects of a scan in T turns before it looks closely."""

    prior: CodePrior  # of each
    placements: ExpectedPlacements  # of each
    suggestion: Suggestion | None  # of the encoder, if it was asked

    def starts(self, count: int) -> list[Starts]:
        """What the encoder names in its likeliest turns, so many, the likeliest first."""
        return [] if self.suggestion is None else [Starts(*self.suggestion.best(count))]


@dataclass(frozen=True)
class Step:
    """One step of the solver, as the report traces it."""

    round: int  # from 1
    objective: float  # E of the best problem
    residual: float  # its mean misfit, radii of the scan
    unfinished: int  # problems still moving


@dataclass(frozen=True)
class Candidate:
    """A hypothesis at the end of its fit."""

    code: Tensor  # (L,)
    placement: Similarity  # from the observation's frame into the canonical one
    objective: float
    residual: float  # mean misfit, radii of the scan


@dataclass(frozen=True)
class Ends:
    """Where B fits of one observation ended."""

    codes: Tensor  # (B, L)
    placements: Placements
    cost: Tensor  # (B,) E


@dataclass(frozen=True)
class Fit:
    """The winner of a fit, and what is needed to judge it."""

    best: Candidate
    runners_up: list[Candidate]
    ends: Ends  # of the winner and the runners-up, as tensors
    problem: Problems  # the winner's rows and state (B = 1)
    hessian: Tensor  # (L + 7, L + 7) Gauss-Newton Hessian of E at the winner
    steps: int
    trace: list[Step] = field(default_factory=list)


class Fitter:
    """Fits observations with one checkpoint."""

    def __init__(
        self, checkpoint: Checkpoint, settings: FitSettings, weights: RowWeights, effort: Effort
    ) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        self.weights, self.effort = weights, effort
        self._brought: WeakKeyDictionary[Observation, tuple[Tensor, Tensor]] = WeakKeyDictionary()

    def rows(self, observation: Observation, counts: tuple[int, int], seed: int) -> Rows:
        """Random rows of an observation, on the checkpoint's device."""
        checkpoint = self.checkpoint
        return rows_of(observation, counts, checkpoint.skin, self.weights, checkpoint.device, seed)

    def _seen(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """The observed points and their normals (K, 3), on the checkpoint's device: brought there once."""
        if observation not in self._brought:
            self._brought[observation] = (
                brought(observation.surface.astype(np.float32), self.checkpoint.device),
                brought(observation.normals.astype(np.float32), self.checkpoint.device),
            )
        return self._brought[observation]

    def fitting(
        self,
        observation: Observation,
        pose: str,
        seed: int = 0,
        start: Tensor | None = None,
        tell: Tell = _nothing,
        look: Look | None = None,
    ) -> Steps[Fit]:
        """The MAP code and placement by Levenberg-Marquardt; `start` (L,) is a code to try first."""
        expected = self.expected(observation, turns(pose, self.checkpoint.device), pose)
        shapes, places = self.start_shapes(start), expected.placements
        screened = yield from self.screening(observation, pose, seed, shapes, places)
        starts = Starts.joined([*expected.starts(self.effort.suggested), screened])
        tell(0, self.effort.steps, None)
        yield from _shown(look, starts.codes[0], starts.placements)
        return (yield from self.fitting_starts(observation, starts, pose, seed + 2, tell, look))

    fit = to_the_end(fitting)

    def start_shapes(self, first: Tensor | None = None) -> StartShapes:
        """The training shapes, and before them the shape of the code `first` (L,) if there is one."""
        shapes, delta = self.checkpoint.starts, self.checkpoint.clamping_distance
        if first is None:
            return shapes
        grid = grids_of(self.checkpoint.decoder, first[None], delta)
        # Its bounding box is not known yet: the training shapes' common one is wide enough.
        extent = torch.stack([shapes.extents[:, 0].amin(dim=0), shapes.extents[:, 1].amax(dim=0)])
        return StartShapes(
            torch.cat([first[None], shapes.codes]),
            torch.cat([extent[None], shapes.extents]),
            torch.cat([grid, shapes.grids]),
            recorded_rows=0,  # they are there for this one fit
        )

    def screening(
        self,
        observation: Observation,
        pose: str,
        seed: int,
        shapes: StartShapes,
        expected: ExpectedPlacements | None = None,
    ) -> Steps[Starts]:
        """The best placements of the best start shapes, few of each shape, best first.

        What is `expected` in each of the pose mode's turns is found here if it is not given.
        """
        effort = self.effort
        few = self.rows(observation, effort.screened_rows, seed)
        some = self.rows(observation, effort.moved_rows, seed + 1)
        surface, _ = self._seen(observation)
        if expected is None:
            expected = self.expected(observation, turns(pose, surface.device), pose).placements
        settings = replace(self.settings, steps=effort.moved_steps)
        moved = effort.moved_if_free if pose == "free" else effort.moved
        found = yield from screening(shapes, pose, few, some, surface, expected, settings, moved)
        best = found.of(_few_of_each(found, effort.per_shape)[: effort.rounds[0].problems])
        return Starts(shapes.codes[best.origin], best.placements)

    screen = to_the_end(screening)

    def expected(self, observation: Observation, rotations: Tensor, pose: str) -> Expected:
        """What is expected of a scan turned in T ways (T, 3, 3)."""
        checkpoint, (surface, normals) = self.checkpoint, self._seen(observation)
        if checkpoint.encoder is None or pose == "free":  # which has seen no scan with its vertical unknown
            outline = by_outline(surface, rotations)
            return Expected(checkpoint.prior.expanded(len(rotations)), outline, None)
        told = checkpoint.encoder.suggest(surface, normals, rotations)
        return Expected(told.prior, told.expected, told)

    def fitting_starts(
        self,
        observation: Observation,
        starts: Starts,
        pose: str,
        seed: int,
        tell: Tell = _nothing,
        look: Look | None = None,
        prior: CodePrior | None = None,
    ) -> Steps[Fit]:
        """Levenberg-Marquardt in rounds of ever fewer starts on ever more rows; the most central end wins.

        With a `prior` the code is held to that, whatever is expected of the scan.
        """
        trace: list[Step] = []
        coming = self._rows_of_rounds(observation, seed)
        rows = next(coming)
        for number, one in enumerate(self.effort.rounds, start=1):
            starts = starts.of(slice(one.problems))
            settings = replace(self.settings, steps=one.steps)
            expected = self.expected(observation, starts.placements.rotation, pose)
            held, places = prior or expected.prior, expected.placements
            problems = Problems.start(rows, starts.codes, held, starts.placements, pose, settings, places)
            solver = LevenbergMarquardt(self.checkpoint.decoder, problems, settings)
            yield solver
            rows = next(coming, rows)  # while a GPU is at work
            yield from self._round(solver, number, trace, tell)
            best = solver.cost.argsort()
            starts = Starts(solver.codes[best], solver.placements.of(best))
            yield from _shown(look, starts.codes[0], starts.placements)
        chosen = central(self.checkpoint.decoder, solver.codes, solver.placements, solver.cost)
        return _fit_of(solver, chosen, trace)

    fit_starts = to_the_end(fitting_starts)

    def _rows_of_rounds(self, observation: Observation, seed: int) -> Iterator[Rows]:
        for number, one in enumerate(self.effort.rounds, start=1):
            yield self.rows(observation, one.rows, seed + number)

    def _round(self, solver: LevenbergMarquardt, number: int, trace: list[Step], tell: Tell) -> Steps[None]:
        """On from the first step."""
        while True:
            for best in solver.standings:
                trace.append(Step(number, best.objective, best.residual, best.unfinished))
                tell(len(trace), self.effort.steps, best.residual)
            if solver.finished:
                break
            yield solver

    def fitting_adam(
        self,
        observation: Observation,
        pose: str,
        seed: int = 0,
        tell: Tell = _nothing,
        look: Look | None = None,
    ) -> Steps[Fit]:
        """The published recipe, which knows no placement and is given that of the best screened start."""
        checkpoint = self.checkpoint
        starts = yield from self.screening(observation, pose, seed, self.start_shapes())
        start = starts.of(slice(1))
        rows = self.rows(observation, (3 * len(observation.surface), 2 * len(observation.free)), seed + 3)
        length = checkpoint.codes.shape[1]
        adam = Adam(checkpoint.decoder, rows, length, start.placements, checkpoint.clamping_distance, seed)
        while not adam.finished:
            adam.step()
            tell(adam.steps_taken, adam.steps, float(adam.residual[0]))
            if adam.steps_taken % ADAM_LOOKS == 0:
                yield from _shown(look, adam.codes.detach()[0], start.placements)
            yield None
        rows = self.rows(observation, self.effort.rounds[-1].rows, seed + 4)
        codes, prior = adam.codes.detach(), checkpoint.prior
        ended = Problems.start(rows, codes, prior, start.placements, "known", self.settings)
        judged = LevenbergMarquardt(checkpoint.decoder, ended, self.settings)
        return replace(_fit_of(judged, 0, []), steps=adam.steps)

    fit_adam = to_the_end(fitting_adam)


def _shown(look: Look | None, code: Tensor, placements: Placements) -> Steps[None]:
    """Let someone look at a code (L,) and the first placement. If nobody wants to, no call waits in line."""
    if look is not None:
        yield from aside(look, code, placements.of(slice(0, 1)))


def _fit_of(solver: LevenbergMarquardt, chosen: int, trace: list[Step]) -> Fit:
    """The fit whose winner is the problem numbered `chosen`; the others follow, lowest objective first."""
    costs, residuals = torch.stack([solver.cost, solver.residual]).tolist()
    numbers = sorted(range(len(costs)), key=lambda number: (number != chosen, costs[number]))
    order = torch.tensor(numbers, device=solver.cost.device)
    ends = Ends(solver.codes[order], solver.placements.of(order), solver.cost[order])
    placements = mapped(Tensor.cpu, ends.placements)
    best, *runners_up = [
        Candidate(ends.codes[i], placements.similarity(i), costs[number], residuals[number])
        for i, number in enumerate(numbers)
    ]
    problem = solver.problems.of(order[:1])
    return Fit(best, runners_up, ends, problem, solver.hessian[chosen], len(trace), trace)


def _few_of_each(found: Hypotheses, count: int) -> Tensor:
    """Indices, in order, without those of a start shape that has `count` before them."""
    seen: dict[int, int] = {}
    picks = []
    for index, origin in enumerate(found.origin.tolist()):
        seen[origin] = seen.get(origin, 0) + 1
        if seen[origin] <= count:
            picks.append(index)
    return torch.tensor(picks, device=found.origin.device)
