"""Questions of the command line to a running service: status, cancel, models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TypeVar

import httpx2
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table

from app.client import Client, ProblemError
from app.schemas import Completion, ModelCard
from app.settings import get_settings
from worker.cli.exits import FAILED, OK, UNREACHABLE

T = TypeVar("T")
HERE = "http://127.0.0.1:8000"


def connect(url: str | None, key: str | None) -> Client:
    """A client of the service at `url`, else of the one on this machine."""
    return Client(url or HERE, key=key)


def unreachable(url: object, error: Exception) -> int:
    """Say that nobody answers."""
    print(f"No service answers at {url} ({error}). `deepsdf serve` starts one.", file=sys.stderr)
    return UNREACHABLE


def status(client: Client, completion_id: str | None, as_json: bool) -> int:
    """Print how a completion stands, or the newest ones."""
    if completion_id is None:
        return _tell(client, client.completions, _list, as_json)
    return _tell(client, lambda: client.status(completion_id), _table, as_json)


def cancel(client: Client, completion_id: str, as_json: bool) -> int:
    """End a completion early, and print how it stands then."""
    return _tell(client, lambda: client.cancel(completion_id), _table, as_json)


def models(url: str | None, key: str | None, as_json: bool) -> int:
    """Print the trained models of a service, or of this installation."""
    client = connect(url, key)
    return _tell(client, client.models if url else _installed, _models, as_json)


def _tell(client: Client, ask: Callable[[], T], shown: Callable[[T], Table], as_json: bool) -> int:
    """Ask, and print the answer: as a table, or as JSON."""
    try:
        with client:
            answer = ask()
    except ProblemError as error:
        print(error, file=sys.stderr)
        return FAILED
    except httpx2.TransportError as error:
        return unreachable(client.http.base_url, error)
    if as_json:
        print(to_json(answer, indent=2).decode())
    else:
        Console().print(shown(answer))
    return OK


def _list(completions: list[Completion]) -> Table:
    table = Table("id", "status", "progress", "model", "created", box=None)
    for one in completions:
        created = f"{one.created_at:%Y-%m-%d %H:%M}"
        table.add_row(one.id, one.status, f"{one.progress:.0%}", one.options.model, created)
    return table


def _table(completion: Completion) -> Table:
    report = completion.report or {}
    rows = {
        "id": completion.id,
        "status": completion.status,
        "phase": f"{completion.phase} {completion.step}/{completion.steps}" if completion.phase else None,
        "progress": f"{completion.progress:.0%}",
        "before it": None if completion.queue_position is None else completion.queue_position - 1,
        "residual": completion.residual,
        "verdict": report.get("verdict"),
        "error": completion.error and f"{completion.error.code}: {completion.error.detail}",
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, str(value))
    return table


def _models(cards: list[ModelCard]) -> Table:
    table = Table("model", "category", "shapes", "description", box=None)
    for card in cards:
        shapes = (card.model_extra or {}).get("training_shapes", "")
        table.add_row(card.name, card.category, str(shapes), card.description)
    return table


def _installed() -> list[ModelCard]:
    folder = get_settings().checkpoints_dir
    return [
        ModelCard.model_validate({**json.loads(card.read_text()), "name": card.parent.name})
        for card in sorted(folder.glob("*/card.json"))
    ]
