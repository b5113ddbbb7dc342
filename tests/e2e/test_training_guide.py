"""From a folder of meshes to a completed scan, by the commands of docs/training.md as they stand there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

from model.checkpoint import load_checkpoint
from model.completion import Completer
from model.mesh import distances_to, to_trimesh
from model.observation import View
from model.training import lipschitz

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
ENOUGH_FOR_A_TEST = {
    "samples": "--jobs 1",
    "evaluate": "--quick --sections completion --jobs 1 --device cpu",
    "train": "--device cpu",
}
"""Options that the guide's commands do without."""

RECIPE = """
name = "mugs"
description = "Mugs with a handle"
category = "mug"

[samples]
points = 4000
variants = 1

[decoder]
code_length = 4
width = 64
depth = 4
skip_layer = 2
octaves = 1

[training]
steps = 800
shapes_per_step = 6
points_per_shape = 256
decoder_rate = 5e-3
"""


def mug(radius: float, height: float) -> trimesh.Trimesh:
    """A closed mug that stands on z = 0, its handle towards -y, in metres."""
    wall = trimesh.creation.annulus(0.75 * radius, radius, height)
    bottom = trimesh.creation.cylinder(radius, 0.2 * height)
    handle = trimesh.creation.torus(0.3 * height, 0.15 * radius, 24, 12)
    handle.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [0, 1, 0]))
    handle.apply_translation([0, -radius, 0])
    whole = trimesh.util.concatenate([wall, bottom.apply_translation([0, 0, -0.4 * height]), handle])
    whole.apply_translation([0, 0, height / 2])
    return whole


def guide_commands(heading: str) -> list[list[str]]:
    """The indented commands of a section of the guide, as words."""
    section = GUIDE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [shlex.split(line) for line in re.findall(r"^ +python -m (.+)$", section, re.MULTILINE)]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` with these words and what makes it short, in this process."""
    module, *arguments = words
    more = shlex.split(ENOUGH_FOR_A_TEST.get(module.rpartition(".")[2], ""))
    monkeypatch.setattr(sys, "argv", [module, *arguments, *more])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not ended.value.code, words


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.slow
def test_the_guide_leads_from_a_folder_of_meshes_to_a_completion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lipschitz, "POINTS", 200)
    files = [
        f"{name}.{kind}"
        for name, kind in zip("abcdef", ("obj", "stl", "ply", "glb", "off", "dae"), strict=True)
    ]
    meshes = [mug(0.03 + 0.004 * k, 0.12 - 0.012 * k) for k in range(len(files))]
    Path("my-meshes/mug").mkdir(parents=True)
    for name, mesh in zip(files, meshes, strict=True):
        mesh.export(f"my-meshes/mug/{name}")

    (collect, *_) = guide_commands("Your own meshes")
    run(collect, monkeypatch)
    folder = Path(collect[2])
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "ATTRIBUTION.md").write_text("All mugs: made by this test, CC0-1.0\n")
    for module, _ in guide_commands("The four commands"):
        run([module, str(folder)], monkeypatch)

    card = json.loads((folder / "card.json").read_text())
    assert (card["category"], card["licences"], card["training_shapes"]) == ("mug", ["CC0-1.0"], 4)
    checkpoint = load_checkpoint(folder, "cpu")
    assert "mug_d" not in checkpoint.shapes  # of validation, and between those that were trained on
    seen = trimesh.sample.sample_surface(meshes[3], 2000, seed=0)[0]
    done = Completer(checkpoint).complete(View(seen), up="+z", pose="canonical", resolution=32)
    assert to_trimesh(done.mesh).is_watertight
    # The mug is 8.4 cm high. With five seeds of training it was 0.34 to 0.37 mm.
    assert np.median(distances_to(done.mesh, seen)[0]) < 0.001
