"""`python -m app.top`: the service as it works, on a terminal: workers, queue, times, completions."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import defaultdict
from datetime import UTC, datetime

import httpx2
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.schemas import Completion, CompletionList

SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
COLORS = {
    "running": "cyan",
    "queued": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "dim",
    "expired": "dim",
}


class Numbers:
    """Samples of `/metrics` by name."""

    def __init__(self, text: str) -> None:
        self.samples: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        for name, labels, value in SAMPLE.findall(text):
            self.samples[name].append((dict(LABEL.findall(labels)), float(value)))

    def total(self, name: str) -> float:
        """The sum over all labels."""
        return sum(value for _, value in self.samples[name])

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums by the values of one label."""
        sums: dict[str, float] = defaultdict(float)
        for labels, value in self.samples[name]:
            sums[labels.get(label, "")] += value
        return dict(sums)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when asked to end, 1 when the service does not answer."""
    parser = argparse.ArgumentParser(prog="python -m app.top", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service is")
    parser.add_argument("--key", default=os.environ.get("DEEPSDF_KEY"), help="API key; or in DEEPSDF_KEY")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two looks")
    parser.add_argument("--once", action="store_true", help="look once, print and end")
    given = parser.parse_args(arguments)
    headers = {"Authorization": f"Bearer {given.key}"} if given.key else {}
    console = Console()
    try:
        with httpx2.Client(base_url=given.url, headers=headers, timeout=10) as http:
            if given.once:
                console.print(look(http))
            else:
                _watch(http, console, given.interval)
    except KeyboardInterrupt:
        return 0
    except httpx2.HTTPError as error:
        print(f"{given.url} does not answer: {error}", file=sys.stderr)
        return 1
    return 0


def _watch(http: httpx2.Client, console: Console, interval: float) -> None:
    with Live(look(http), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(look(http), refresh=True)


def look(http: httpx2.Client) -> Group:
    """All that there is to see now. Raises HTTPError."""
    metrics = http.get("/metrics").raise_for_status()
    page = http.get("/v1/completions", params={"limit": 20}).raise_for_status()
    listed = CompletionList.model_validate(page.json()).completions
    return Group(_summary(Numbers(metrics.text)), _table(listed))


def _summary(numbers: Numbers) -> Panel:
    ended = numbers.by("deepsdf_jobs_total", "status")
    facts = {
        "workers": f"{numbers.total('deepsdf_workers'):.0f}",
        "waiting": f"{numbers.total('deepsdf_queue_depth'):.0f}",
        "in hand": f"{numbers.total('deepsdf_batch_size'):.0f}",
        **{status: f"{count:.0f}" for status, count in sorted(ended.items())},
    }
    if memory := numbers.total("deepsdf_gpu_memory_bytes"):
        facts["GPU"] = f"{memory / 2**30:.1f} GiB"
    spent, count = (
        numbers.by("deepsdf_job_seconds_sum", "phase"),
        numbers.by("deepsdf_job_seconds_count", "phase"),
    )
    for phase, seconds in spent.items():
        facts[phase] = f"{seconds / max(count.get(phase, 0), 1):.1f} s"
    words = [Text.assemble((value, "bold"), f" {name}") for name, value in facts.items()]
    return Panel(Text("   ").join(words), title="DeepSDF completion service", title_align="left")


def _table(listed: list[Completion]) -> Table:
    table = Table(expand=True, box=None, header_style="dim")
    for name in ("completion", "model", "status", "", "phase", "residual", "age"):
        table.add_column(name)
    for one in listed:
        residual = "" if one.residual is None else f"{one.residual:.4f}"
        bar = ProgressBar(1.0, one.progress, width=20) if one.status == "running" else ""
        place = f" {one.queue_position}" if one.queue_position else ""
        status = Text(one.status + place, COLORS[one.status])
        phase = f"{one.phase} {one.step}/{one.steps}" if one.status == "running" else ""
        table.add_row(one.id, one.options.model, status, bar, phase, residual, _age(one))
    return table


def _age(completion: Completion) -> str:
    seconds = (datetime.now(UTC) - completion.created_at).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


if __name__ == "__main__":
    sys.exit(main())
