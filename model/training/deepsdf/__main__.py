"""DeepSDF's experiments in and out: `python -m model.training.deepsdf import EXPERIMENT checkpoints/NAME`.

`import` makes a served checkpoint of an experiment folder, `export` the other way, and `recipe` prints a
specs.json as recipe.toml.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.checkpoint import CARD_FILE, BadCheckpoint, load_checkpoint
from model.training.deepsdf.experiment import export_experiment, import_experiment, read_experiment
from model.training.deepsdf.specs import BadExperiment, Specs, read_specs, recipe_text


def bring_in(options: argparse.Namespace) -> str:
    """Make a checkpoint folder of an experiment folder."""
    folder: Path = options.checkpoint
    if taken := [name for name in (CARD_FILE, "recipe.toml") if (folder / name).exists()]:
        raise BadExperiment(f"{folder} holds a {taken[0]} already: remove it, or choose another name")
    experiment = read_experiment(options.experiment, options.epoch, options.split)
    card = card_of(experiment.specs, options)
    recipe = recipe_text(experiment.specs, card["name"], card["description"], card["category"])
    folder.mkdir(parents=True, exist_ok=True)
    if options.attribution:
        shutil.copyfile(options.attribution, folder / "ATTRIBUTION.md")
    print("measuring steepness and extents: minutes on a CPU", file=sys.stderr)
    import_experiment(experiment, folder, card, options.device)
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    return f"{folder}: epoch {experiment.epoch}, {len(experiment.codes)} codes, {experiment.names[0]} …"


def card_of(specs: Specs, options: argparse.Namespace) -> dict[str, Any]:
    """What people want to know of an imported checkpoint; an experiment says nothing of licences."""
    return {
        "name": options.checkpoint.name,
        "description": options.description or specs.description or "imported from DeepSDF",
        "category": options.category or specs.category,
        "licences": options.licence or ["unknown"],
        "attribution": "ATTRIBUTION.md" if options.attribution else "unknown",
    }


def send_out(options: argparse.Namespace) -> str:
    """Make an experiment folder of a checkpoint folder."""
    checkpoint = load_checkpoint(options.checkpoint, "cpu")
    export_experiment(checkpoint, options.experiment)
    return f"{options.experiment}: epoch latest, {len(checkpoint.codes)} codes"


def translate(options: argparse.Namespace) -> str:
    """The recipe of a specs.json."""
    specs = read_specs(options.specs, options.split)
    name = options.name or options.specs.resolve().parent.name
    return recipe_text(specs, name, specs.description or name, options.category or specs.category).rstrip()


def main(arguments: Iterable[str] | None = None) -> int:
    """Import, export or translate; exit status 1 with a message where that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m model.training.deepsdf", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="import | export | recipe")
    command = commands.add_parser("import", help="an experiment folder becomes a checkpoint that is served")
    command.set_defaults(run=bring_in)
    command.add_argument("experiment", type=Path, help="folder with specs.json, ModelParameters, LatentCodes")
    command.add_argument("checkpoint", type=Path, help="folder to write: checkpoints/NAME")
    command.add_argument("--epoch", default="latest", help="which of the experiment's files (default latest)")
    command.add_argument("--description", default="", help="in place of that in specs.json")
    command.add_argument(
        "--licence", action="append", help="SPDX name of a training shape's; may be repeated"
    )
    command.add_argument("--attribution", type=Path, help="file that becomes ATTRIBUTION.md")
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    _add_common(command)
    command = commands.add_parser("export", help="a checkpoint becomes an experiment folder")
    command.set_defaults(run=send_out)
    command.add_argument("checkpoint", type=Path)
    command.add_argument("experiment", type=Path, help="folder to write")
    command = commands.add_parser("recipe", help="print the recipe.toml that a specs.json stands for")
    command.set_defaults(run=translate)
    command.add_argument("specs", type=Path, help="specs.json")
    command.add_argument("--name", help="of the model (default: the folder's)")
    _add_common(command)
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        print(options.run(options))
    except (BadExperiment, BadCheckpoint, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--split", type=Path, help="split file in place of TrainSplit in specs.json")
    command.add_argument("--category", default="", help="what the shapes are (default: their class)")


if __name__ == "__main__":
    raise SystemExit(main())
