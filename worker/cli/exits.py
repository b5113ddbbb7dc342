"""Exit codes of `deepsdf`."""

OK = 0
FAILED = 1
"""A completion has no mesh, or something is to be mended."""
USAGE = 2
"""A mistake in the command."""
UNREACHABLE = 3
"""No service answers."""
