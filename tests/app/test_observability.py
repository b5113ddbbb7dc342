"""What an operator sees: metrics, logs, traces."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

from asking import begin, end, queue_of, submit
from prometheus_client.parser import text_string_to_metric_families

from app.top import look
from app.tracing import continued

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "deepsdf_jobs_total",
    "deepsdf_queue_depth",
    "deepsdf_queue_wait_seconds",
    "deepsdf_job_seconds",
    "deepsdf_batch_size",
    "deepsdf_solver_steps_total",
    "deepsdf_workers",
    "deepsdf_gpu_memory_bytes",
}


def samples(api):
    """Values by name and labels."""
    text = api.get("/metrics").text
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count_what_has_ended_and_what_waits(api, settings):
    done, _ = submit(api).json(), submit(api)
    queue = queue_of(settings)
    queue.connection.hset(f"rq:job:{done['id']}", "started_at", done["created_at"])
    report = {"faces": 8}
    end(settings, done["id"], report, status="succeeded")
    api.app.state.service.housekeeper.settle()
    got = samples(api)
    assert got["deepsdf_jobs_total", ("model", "tiny"), ("status", "succeeded")] == 1
    assert got["deepsdf_queue_depth",] == 1
    assert got["deepsdf_queue_wait_seconds_count",] == 1
    assert got["deepsdf_queue_wait_seconds_bucket", ("le", "0.03")] == 1
    assert got["deepsdf_workers",] == 0


def test_the_bins_of_a_histogram_are_cumulated_and_its_sum_is_right(api, settings):
    queue = queue_of(settings)
    for name, value in {"0.1": 2, "3.0": 1, "sum": 2.5}.items():
        queue.connection.hset("deepsdf:tallies", f"job_seconds|fit|{name}", value)
    got = samples(api)
    bins = {
        dict(key[1:])["le"]: value for key, value in got.items() if key[0] == "deepsdf_job_seconds_bucket"
    }
    assert (bins["0.03"], bins["0.1"], bins["1.0"], bins["3.0"], bins["+Inf"]) == (0, 2, 2, 3, 3)
    assert got["deepsdf_job_seconds_sum", ("phase", "fit")] == 2.5


def test_every_replica_says_the_same(api, api_for, settings):
    end(settings, submit(api).json()["id"], status="cancelled")
    api.app.state.service.housekeeper.settle()
    other = api_for()
    assert samples(api) == samples(other)


def test_the_metrics_of_the_dashboard_are_those_that_there_are(api):
    there = {
        re.sub(r"_(bucket|count|sum)$", "", name)
        for name in re.findall(r"^# TYPE (\S+)", api.get("/metrics").text, re.MULTILINE)
    }
    assert there >= NAMES
    shown = (ROOT / "docs" / "grafana.json").read_text()
    wanted = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"deepsdf_\w+", shown)}
    assert wanted == NAMES
    assert json.loads(shown)["panels"]


def test_logs_are_json_with_ids_where_nobody_looks():
    code = (
        "import logging; from app import logs\n"
        "logs.configure('api'); logs.request_id.set('r1')\n"
        "logging.getLogger('x').warning('told %s', 'this', extra={'status': 3, 'completion_id': 'c1'})\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: logging.getLogger('x').exception('broken')\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    first, second = map(json.loads, shown.splitlines())
    assert (first["event"], first["level"], first["status"]) == ("told this", "warning", 3)
    assert (first["request_id"], first["completion_id"], first["process"]) == ("r1", "c1", "api")
    assert "ZeroDivisionError" in second["exception"]


def test_a_request_that_changes_something_is_logged_with_its_id(api, caplog):
    with caplog.at_level(logging.INFO, "app.access"):
        submit(api, {"X-Request-ID": "r1"})
        api.get("/healthz")
    (line,) = [record for record in caplog.records if record.name == "app.access"]
    assert line.getMessage() == "POST /v1/completions" and line.status == 202


def test_a_trace_goes_on_from_the_request_to_the_worker(api, settings):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    caller = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    made = submit(api, {"traceparent": caller}).json()
    job = queue_of(settings).queue.fetch_job(made["id"])
    with continued(job.meta["trace"], "complete_scan", completion=made["id"]):
        pass
    spans = exporter.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in spans} == {"ab" * 16}
    (work,) = [span for span in spans if span.name == "complete_scan"]
    assert work.parent.span_id in {span.context.span_id for span in spans}
    assert any(span.name == "POST /v1/completions" for span in spans)


def test_top_shows_the_queue_and_the_completions(api, settings):
    from rich.console import Console

    running, _ = submit(api).json(), submit(api)
    begin(settings, running["id"], phase="fit", step=3, steps=9, residual=0.0123, progress=0.4)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(look(api))
    shown = console.export_text()
    for words in ("1 waiting", running["id"], "running", "fit 3/9", "0.0123", "queued 1"):
        assert words in shown, words
