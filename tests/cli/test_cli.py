"""`deepsdf`, as one types it."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
import trimesh
import typer
from processes import ROOT, free_port
from rich.progress import Progress
from typer.testing import CliRunner, Result

from app.client import Client
from app.schemas import CompletionOptions, Links, Problem
from worker import cli
from worker.cli import checks
from worker.cli.completing import Job, Work, everything

HEAVY = {"rich", "torch", "numpy", "trimesh", "pydantic", "httpx2", "fastapi", "redis", "rq", "scipy"}


def deepsdf(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with output that is not cut to a terminal's width."""
    given = {**os.environ, "DEEPSDF_DEVICE": "cpu", "COLUMNS": "200", **environment}
    command = [sys.executable, "-m", "worker.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)


def typed(*arguments: str) -> Result:
    """The same in this process, which is quicker."""
    return CliRunner().invoke(cli.app, arguments)


@pytest.fixture
def balls(tmp_path: Path) -> list[str]:
    """Two scans of half a ball, in files."""
    files = []
    for seed in (0, 1):
        rows = np.random.default_rng(seed).normal(size=(600, 3))
        rows[:, 2] = np.abs(rows[:, 2])
        files.append(str(tmp_path / f"ball_{seed}.npy"))
        np.save(files[-1], 2 * rows / np.linalg.norm(rows, axis=1, keepdims=True) + [10, 0, 0])
    return files


def test_help_loads_nothing_heavy():
    """So it is there at once: what it costs is Typer's own start."""
    code = "import sys; sys.argv = ['deepsdf', '--help']; from worker.cli import app\n"
    code += "app(standalone_mode=False); print('LOADED', *sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    told, loaded = shown.stdout.split("LOADED")
    assert not HEAVY & set(loaded.split())
    for command in ("complete", "serve", "status", "cancel", "models", "train", "evaluate", "doctor", "top"):
        assert re.search(rf"\b{command}\b", told), command


def test_help_is_there_at_once(capsys):
    """By the processor's time, which a busy machine does not lengthen much."""
    before = os.times()
    shown = deepsdf("--help")
    after = os.times()
    took = after.children_user + after.children_system - before.children_user - before.children_system
    with capsys.disabled():
        print(f"\ndeepsdf --help: {took:.2f} s of one core")
    assert shown.returncode == 0
    assert took < 0.5  # 0.3 on a machine of one's own


def test_the_shell_completes_commands_and_flags():
    for words, wanted in (("deepsdf eval", "evaluate"), ("deepsdf complete --remove", "--remove-plane")):
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        shown = deepsdf(_DEEPSDF_COMPLETE="complete_bash", **asked)
        assert wanted in shown.stdout.split()


def test_complete_has_a_flag_for_each_option_of_the_api():
    """But for `start_from`, which names a completion of a service."""
    flags = set(inspect.signature(cli.complete).parameters)
    assert set(CompletionOptions.model_fields) - {"start_from"} <= flags


def test_scans_are_completed_here(balls, tiny_checkpoint, tmp_path):
    """A bad one fails alone, and the exit code says that not all went well."""
    (tmp_path / "letter.ply").write_text("ply\nDear reader")
    here = {"DEEPSDF_CHECKPOINTS_DIR": str(tiny_checkpoint.parent)}
    flags = ["--model", "tiny", "--resolution", "40", "--no-refine", "--format", "obj", "--json"]
    done = deepsdf(
        "complete", str(tmp_path / "letter.ply"), *balls, "-o", str(tmp_path / "out"), *flags, **here
    )
    assert done.returncode == 1, done.stderr
    bad, *good = json.loads(done.stdout)
    assert not bad["succeeded"] and "letter" in bad["scans"][0]
    assert bad["error"]["code"] == "invalid_ply" and bad["error"]["detail"] in done.stderr
    assert len(good) == 2
    for told in good:
        assert told["succeeded"] and told["watertight"]
        assert trimesh.load(told["mesh"], force="mesh").is_watertight
        assert json.loads(Path(told["report"]).read_text())["faces"] == told["faces"]


def test_scans_are_completed_on_a_service_which_is_asked_how_they_stand(service, balls, tmp_path):
    service.ready()
    at = ["--url", str(service.client.http.base_url)]
    flags = ["--model", "tiny", "--resolution", "40", "--samples", "1", "--viewpoint", "[10, 0, 9]", "--json"]
    done = typed("complete", *balls, "-o", str(tmp_path / "out"), *flags, *at)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    for one in told:
        assert trimesh.load(one["mesh"], force="mesh").is_watertight
        assert Path(one["mesh"]).with_stem(f"{Path(one['mesh']).stem}-1").exists()

    shown = typed("status", told[0]["id"], *at)
    assert shown.exit_code == 0 and "succeeded" in shown.stdout
    assert json.loads(typed("status", told[0]["id"], *at, "--json").stdout)["status"] == "succeeded"
    assert told[0]["id"] in typed("status", *at).stdout
    ended = typed("cancel", told[0]["id"], *at)
    assert ended.exit_code == 1 and "already_ended" in ended.stderr
    assert "tiny" in typed("models", *at).stdout


def test_more_scans_than_may_wait_are_completed_all_the_same(balls, tmp_path):
    """On a service that takes one at a time. A stand-in: a real one of its own takes half a minute."""
    now = {
        "options": {},
        "created_at": "2026-01-01T00:00:00Z",
        "links": dict.fromkeys(Links.model_fields, "/"),
    }
    waiting, refused = set(), []

    def answer(request: httpx2.Request) -> httpx2.Response:
        *_, last = request.url.path.split("/")
        if request.method == "POST" and waiting:
            refused.append(request)
            problem = Problem(title="", status=429, detail="", instance="/", code="queue_full")
            headers = {"content-type": "application/problem+json"}
            return httpx2.Response(429, content=problem.model_dump_json(), headers=headers)
        if request.method == "POST":
            waiting.add("only")
            return httpx2.Response(202, json={**now, "id": "only", "status": "queued"})
        waiting.discard(last)
        return httpx2.Response(200, json={**now, "id": "only", "status": "succeeded"})

    client = Client()
    client.http = httpx2.Client(base_url="http://one", transport=httpx2.MockTransport(answer))
    jobs = [Job([Path(ball)], tmp_path / f"{number}.glb", {}, {}) for number, ball in enumerate(balls * 2)]
    told = everything(client, Work(jobs, {}, as_json=True), Progress(disable=True))
    assert [one["mesh"] for one in told] == [str(job.mesh) for job in jobs]
    assert len(refused) == 3 and all(job.mesh.exists() for job in jobs)


def test_what_is_told_of_several_scans_goes_to_each_in_its_order():
    given = dict.fromkeys(inspect.signature(cli.complete).parameters)
    given |= {
        "scans": [Path("a/x.png"), Path("b/x.png")],
        "output": Path("out"),
        "format": "glb",
        "json": False,
    }
    given |= {"intrinsics": ["camera"], "mask": [Path("m1.png"), Path("m2.png")]}
    first, second = Work.of(given).jobs
    assert (first.mesh.name, second.mesh.name) == ("x.glb", "x-1.glb")
    assert (first.files, second.files) == ({"mask": [Path("m1.png")]}, {"mask": [Path("m2.png")]})
    assert first.told == second.told == {"intrinsics": ["camera"]}
    (both,) = Work.of({**given, "views": True}).jobs
    assert both.files == {"mask": given["mask"]} and both.scans == given["scans"]
    with pytest.raises(typer.BadParameter, match="mask"):
        Work.of({**given, "mask": given["mask"] * 2})


def test_exit_codes_tell_mistakes_from_a_service_that_is_not_there(tmp_path):
    gone = typed("status", "0" * 32, "--url", f"http://127.0.0.1:{free_port()}")
    assert gone.exit_code == 3 and "deepsdf serve" in gone.stderr
    missing = typed("complete", "nothing.ply", "-o", str(tmp_path))
    assert missing.exit_code == 2 and "nothing.ply" in missing.stderr
    assert typed("complete", "--nonsense").exit_code == 2


@pytest.mark.parametrize("more", [[], ["--url", "http://127.0.0.1:1"]], ids=["here", "service"])
def test_a_wrong_option_is_told_before_anything_is_done(balls, tmp_path, more):
    wrong = typed("complete", *balls, "-o", str(tmp_path), "--up", "sideways", *more)
    assert wrong.exit_code == 2
    assert "deepsdf complete" in wrong.stderr or "complete [OPTIONS]" in wrong.stderr
    assert "--up: must be one of auto, +y" in wrong.stderr


def test_what_has_a_main_of_its_own_gets_its_arguments_as_they_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, command: started.append(command[1:]))
    typed("train", "checkpoints/chairs", "--resume", "latest", "--help")
    typed("import", "experiment", "checkpoints/x")
    assert started == [
        ["-m", "model.training.train", "checkpoints/chairs", "--resume", "latest", "--help"],
        ["-m", "model.training.deepsdf", "import", "experiment", "checkpoints/x"],
    ]
    for command in ("train", "samples", "evaluate"):
        nowhere = typed(command, "nowhere")
        assert nowhere.exit_code == 2 and "nowhere is no checkpoint folder" in nowhere.stderr
    assert len(started) == 2
    shown = deepsdf("serve", "--help")
    assert shown.returncode == 0 and "python -m app" in shown.stdout


def test_a_worker_without_a_queue_says_so_before_it_loads_a_model(monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    for environment, why in (({}, "REDIS_URL is not set"), ({"REDIS_URL": "nowhere"}, "Redis URL must")):
        told = deepsdf("worker", **environment)
        assert told.returncode == 1 and why in told.stderr
        assert "loaded" not in told.stderr and "Traceback" not in told.stderr
    assert "REDIS_URL" in deepsdf("worker", "--help").stdout


def test_the_doctor_finds_what_is_missing_and_says_what_to_do(settings, tiny_checkpoint, tmp_path):
    well = settings.model_copy(update={"checkpoints_dir": tiny_checkpoint.parent})
    assert not [finding for finding in checks.of_installation(well) if finding.mend]
    nobody = f"redis://127.0.0.1:{free_port()}"
    ill = well.model_copy(
        update={"checkpoints_dir": tmp_path / "none", "redis_url": nobody, "device": "cuda"}
    )
    amiss = {finding.what: finding.mend for finding in checks.of_installation(ill) if finding.mend}
    assert {"models", "queue"} <= amiss.keys() <= {"models", "queue", "device"}
    assert "DEEPSDF_CHECKPOINTS_DIR" in amiss["models"] and "REDIS_URL" in amiss["queue"]


def test_the_doctor_names_each_package_that_cannot_be_imported(settings, monkeypatch):
    asked = {"torch", "redis", "httpx2", "skimage", "PIL", "igl", "OpenEXR", "DracoPy", "structlog", "laspy"}
    assert asked <= set(checks.required())
    monkeypatch.setitem(sys.modules, "standardwebhooks", None)
    monkeypatch.setitem(sys.modules, "pypcd4", None)
    (packages,) = [one for one in checks.of_installation(settings) if one.what == "packages"]
    assert (
        "pypcd4" in packages.found and "standardwebhooks" in packages.found and "make setup" in packages.mend
    )


def test_a_package_that_every_command_needs_is_told_in_one_line(tmp_path):
    (tmp_path / "pydantic.py").write_text("raise ImportError('pydantic is broken')")
    ended = deepsdf("doctor", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "pydantic is broken" in ended.stderr and "make setup" in ended.stderr
