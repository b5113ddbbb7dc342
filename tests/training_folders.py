"""A folder to train in, with samples of exact solids, as `model.training` reads it of any shapes."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import numpy as np
import trimesh
from shapes import TINY_SOLIDS, tiny_samples

from model.training.samples import Quality

HEADER = "id,name,category,kind,split,group,package,file,rotation,width,height,depth,author,licence"
SHAPES = {
    "sphere_0.5": ("train", "CC0-1.0"),
    "box_0.35_0.5": ("train", "CC-BY-4.0"),
    "sphere_0.65": ("val", "CC0-1.0"),
    "box_0.5_0.5": ("test", "MIT"),
}


def make_training_folder(parent: Path) -> Path:
    """A checkpoint folder with recipe, shapes and (beside it, in `data`) samples, ready to train."""
    made = parent / "tiny"
    made.mkdir()
    (made / "recipe.toml").write_text(
        'name = "tiny"\ndescription = "solids"\ncategory = "solid"\n'
        "[samples]\nskin = 0.0\npoints = 400\nvariants = 0\n"
        "[decoder]\ncode_length = 3\nwidth = 32\ndepth = 3\nskip_layer = 1\noctaves = 1\n"
        "[training]\nsteps = 120\nsave_every = 50\nshapes_per_step = 2\npoints_per_shape = 32\n"
    )
    rows = [f"{id},{id},s,s,{split},{id},pack,,,1,1,1,,{licence}" for id, (split, licence) in SHAPES.items()]
    (made / "shapes.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    write_samples(parent / "data" / "samples" / "tiny")
    return made


def write_originals(data: Path) -> None:
    """The solids as meshes, where `model.training.sources` would have put them."""
    folder = data / "shapes" / "s"
    folder.mkdir(parents=True)
    for id in SHAPES:
        kind, *sizes = id.split("_")
        extents = [2 * float(size) for size in (*sizes, 0.5)]
        solid = trimesh.creation.icosphere(3) if kind == "sphere" else trimesh.creation.box(extents)
        solid.export(folder / f"{id}.ply")


def write_samples(samples: Path, rejected: str = "") -> None:
    """Exact samples of all of them in DeepSDF's files, all rejected where a reason is given."""
    data = tiny_samples(600)
    (samples / "SdfSamples" / "pack" / "s").mkdir(parents=True, exist_ok=True)
    with (samples / "quality.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*Quality.__dataclass_fields__])
        table.writeheader()
        for id, (split, _) in SHAPES.items():
            table.writerow(asdict(Quality(id, "s", split, 0.5, 0, 0, 0, 12, 1, 400, 0.1, rejected)))
            outside, inside = data.samples[list(TINY_SOLIDS).index(id)].numpy()
            np.savez(samples / "SdfSamples" / "pack" / "s" / f"{id}.npz", pos=outside, neg=inside)
