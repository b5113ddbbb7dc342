"""The commands of training say in a line what is missing."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

COMMANDS = {
    "ablation": ["FOLDER"],
    "deepsdf.__main__": ["export", "FOLDER", "out"],
    "duplicates": ["FOLDER"],
    "drawn.__main__": ["FOLDER"],
    "encoder": ["FOLDER"],
    "encode": ["FOLDER", "chair.ply", "out.glb"],
    "evaluate.__main__": ["FOLDER"],
    "lipschitz": ["FOLDER"],
    "logs": ["FOLDER"],
    "samples": ["FOLDER"],
    "sources": ["FOLDER"],
    "train": ["FOLDER"],
    "views": ["chair.ply", "out", "--list", "FOLDER"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_without_its_checkpoint_ends_with_a_line_that_names_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *(word.replace("FOLDER", "nowhere") for word in COMMANDS[name])])
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(import_module(f"model.training.{name}").main())
    told = capsys.readouterr().err.strip() or str(ended.value.code)
    assert ended.value.code not in (0, None)
    assert "nowhere" in told and len(told.splitlines()) == 1, told
