"""`python -m benchmarks.isolation`: what it costs to read scans in a child process that can be killed.

The same files are read and stored here and in a warm child, in turn. The fastest of several reads is taken,
since other work on the machine can only add to it.
"""

from __future__ import annotations

import argparse
import asyncio
import io
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.table import Table

from app.scans import INLINE, Body, Readers, read_scan
from app.scans.parcel import parcel_of

SIZES = (5_000, 20_000, 100_000, 500_000)
RAW = "application/octet-stream"
TYPICAL = 20_000
"""Points of a usual scan: that of the demo has 18,000."""


def scan_of(points: int) -> bytes:
    """An NPY of points on a sphere."""
    rows = np.random.default_rng(0).normal(size=(points, 3))
    buffer = io.BytesIO()
    np.save(buffer, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return buffer.getvalue()


def fastest_ms(works: Sequence[Callable[[], object]], times: int) -> list[float]:
    """The shortest time of each call in milliseconds, taken in turn."""
    spent = np.empty((times, len(works)))
    for row in spent:
        for number, work in enumerate(works):
            start = perf_counter()
            work()
            row[number] = 1000 * (perf_counter() - start)
    return [float(best) for best in spent.min(axis=0)]


async def hand_over(readers: Readers, data: bytes, path: Path) -> None:
    """As the API does: what is large goes into a file first."""
    with closing(Body(b"", RAW)) as body:
        if len(data) <= INLINE:
            body.content = data
        else:
            body.write(data)
        await readers.read(body, path)


def both_ways(readers: Readers, data: bytes, path: Path) -> list[Callable[[], object]]:
    """Reading it and writing the scan here, and in the child."""

    def here() -> None:
        path.unlink(missing_ok=True)
        parcel = parcel_of(data, RAW)
        read_scan(parcel.uploads).save(path, parcel.originals())

    def apart() -> None:
        path.unlink(missing_ok=True)
        asyncio.run(hand_over(readers, data, path))

    return [here, apart]


def main(arguments: list[str] | None = None) -> float:
    """Print the table and return the cost of a usual scan in milliseconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.isolation", description=__doc__)
    parser.add_argument("--times", type=int, default=15, help="reads of each file, here and there")
    times = parser.parse_args(arguments).times
    readers = Readers(count=1, memory=2**31, seconds=60)
    table = Table("points", "file", "here", "in a child", "cost")
    cost = 0.0
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scan"
        start = perf_counter()
        asyncio.run(hand_over(readers, scan_of(100), path))
        cold = 1000 * (perf_counter() - start)
        for points in SIZES:
            data = scan_of(points)
            here, apart = fastest_ms(both_ways(readers, data, path), times)
            size = f"{len(data) / 1e6:.1f} MB"
            table.add_row(f"{points:,}", size, f"{here:.1f} ms", f"{apart:.1f} ms", f"{apart - here:.1f} ms")
            cost = apart - here if points == TYPICAL else cost
    readers.close()
    Console().print(table)
    print(f"a child that is not warm yet: {cold:.0f} ms more, once")
    print(f"isolation: {cost:.1f} ms a scan of {TYPICAL:,} points")
    return cost


if __name__ == "__main__":
    main()
