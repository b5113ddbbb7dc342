"""What a GPU makes of it: is it right there, how long does a completion take, how many can there be a second.

Correct: the decoder, E where steps of Levenberg-Marquardt lead that are replayed, the correction's
kernel, neighbours, distances and the extracted surface, beside the same in float64 on the CPU. Time: the
shipped example scan completed again and again, warm, with its turn given and with it unknown; by phase, and
how often faster than the published recipe (Adam, 800 iterations on 8,000 samples, then a dense grid) with the
same decoder on the same device. Profile: where the time of one goes, as Python's profiler sees it: what waits
for the device counts there. Throughput: so many completions in flight in one process, and spread over
several (`benchmarks.throughput`). Training: our step beside the published one (`benchmarks.training`), and
which share of the device's matrix products it comes to; and the step recorded as a CUDA graph beside the same
one launched kernel by kernel: how much faster, and whether it learns the same.

Each time is measured for --seconds, each throughput for --throughput-seconds; completions in flight have
twice as long to come apart. The whole shall end within five minutes on a GPU.
Without one everything runs on the CPU, which shows that it works and no more; --quick keeps that short.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from cProfile import Profile
from dataclasses import dataclass, replace
from pathlib import Path
from pstats import Stats
from statistics import median
from time import perf_counter

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks import common, throughput, training
from benchmarks.common import Figure, example
from model.checkpoint import Checkpoint, choose_device, load_checkpoint
from model.completion import Completer
from model.correction import Correction, correlation
from model.latent import Adam, LevenbergMarquardt
from model.neighbours import Neighbours
from model.observation import Observation, observe
from model.placement import ExpectedPlacements
from model.problems import Problems
from model.proximity import nearest_on_mesh
from model.streams import working_on
from model.surface import HALF_WIDTH, extract_surface, zero_level
from model.training.compute import has_bfloat16
from model.training.trainer import Trainer
from model.trees import mapped

ADAM_ROWS = (4800, 3200)
"""Rows of the surface and of empty space, 8,000 together: what the published recipe sees."""

PARTS = ["correct", "time", "profile", "throughput", "training"]

PROFILED = 40
"""Functions of the model whose time is told, the longest; and a quarter as many of those that they call."""

FLOPS_PER_SAMPLE = 6
"""Of each parameter, in a step of training: twice forwards, four times backwards."""


@dataclass(frozen=True)
class Effort:
    """How much of everything is done."""

    resolution: int
    repeats: int  # at most
    seconds: float  # at most, for each time
    throughput_seconds: float  # about, for each throughput
    throughput_options: dict[str, object]  # of each completion
    in_flight: tuple[int, ...]
    adam_steps: int
    matrix: int
    graph_steps: int


FULL = Effort(256, 10, 10.0, 5.0, {"resolution": 128}, (1, 4, 16, 64), 800, 8192, 200)
QUICK = Effort(32, 2, 2.0, 0.5, {"resolution": 32, "refine": False}, (1, 2), 20, 256, 8)


def observed() -> Observation:
    """The same as a fit sees it."""
    return observe([example()])


# Correct


def correctness(here: Completer, folder: Path, resolution: int) -> list[Figure]:
    """What is computed here beside the CPU: in float64, but the surface, which is made in float32."""
    exact, plain = load_checkpoint(folder, "cpu"), load_checkpoint(folder, "cpu")
    exact.decoder.double()
    cost, hessian = step_errors(here, exact)
    return [
        Figure("signed distances, largest error", decoder_error(here.checkpoint, exact), "canonical units"),
        Figure("E where steps lead, largest error", cost, "of E"),
        Figure("Hessian where steps lead, largest error", hessian, "of its norm"),
        Figure(
            "correction's kernel, its sums and their gradients, largest error",
            correction_error(here.checkpoint),
            "of the largest",
        ),
        Figure("distances to neighbours, largest error", neighbour_error(here.checkpoint), "radii"),
        Figure("distances to a mesh, largest error", distance_error(here.checkpoint, plain), "radii"),
        Figure("surface, largest distance", surface_error(here.checkpoint, plain, resolution), "cells"),
    ]


def decoder_error(here: Checkpoint, exact: Checkpoint) -> float:
    """Largest difference of a signed distance, canonical units."""
    generator = torch.Generator().manual_seed(0)
    codes = exact.codes[:4].double()
    points = 2 * torch.rand(4, 4096, 3, generator=generator, dtype=torch.float64) - 1
    with torch.no_grad():
        true = exact.decoder(codes, points)
        found = here.decoder(codes.to(here.codes), points.to(here.codes))
    return float((found.double().cpu() - true).abs().max())


def step_errors(here: Completer, exact: Checkpoint) -> tuple[float, float]:
    """Relative errors of E and of its Hessian where steps from four starts have led, replayed on a GPU."""
    fitter, scan = here.fitter, observed()
    starts = fitter.screen(scan, "upright", 0, fitter.start_shapes())
    starts = starts.of(torch.arange(4, device=starts.codes.device))
    rows, expected = fitter.rows(scan, (800, 500), 1), ExpectedPlacements.around(starts.placements)
    for _ in range(3):  # the first time steps are taken plainly, the second time they are recorded
        problems = Problems.start(
            rows, starts.codes, here.checkpoint.prior, starts.placements, "upright", expected=expected
        )
        solver = LevenbergMarquardt(here.checkpoint.decoder, problems)
        solver.step()
    true = LevenbergMarquardt(exact.decoder, in_double(solver.problems))
    pairs = (solver.cost[:, None], true.cost[:, None]), (solver.hessian, true.hessian)
    errors = [
        (one.double().cpu() - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)
        for one, other in pairs
    ]
    return float(errors[0].max()), float(errors[1].max())


def in_double(problems: Problems) -> Problems:
    """The same on the CPU, real numbers in float64."""
    return mapped(lambda part: (part.double() if part.is_floating_point() else part).cpu(), problems)


def correction_error(here: Checkpoint) -> float:
    """Largest difference of the correction's kernel, of sums of it and of their gradients, of the largest."""
    squares = torch.linspace(0, 0.6, 10_001, dtype=torch.float64).square()
    generator = torch.Generator().manual_seed(0)
    centres, weights, points = (
        torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((999, 3), (999,), (4001, 3))
    )
    exact = Correction(centres / 2, weights, 1.0, torch.eye(1))
    found = Correction(centres.to(here.codes) / 2, weights.to(here.codes), 1.0, torch.eye(1))
    pairs = [(correlation(squares), correlation(squares.to(here.device)))]
    at, there = points / 2, points.to(here.codes) / 2
    pairs += list(zip(exact.distance_and_gradient(at), found.distance_and_gradient(there), strict=True))
    pairs.append((exact.distance(at), found.distance(there)))
    return max(float((two.double().cpu() - one).abs().max() / one.abs().max()) for one, two in pairs)


def neighbour_error(here: Checkpoint) -> float:
    """Largest difference of a distance to the 24 nearest of the example scan's points, beside a tree."""
    points = observed().surface
    true, _ = cKDTree(points).query(points, k=24)
    with working_on(here.device):
        found, _ = Neighbours(points).nearest(points, 24)
    return float(np.abs(found - true).max())


def distance_error(here: Checkpoint, there: Checkpoint) -> float:
    """Largest difference of a distance from the example scan's points to a mesh, beside a tree of boxes."""
    points, mesh = observed().surface, zero_level(there.field(there.codes[0]), 64)
    true, _, _ = nearest_on_mesh(mesh.vertices.astype(float), mesh.faces, points)
    with working_on(here.device):
        found, _, _ = nearest_on_mesh(mesh.vertices.astype(float), mesh.faces, points)
    return float(np.abs(found - true).max())


def surface_error(here: Checkpoint, there: Checkpoint, resolution: int) -> float:
    """Largest distance from a vertex to the surface that the other makes, either way, in cells.

    Not to its nearest vertex: where a corner is zero but for rounding, the two may cut other edges there.
    """
    found, true = (zero_level(one.field(one.codes[0]), resolution) for one in (here, there))
    pairs = (found, true), (true, found)
    off = [nearest_on_mesh(a.vertices.astype(float), a.faces, b.vertices.astype(float))[0] for a, b in pairs]
    return float(max(part.max() for part in off)) * resolution / (2 * HALF_WIDTH)


# Time


def completions(completer: Completer, effort: Effort, pose: str) -> tuple[list[Figure], float]:
    """Median times of a warm completion: each phase, and the whole in seconds."""
    view, warm = example(), []
    for _ in range(throughput.WARM_UP):
        completer.complete([view], pose=pose, resolution=effort.resolution)
    begun = perf_counter()
    while len(warm) < effort.repeats and (not warm or perf_counter() - begun < effort.seconds):
        start = perf_counter()
        made = completer.complete([view], pose=pose, resolution=effort.resolution)
        warm.append((perf_counter() - start, made.report.seconds))
    whole = median(seconds for seconds, _ in warm)
    phases = {phase: median(told[phase] for _, told in warm) for phase in warm[0][1]}
    named = {**phases, "in all": whole}
    return [Figure(f"{pose}, {name}", 1000 * seconds, "ms") for name, seconds in named.items()], whole


def published(completer: Completer, effort: Effort) -> float:
    """Seconds of Adam's iterations on 8,000 samples and of a dense grid; the placement is given to it."""
    checkpoint, fitter, scan = completer.checkpoint, completer.fitter, observed()
    starts = fitter.screen(scan, "canonical", 0, fitter.start_shapes())
    placement = starts.placements.of(slice(0, 1))
    start = perf_counter()
    length, delta = checkpoint.codes.shape[1], checkpoint.clamping_distance
    adam = Adam(checkpoint.decoder, fitter.rows(scan, ADAM_ROWS, 0), length, placement, delta)
    for _ in range(effort.adam_steps):
        adam.step()
    extract_surface(checkpoint.field(adam.codes[0].detach()), effort.resolution, checkpoint.skin, dense=True)
    return perf_counter() - start


def profile(completer: Completer, effort: Effort) -> list[Figure]:
    """Times in one completion, its turn given: of our functions with all they call, of others alone."""
    profiler = Profile()
    profiler.runcall(completer.complete, [example()], pose="canonical", resolution=effort.resolution)
    ours, others = [], []
    for (path, _, name), (_, _, own, whole, _) in Stats(profiler).stats.items():  # type: ignore[attr-defined]
        if f"/model/{Path(path).name}" in path:
            ours.append((whole, f"{Path(path).stem}.{name}"))
        else:
            others.append((own, f"{name}, alone"))
    longest = sorted(ours)[: -PROFILED - 1 : -1] + sorted(others)[: -PROFILED // 4 - 1 : -1]
    return [Figure(f"profile, {name}", 1000 * seconds, "ms") for seconds, name in longest]


def a_second(options: argparse.Namespace, device: torch.device, effort: Effort) -> list[Figure]:
    """Throughput, in processes of its own. Ends the program where one of them does not go on."""
    load = throughput.Load(options.checkpoint, str(device), effort.throughput_options)
    try:
        return throughput.measured(load, options.processes, effort.in_flight, effort.throughput_seconds)
    except throughput.Stopped as error:
        raise SystemExit(f"throughput: {error}") from None


# Training


def trained(options: argparse.Namespace, effort: Effort) -> list[Figure]:
    """Our step beside the published one, and which share of the device's matrix products it is."""
    options.device = options.device if options.device != "auto" else choose_device("auto")
    first, *_, ours = training.measure(options)
    peak = products_a_second(options.device, effort.matrix)
    parameters = sum(part.numel() for part in training.PublishedDecoder().parameters())
    parameters -= 2 * training.CODE * training.WIDTH  # what the code meets is computed once a shape
    share = FLOPS_PER_SAMPLE * parameters * ours.samples_per_second / peak
    return [
        Figure("published step", first.samples_per_second, "samples/s"),
        Figure("our step", ours.samples_per_second, "samples/s"),
        Figure("our step / the published one", ours.times, "x"),
        Figure("matrix products, measured", peak / 1e12, "TFLOP/s"),
        Figure("share of them in our step", 100 * share, "%"),
        *graphs(options.device, effort, training.QUICK if options.quick else training.FULL),
    ]


Settings = dict[str, object]


def networks(sizes: training.Sizes) -> dict[str, tuple[Settings, Settings]]:
    """What is recorded: settings of the decoder and of training."""
    switches: Settings = {
        "eikonal_weight": 0.01,
        "gradient_clip": 1.0,
        "average_decay": 0.9,
        "code_bound": 1.0,
    }
    stages: Settings = {
        "curriculum": [{"until": 0.3, "tolerance": 0.01}, {"until": 1.0}],
        "penalty_share": 1.0,
    }
    return {
        "the published network": ({}, {}),
        "8 × 256, 64 shapes a step": (
            {"width": 256, "code_length": 128, "octaves": 5},
            {"shapes_per_step": 64, "points_per_shape": sizes.points // 8},
        ),
        "all switches": ({"weight_norm": True, "dropout": training.DROPOUT}, {**switches, **stages}),
    }


def graphs(device: str, effort: Effort, sizes: training.Sizes) -> list[Figure]:
    """The recorded step beside the same launched kernel by kernel: time, and what it has learnt."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        files = training.write_spheres(Path(folder), sizes)
        for name, (network, settings) in networks(sizes).items():
            # Half of the steps in bfloat16, half in float32: both are recorded.
            settings = {**settings, "steps": effort.graph_steps, "float32_share": 0.5}
            trainers = [
                training.trainer_of(files, sizes, device, network, **settings, cuda_graph=graph)
                for graph in (False, False, True)
            ]
            figures += compared(name, *trainers)
    return figures


def compared(name: str, plain: Trainer, again: Trainer, recorded: Trainer) -> Iterator[Figure]:
    """All trained to the end; the times are those of the last quarter of the steps, all of one phase.

    Sums on a GPU have no fixed order: how far apart two plain runs come is what the recorded one is held to.
    """
    trainers = (plain, again, recorded)
    losses, seconds = zip(*(trained_to_the_end(trainer) for trainer in trainers), strict=True)
    works = recorded.recorder is not None and recorded.recorder.recording is not None
    yield Figure(f"{name}: recorded", float(works), "1 if so")
    yield Figure(f"{name}: recorded, a step", 1000 * seconds[2], "ms")
    yield Figure(f"{name}: kernel by kernel / recorded", min(seconds[:2]) / seconds[2], "x")
    for other, found in (("recorded", losses[2]), ("plain again", losses[1])):
        apart = float((found / losses[0] - 1).abs().max())
        yield Figure(f"{name}: losses of all steps, {other}, largest difference", apart, "of it")


def trained_to_the_end(trainer: Trainer) -> tuple[Tensor, float]:
    """Losses of all steps, and seconds a step in the last quarter, which is not waited for step by step."""
    steps = trainer.recipe.training.steps
    losses = [trainer.step() for _ in range(steps - steps // 4)]
    _ = losses[-1].item()
    start = perf_counter()
    losses += [trainer.step() for _ in range(steps // 4)]
    _ = losses[-1].item()
    return torch.stack(losses).cpu(), (perf_counter() - start) / (steps // 4)


def products_a_second(device: str, size: int) -> float:
    """Floating-point operations a second in a product of two large matrices of bfloat16."""
    kind = torch.bfloat16 if has_bfloat16(device) else torch.float32
    one = torch.randn(size, size, device=device, dtype=kind)

    def product() -> float:
        return float((one @ one)[0, 0])

    return 2 * size**3 / training.seconds_of(product, 5)


def main(arguments: Iterable[str] | None = None) -> int:
    """Run everything, or the parts asked for."""
    parser = common.parser(__doc__, "little of everything: for a look, or without a GPU")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, help="at most, for each time [10]")
    parser.add_argument("--throughput-seconds", type=float, help="about, for each throughput [5]")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=throughput.processes_for(throughput.cores()),
        help="numbers of processes that throughput is measured with [1 and half of the cores, 8 at most]",
    )  # fmt: skip
    options = parser.parse_args(None if arguments is None else list(arguments))
    effort = QUICK if options.quick else FULL
    effort = replace(
        effort,
        seconds=options.seconds or effort.seconds,
        throughput_seconds=options.throughput_seconds or effort.throughput_seconds,
    )
    completer = Completer(load_checkpoint(options.checkpoint, options.device))
    name = torch.cuda.get_device_name() if completer.checkpoint.device.type == "cuda" else "CPU"
    print(f"{options.checkpoint} on {name}")
    figures, times = [], 0.0
    if "correct" in options.parts:
        figures += correctness(completer, options.checkpoint, effort.resolution)
    if "time" in options.parts:
        given, seconds = completions(completer, effort, "canonical")
        free, _ = completions(completer, effort, "upright")
        plain = published(completer, effort)
        times = plain / seconds
        figures += [*given, *free, Figure("published recipe", 1000 * plain, "ms")]
        figures += [Figure("published recipe / ours", times, "x")]
    if "profile" in options.parts:
        figures += profile(completer, effort)
    if "throughput" in options.parts:
        figures += a_second(options, completer.checkpoint.device, effort)
    if "training" in options.parts:
        figures += trained(options, effort)
    common.tell(options, "gpu", times, "x", figures, device=name, parts=options.parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
