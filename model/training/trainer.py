"""The training of a decoder and its codes, step by step: the auto-decoder of DeepSDF, section 4."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model.decoder import Decoder
from model.training.compute import parts_of
from model.training.dataset import SampleSet
from model.training.draws import Batch, Draws, joined_batches
from model.training.graphs import Recorder
from model.training.logs import Logged
from model.training.losses import Objective
from model.training.ranks import ALONE, Ranks
from model.training.recipe import Recipe
from model.training.schedules import Phase, depth_at, penalty_at, phase_at, rates_at
from model.training.states import State, with_codes


class AutoDecoder(nn.Module):
    """What is trained together: the decoder, and one latent code a shape."""

    def __init__(self, decoder: Decoder, codes: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.codes = nn.Parameter(codes)  # (n, L)


class Trainer:
    """Decoder, codes and optimiser of one run, one `step` at a time.

    `data` are the samples of the n shapes that belong to this process, one of `ranks`; N are there in all.
    Raises ValueError where the shapes cannot be shared as the recipe wants.
    """

    def __init__(self, recipe: Recipe, data: SampleSet, device: str, ranks: Ranks = ALONE) -> None:
        self.recipe, self.device, self.ranks, self.step_count = recipe, device, ranks, 0
        settings = recipe.training
        shards = settings.shards or ranks.count
        if shards % ranks.count:
            raise ValueError(f"{ranks.count} processes cannot share {shards} shards: make them a multiple")
        self.data = SampleSet(data.names, data.samples.to(device))
        self.names = ranks.gathered_names(data.names)  # N
        self.draws = Draws(settings.seed, len(self.names), settings.shapes_per_step, shards)
        self.shards = ranks.own(range(shards))
        samples = settings.shapes_per_step * settings.points_per_shape // ranks.count
        self.parts = settings.batch_split or parts_of(samples, device)
        torch.manual_seed(settings.seed)
        decoder, length = Decoder(recipe.decoder.spec()), recipe.decoder.code_length
        codes = torch.randn(len(self.names), length) * settings.code_std / math.sqrt(length)
        self.model = AutoDecoder(decoder, ranks.own_rows(codes)).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False) if settings.average_decay else None
        self.objective = Objective(recipe, self.decoder)
        # What changes from step to step lies in memory, where a recorded step reads it.
        self.decoder_rate, self.code_rate, self.penalty = torch.zeros(3, device=device)
        groups: list[dict[str, Any]] = [
            {"params": self.decoder.parameters(), "lr": self.decoder_rate},
            {"params": [self.codes], "lr": self.code_rate, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, weight_decay=settings.weight_decay, fused=True, capturable=device == "cuda"
        )
        self.recorder = self._recorder()

    @property
    def decoder(self) -> Decoder:
        """The decoder as it is trained."""
        return self.model.decoder

    @property
    def codes(self) -> nn.Parameter:
        """The codes (n, L) of the shapes of this process."""
        return self.model.codes

    def step(self) -> Tensor:
        """One optimiser step; returns the data term of the loss: of several processes, each its share."""
        settings, step = self.recipe.training, self.step_count
        self.decoder.train()
        if self.decoder.spec.dropout:
            self.draws.seed_dropout(step, self.ranks.rank)
        decoder_rate, code_rate = rates_at(step, settings)
        self.decoder_rate.fill_(decoder_rate)
        self.code_rate.fill_(code_rate)
        self.penalty.fill_(penalty_at(step, settings))
        phase, batch = phase_at(step, settings, self.decoder.spec.depth), self.next_batch()
        loss = self.recorder(self.update, phase, batch) if self.recorder else self.update(phase, batch)
        self._move_average()
        self.step_count += 1
        return loss

    def _recorder(self) -> Recorder | None:
        """What does the steps where they can be recorded, and are faster for it."""
        settings = self.recipe.training
        # The Gaussian prior inverts a matrix, and waits to hear whether it could. Exchanges are not recorded.
        can_be = settings.code_prior != "gaussian" and self.ranks.count == 1
        return Recorder() if self.device == "cuda" and settings.cuda_graph and can_be else None

    def update(self, phase: Phase, batch: Batch) -> Tensor:
        """Move decoder and codes by one step; the data term of the loss.

        It may be recorded: whatever changes from step to step of a phase must be in a tensor.
        """
        settings = self.recipe.training
        loss = self._backward(phase, batch)
        self.ranks.add_up_gradients(self.decoder.parameters())
        if settings.gradient_clip:
            nn.utils.clip_grad_norm_(self.decoder.parameters(), settings.gradient_clip)
        self.optimizer.step()
        if settings.code_bound:
            self.codes.data.renorm_(2, 0, settings.code_bound)
        return loss

    def _backward(self, phase: Phase, batch: Batch) -> Tensor:
        """Gradients of the loss of one step, in as many parts as the recipe says; its data term."""
        settings = self.recipe.training
        self.optimizer.zero_grad(set_to_none=True)
        codes = self.codes.index_select(0, batch.shapes)
        noisy = codes + settings.code_noise * batch.noise
        seen = noisy.detach().requires_grad_()  # gathers the gradients of all parts
        loss = torch.zeros((), device=self.device)
        for rows, points, distances in batch.split(self.parts):
            share = distances.numel() / (settings.shapes_per_step * settings.points_per_shape)
            error = share * self.objective.data_term(phase, seen[rows], points, distances)
            error.backward()
            loss += error.detach()
        every = self.every_code() if settings.code_prior == "gaussian" else self.codes
        added = self.penalty * self.objective.prior(codes, every)
        if settings.eikonal_weight:
            added = added + self.objective.eikonal_term(phase, batch, noisy)
        torch.autograd.backward([added / self.ranks.count, noisy], [None, seen.grad])
        return loss

    def _move_average(self) -> None:
        """Move the averages towards decoder and codes; the first step is where they begin."""
        if self.average:
            decay = self.recipe.training.average_decay if self.step_count else 0.0
            averages, now = list(self.average.parameters()), list(self.model.parameters())
            get_ema_multi_avg_fn(decay)(averages, now, None)

    def next_batch(self) -> Batch:
        """What the next step sees of the shapes of this process."""
        draw = self.draws.batch
        return joined_batches(
            [draw(self.step_count, shard, self.data, self.ranks, self.recipe) for shard in self.shards]
        )

    def every_code(self) -> Tensor:
        """The codes (N, L) of all shapes."""
        return self.ranks.gathered(self.codes, len(self.names))

    def trained(self) -> tuple[Decoder, Tensor]:
        """Decoder and codes (N, L) to be served: their averages where they are kept.

        Raises ValueError while the network still grows.
        """
        full = self.recipe.decoder.depth
        if depth_at(self.step_count, self.recipe.training, full) < full:
            raise ValueError(f"at step {self.step_count} the network has not grown to its {full} layers yet")
        model = copy.deepcopy(self.average or self.model).requires_grad_()
        return model.decoder, self.ranks.gathered(model.codes, len(self.names))

    def state(self) -> State:
        """All that later processes, as many or not, need to go on as if there had been no stop."""
        own = {
            "step": self.step_count,
            "names": self.names,
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
        }
        return with_codes(own, lambda part: self.ranks.gathered(part, len(self.names)))

    def restore(self, state: State) -> None:
        """Go on from a `state`; raises ValueError if it was made from other shapes or another network."""
        if state["names"] != self.names:
            raise ValueError("the saved state was trained on other shapes: remove the training folder")
        own = with_codes(state, self.ranks.own_rows)
        try:
            self.model.load_state_dict(own["model"])
        except RuntimeError as error:
            raise ValueError("the saved state has another decoder: remove the training folder") from error
        if self.average and own["average"]:
            self.average.load_state_dict(own["average"])
        # The settings are the recipe's; only the moments are the state's.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({**own["optimizer"], "param_groups": groups})
        for group, rate in zip(self.optimizer.param_groups, (self.decoder_rate, self.code_rate), strict=True):
            group["lr"] = rate  # it was copied, to where no step looks
        self.step_count, self.recorder = own["step"], self._recorder()


LOG_EVERY = 50
"""Steps of a line of the log; the state is looked at as often."""


class NothingLearnt(ValueError):
    """All gradients have vanished; the message says what to do."""


def run(trainer: Trainer, log_every: int = LOG_EVERY) -> Iterator[Logged]:
    """Train to the end, yielding the mean loss of every `log_every` steps.

    Raises NothingLearnt where the gradient has vanished.
    """
    settings, shares = trainer.recipe.training, []
    start = before = time.monotonic()
    while trainer.step_count < settings.steps:
        shares.append(trainer.step())
        if trainer.step_count % log_every == 0 or trainer.step_count == settings.steps:
            loss = float(trainer.ranks.add_up(torch.stack(shares).mean()))
            _require_gradients(trainer, loss)
            now = time.monotonic()
            yield _line(trainer, loss, now - start, len(shares) / (now - before))
            shares, before = [], now


def _require_gradients(trainer: Trainer, loss: float) -> None:
    """Raise NothingLearnt if the gradient has vanished though there is something to learn."""
    gradients = [part.grad for part in trainer.decoder.parameters() if part.grad is not None]
    if loss > 0 and not any(gradient.any() for gradient in gradients):
        raise NothingLearnt(
            f"nothing is learnt any more at step {trainer.step_count}: every signed distance is beyond the "
            "clamping distance, where the loss is flat. Remove the training folder and begin with a lower "
            "decoder_rate or a longer warmup_share"
        )


def _line(trainer: Trainer, loss: float, seconds: float, steps_per_second: float) -> Logged:
    settings = trainer.recipe.training
    norms = [part.detach().norm() for part in trainer.decoder.parameters()]
    decoder_rate, code_rate = rates_at(trainer.step_count - 1, settings)
    return Logged(
        step=trainer.step_count,
        loss=loss,
        code_norm=float(trainer.every_code().norm(dim=1).mean()),
        parameter_norm=float(torch.stack(norms).norm()),
        decoder_rate=decoder_rate,
        code_rate=code_rate,
        seconds=seconds,
        samples_per_second=steps_per_second * settings.shapes_per_step * settings.points_per_shape,
    )
