"""DeepSDF's experiments in and out, against the published decoder written out here from its definition."""

from __future__ import annotations

import functools
import json
import math
import re
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seen import half_seen
from shapes import TINY_RECIPE, TINY_SOLIDS, tiny_samples
from torch import Tensor, nn

from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.codes import decode
from model.completion import Completer
from model.decoder import Decoder
from model.training import train
from model.training.dataset import MissingSamples, listed_files, load_sample_set
from model.training.deepsdf import experiment
from model.training.deepsdf.__main__ import main
from model.training.deepsdf.experiment import export_experiment, read_experiment
from model.training.deepsdf.specs import BadExperiment
from model.training.lipschitz import Steepness, steepness
from model.training.recipe import Recipe, load_recipe

LENGTH, WIDTH, DEPTH = 4, 24, 5
ALL = list(range(DEPTH))


class Published(nn.Module):
    """The published decoder: every argument of `NetworkSpecs`, and the names of its parts."""

    def __init__(
        self,
        latent_size: int,
        dims: list[int],
        dropout: list[int] | None = None,
        dropout_prob: float = 0.0,
        norm_layers: list[int] | None = (),
        latent_in: list[int] = (),
        weight_norm: bool = False,
        xyz_in_all: bool | None = None,
        use_tanh: bool = False,
        latent_dropout: bool = False,
        newer: bool = False,  # not DeepSDF's: weight norm as torch has stored it since 2.0
    ) -> None:
        super().__init__()
        self.latent_in, self.norm_layers, self.weight_norm = latent_in, norm_layers or (), weight_norm
        self.xyz_in_all, self.use_tanh = xyz_in_all, use_tanh
        sizes = [latent_size + 3, *dims, 1]
        self.last = len(sizes) - 2
        for layer in range(self.last + 1):
            out = sizes[layer + 1]
            if layer + 1 in latent_in:
                out -= sizes[0]
            elif xyz_in_all and layer != self.last:
                out -= 3
            linear: nn.Module = nn.Linear(sizes[layer], out)
            if weight_norm and layer in self.norm_layers:
                linear = (nn.utils.parametrizations.weight_norm if newer else nn.utils.weight_norm)(linear)
            setattr(self, f"lin{layer}", linear)
            if not weight_norm and layer in self.norm_layers:
                setattr(self, f"bn{layer}", nn.LayerNorm(out))

    def forward(self, given: Tensor) -> Tensor:
        """Signed distances (N, 1) of rows (z, x)."""
        features = given
        for layer in range(self.last + 1):
            if layer in self.latent_in:
                features = torch.cat([features, given], 1)
            elif layer != 0 and self.xyz_in_all:
                features = torch.cat([features, given[:, -3:]], 1)
            features = getattr(self, f"lin{layer}")(features)
            if layer == self.last:
                features = features.tanh() if self.use_tanh else features
            else:
                if layer in self.norm_layers and not self.weight_norm:
                    features = getattr(self, f"bn{layer}")(features)
                features = features.relu()
        return features.tanh()

    def distances(self, code: Tensor, points: Tensor) -> Tensor:
        """(N,) of one code (L,) at points (N, 3)."""
        return self(torch.cat([code.expand(len(points), -1), points], 1)).squeeze(1)


NETWORKS: dict[str, dict[str, Any]] = {
    "as published": {
        "dropout": ALL,
        "dropout_prob": 0.2,
        "norm_layers": ALL,
        "latent_in": [3],
        "xyz_in_all": False,
        "use_tanh": False,
        "latent_dropout": False,
        "weight_norm": True,
    },
    "nothing but widths": {},
    "several skips": {"latent_in": [2, 4, 9], "weight_norm": True, "norm_layers": ALL},
    "a skip into the last layer": {"latent_in": [DEPTH], "weight_norm": True, "norm_layers": [*ALL, DEPTH]},
    "points in all layers": {"latent_in": [3], "xyz_in_all": True},
    "two tanh": {"latent_in": [3], "use_tanh": True},
    "layer norm": {"latent_in": [3], "norm_layers": [*ALL, DEPTH]},
    "layer norm of some": {"norm_layers": [1, 4]},
    "all at once": {"latent_in": [1, 3], "norm_layers": [0, 3], "xyz_in_all": True, "use_tanh": True},
}


def published(network: dict[str, Any], seed: int = 0, **more: Any) -> Published:
    """With random weights, of the size at which signals neither fade nor grow, that make both signs."""
    torch.manual_seed(seed)
    with warnings.catch_warnings(action="ignore"):  # torch would have us use the newer weight norm
        decoder = Published(LENGTH, [WIDTH] * DEPTH, **network, **more).eval()
    for name, part in decoder.named_parameters():
        if "bn" in name:
            nn.init.normal_(part, 0.5, 0.5)
        elif name.endswith(("weight", "weight_g", "original0")):
            part.data.mul_(math.sqrt(6) * (torch.rand(len(part), 1) + 0.5))
    with torch.no_grad():
        points = torch.rand(500, 3) * 2 - 1
        getattr(decoder, f"lin{DEPTH}").bias.sub_(
            decoder.distances(torch.zeros(LENGTH), points).median().atanh()
        )
    return decoder


def specs_of(network: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A specs.json as DeepSDF's examples have them."""
    schedule = {"Type": "Step", "Interval": 500, "Factor": 0.5}
    specs = {
        "Description": ["random weights,", "for a test"],
        "DataSource": "data",
        "TrainSplit": "splits/train.json",
        "TestSplit": "splits/test.json",
        "NetworkArch": "deep_sdf_decoder",
        "NetworkSpecs": {"dims": [WIDTH] * DEPTH, **network},
        "CodeLength": LENGTH,
        "NumEpochs": 2001,
        "SnapshotFrequency": 1000,
        "AdditionalSnapshots": [100, 500],
        "LearningRateSchedule": [{**schedule, "Initial": 0.0005}, {**schedule, "Initial": 0.001}],
        "SamplesPerScene": 16384,
        "ScenesPerBatch": 64,
        "DataLoaderThreads": 16,
        "ClampingDistance": 0.1,
        "CodeRegularization": True,
        "CodeRegularizationLambda": 1e-4,
        "CodeBound": 1.0,
    }
    return {**specs, **changes}


CODES = torch.randn(3, LENGTH, generator=torch.Generator().manual_seed(3)) * 0.3
SPLIT = {"ShapeNetV2": {"chair": ["a1", "b2"], "stool": ["c3"]}}


def save_experiment(
    folder: Path, weights: Any, specs: dict[str, Any], codes: Any = None, epoch: str = "latest"
) -> Path:
    """An experiment folder; `weights` and `codes` are what is pickled."""
    for part in ("ModelParameters", "LatentCodes", "splits"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "specs.json").write_text(json.dumps(specs))
    (folder / "splits" / "train.json").write_text(json.dumps(SPLIT))
    torch.save(weights, folder / "ModelParameters" / f"{epoch}.pth")
    stored = {"epoch": 2001, "latent_codes": {"weight": CODES}} if codes is None else codes
    torch.save(stored, folder / "LatentCodes" / f"{epoch}.pth")
    return folder


def as_trained(decoder: nn.Module) -> dict[str, Any]:
    """What DeepSDF saves: it trains inside of DataParallel."""
    return {"epoch": 2001, "model_state_dict": nn.DataParallel(decoder).state_dict()}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steepness takes seconds to estimate. One too small costs an extraction time, not its result."""
    for module in (experiment, train):
        monkeypatch.setattr(module, "steepness", lambda *_: Steepness((2.0,), (2.0,)))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_an_imported_experiment_is_served_with_the_distances_of_the_published_decoder(
    network: dict[str, Any], tmp_path: Path
) -> None:
    original = published(network)
    folder = save_experiment(tmp_path / "exp", as_trained(original), specs_of(network))
    assert main(["import", str(folder), str(tmp_path / "made"), "--device", "cpu"]) == 0
    made = load_checkpoint(tmp_path / "made", "cpu")
    points = torch.rand(400, 3) * 2 - 1
    for code in [*CODES, torch.zeros(LENGTH)]:
        expected = original.distances(code, points).detach()
        assert expected.std() > 0.02  # two constants would be equal too
        assert torch.allclose(made.field(code).distance(points), expected, atol=1e-5)
        rows = [part[None] for part in (code, points)]
        assert torch.allclose(made.decoder(*rows)[0], expected, atol=1e-5)
        assert torch.allclose(made.decoder.distance_and_gradients(*rows)[0][0], expected, atol=1e-5)
    assert torch.equal(made.codes, CODES)
    assert made.shapes == ["a1", "b2", "c3"]


def test_an_imported_checkpoint_says_where_it_came_from(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path / "exp", as_trained(published({})), specs_of({}, ClampingDistance=0.05))
    assert main(["import", str(folder), str(tmp_path / "made")]) == 0
    made = load_checkpoint(tmp_path / "made", "cpu")
    assert (made.name, made.skin, made.clamping_distance) == ("made", 0.0, 0.05)
    assert made.card["description"] == "random weights, for a test"
    assert made.card["licences"] == ["unknown"] and made.card["attribution"] == "unknown"
    assert made.card["trained"] == {"by": "DeepSDF", "epoch": 2001}
    assert made.card["lipschitz"] == pytest.approx(2.4)  # what was estimated, and its safety
    network = load_recipe(tmp_path / "made").decoder.model_dump(mode="json")
    assert made.card["decoder"] == {**network, "weight_norm": False, "dropout": 0.0}


def test_licence_attribution_and_words_can_be_given(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path / "exp", as_trained(published({})), specs_of({}))
    authors = tmp_path / "authors.md"
    authors.write_text("By many.")
    given = ["--licence", "CC0-1.0", "--licence", "CC-BY-4.0", "--attribution", str(authors)]
    words = ["--category", "seat", "--description", "Seats"]
    assert main(["import", str(folder), str(tmp_path / "made"), *given, *words]) == 0
    card = load_checkpoint(tmp_path / "made", "cpu").card
    assert card["licences"] == ["CC0-1.0", "CC-BY-4.0"]
    assert (tmp_path / "made" / card["attribution"]).read_text() == "By many."
    assert (card["category"], card["description"]) == ("seat", "Seats")


WEIGHTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "as trained": lambda network: as_trained(published(network)),
    "no module prefix": lambda network: {"epoch": 3, "model_state_dict": published(network).state_dict()},
    "a raw state_dict": lambda network: published(network).state_dict(),
    "a raw state_dict with the prefix": lambda network: nn.DataParallel(published(network)).state_dict(),
    "weight norm as torch stores it now": lambda network: as_trained(published(network, newer=True)),
}


@pytest.mark.parametrize("stored", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_are_read_however_they_were_stored(
    stored: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    network = NETWORKS["as published"]
    weights = stored(network)
    newer = any("original0" in key for key in weights.get("model_state_dict", weights))
    original = published(network, newer=newer)
    read = read_experiment(save_experiment(tmp_path, weights, specs_of(network)))
    points = torch.rand(100, 3) * 2 - 1
    expected = torch.stack([original.distances(code, points) for code in CODES])
    assert torch.allclose(read.decoder(read.codes, points.expand(3, -1, -1)), expected, atol=1e-5)


LATENTS = {
    "an embedding": {"epoch": 3, "latent_codes": {"weight": CODES}},
    "a tensor (N, 1, L)": {"epoch": 3, "latent_codes": CODES[:, None]},
    "a tensor (N, L)": {"epoch": 3, "latent_codes": CODES},
    "a bare tensor": CODES,
    "a bare embedding": {"weight": CODES},
}


@pytest.mark.parametrize("stored", LATENTS.values(), ids=LATENTS.keys())
def test_codes_are_read_however_they_were_stored(stored: Any, tmp_path: Path) -> None:
    read = read_experiment(save_experiment(tmp_path, as_trained(published({})), specs_of({}), stored))
    assert torch.equal(read.codes, CODES)


def test_files_of_old_versions_of_torch_are_read(tmp_path: Path) -> None:
    """DeepSDF is of 2019: its files are no zip archives."""
    folder = save_experiment(tmp_path, as_trained(published({})), specs_of({}))
    for file in folder.glob("*/latest.pth"):
        torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    assert torch.equal(read_experiment(folder).codes, CODES)


def test_another_epoch_can_be_asked_for(tmp_path: Path) -> None:
    save_experiment(tmp_path, as_trained(published({})), specs_of({}))
    save_experiment(tmp_path, as_trained(published({}, seed=1)), specs_of({}), epoch="500")
    first, other = read_experiment(tmp_path), read_experiment(tmp_path, "500")
    assert not torch.equal(first.decoder.last.weight, other.decoder.last.weight)
    with pytest.raises(BadExperiment, match=r"501\.pth is missing; epochs that are there: 500, latest"):
        read_experiment(tmp_path, "501")


def test_shapes_are_numbered_where_no_split_file_fits(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path, as_trained(published({})), specs_of({}, TrainSplit="nowhere.json"))
    assert read_experiment(folder).names == ["shape_0000", "shape_0001", "shape_0002"]
    assert read_experiment(folder, split=folder / "splits" / "train.json").names == ["a1", "b2", "c3"]
    (folder / "other.json").write_text('{"ShapeNetV2": {"chair": ["a1"]}}')
    with pytest.raises(BadExperiment, match="names 1 shapes, but there are 3 codes"):
        read_experiment(folder, split=folder / "other.json")
    with pytest.raises(BadExperiment, match="no split file"):
        read_experiment(folder, split=folder / "missing.json")


def test_instances_of_one_name_are_told_apart_by_their_class(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path, as_trained(published({})), specs_of({}))
    (folder / "splits" / "train.json").write_text('{"v2": {"chair": ["1", "2"], "sofa": ["1"]}}')
    assert read_experiment(folder).names == ["v2/chair/1", "v2/chair/2", "v2/sofa/1"]


class Flat(Published):
    """A decoder of 2-D shapes, as forks have them."""

    def __init__(self) -> None:
        super().__init__(LENGTH - 1, [WIDTH] * DEPTH)


BAD_SPECS = {
    "another architecture": ({"NetworkArch": "deep_sdf_siren"}, "'deep_sdf_siren' is not known"),
    "an unknown argument": ({"NetworkSpecs": {"dims": [24] * 5, "positional_encoding": 5}}, "positional_enc"),
    "several widths": ({"NetworkSpecs": {"dims": [24, 24, 32, 24, 24]}}, "different widths"),
    "no layers": ({"NetworkSpecs": {"dims": []}}, "different widths|depth"),
    "the code in layer 0": ({"NetworkSpecs": {"dims": [24] * 5, "latent_in": [0]}}, "layer 0"),
    "too narrow for the skip": ({"NetworkSpecs": {"dims": [6] * 5, "latent_in": [2]}}, "width 6 must exceed"),
    "another depth": ({"NetworkSpecs": {"dims": [24] * 4}}, "does not fit NetworkSpecs"),
    "another width": ({"NetworkSpecs": {"dims": [32] * 5}}, "does not fit NetworkSpecs"),
    "another code length": ({"CodeLength": LENGTH + 1}, "2-D shapes|does not fit|codes of length 5"),
    "no code length": ({"CodeLength": None}, "specs.json"),
}


@pytest.mark.parametrize(("changes", "said"), BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_specs_that_cannot_be_read_are_refused_by_name(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = save_experiment(tmp_path, as_trained(published({})), specs_of({}, **changes))
    with pytest.raises(BadExperiment, match=said):
        read_experiment(folder)


def test_a_decoder_of_flat_shapes_is_refused_as_such(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path, as_trained(Flat()), specs_of({}))
    with pytest.raises(BadExperiment, match="2-D shapes"):
        read_experiment(folder)


@pytest.mark.parametrize("missing", ["specs.json", "ModelParameters/latest.pth", "LatentCodes/latest.pth"])
def test_a_missing_file_is_named(missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_experiment(tmp_path / "exp", as_trained(published({})), specs_of({}))
    (folder / missing).unlink()
    assert main(["import", str(folder), str(tmp_path / "made")]) == 1
    assert missing in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


class Marker:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("part", ["ModelParameters", "LatentCodes"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(part: str, tmp_path: Path) -> None:
    folder = save_experiment(tmp_path, as_trained(published({})), specs_of({}))
    torch.save({"model_state_dict": Marker(tmp_path / "ran")}, folder / part / "latest.pth")
    with pytest.raises(BadExperiment, match="may run any code"):
        read_experiment(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"layers.0.weight": torch.zeros(3, 3)}, "no layer lin0.* but layers.0.weight"),
        ([torch.zeros(3)], "holds a list"),
        (torch.zeros(3, 3), "no layer lin0"),
    ],
)
def test_weights_of_something_else_are_refused(stored: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadExperiment, match=said):
        read_experiment(save_experiment(tmp_path, stored, specs_of({})))


@pytest.mark.parametrize("harm", [b"", b"not a file of torch", None])
def test_a_corrupt_file_is_refused(harm: bytes | None, tmp_path: Path) -> None:
    folder = save_experiment(tmp_path, as_trained(published({})), specs_of({}))
    file = folder / "ModelParameters" / "latest.pth"
    file.write_bytes(file.read_bytes()[:-500] if harm is None else harm)
    with pytest.raises(BadExperiment, match=r"latest\.pth"):
        read_experiment(folder)


def test_a_checkpoint_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_experiment(tmp_path / "exp", as_trained(published({})), specs_of({}))
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "recipe.toml").write_text("precious")
    assert main(["import", str(folder), str(tmp_path / "made")]) == 1
    assert "recipe.toml already" in capsys.readouterr().err
    assert (tmp_path / "made" / "recipe.toml").read_text() == "precious"


def octahedra() -> Published:
    """A published decoder whose shapes are known: |x| + |y| + |z| = 0.5 + 0.1 z₀, exact within tanh.

    The first layer makes the parts of each coordinate and 1 + z₀, the others pass them on.
    """
    decoder = Published(LENGTH, [WIDTH] * DEPTH, latent_in=[3])
    for layer in range(DEPTH + 1):
        for part in getattr(decoder, f"lin{layer}").parameters():
            nn.init.zeros_(part)
    with torch.no_grad():
        decoder.lin0.weight[:3, LENGTH:], decoder.lin0.weight[3:6, LENGTH:] = torch.eye(3), -torch.eye(3)
        decoder.lin0.weight[6, 0], decoder.lin0.bias[6] = 1, 1
        for layer in range(1, DEPTH):
            getattr(decoder, f"lin{layer}").weight[:7, :7] = torch.eye(7)
        last = getattr(decoder, f"lin{DEPTH}")
        last.weight[0, :7] = torch.tensor([1.0] * 6 + [-0.1]) / math.sqrt(3)
        last.bias[0] = -0.4 / math.sqrt(3)
    return decoder.eval()


def octahedron(points: np.ndarray, radius: float = 0.5) -> np.ndarray:
    """Signed distance of (N, 3) points to it, exact at its faces."""
    return (np.abs(points).sum(axis=1) - radius) / math.sqrt(3)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The octahedra, imported: codes of five sizes."""
    folder = tmp_path_factory.mktemp("octahedra")
    codes = torch.zeros(5, LENGTH)
    codes[:, 0] = torch.linspace(-0.8, 0.8, 5)
    save_experiment(
        folder / "exp", as_trained(octahedra()), specs_of({"latent_in": [3]}), {"latent_codes": codes}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "steepness", functools.partial(steepness, count=2))
        assert main(["import", str(folder / "exp"), str(folder / "made"), "--device", "cpu"]) == 0
    return load_checkpoint(folder / "made", "cpu")


def test_the_codes_of_an_imported_checkpoint_decode_to_their_shapes(served: Checkpoint) -> None:
    for code, extent in zip(served.codes, served.extents, strict=True):
        radius = 0.5 + 0.1 * float(code[0])
        vertices = decode(served, code, 64).vertices
        assert np.abs(octahedron(vertices, radius)).max() < 0.02  # corners are cut by marching cubes
        assert torch.allclose(extent, torch.tensor([[-radius], [radius]]).expand(2, 3), atol=0.04)


def test_a_scan_is_completed_with_an_imported_checkpoint(served: Checkpoint) -> None:
    scan = half_seen(functools.partial(octahedron, radius=0.55))
    completion = Completer(served).complete(scan, pose="canonical", resolution=48, refine=False)
    assert np.abs(octahedron(completion.mesh.vertices, 0.55)).mean() < 0.02
    assert completion.mesh.vertices.min() < -0.45 and completion.mesh.vertices.max() > 0.45


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_an_exported_checkpoint_is_an_experiment_that_the_published_code_reads(
    network: dict[str, Any], tmp_path: Path
) -> None:
    original = published(network)
    save_experiment(tmp_path / "exp", as_trained(original), specs_of(network))
    assert main(["import", str(tmp_path / "exp"), str(tmp_path / "made")]) == 0
    assert main(["export", str(tmp_path / "made"), str(tmp_path / "out")]) == 0
    specs = json.loads((tmp_path / "out" / "specs.json").read_text())
    decoder = nn.DataParallel(Published(specs["CodeLength"], **specs["NetworkSpecs"])).eval()
    stored = torch.load(tmp_path / "out" / "ModelParameters" / "latest.pth")
    decoder.load_state_dict(stored["model_state_dict"])
    codes = torch.load(tmp_path / "out" / "LatentCodes" / "latest.pth")
    assert isinstance(stored["epoch"], int) and stored["epoch"] == codes["epoch"] == 2001
    assert torch.equal(codes["latent_codes"]["weight"], CODES)
    points = torch.rand(200, 3) * 2 - 1
    expected = original.distances(CODES[0], points)
    assert torch.allclose(decoder.module.distances(CODES[0], points), expected, atol=1e-5)


def test_exported_and_imported_again_is_the_same_checkpoint(tmp_path: Path) -> None:
    spec = TINY_RECIPE.decoder.model_copy(update={"octaves": 0, "tanh": 1}).spec()
    codes, names = torch.randn(4, spec.code_length), ["a", "a__v01", "b", "b__v01"]
    (tmp_path / "made").mkdir()
    card = {"name": "made", "skin": 0.004, "clamping_distance": 0.05, "category": "solid"}
    save_checkpoint(tmp_path / "made", Decoder(spec), codes, torch.zeros(4, 2, 3), names, card)
    assert main(["export", str(tmp_path / "made"), str(tmp_path / "out")]) == 0
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    made, again = (load_checkpoint(tmp_path / name, "cpu") for name in ("made", "again"))
    assert torch.equal(made.codes, again.codes)
    assert again.shapes == names and again.own_shapes == [0, 2]
    assert (again.skin, again.clamping_distance, again.card["category"]) == (0.004, 0.05, "solid")
    for key, part in made.decoder.state_dict().items():
        assert torch.equal(part, again.decoder.state_dict()[key])


def test_what_the_published_decoder_cannot_do_is_not_exported(
    tiny: Checkpoint, tmp_path: Path, served: Checkpoint
) -> None:
    with pytest.raises(BadExperiment, match="octaves = 0"):
        export_experiment(tiny, tmp_path / "out")
    spec = TINY_RECIPE.decoder.model_copy(update={"octaves": 0}).spec()
    (tmp_path / "made").mkdir()
    card = {"name": "made", "skin": 0, "clamping_distance": 0.1}
    save_checkpoint(tmp_path / "made", Decoder(spec), torch.zeros(1, 4), torch.zeros(1, 2, 3), ["a"], card)
    with pytest.raises(BadExperiment, match="tanh = 1 or 2"):
        export_experiment(load_checkpoint(tmp_path / "made", "cpu"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_experiment(served, tmp_path / "out")
    with pytest.raises(BadExperiment, match="holds an experiment already"):
        export_experiment(served, tmp_path / "out")


def converted(folder: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[Recipe, str]:
    """The recipe of a specs.json, and its text."""
    (folder / "splits").mkdir(exist_ok=True)
    (folder / "splits" / "train.json").write_text(json.dumps(SPLIT))
    (folder / "specs.json").write_text(json.dumps(specs_of(NETWORKS["as published"], **changes)))
    assert main(["recipe", str(folder / "specs.json"), "--name", "chairs"]) == 0
    text = capsys.readouterr().out
    return Recipe.model_validate(tomllib.loads(text)), text


def test_a_specs_file_becomes_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, _ = converted(tmp_path, capsys)
    assert (recipe.name, recipe.description) == ("chairs", "random weights, for a test")
    assert recipe.category == "unknown"  # chairs and stools
    decoder = recipe.decoder
    assert (decoder.code_length, decoder.width, decoder.depth, decoder.octaves) == (LENGTH, WIDTH, DEPTH, 0)
    assert (decoder.skip_layer, decoder.weight_norm, decoder.dropout, decoder.tanh) == (3, True, 0.2, 1)
    training = recipe.training
    assert (training.points_per_shape, training.shapes_per_step) == (16384, 64)
    assert training.steps == math.ceil(2001 * 3 / 64)  # three shapes
    assert (training.decoder_rate, training.code_rate) == (0.0005, 0.001)
    assert (training.schedule, training.step_share, training.step_factor) == ("step", 500 / 2001, 0.5)
    assert training.warmup_share == 0
    assert (training.clamping_distance, training.code_penalty) == (0.1, 1e-4)
    assert (training.code_prior, training.penalty_share) == ("norm", 100 / 2001)
    assert (training.code_bound, training.gradient_clip) == (1.0, 0.0)
    assert training.snapshot_every == 50 and training.extra_snapshots == [50]  # of 47 and 5 and 23 steps
    assert training.code_std == 1.0  # DeepSDF's default, not ours
    assert training.float32_share == 1.0
    assert (recipe.samples.skin, recipe.samples.variants) == (0.0, 0)
    assert recipe.samples.train_split == (tmp_path / "splits" / "train.json").resolve()
    assert recipe.samples.source == Path("data")  # not to be found here


def test_what_a_recipe_cannot_say_stands_in_it_as_a_comment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything of specs.json has become a setting or is spoken of."""
    recipe, text = converted(tmp_path, capsys, GradientClipNorm=0.5, MyOwn={"x": 1})
    spoken = set(re.findall(r"^# (\w+)", text, re.MULTILINE))
    taken = {"Description", "DataSource", "TrainSplit", "NetworkArch", "CodeLength", "SamplesPerScene"}
    taken |= {"ScenesPerBatch", "ClampingDistance", "CodeRegularization", "CodeRegularizationLambda"}
    taken |= {"LearningRateSchedule", "GradientClipNorm", "CodeBound"}
    assert spoken | taken == set(json.loads((tmp_path / "specs.json").read_text()))
    assert not spoken & taken
    assert recipe.training.gradient_clip == 0.5 and "CodeInitStdDev" not in spoken
    assert '# MyOwn = {"x": 1}: not taken over' in text


def test_other_schedules_and_switches_are_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedules = [
        {"Type": "Warmup", "Initial": 1e-5, "Final": 3e-4, "Length": 50},
        {"Type": "Constant", "Value": 2e-3},
    ]
    changes = {"CodeRegularization": False, "CodeInitStdDev": 0.1, "SamplesPerScene": 101}
    recipe, text = converted(tmp_path, capsys, LearningRateSchedule=schedules, **changes)
    training = recipe.training
    assert (training.decoder_rate, training.code_rate, training.schedule) == (3e-4, 2e-3, "cosine")
    assert "they rise, then fall along a cosine" in text
    assert (training.code_penalty, training.code_std, training.points_per_shape) == (0.0, 0.1, 100)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ScenesPerBatch": 0}, "shapes_per_step"),
        ({"ClampingDistance": "far"}, "clamping_distance"),
        ({"SamplesPerScene": "many"}, "specs.json has a setting"),
        ({"LearningRateSchedule": [{"Type": "Magic"}]}, "Magic"),
    ],
)
def test_a_setting_that_a_recipe_cannot_have_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "specs.json").write_text(json.dumps(specs_of({}, **changes)))
    assert main(["recipe", str(tmp_path / "specs.json")]) == 1
    assert said in capsys.readouterr().err


SOLIDS = {
    "sphere_0.5": ("sphere", 300, 500),
    "sphere_0.8": ("sphere", 900, 40),
    "box_0.5_0.5": ("box", 5, 700),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """DeepSDF's data folder: different numbers on the two sides, and rows that are not numbers."""
    data = tmp_path / "data"
    samples = tiny_samples(2000).samples.numpy()
    for name, (category, outside, inside) in SOLIDS.items():
        sides = samples[list(TINY_SOLIDS).index(name)]
        pos, neg = sides[0, :outside].copy(), sides[1, :inside].copy()
        pos[::7, 3], neg[3] = np.nan, np.nan
        file = data / "SdfSamples" / "solids" / category / f"{name}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, pos=pos, neg=neg)
    split = {"solids": {"sphere": ["sphere_0.8", "sphere_0.5"], "box": ["box_0.5_0.5"]}}
    (tmp_path / "train.json").write_text(json.dumps(split))
    return data


def test_files_are_those_of_the_split_in_its_order(source: Path) -> None:
    files = listed_files(source, source.parent / "train.json")
    assert [file.stem for file in files] == ["sphere_0.8", "sphere_0.5", "box_0.5_0.5"]


def test_rows_that_are_not_numbers_are_left_out(source: Path) -> None:
    samples = load_sample_set(listed_files(source, source.parent / "train.json"), 400).samples
    assert samples.isfinite().all()
    assert (samples[:, 0, :, 3] >= 0).all() and (samples[:, 1, :, 3] < 0).all()


def test_a_file_that_is_not_there_is_named(source: Path) -> None:
    (source / "SdfSamples" / "solids" / "box" / "box_0.5_0.5.npz").unlink()
    with pytest.raises(MissingSamples, match=r"1 of the 3 shapes .* box_0\.5_0\.5\.npz|1 of the 3 shapes"):
        listed_files(source, source.parent / "train.json")


@pytest.mark.parametrize("text", ["[]", "{", '{"solids": ["a"]}', '{"solids": {"a": 1}}', "{}"])
def test_something_else_than_a_split_is_refused(text: str, source: Path) -> None:
    (source.parent / "train.json").write_text(text)
    with pytest.raises(MissingSamples, match=r"train\.json"):
        listed_files(source, source.parent / "train.json")


def test_a_deepsdf_experiment_trains_here_on_its_own_files(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From specs.json to a served checkpoint: only the recipe is made, the samples stay where they are."""
    changes = {"NumEpochs": 40, "ScenesPerBatch": 2, "SamplesPerScene": 64, "TrainSplit": "train.json"}
    (tmp_path / "specs.json").write_text(json.dumps(specs_of(NETWORKS["as published"], **changes)))
    assert main(["recipe", str(tmp_path / "specs.json"), "--name", "solids"]) == 0
    folder = tmp_path / "solids"
    folder.mkdir()
    (folder / "recipe.toml").write_text(capsys.readouterr().out)
    monkeypatch.setattr("sys.argv", ["train", str(folder), "--device", "cpu"])
    assert train.main() == 0
    made = load_checkpoint(folder, "cpu")
    assert made.shapes == ["sphere_0.8", "sphere_0.5", "box_0.5_0.5"]
    assert made.card["trained"]["steps"] == 60  # 40 epochs of 3 shapes, 2 a step
    assert made.card["licences"] == ["unknown"] and made.skin == 0.0
    assert made.card["variants"] == 0
    assert torch.allclose(made.extents[1], torch.tensor([[-0.5], [0.5]]).expand(2, 3), atol=0.1)
    assert main(["export", str(folder), str(tmp_path / "out")]) == 0
