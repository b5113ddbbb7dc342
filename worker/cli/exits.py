"""Exit codes of `deepsdf`. Typer itself ends with 2 after a mistake in the command."""

OK = 0
FAILED = 1
"""A completion has no mesh, or something is to be mended."""
UNREACHABLE = 3
"""No service answers."""
