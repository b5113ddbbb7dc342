"""From one code to another by a real worker with the tiny model; and the picture of a mesh."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from app.queue import CompletionQueue, connect, new_id
from app.schemas import Interpolation, InterpolationOptions
from app.settings import Settings, get_settings
from app.storage import Storage
from model.mesh import Mesh
from worker.listener import Listener
from worker.picture import HEIGHT, WIDTH, picture
from worker.tasks import models

Interpolate = Callable[..., Interpolation]


@pytest.fixture
def interpolate(
    settings: Settings, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Interpolate]:
    """Submit an interpolation, let a worker do it, and see how it ended."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DEEPSDF_CHECKPOINTS_DIR", str(tiny_checkpoint.parent))
    get_settings.cache_clear()
    models.cache_clear()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    queue = CompletionQueue(connect(settings, 1), settings)

    def one(start: dict[str, str], end: dict[str, str]) -> Interpolation:
        options = {"model": "tiny", "start": start, "end": end, "count": 3, "resolution": 32}
        interpolation_id = new_id()
        queue.submit(interpolation_id, InterpolationOptions.model_validate(options))
        Listener(connect(settings, 1), get_settings()).listen(burst=True)
        found = queue.find(Interpolation, interpolation_id)
        assert found is not None
        return found

    yield one
    get_settings.cache_clear()
    models.cache_clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_between_two_spheres_lie_spheres(interpolate: Interpolate, settings: Settings) -> None:
    done = interpolate({"shape": "sphere_0.5"}, {"shape": "sphere_0.95"})
    assert done.status == "succeeded", done.error
    storage = Storage(settings.data_dir)
    sizes = []
    for number in (1, 2, 3):
        mesh = trimesh.load(storage.mesh_path(done.id, "stl", number))
        assert mesh.is_watertight
        sizes.append(np.ptp(mesh.vertices, axis=0).mean() / 2)
    assert sizes[0] == pytest.approx(0.5, abs=0.05) and sizes[2] == pytest.approx(0.95, abs=0.05)
    assert sizes[0] < sizes[1] < sizes[2]
    scene = trimesh.load_scene(storage.mesh_path(done.id, "glb"))
    assert len(scene.geometry) == 3


def test_an_end_may_be_the_code_that_a_completion_found(interpolate: Interpolate, settings: Settings) -> None:
    completion_id = new_id()
    Storage(settings.data_dir).save_report(completion_id, {"code": [0.0, 0.0, 0.0, 0.0]})
    assert interpolate({"completion": completion_id}, {"shape": "sphere_0.5"}).status == "succeeded"


def test_ends_that_are_not_there_are_told(interpolate: Interpolate, settings: Settings) -> None:
    unknown = interpolate({"shape": "unicorn"}, {"shape": "sphere_0.5"})
    assert unknown.error is not None and unknown.error.code == "unknown_shape"
    assert "sphere_0.5" in unknown.error.detail
    gone = interpolate({"completion": new_id()}, {"shape": "sphere_0.5"})
    assert gone.error is not None and gone.error.code == "start_missing"
    completion_id = new_id()
    Storage(settings.data_dir).save_report(completion_id, {"code": [0.0]})
    other = interpolate({"completion": completion_id}, {"shape": "sphere_0.5"})
    assert other.error is not None and other.error.code == "invalid_option"


# The picture


def shown(mesh: trimesh.Trimesh, points: np.ndarray, up: np.ndarray | None = None) -> np.ndarray:
    plain = Mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))
    return np.asarray(Image.open(io.BytesIO(picture(plain, points, up))))


def test_a_picture_shows_the_mesh_and_the_points_that_are_before_it() -> None:
    ball, nothing = trimesh.creation.icosphere(4), np.zeros((0, 3))
    plain = shown(ball, nothing)
    assert plain.shape == (HEIGHT, WIDTH, 4)
    assert plain[HEIGHT // 2, WIDTH // 2, 3] == 255 and plain[2, 2, 3] == 0
    covered = (plain[..., 3] > 127).sum()
    assert covered == pytest.approx(np.pi * (0.45 * HEIGHT) ** 2, rel=0.03)
    assert oranges(plain) == 0
    assert oranges(shown(ball, 1.001 * ball.vertices)) > 300
    assert oranges(shown(ball, 0.5 * ball.vertices)) < 20  # through pixels that no sample happened to meet


def oranges(pixels: np.ndarray) -> int:
    red_over_blue = pixels[..., 0].astype(int) - pixels[..., 2]
    return int(((red_over_blue > 60) & (pixels[..., 3] > 127)).sum())


def test_a_picture_stands_upright() -> None:
    pole, lying = trimesh.creation.box((0.2, 2, 0.2)), trimesh.creation.box((0.2, 0.2, 2))
    turn = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    one, other = shown(pole, np.zeros((0, 3))), shown(lying, np.zeros((0, 3)), turn)
    assert np.abs(one.astype(int) - other).mean() < 3
