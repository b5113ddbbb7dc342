"""`deepsdf`: the command line, one word for each thing that one can do.

Declares commands and nothing else. What a command needs is imported when it runs, so that `--help` is there
at once; what has a `main` of its own runs by its module's name, so that serving never imports training.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

app = typer.Typer(
    name="deepsdf",
    help="Complete partial 3D scans of an object to closed meshes.",
    epilog="Exit codes: 0 done, 1 no mesh, 2 a mistake in the command, 3 no service answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help takes half the time
)
PASSED_ON: dict[str, Any] = {
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
    "add_help_option": False,
}

Url = Annotated[str | None, typer.Option(envvar="DEEPSDF_URL", help="A running service.")]
Key = Annotated[str | None, typer.Option(envvar="DEEPSDF_KEY", help="API key of that service.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Id = Annotated[str, typer.Argument(help="Id of a completion.")]


@app.command()
def complete(
    context: typer.Context,
    scans: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Point clouds or depth maps.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the meshes.")],
    url: Url = None,
    key: Key = None,
    json: AsJson = False,
    views: Annotated[bool, typer.Option(help="All files are views of one object.")] = False,
    format: Annotated[Literal["glb", "ply", "obj", "stl"], typer.Option(help="Of the meshes.")] = "glb",
    model: Annotated[str | None, typer.Option(help="A trained model.")] = None,
    pose: Annotated[str | None, typer.Option(help="Turns to find: canonical, upright or free.")] = None,
    up: Annotated[str | None, typer.Option(help="Axis that points up: +y, -z, … or [x, y, z].")] = None,
    solver: Annotated[str | None, typer.Option(help="lm or adam.")] = None,
    refine: Annotated[bool | None, typer.Option(help="Correct the shape where it misses the scan.")] = None,
    samples: Annotated[int | None, typer.Option(help="Alternative completions.")] = None,
    remove_plane: Annotated[bool | None, typer.Option(help="Cut off the floor.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Grid cells per axis.")] = None,
    components: Annotated[str | None, typer.Option(help="Parts to keep: main, largest or all.")] = None,
    target_faces: Annotated[int | None, typer.Option(help="Simplify to so many faces.")] = None,
    color: Annotated[str | None, typer.Option(help="Colours: scan, uncertainty or none.")] = None,
    draco: Annotated[bool | None, typer.Option(help="Compress the GLB.")] = None,
    seed: Annotated[int | None, typer.Option(help="Start of every random choice.")] = None,
    priority: Annotated[str | None, typer.Option(help="On a service: high, normal or low.")] = None,
    viewpoint: Annotated[list[str] | None, typer.Option(help="Of points: the sensor, [x, y, z].")] = None,
    intrinsics: Annotated[list[str] | None, typer.Option(help="Of depth maps: the camera, JSON.")] = None,
    depth_scale: Annotated[list[str] | None, typer.Option(help="Of depth maps: values per metre.")] = None,
    camera_to_world: Annotated[list[str] | None, typer.Option(help="Of depth maps: 4x4 pose, JSON.")] = None,
    mask: Annotated[list[Path] | None, typer.Option(help="Of depth maps: PNG, white on the object.")] = None,
    color_image: Annotated[list[Path] | None, typer.Option(help="Of depth maps: RGB, same size.")] = None,
) -> None:
    """Complete each FILE to a mesh in DIR.

    Here, or on a running service (--url). A report lies beside each mesh.
    """
    from worker.cli import completing

    if missing := [str(file) for file in [*scans, *(mask or []), *(color_image or [])] if not file.is_file()]:
        raise typer.BadParameter(f"no such file: {', '.join(missing)}")
    work = completing.Work.of(context.params)
    sys.exit(completing.remote(work, url, key) if url else completing.local(work))


@app.command()
def status(
    id: Annotated[str | None, typer.Argument(help="Id of a completion; none: your newest ones.")] = None,
    url: Url = None,
    key: Key = None,
    json: AsJson = False,
) -> None:
    """How a completion stands, or all of your newest."""
    from worker.cli import remote

    sys.exit(remote.status(remote.connect(url, key), id, json))


@app.command()
def cancel(id: Id, url: Url = None, key: Key = None, json: AsJson = False) -> None:
    """End a completion early."""
    from worker.cli import remote

    sys.exit(remote.cancel(remote.connect(url, key), id, json))


@app.command()
def models(url: Url = None, key: Key = None, json: AsJson = False) -> None:
    """The trained models, here or of a service (--url)."""
    from worker.cli import remote

    sys.exit(remote.models(url, key, json))


def passed_on(name: str, module: str, described: str, *first: str, needs: str | None = None) -> None:
    """A command that is another module's: its arguments go there as they are, --help too.

    `needs` is a file that the folder given first must have.
    """

    def run(context: typer.Context) -> NoReturn:
        folder = next(iter(context.args), "-")
        if needs and not folder.startswith("-") and not Path(folder, needs).is_file():
            raise typer.BadParameter(f"{folder} is no checkpoint folder for this: it has no {needs}")
        os.execv(sys.executable, [sys.executable, "-m", module, *first, *context.args])

    run.__doc__ = described
    app.command(name, help=described, **PASSED_ON)(run)


passed_on("serve", "app", "The whole service on this machine: queue, worker and API.")
passed_on("worker", "worker", "One worker of a service, on the queue of REDIS_URL.")
passed_on("top", "app.top", "A running service, live on this terminal.")
passed_on("train", "model.training.train", "Train a checkpoint from its recipe.", needs="recipe.toml")
passed_on("samples", "model.training.samples", "Signed distances of its shapes.", needs="recipe.toml")
passed_on("evaluate", "model.training.evaluate", "Measure a checkpoint on unseen shapes.", needs="card.json")
passed_on("import", "model.training.deepsdf", "Take over a DeepSDF experiment.", "import")


@app.command()
def doctor(url: Url = None, json: AsJson = False) -> None:
    """Check this installation, and say what to mend."""
    from worker.cli import checks

    sys.exit(checks.main(url, json))


def main() -> None:
    """The console script. A package that is missing is told in one line."""
    try:
        app(prog_name="deepsdf")
    except ImportError as error:
        sys.exit(
            f"{error}. The installation is not whole: `make setup` mends it, `deepsdf doctor` says more."
        )
