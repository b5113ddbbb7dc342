"""What is measured: ours as it is served; beside it the nearest training code, the mean code, and Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.codes import decode, encode_rows, nearest_codes
from model.completion import Completer, MeshOptions
from model.fitting import Fit, Starts
from model.frame import Normalization, Similarity
from model.latent import Adam
from model.mesh import Mesh
from model.observation import Observation, observe
from model.observation import View as SensorView
from model.placement import Placements
from model.problems import CodePrior, Rows, rows_of_samples
from model.starts import StartShapes
from model.training.samples import read_samples
from model.training.views import View

Methods = dict[str, Callable[[], Mesh]]
"""Name → what makes the mesh, in the unit-ball frame. May raise CompletionError, NoSurface, UnusableScan."""

OURS, NOT_REFINED, NEAREST, MEAN, ADAM = METHODS = (
    "ours",
    "ours, not refined",
    "nearest training code",
    "mean code",
    "Adam recipe",
)

RESOLUTION = 128
POSE = "canonical"
"""The completions of the report have their orientation given, place and size unknown."""

FIT_SAMPLES = 8000


def of_known_shape(completer: Completer, name: str) -> Methods:
    """What the code of a training shape decodes to."""
    code = completer.checkpoint.codes[completer.checkpoint.shapes.index(name)]
    return {OURS: lambda: decoded(completer, code)}


def of_samples(completer: Completer, file: Path) -> Methods:
    """What each method makes of the samples of a whole shape, its frame known."""
    checkpoint = completer.checkpoint
    points, distances = read_samples(file)
    picks = np.random.default_rng(0).permutation(len(points))[:FIT_SAMPLES]
    rows = rows_of_samples(
        torch.from_numpy(points[picks])[None].to(checkpoint.device),
        torch.from_numpy(distances[picks])[None].to(checkpoint.device),
        checkpoint.clamping_distance,
    )
    return {
        OURS: lambda: decoded(completer, encode_rows(checkpoint, rows)),
        NEAREST: lambda: decoded(completer, nearest_codes(checkpoint, rows)[0]),
        MEAN: lambda: decoded(completer, checkpoint.prior.mean),
        ADAM: lambda: decoded(completer, _adam(completer, rows)),
    }


def of_views(completer: Completer, views: Sequence[View], normalization: Normalization) -> Methods:
    """What each method makes of views whose place and size are unknown."""
    to_ball = Similarity(normalization.scale, np.eye(3), normalization.offset * normalization.scale)

    @cache
    def observation() -> Observation:
        return observe([SensorView(view.points, None, view.viewpoint, view.background) for view in views])

    @cache
    def fit() -> Fit:
        return completer.fit(observation(), POSE)

    def mesh(fit: Fit, refine: bool = False) -> Mesh:
        shape = completer.shape(fit.best.code, fit.problem.placements, observation(), refine)
        made = completer.finish(shape, completer.posterior(fit), observation(), MeshOptions(RESOLUTION))
        return made.mesh.moved(to_ball)

    def nearest() -> Mesh:
        return mesh(placed_only(completer, observation(), completer.checkpoint.starts))

    def mean() -> Mesh:
        shapes = completer.fitter.start_shapes(completer.checkpoint.prior.mean).of(torch.tensor([0]))
        return mesh(placed_only(completer, observation(), shapes))

    return {
        OURS: lambda: mesh(fit(), refine=True),
        NOT_REFINED: lambda: mesh(fit()),
        NEAREST: nearest,
        MEAN: mean,
        ADAM: lambda: mesh(completer.fit(observation(), POSE, "adam")),
    }


def decoded(completer: Completer, code: Tensor) -> Mesh:
    """The mesh of a code (L,)."""
    return decode(completer.checkpoint, code, RESOLUTION)


def placed_only(
    completer: Completer, observation: Observation, shapes: StartShapes, pose: str = POSE, tried: int = 4
) -> Fit:
    """The best of the start shapes as it is, with its placement fitted as ours is."""
    best = completer.fitter.screen(observation, pose, 0, shapes)
    fits = [
        _with_code_held(completer, observation, best.of(torch.tensor([index])), pose)
        for index in range(min(tried, len(best.codes)))
    ]
    return min(fits, key=lambda fit: fit.best.residual)


def _with_code_held(completer: Completer, observation: Observation, start: Starts, pose: str) -> Fit:
    length = start.codes.shape[1]
    held = CodePrior(start.codes[0], 1e9 * torch.eye(length, device=start.codes.device))
    return completer.fitter.fit_starts(observation, start, pose, seed=2, prior=held)


def _adam(completer: Completer, rows: Rows) -> Tensor:
    checkpoint = completer.checkpoint
    known = Placements.identity(1, checkpoint.device)
    solver = Adam(checkpoint.decoder, rows, checkpoint.codes.shape[1], known, checkpoint.clamping_distance)
    while not solver.finished:
        solver.step()
    return solver.codes[0].detach()
