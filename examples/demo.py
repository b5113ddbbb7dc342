"""Complete the example scan through the API, end to end: `make demo`, or with --url on a running service."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import numpy as np
import trimesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from app.client import Client, ProblemError
from app.schemas import Completion

HERE = Path(__file__).resolve().parent
POINTS = 30_000
console = Console()


def main() -> int:
    """Returns 0 when the completed chair is written and measured."""
    given = arguments()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    facts = json.loads((HERE / "chair.json").read_text())
    try:
        with service(given.url) as url, Client(url) as client:
            completion = complete(client, HERE / "chair.ply", facts["viewpoint"], given.model)
            if completion.error is not None:
                return failed(f"{completion.error.code}: {completion.error.detail}")
            (out / "chair.glb").write_bytes(client.mesh(completion.id))
            console.print(f"API   {url}{completion.links.self}")
    except (ProblemError, RuntimeError, TimeoutError) as error:
        return failed(str(error))
    return show(out, HERE / facts["truth"])


def arguments() -> argparse.Namespace:
    """What the caller wants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running service; unless given, one is started and stopped")
    parser.add_argument("--model", default="chairs")
    parser.add_argument("--out", type=Path, default=HERE.parent / "out")
    return parser.parse_args()


@contextmanager
def service(url: str | None) -> Iterator[str]:
    """The address of a service that is ready: the given one, or our own for as long as this lasts."""
    if url is not None:
        yield url
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with TemporaryDirectory(prefix="deepsdf-demo-") as data, (Path(data) / "log").open("w+") as log:
        command = [sys.executable, "-m", "app", "--port", str(port), "--data-dir", data]
        environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        process = subprocess.Popen(command, cwd=HERE.parent, env=environment, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_ready(address, process, log)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: IO[str]) -> None:
    """Raises RuntimeError with the service's own words when it does not come up."""
    with Client(address) as client, console.status("starting queue, worker and API"):
        give_up = time.monotonic() + 120
        while not client.is_ready():
            if process.poll() is not None or time.monotonic() > give_up:
                log.seek(0)
                raise RuntimeError(f"the service did not start:\n{log.read()[-2000:]}")
            time.sleep(0.1)


def complete(client: Client, scan: Path, viewpoint: list[float], model: str) -> Completion:
    """Submit the scan and watch it."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("submit", total=1.0)

        def watch(now: Completion) -> None:
            where = f"{now.phase} {now.step}/{now.steps}" if now.phase else now.status
            fit = "" if now.residual is None else f"  residual {now.residual:.4f}"
            bar.update(task, completed=now.progress, description=f"{where}{fit}")

        submitted = client.submit(scan, form={"viewpoint": json.dumps(viewpoint)}, model=model)
        return client.wait(submitted.id, watch, interval_s=0.1)


def show(out: Path, truth: Path) -> int:
    """Draw the result, check that it is closed, and measure it against the true chair."""
    from model.training.pictures import scan_and_mesh

    scan = trimesh.load(HERE / "chair.ply").vertices
    true = trimesh.load(truth, force="mesh")
    made = trimesh.load(BytesIO((out / "chair.glb").read_bytes()), file_type="glb", force="mesh")
    scan_and_mesh(np.asarray(scan), [("completed", made), ("true", true)], out / "chair.png")
    console.print(f"mesh  {out / 'chair.glb'}  {len(made.faces)} faces")
    console.print(f"image {out / 'chair.png'}")
    if not made.is_watertight:
        return failed("the mesh is not watertight")
    console.print("watertight: yes")
    print(f"demo: {1000 * distance(made, true):.3f} Chamfer distance x10^3")
    return 0


def distance(made: trimesh.Trimesh, true: trimesh.Trimesh) -> float:
    """Two-way mean squared distance in the frame in which the true chair fills the unit ball."""
    from model.frame import normalization_of
    from model.metrics import chamfer_distance, sample_surface

    frame = normalization_of(np.asarray(true.vertices))
    made_points, _ = sample_surface(made, POINTS, seed=1)
    true_points, _ = sample_surface(true, POINTS, seed=2)
    return chamfer_distance(frame.apply(made_points), frame.apply(true_points))


def failed(why: str) -> int:
    """Say why there is no chair."""
    print(f"demo failed: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
