"""The documentation runs: python blocks of a page, top to bottom in one namespace; commands that it shows parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hooke.cli.main import COMMANDS, parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROOMS = sorted(p.name for p in (ROOT / "src" / "hooke").iterdir() if (p / "__init__.py").is_file())
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Line of the first code line, and code, of every block in one language."""
    return [(text[: m.start(2)].count("\n") + 1, m[2]) for m in FENCE.finditer(text) if m[1] == language]


def execute(page: str, text: str) -> None:
    """Run the python blocks; a traceback names the page and the line in it."""
    names: dict = {"__name__": "__docs__"}
    for line, code in blocks(text, "python"):
        exec(compile("\n" * (line - 1) + code, page, "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text(), "python")], ids=name_of)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)  # what an example writes must not land in the repository
    execute(name_of(page), page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shown_commands_parse(page: Path) -> None:
    for _, block in blocks(page.read_text(), "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)[1:] if line.startswith("hooke ") else []
            if words and not words[0].startswith("-"):
                command = next(" ".join(words[:n]) for n in (2, 1, 0) if " ".join(words[:n]) in COMMANDS)
                assert parse(command, words[len(command.split()) :]).words == command


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_page(room: str) -> None:
    assert (ROOT / "docs" / f"{room}.md").is_file(), f"write docs/{room}.md"


def test_a_planted_error_is_caught_with_its_line() -> None:
    with pytest.raises(AssertionError) as caught:
        execute("page.md", "# x\n\n```python\na = 1\n```\n\n```python\nassert a == 2\n```\n")
    assert caught.traceback[-1].lineno + 1 == 8
