"""Imports only go down the list of rooms; every module imports with the core dependencies alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "hooke"

# Top to bottom. Rooms on one line do not import each other. The command line stands above the page and the tools for
# programs, because `hooke serve` starts them; they know nothing of it.
LEVELS = [
    ["cli"],
    ["web", "mcp"],
    ["studies"],
    ["evals"],
    ["reasoning", "audits"],
    ["training"],
    ["features"],
    ["circuits", "components"],
    ["directions"],
    ["dictionaries"],
    ["rollouts"],
    ["calibration"],
    ["data"],
    ["model"],
    ["runs"],
    ["base"],
]
HEIGHT = {room: len(LEVELS) - i for i, rooms in enumerate(LEVELS) for room in rooms}


def imported(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of hooke, inside functions and type-checking blocks too.

    `from hooke.data import corpora` counts as `hooke.data.corpora`; relative imports are made absolute.
    """
    package = module.split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level], node.module or ""]) if node.level else node.module
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "hooke")


def violations(source: str, module: str) -> list[str]:
    """What is wrong with the imports of one module, as `module:line imports name: why`."""
    parts = module.split(".")
    room = parts[1] if len(parts) > 1 else None
    if room is None:
        return []  # hooke/__init__.py is the table of contents: it may import every room
    found = []
    for line, name in imported(source, module):
        other = name.split(".")[1] if "." in name else ""
        if other == room:
            continue
        if room == "cli" and name == "hooke":
            continue  # the command line is a user of the public names
        if other not in HEIGHT:
            found.append(f"{module}:{line} imports {name}: not a room below")
        elif HEIGHT[other] >= HEIGHT[room]:
            found.append(f"{module}:{line} imports {name}: {'sideways' if HEIGHT[other] == HEIGHT[room] else 'upward'}")
    return found


def modules() -> list[tuple[str, Path]]:
    paths = sorted(SRC.rglob("*.py"))
    return [(".".join(p.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__"), p) for p in paths]


def test_imports_only_go_down() -> None:
    found = [text for module, path in modules() for text in violations(path.read_text(), module)]
    assert not found, "\n".join(found)


def test_every_folder_is_a_room_of_the_list() -> None:
    folders = {path.name for path in SRC.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(HEIGHT)


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("hooke.data.store", "from hooke.model.sites import Site", 0),
        ("hooke.data.store", "from hooke.data import packing", 0),
        ("hooke.model.run", "import hooke.data.store", 1),  # upward
        ("hooke.model.run", "from hooke.data import store", 1),
        ("hooke.model.run", "from hooke import data", 1),
        ("hooke.audits.petri", "from hooke.reasoning import traces", 1),  # sideways
        ("hooke.base.files", "def f():\n    from hooke.runs.folder import RunFolder", 1),  # hidden in a function
        ("hooke.base.files", "if TYPE_CHECKING:\n    from hooke.runs.folder import RunFolder", 1),
        ("hooke.model.run", "import hooke", 1),  # the top imports everything
        ("hooke.model.run", "from .. import data", 1),  # relative
        ("hooke.cli.serve", "from hooke.web.server import serve", 0),
        ("hooke.web.server", "from hooke.cli.main import main", 1),
        ("hooke.cli.demo", "import hooke", 0),
        ("hooke.base.files", "import torch, hookeworm", 0),
    ],
)
def test_planted_imports_are_judged(module: str, source: str, expected: int) -> None:
    assert len(violations(source, module)) == expected


CORE_ONLY = """
import importlib, importlib.abc, importlib.machinery, importlib.metadata as md, re, sys
from packaging.requirements import Requirement

norm = lambda name: re.sub(r"[-_.]+", "-", name).lower()
allowed, todo = set(), {"hooke"}
while todo:
    name = todo.pop()
    allowed.add(name)
    try:
        needs = md.requires(name) or []
    except md.PackageNotFoundError:
        continue
    for need in map(Requirement, needs):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            todo |= {norm(need.name)} - allowed
outside = {top for top, dists in md.packages_distributions().items() if not {norm(d) for d in dists} & allowed}
assert "pytest" in outside and "torch" not in outside, outside

class CoreOnly(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in outside else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = CoreOnly
if len(sys.argv) > 1 and sys.argv[1] == "--planted":
    import fastapi
failed = []
for module in sys.stdin.read().split():
    try:
        importlib.import_module(module)
    except ImportError as error:
        failed.append(f"{module}: {error}")
print("\\n".join(failed))
"""


def core_only(*arguments: str) -> subprocess.CompletedProcess:
    names = "\n".join(module for module, _ in modules())
    command = [sys.executable, "-W", "ignore", "-c", CORE_ONLY, *arguments]
    return subprocess.run(command, input=names, capture_output=True, text=True, timeout=1800)  # a limit for what hangs


def test_every_module_imports_with_core_dependencies_only() -> None:
    done = core_only()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_the_core_only_check_hides_an_installed_extra() -> None:
    assert "No module named 'fastapi'" in core_only("--planted").stderr
