"""What the documents say exists: commands, their flags, modules, settings, links."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from app.schemas import CompletionOptions
from app.settings import Settings
from worker.cli import app as deepsdf

ROOT = Path(__file__).resolve().parents[1]
OURS = ("app", "worker", "model")
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*.md"),
        *ROOT.glob("checkpoints/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]
)
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))

SPAN = re.compile(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", re.DOTALL)
PYTHON = re.compile(r"python3?(?:\.\d+)? -m ([\w.]+)([^\n;|&]*)")
DEEPSDF = re.compile(r"(?<![\w-])deepsdf ([a-z]+)([^\n;|&]*)")
MAKE = re.compile(r"(?:^|[;&|] *|\$ )make ([a-z-]+)", re.MULTILINE)
FLAG = re.compile(r"(?<!\S)(--[a-z][a-z-]*)")
DOTTED = re.compile(rf"^(?:{'|'.join(OURS)})(?:\.\w+)+$")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def code(document: Path) -> Iterator[str]:
    """Code blocks and spans of a document, continued lines joined."""
    for block, span in SPAN.findall(document.read_text()):
        yield (block or span).replace("\\\n", " ")


def commands(document: Path) -> Iterator[tuple[str, list[str]]]:
    """Modules that a document runs by `python -m`, and the flags that it gives them."""
    for text in code(document):
        for module, arguments in PYTHON.findall(text):
            yield module, FLAG.findall(arguments.split(" #")[0])


def targets() -> set[str]:
    """What the Makefile can make."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def file_of(module: str) -> Path | None:
    """The file of a module: ours by its path, so that nothing heavy is imported."""
    if module.split(".")[0] in OURS:
        path = ROOT.joinpath(*module.split("."))
        files = (path.with_suffix(".py"), path / "__init__.py")
        return next((file for file in files if file.exists()), None)
    spec = importlib.util.find_spec(module.split(".")[0])
    return Path(spec.origin) if spec and spec.origin else None


def runnable(module: str) -> Path | None:
    """The file that `python -m module` runs."""
    return file_of(f"{module}.__main__") or file_of(module)


@each_document
def test_every_python_command_can_be_run(document: Path) -> None:
    for module, _ in commands(document):
        file = runnable(module)
        assert file is not None, module
        if module.split(".")[0] in OURS:
            assert file.name == "__main__.py" or '__name__ == "__main__"' in file.read_text(), module


@each_document
def test_every_flag_of_a_command_of_ours_is_known_to_it(document: Path) -> None:
    settings = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    for module, flags in commands(document):
        file = runnable(module)
        if file is not None and module.split(".")[0] in OURS:
            known = set(re.findall(r'"(--[a-z-]+)"', file.read_text())) | {"--help"}
            unknown = set(flags) - known - (settings if module == "app" else set())
            assert not unknown, module


@each_document
def test_every_command_and_flag_of_deepsdf_is_known_to_it(document: Path) -> None:
    """Those that it passes on have a module of their own, whose flags they are."""
    known = {command.name or "": command for command in get_command(deepsdf).commands.values()}
    for text in code(document):
        for name, arguments in DEEPSDF.findall(text):
            assert name in known, name
            flags = {flag for one in known[name].params for flag in (*one.opts, *one.secondary_opts)}
            if flags:
                assert set(FLAG.findall(arguments.split(" #")[0])) <= flags | {"--help"}, name


@each_document
def test_every_make_command_has_its_target(document: Path) -> None:
    asked = {target for text in code(document) for target in MAKE.findall(text)}
    assert asked <= targets()


@each_document
def test_every_module_of_ours_that_is_named_exists(document: Path) -> None:
    """`model.latent`, and also `model.latent.Adam` or `app.storage.Storage.load_scan`."""
    for name in {text for text in code(document) if DOTTED.match(text)}:
        module, inside = name, []
        while file_of(module) is None and "." in module:
            module, _, last = module.rpartition(".")
            inside.append(last)
        text = (file_of(module) or Path("/dev/null")).read_text()
        assert all(re.search(rf"\b{word}\b", text) for word in inside), name


@each_document
def test_every_link_into_the_repository_leads_somewhere(document: Path) -> None:
    links = [link for link in LINK.findall(document.read_text()) if "://" not in link and ":" not in link]
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing


def test_no_document_names_a_setting_that_there_is_not() -> None:
    known = {f"DEEPSDF_{name.upper()}" for name in Settings.model_fields}
    named = {name for file in DOCUMENTS for name in re.findall(r"\bDEEPSDF_[A-Z_]+[A-Z]\b", file.read_text())}
    assert named <= known


def test_where_settings_are_listed_none_is_left_out() -> None:
    """A document that tables more than half of the settings is the list of them."""
    names = {
        "REDIS_URL" if name == "redis_url" else f"DEEPSDF_{name.upper()}" for name in Settings.model_fields
    }
    for file in DOCUMENTS:
        listed = {name for name in names if name in file.read_text()}
        if len(listed) > len(names) / 2:
            assert listed == names, file.name


def test_where_the_options_of_a_completion_are_listed_none_is_left_out() -> None:
    """A document that tables more than half of the options is the list of them."""
    names = set(CompletionOptions.model_fields)
    for file in DOCUMENTS:
        listed = {name for name in names if f"| `{name}`" in file.read_text()}
        if len(listed) > len(names) / 2:
            assert listed == names, file.name


def test_make_help_lists_every_target() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = set(re.findall(r"^\s*make ([a-z-]+)\s", shown.stdout, re.MULTILINE))
    assert listed == targets()


def test_every_setting_is_shown_by_help_with_what_it_is_for() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "app", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith("."), name
        assert f"--{name.replace('_', '-')}" in shown.stdout or name == "redis_url", name
