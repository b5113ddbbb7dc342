"""The recorded step. What a CUDA graph asks of it holds on a CPU too; only the graph itself needs a GPU."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from shapes import TINY_RECIPE, tiny_samples
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.training import graphs
from model.training.draws import Batch
from model.training.graphs import WARM_UP, Recorder
from model.training.recipe import Recipe
from model.training.schedules import Phase
from model.training.trainer import Trainer
from model.trees import mapped

DATA = tiny_samples(600)
PLAIN: dict[str, Any] = {}
ALL: dict[str, Any] = {
    "eikonal_weight": 0.1,
    "gradient_clip": 0.5,
    "average_decay": 0.9,
    "code_bound": 0.3,
    "code_noise": 0.02,
    "batch_split": 2,
    "penalty_share": 1.0,
    "curriculum": [{"until": 0.5, "tolerance": 0.01, "hardness": 0.1}, {"until": 1.0}],
}
DECODERS: dict[str, dict[str, Any]] = {"plain": {}, "all": {"weight_norm": True, "dropout": 0.2, "tanh": 1}}


def trainer(settings: dict[str, Any], network: str = "plain", device: str = "cpu") -> Trainer:
    few = {"steps": 24, "shapes_per_step": 4, "points_per_shape": 64, "float32_share": 0.5}
    made = {
        **TINY_RECIPE.model_dump(),
        "decoder": {**TINY_RECIPE.decoder.model_dump(), **DECODERS[network]},
        "training": {**few, **settings},
    }
    return Trainer(Recipe.model_validate(made), DATA, device)


class Watched(TorchDispatchMode):
    """Every kernel that is called, with all that is given to it but the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [tuple(one.shape) if isinstance(one, Tensor) else one for one in tree_leaves((args, kwargs))]
        if not str(func).startswith("profiler"):
            self.calls.append(f"{func}{given}")
        return func(*args, **(kwargs or {}))


def kernels(made: Trainer) -> list[str]:
    """What one step of its update calls."""
    update, watched = made.update, Watched()

    def seen(phase: Phase, batch: Batch) -> Tensor:
        with watched:
            return update(phase, batch)

    made.update = seen
    made.step()
    made.update = update
    return watched.calls


def places(made: Trainer) -> list[int]:
    """Where everything lies that outlives a step."""
    moments = [part for one in made.optimizer.state.values() for part in one.values()]
    scheduled = [group["lr"] for group in made.optimizer.param_groups] + [made.penalty]
    averages = list(made.average.parameters()) if made.average else []
    return [part.data_ptr() for part in [*made.model.parameters(), *moments, *scheduled, *averages]]


@pytest.mark.parametrize(("settings", "network"), [(PLAIN, "plain"), (ALL, "all")])
def test_steps_of_a_phase_call_the_same_kernels_on_the_same_memory(
    settings: dict[str, Any], network: str
) -> None:
    """No number that changes from step to step is baked in, and none is waited for."""
    made = trainer(settings, network)
    made.step()
    before, first = places(made), kernels(made)
    assert kernels(made) == kernels(made) == first
    assert places(made) == before
    assert not [call for call in first if "_local_scalar_dense" in call or "nonzero" in call]


def test_rates_and_weights_change_all_the_same() -> None:
    made, seen = trainer(ALL), []
    for _ in range(3):
        made.step()
        seen.append((float(made.decoder_rate), float(made.code_rate), float(made.penalty)))
    assert len(set(seen)) == 3


@pytest.mark.parametrize(("settings", "network"), [(PLAIN, "plain"), (ALL, "all")])
def test_batches_in_the_same_memory_teach_the_same(settings: dict[str, Any], network: str) -> None:
    straight = trainer(settings, network)
    expected = [float(straight.step()) for _ in range(8)]
    made = trainer(settings, network)
    update, held = made.update, mapped(torch.clone, made.next_batch())

    def from_there(phase: Phase, batch: Batch) -> Tensor:
        mapped(Tensor.copy_, held, batch)
        return update(phase, held)

    made.update = from_there
    assert [float(made.step()) for _ in range(8)] == expected
    assert torch.equal(made.codes, straight.codes)


class StandIn:
    """A recording without a GPU: it replays by calling."""

    made = 0

    def __init__(self, update: graphs.Update, phase: Phase, batch: Batch, stream: object) -> None:
        type(self).made += 1
        self.update, self.phase = update, phase

    def replay(self, batch: Batch) -> Tensor:
        return self.update(self.phase, batch)


class Broken(StandIn):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        raise RuntimeError("operation not permitted")


class Stream:
    def wait_stream(self, other: object) -> None:
        """There is nothing to wait for."""


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("recording", [StandIn, Broken])
def test_each_phase_is_recorded_once_or_never_where_it_cannot_be(
    recording: type[StandIn], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphs, "Recording", recording)
    recording.made = 0
    straight, made = trainer(PLAIN), trainer(PLAIN)
    expected = [float(straight.step()) for _ in range(24)]
    made.recorder = Recorder()
    losses = []
    for step in range(24):  # twelve in bfloat16, twelve in float32
        losses.append(float(made.step()))
        broken = recording is Broken
        assert (made.recorder.recording is not None) == (step % 12 >= WARM_UP and not broken)
    assert losses == expected
    assert recording.made == (1 if broken else 2)
    assert caplog.text.count("operation not permitted") == broken


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(("settings", "network"), [(PLAIN, "plain"), (ALL, "all")])
def test_on_a_gpu_the_recorded_step_learns_what_the_plain_one_does(
    settings: dict[str, Any], network: str
) -> None:
    losses = []
    for graph in (False, True):
        made = trainer({**settings, "precision": "float32", "cuda_graph": graph}, network, "cuda")
        losses.append([float(made.step()) for _ in range(24)])
        assert (made.recorder is not None and made.recorder.recording is not None) == graph
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_trainer_that_is_let_go_gives_its_memory_back_at_once() -> None:
    """A GPU's memory is not what starts Python's collector."""
    made = trainer(ALL, "all")
    made.step()
    codes = weakref.ref(made.codes)
    del made
    assert codes() is None
