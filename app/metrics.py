"""The service in numbers, for Prometheus: read from Redis, so that every replica says the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from app.queue import CompletionQueue
from app.tallies import BUCKETS, PHASE, WAIT

if TYPE_CHECKING:
    from prometheus_client.core import HistogramMetricFamily, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(queue: CompletionQueue) -> bytes:
    """All metrics in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected(queue))
    return generate_latest(registry)


class Collected:
    """What prometheus-client collects from."""

    def __init__(self, queue: CompletionQueue) -> None:
        self.queue = queue

    def describe(self) -> list[Metric]:
        """Nothing beforehand: the queue is asked once, by `collect`."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Each metric with its samples."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        tallies, workers = self.queue.upkeep.tallies(), self.queue.workers.facts()
        jobs = CounterMetricFamily("deepsdf_jobs", "Completions that have ended.", labels=["status", "model"])
        for name, value in tallies.items():
            kind, _, rest = name.partition("|")
            if kind == "jobs":
                jobs.add_metric(rest.split("|", 1), value)
        yield jobs
        steps = tallies.get("solver_steps", 0.0)
        yield CounterMetricFamily("deepsdf_solver_steps", "Steps of the solver, of what succeeded.", steps)
        yield GaugeMetricFamily("deepsdf_queue_depth", "Completions that wait.", len(self.queue.line))
        yield GaugeMetricFamily("deepsdf_workers", "Workers that are ready.", len(workers))
        batch = sum(facts.get("batch_size", 0.0) for facts in workers.values())
        yield GaugeMetricFamily("deepsdf_batch_size", "Completions in the hands of workers.", batch)
        memory = GaugeMetricFamily("deepsdf_gpu_memory_bytes", "GPU memory in use.", labels=["worker"])
        for worker, facts in workers.items():
            if "gpu_memory_bytes" in facts:
                memory.add_metric([worker], facts["gpu_memory_bytes"])
        yield memory
        yield from _histograms(tallies)


def _histograms(tallies: Mapping[str, float]) -> Iterator[HistogramMetricFamily]:
    from prometheus_client.core import HistogramMetricFamily

    found: dict[str, dict[str, dict[str, float]]] = {WAIT: defaultdict(dict), PHASE: defaultdict(dict)}
    for name, value in tallies.items():
        kind, _, rest = name.partition("|")
        if kind in found:
            label, _, bucket = rest.rpartition("|")
            found[kind][label][bucket] = value
    described = {
        WAIT: ("Seconds from submission to the start.", []),
        PHASE: ("Seconds in each phase, of what succeeded.", ["phase"]),
    }
    for kind, (words, labels) in described.items():
        family = HistogramMetricFamily(f"deepsdf_{kind}", words, labels=labels)
        for label, bins in found[kind].items():
            family.add_metric([label] if labels else [], _cumulated(bins), bins.get("sum", 0.0))
        yield family


def _cumulated(bins: Mapping[str, float]) -> list[tuple[str, float]]:
    """Prometheus' bins count everything below their bound."""
    total, rows = 0.0, []
    for bound in BUCKETS:
        total += bins.get(str(bound), 0.0)
        rows.append(("+Inf" if bound == float("inf") else str(bound), total))
    return rows
