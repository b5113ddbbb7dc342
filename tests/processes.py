"""Real processes for the tests: the service as a user starts it, and ways to hurt it."""

from benchmarks.serving import ROOT, Service, eventually, free_port, start_service

__all__ = ["ROOT", "Service", "eventually", "free_port", "start_service"]
