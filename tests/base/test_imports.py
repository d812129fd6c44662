"""The ground floor stands on nothing above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hooke.base
import hooke.runs


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name == "hooke" or name.startswith("hooke.")}


@pytest.mark.parametrize(("package", "allowed"), [(hooke.base, ["base"]), (hooke.runs, ["base", "runs"])])
def test_ground_rooms_import_nothing_from_above(package, allowed):
    files = list(Path(package.__file__).parent.rglob("*.py"))
    assert len(files) > 5
    for file in files:
        for name in imported(file):
            assert name.split(".")[1] in allowed, f"{file.name} imports {name}"


def test_the_check_sees_an_import(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from hooke.model import load\n")
    assert imported(tmp_path / "a.py") == {"hooke.model.load"}
