"""One file per claim of the README; each prints its ratio. Run as `python -m benchmarks.<name>`."""
