"""One trace from the request through the queue to the worker (OpenTelemetry, W3C trace context).

FastAPI makes the spans of the API. Nothing is sent unless OTEL_EXPORTER_OTLP_ENDPOINT is set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def is_wanted() -> bool:
    """Whether the environment names an endpoint."""
    return any(map(os.environ.get, ENDPOINTS))


def configure(service: str) -> None:
    """Send the spans of this process to the endpoint that the environment names, if any."""
    if not is_wanted():
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no traces are sent: pip install 'deepsdf-service[telemetry]'")
        return
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def carried() -> dict[str, str]:
    """The headers under which another process goes on with the trace in hand; none without one."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


@contextmanager
def continued(headers: Mapping[str, str], name: str, **facts: str) -> Iterator[None]:
    """A span of this name, under the trace that `carried` gave to `headers`.

    It is nobody's current span: a worker has several completions in hand, one step of each after the other.
    """
    context = propagate.extract(dict(headers))
    tracer = trace.get_tracer("deepsdf")
    span = tracer.start_span(name, context, trace.SpanKind.CONSUMER, attributes=facts)
    try:
        yield
    except BaseException as error:
        span.set_status(trace.StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        span.end()
