"""Training: stopped and resumed as if never stopped, repeatable, and of use to those who serve it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import eventually
from shapes import TINY_RECIPE, ball_points, tiny_samples
from training_folders import write_samples

from model.checkpoint import load_checkpoint
from model.decoder import Decoder, DecoderSpec
from model.training import train
from model.training.dataset import MissingSamples, SampleSet, sample_files
from model.training.logs import read_log
from model.training.recipe import Recipe, TrainingRecipe, load_recipe
from model.training.states import States
from model.training.train import export, loaded
from model.training.trainer import Trainer, run

DATA = tiny_samples(600)


def recipe(steps: int = 16, **training: object) -> Recipe:
    """A recipe in which every source of chance is at work."""
    usual = {"steps": steps, "shapes_per_step": 4, "points_per_shape": 64, "code_noise": 0.01}
    rates = {"decoder_rate": 5e-3, "code_rate": 1e-2, "float32_share": 0.5}
    decoder = TINY_RECIPE.decoder.model_copy(update={"width": 32, "dropout": 0.1, "weight_norm": True})
    settings = TrainingRecipe(**{**usual, **rates, **training})
    return TINY_RECIPE.model_copy(update={"decoder": decoder, "training": settings})


def trained(trainer: Trainer, steps: int) -> list[float]:
    return [float(trainer.step()) for _ in range(steps)]


def assert_equal(one: Trainer, other: Trainer) -> None:
    """Bit for bit."""
    assert one.step_count == other.step_count
    assert torch.equal(one.codes, other.codes)
    for name, part in one.decoder.state_dict().items():
        assert torch.equal(part, other.decoder.state_dict()[name]), name


@pytest.mark.parametrize("stop", [1, 7, 9])
def test_stopped_and_resumed_is_never_stopped(stop: int) -> None:
    """Before, in and after the change from bfloat16 to float32."""
    straight = Trainer(recipe(), DATA, "cpu")
    losses = trained(straight, 16)

    first = Trainer(recipe(), DATA, "cpu")
    trained(first, stop)
    stored = io.BytesIO()
    torch.save(first.state(), stored)
    stored.seek(0)
    torch.manual_seed(99)  # what another process may have drawn

    resumed = Trainer(recipe(), DATA, "cpu")
    resumed.restore(torch.load(stored, weights_only=True))
    assert trained(resumed, 16 - stop) == losses[stop:]
    assert_equal(resumed, straight)


def test_a_state_of_other_shapes_is_refused() -> None:
    other = SampleSet([f"other_{name}" for name in DATA.names], DATA.samples)
    with pytest.raises(ValueError, match="other shapes"):
        Trainer(recipe(), other, "cpu").restore(Trainer(recipe(), DATA, "cpu").state())


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    # One after the other: trainers share torch's global generator, through dropout.
    one = Trainer(recipe(), DATA, "cpu")
    losses = trained(one, 5)
    same = Trainer(recipe(), DATA, "cpu")
    assert trained(same, 5) == losses
    assert_equal(one, same)
    assert trained(Trainer(recipe(seed=1), DATA, "cpu"), 5) != losses


def test_the_loss_falls() -> None:
    settings = TINY_RECIPE.training.model_copy(update={"steps": 100, "points_per_shape": 128})
    losses = trained(Trainer(TINY_RECIPE.model_copy(update={"training": settings}), DATA, "cpu"), 100)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])


@pytest.mark.parametrize("width", [48, 64, 512])
def test_every_seed_begins_where_something_can_be_learnt(width: int) -> None:
    """Within the clamp. With torch's own start of the last layer a narrow one may lie beyond it for good."""
    points = torch.from_numpy(ball_points(500, np.random.default_rng(0)).astype(np.float32))[None]
    for seed in range(20):
        torch.manual_seed(seed)
        decoder = Decoder(DecoderSpec(code_length=4, width=width, octaves=1, weight_norm=False, tanh=0))
        with torch.no_grad():
            assert decoder.eval()(torch.zeros(1, 4), points).abs().max() < 0.1, seed


def test_where_nothing_is_learnt_any_more_training_ends_with_advice() -> None:
    trainer = Trainer(recipe(eikonal_weight=0.0), DATA, "cpu")
    with torch.no_grad():
        trainer.decoder.last.bias += 10
    with pytest.raises(ValueError, match="decoder_rate"):
        list(run(trainer, log_every=4))


def test_a_step_may_ask_for_more_shapes_than_there_are() -> None:
    """A data set smaller than a batch was silently trained on nothing by the public code."""
    few = SampleSet(DATA.names[:2], DATA.samples[:2])
    trainer = Trainer(recipe(shapes_per_step=5), few, "cpu")
    before = trainer.codes.detach().clone()
    trained(trainer, 2)
    assert not torch.equal(trainer.codes, before)


def test_both_learning_rates_follow_the_schedule() -> None:
    trainer = Trainer(recipe(warmup_share=0.5), DATA, "cpu")
    trained(trainer, 3)
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert np.allclose(rates, [5e-3 * 3 / 8, 1e-2 * 3 / 8])


def test_a_split_step_is_the_same_step() -> None:
    """But for the order of sums, and without dropout, whose draws differ."""
    trainers = []
    for parts in (1, 3, 8):
        settings = recipe(batch_split=parts, precision="float32", code_prior="gaussian").training
        trainer = Trainer(TINY_RECIPE.model_copy(update={"training": settings}), DATA, "cpu")
        losses = trained(trainer, 6)
        trainers.append((losses, trainer.codes.detach()))
    for losses, codes in trainers[1:]:
        assert np.allclose(losses, trainers[0][0], rtol=1e-4)
        assert torch.allclose(codes, trainers[0][1], atol=1e-4)


def test_codes_stay_within_their_bound() -> None:
    trainer = Trainer(recipe(30, code_bound=0.15, code_rate=0.1), DATA, "cpu")
    for _ in range(30):
        trainer.step()
        assert trainer.codes.norm(dim=1).max() <= 0.15 * (1 + 1e-5)
    assert trainer.codes.norm(dim=1).max() > 0.14


def test_the_gradient_of_the_decoder_is_clipped() -> None:
    lengths = []
    for clip in (0.0, 1e-3):
        trainer = Trainer(recipe(gradient_clip=clip), DATA, "cpu")
        trainer.step()
        gradients = [part.grad for part in trainer.decoder.parameters() if part.grad is not None]
        lengths.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
    assert lengths[0] > 1e-3
    assert lengths[1] == pytest.approx(1e-3, rel=1e-3)


def test_the_average_is_the_moving_average_of_all_steps() -> None:
    trainer = Trainer(recipe(average_decay=0.8), DATA, "cpu")
    expected: dict[str, torch.Tensor] = {}
    for _ in range(6):
        trainer.step()
        for name, part in trainer.model.state_dict().items():
            before = expected.get(name, part)
            expected[name] = 0.8 * before + 0.2 * part
    decoder, codes = trainer.trained()
    assert torch.allclose(codes, expected["codes"], atol=1e-6)
    for name, part in decoder.state_dict().items():
        assert torch.allclose(part, expected[f"decoder.{name}"], atol=1e-6), name


def growing(steps: int = 20) -> Recipe:
    stages = [{"until": 0.5, "depth": 3, "tolerance": 0.01}, {"until": 1.0, "depth": 4, "hardness": 0.5}]
    settings = {**recipe(steps).training.model_dump(), "curriculum": stages, "growth_share": 0.2}
    return Recipe.model_validate({**recipe().model_dump(), "training": settings})


def test_layers_that_have_not_grown_yet_do_not_learn() -> None:
    trainer = Trainer(growing(), DATA, "cpu")
    last = {name: part.detach().clone() for name, part in trainer.decoder.hidden[3].named_parameters()}

    def moved() -> bool:
        return any(
            not torch.equal(part, last[name]) for name, part in trainer.decoder.hidden[3].named_parameters()
        )

    trained(trainer, 10)
    assert not moved()
    with pytest.raises(ValueError, match="not grown"):
        trainer.trained()
    trained(trainer, 10)
    assert moved()
    trainer.trained()


def test_where_it_cannot_be_compiled_training_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(decoder: torch.nn.Module) -> Callable[..., torch.Tensor]:
        def fails(*arguments: object) -> torch.Tensor:
            raise RuntimeError("no compiler")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    expected = trained(Trainer(recipe(), DATA, "cpu"), 4)
    assert trained(Trainer(recipe(compile=True), DATA, "cpu"), 4) == expected
    assert caplog.text.count("no compiler") == 1


def test_the_code_penalty_shortens_the_codes() -> None:
    norms = []
    for weight in (0.0, 1.0):
        trainer = Trainer(recipe(30, code_penalty=weight), DATA, "cpu")
        trained(trainer, 30)
        norms.append(float(trainer.codes.detach().norm(dim=1).mean()))
    assert norms[1] < 0.5 * norms[0]


def test_the_log_tells_the_mean_loss_of_its_steps() -> None:
    lines = list(run(Trainer(recipe(7), DATA, "cpu"), log_every=3))
    losses = trained(Trainer(recipe(7), DATA, "cpu"), 7)
    assert [line.step for line in lines] == [3, 6, 7]
    expected = [np.mean(losses[:3]), np.mean(losses[3:6]), losses[6]]
    assert np.allclose([line.loss for line in lines], expected, rtol=1e-5)


ROOT = Path(__file__).resolve().parents[2]


def edit(folder: Path, old: str, new: str) -> None:
    """Change a line of the recipe."""
    file = folder / "recipe.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def step_of(state: Path) -> int:
    return int(torch.load(state, weights_only=True)["step"])


def train_in(folder: Path) -> Trainer:
    trainer = loaded(folder, folder.parent / "data", "cpu")
    train.train(trainer, folder / "training")
    return trainer


def command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    arguments = ["train", str(folder), "--data", str(folder.parent / "data"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", arguments)
    return train.main()


def test_the_command_makes_a_checkpoint_that_can_be_served(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(folder, monkeypatch) == 0
    made = load_checkpoint(folder, "cpu")
    assert made.shapes == ["sphere_0.5", "box_0.35_0.5"]
    assert made.codes.shape == (2, 3)
    assert made.card["licences"] == ["CC-BY-4.0", "CC0-1.0"]
    assert made.card["training_shapes"] == 2
    assert made.card["parameters"] == sum(part.numel() for part in made.decoder.parameters())
    assert torch.allclose(made.extents[0], torch.tensor([[-0.5], [0.5]]).expand(2, 3), atol=0.1)
    steps = [json.loads(line)["step"] for line in (folder / "training" / "log.jsonl").open()]
    assert steps == [50, 100, 120]


def test_killed_in_mid_run_and_resumed_is_never_stopped(folder: Path) -> None:
    """A real process, killed at any moment; bit for bit the weights of an unbroken run in the end."""
    edit(folder, "steps = 120", "steps = 300")
    edit(folder, "[training]", "[training]\naverage_decay = 0.9")
    state = folder / "training" / "state.pt"
    arguments = ["-m", "model.training.train", str(folder), "--data", str(folder.parent / "data")]
    process = subprocess.Popen(
        [sys.executable, *arguments, "--device", "cpu"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
    )
    eventually(lambda: state.exists() and step_of(state) >= 100, timeout_s=60)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert step_of(state) < 300
    resumed = train_in(folder)
    state.unlink()
    unbroken = train_in(folder)
    assert_equal(resumed, unbroken)
    for one, other in zip(resumed.trained()[0].parameters(), unbroken.trained()[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert [line.step for line in read_log(folder / "training")] == list(range(50, 301, 50))


def test_training_goes_on_from_a_snapshot(folder: Path) -> None:
    edit(folder, "[training]", "[training]\nsnapshot_every = 100\nextra_snapshots = [50]")
    first = train_in(folder)
    assert States(folder / "training").snapshots() == [50, 100]
    again = loaded(folder, folder.parent / "data", "cpu", step=50)
    assert again.step_count == 50
    train.train(again, folder / "training")
    assert_equal(again, first)
    with pytest.raises(ValueError, match=r"only of \[50, 100\]"):
        loaded(folder, folder.parent / "data", "cpu", step=70)


def test_a_finished_run_is_exported_again_without_training(folder: Path) -> None:
    first, again = train_in(folder), train_in(folder)
    assert_equal(first, again)
    export(again, folder)
    made = load_checkpoint(folder, "cpu")
    points = torch.rand(2, 20, 3) * 2 - 1
    rounded = first.codes.half().float()  # as they are kept
    assert torch.equal(made.codes, rounded)
    assert torch.allclose(made.decoder(rounded, points), first.decoder.eval()(rounded, points), atol=1e-6)


def test_without_samples_the_command_says_what_to_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "data" / "samples" / "tiny" / "quality.csv").unlink()
    assert command(folder, monkeypatch) == 1
    assert "python -m model.training.samples" in capsys.readouterr().err


def test_a_test_shape_is_never_trained_on(folder: Path) -> None:
    data, settings = folder.parent / "data", load_recipe(folder)
    assert [file.stem for file in sample_files(folder, data, settings)] == ["sphere_0.5", "box_0.35_0.5"]
    assert [file.stem for file in sample_files(folder, data, settings, "test")] == ["box_0.5_0.5"]


def test_nothing_is_left_to_train_on_when_every_shape_is_rejected(folder: Path) -> None:
    write_samples(folder.parent / "data" / "samples" / "tiny", rejected="open shell")
    with pytest.raises(MissingSamples):
        sample_files(folder, folder.parent / "data", load_recipe(folder))
