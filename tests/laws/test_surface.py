"""The public surface is frozen: a new name or flag is a decision. After one: python scripts/freeze.py"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import hooke
from hooke.cli.main import COMMANDS, command_class

MAX_OPTIONS = 15


def load_freeze(root: Path):
    spec = importlib.util.spec_from_file_location("freeze", root / "scripts" / "freeze.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["exported_names.txt", "cli_flags.txt"])
def test_the_surface_is_the_frozen_one(root: Path, name: str) -> None:
    frozen = (root / "tests" / "laws" / name).read_text().splitlines()
    assert load_freeze(root).SNAPSHOTS[name]() == frozen, "if you meant it: python scripts/freeze.py"


def test_every_exported_name_exists() -> None:
    assert [name for name in hooke.__all__ if not hasattr(hooke, name)] == []
    assert len(set(hooke.__all__)) == len(hooke.__all__)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_is_a_small_frozen_set_of_explained_options(words: str) -> None:
    kind = command_class(words)
    assert kind.words == words
    assert kind.model_config["frozen"]
    assert kind.model_config["extra"] == "forbid"
    assert len(kind.model_fields) <= MAX_OPTIONS
    assert [name for name, field in kind.model_fields.items() if not field.description] == []
