"""What the endpoints of one process share, and the questions that several of them ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import cache

from app.errors import ProblemRaised
from app.housekeeping import Housekeeper
from app.queue import CompletionQueue
from app.rate import Rate
from app.scans import Attachments, Limits, PackedScan, Readers, Upload
from app.schemas import ENDED, Completion, Interpolation, ModelCard
from app.settings import Settings
from app.storage import Storage
from app.watcher import Watcher


@cache
def readers_of(count: int, memory: int, seconds: float) -> Readers:
    """The children that read scans: one set to a process, however many applications are in it."""
    return Readers(count, memory, seconds)


class Service:
    """One to a process."""

    def __init__(self, settings: Settings, queue: CompletionQueue) -> None:
        self.settings, self.queue = settings, queue
        self.storage = Storage(settings.data_dir)
        self.limits = Limits(settings.max_points, settings.max_pixels)
        self.readers = readers_of(settings.parse_slots, settings.parse_memory_bytes, settings.parse_s)
        self.room = asyncio.Semaphore(2 * settings.parse_slots)
        """Uploads that are in memory at a time."""
        self.watcher = Watcher(queue.get_many)
        self.housekeeper = Housekeeper(queue, self.storage, settings)
        self.rate = Rate(settings.rate_limit, queue.connection)

    def models(self) -> list[ModelCard]:
        """The cards of the trained models on disk, by name."""
        cards = sorted(self.settings.checkpoints_dir.glob("*/card.json"))
        return [
            ModelCard.model_validate({**json.loads(card.read_text()), "name": card.parent.name})
            for card in cards
        ]

    def model(self, name: str) -> ModelCard | None:
        """The card of one model, if there is such a model."""
        return next((card for card in self.models() if card.name == name), None)

    def read(self, uploads: Sequence[Upload], beside: Attachments) -> PackedScan:
        """Read the files of a scan, in a process apart. Raises ScanRefused."""
        return self.readers.read(uploads, beside, self.limits)

    def find(self, owner: str, completion_id: str) -> Completion:
        """An owner's completion. Raises problems: 404 for an unknown one, 410 for one that has expired.

        Those of others are unknown, so that nobody learns of them.
        """
        completion = self.queue.get(completion_id)
        if completion is None or completion.owner != owner:
            raise unknown(completion_id)
        if completion.status == "expired":
            raise expired(completion)
        return completion

    def find_interpolation(self, owner: str, interpolation_id: str) -> Interpolation:
        """An owner's interpolation. Raises the same problems as `find`."""
        found = self.queue.interpolation(interpolation_id)
        if found is None or found.owner != owner:
            told = f"There is no interpolation {interpolation_id!r} (any more)."
            raise ProblemRaised(404, "unknown_interpolation", told)
        if found.status == "expired":
            raise expired(found)
        return found

    def check_model(self, name: str) -> None:
        """Raises a 400 problem for an unknown model."""
        cards = self.settings.checkpoints_dir.glob("*/card.json")
        if name not in (names := sorted(card.parent.name for card in cards)):
            raise ProblemRaised(400, "unknown_model", f"There is no model {name!r}. There are: {names}.")

    def check_start(self, owner: str, start_from: str, model: str) -> None:
        """One can start from what a completion found if it has succeeded with the same model."""
        start = self.queue.get(start_from)
        if start is None or start.owner != owner or not self._has_report(start):
            raise ProblemRaised(404, "unknown_start", f"There is no completion {start_from!r} to start from.")
        if start.status != "succeeded":
            detail = f"The completion {start_from!r} is {start.status}. Start from one that has succeeded."
            raise ProblemRaised(409, "start_not_succeeded", detail)
        if start.options.model != model:
            told = f"{start_from!r} was made with the model {start.options.model!r}, whose codes are its own."
            raise ProblemRaised(409, "start_of_other_model", told)

    def _has_report(self, start: Completion) -> bool:
        return start.status != "succeeded" or self.storage.report_path(start.id).exists()

    def succeeded(self, owner: str, completion_id: str) -> Completion:
        """The same, if it has results. Raises a 409 problem if it has none (yet)."""
        completion = self.find(owner, completion_id)
        if completion.status != "succeeded":
            raise no_result(completion)
        return completion

    def delete(self, owner: str, completion_id: str) -> None:
        """Forget a completion with its scan and results; one that runs is cancelled first."""
        self.find(owner, completion_id)
        self.queue.delete(completion_id)
        self.storage.remove(completion_id)


def unknown(completion_id: str) -> ProblemRaised:
    """The 404 of a completion."""
    return ProblemRaised(404, "unknown_completion", f"There is no completion {completion_id!r} (any more).")


def expired(ended: Completion | Interpolation) -> ProblemRaised:
    """The 410 of what was kept long enough."""
    detail = f"It ended at {ended.ended_at} and was kept no longer. Submit it again."
    return ProblemRaised(410, "expired", detail)


def no_result(completion: Completion) -> ProblemRaised:
    """Why there is no result (yet)."""
    if completion.status not in ENDED:
        where = f"{completion.status}, {completion.progress:.0%} done"
        detail = f"The completion is not finished: {where}. Ask again when it has succeeded."
        return ProblemRaised(409, "not_finished", detail, {"Retry-After": "1"})
    why = completion.error.detail if completion.error else "it was cancelled before it had a mesh"
    return ProblemRaised(409, f"completion_{completion.status}", f"The completion has no mesh: {why}")
