"""Training: stopped and resumed as if never stopped, repeatable, and of use to those who serve it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import TINY_RECIPE, tiny_samples
from training_folders import write_samples

from model.checkpoint import load_checkpoint
from model.training import train
from model.training.dataset import MissingSamples, SampleSet, sample_files
from model.training.losses import clamped_l1
from model.training.recipe import Recipe, TrainingRecipe, load_recipe
from model.training.schedules import rate_share
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


def shapes_seen(trainer: Trainer, steps: int) -> torch.Tensor:
    return torch.cat([trainer.draws.order(step, 0) for step in range(steps)])


def test_every_shape_is_seen_equally_often() -> None:
    trainer = Trainer(recipe(), DATA, "cpu")
    seen = shapes_seen(trainer, 10)
    assert (torch.bincount(seen) == 4).all()
    assert len(torch.bincount(seen)) == len(DATA.names) == 10


def test_a_step_may_ask_for_more_shapes_than_there_are() -> None:
    """A data set smaller than a batch was silently trained on nothing by the public code."""
    few = SampleSet(DATA.names[:2], DATA.samples[:2])
    trainer = Trainer(recipe(shapes_per_step=5), few, "cpu")
    assert torch.bincount(shapes_seen(trainer, 2)).tolist() == [5, 5]
    before = trainer.codes.detach().clone()
    trained(trainer, 2)
    assert not torch.equal(trainer.codes, before)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_the_learning_rate_rises_in_a_line_and_falls_in_half_a_cosine(warmup: float) -> None:
    settings = TrainingRecipe(steps=200, warmup_share=warmup)
    shares = np.array([rate_share(step, settings) for step in range(200)])
    rise = max(1, round(200 * warmup))
    assert np.allclose(shares[:rise], np.arange(1, rise + 1) / rise)
    assert shares.max() == 1
    assert (np.diff(shares[rise:]) < 0).all()
    assert 0 < shares[-1] < 1e-3
    assert np.isclose(rate_share((200 + rise) // 2, settings), 0.5, atol=0.01)
    assert rate_share(200, settings) == pytest.approx(0)


def test_both_learning_rates_follow_the_schedule() -> None:
    trainer = Trainer(recipe(warmup_share=0.5), DATA, "cpu")
    trained(trainer, 3)
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert np.allclose(rates, [5e-3 * 3 / 8, 1e-2 * 3 / 8])


def test_the_loss_compares_clamped_distances() -> None:
    predicted = torch.tensor([0.3, 0.05, -0.2, 0.0], requires_grad=True)
    true = torch.tensor([0.15, 0.08, 0.2, -0.04])
    loss = clamped_l1(predicted, true, 0.1)
    assert torch.isclose(loss, torch.tensor((0 + 0.03 + 0.2 + 0.04) / 4))
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad.sign().tolist() == [0, -1, 0, 1]


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


def test_the_command_resumes_after_a_stop_as_if_there_had_been_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def stopped(trainer: Trainer) -> torch.Tensor:
        if trainer.step_count == 70:
            raise KeyboardInterrupt
        return step(trainer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", stopped)
        train_in(folder)
    assert torch.load(folder / "training" / "state.pt", weights_only=True)["step"] == 50
    resumed = train_in(folder)
    (folder / "training" / "state.pt").unlink()
    assert_equal(resumed, train_in(folder))


def test_a_finished_run_is_exported_again_without_training(folder: Path) -> None:
    first, again = train_in(folder), train_in(folder)
    assert_equal(first, again)
    export(again, folder)
    made = load_checkpoint(folder, "cpu")
    points = torch.rand(2, 20, 3) * 2 - 1
    assert torch.allclose(
        made.decoder(made.codes, points), first.decoder.eval()(first.codes, points), atol=1e-6
    )


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
