"""README tells the truth: its tree is the tree, its commands exist, its quoted block was written by the script."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from hooke.cli.main import COMMANDS, main, parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def tree_names(text: str) -> list[str]:
    """Names of the rooms in the tree: `cli/  what it holds`, possibly several to a line."""
    block = next(block for block in fenced(text, "text") if "src/hooke/" in block)
    lines = [line for line in block.splitlines() if not line.startswith("src/hooke/")]
    return [name for line in lines for name in re.findall(r"(?<=[ ])([a-z]+)/(?= )", line)]


def commands(text: str) -> list[list[str]]:
    """Every `hooke ...` and `make ...` line of the shell blocks, comments off."""
    lines = [line for block in fenced(text, "bash") for line in block.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words and words[0] in ("hooke", "make")]


def test_the_tree_lists_exactly_the_rooms() -> None:
    rooms = {p.name for p in (ROOT / "src" / "hooke").iterdir() if (p / "__init__.py").is_file() or any(p.glob("*.py"))}
    assert sorted(tree_names(README)) == sorted(rooms)


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for words in commands(README) if words[0] == "make" for word in words[1:] if "=" not in word}
    assert {"demo", "test"} <= named
    assert named <= targets


@pytest.mark.parametrize("words", [words[1:] for words in commands(README) if words[0] == "hooke"], ids=" ".join)
def test_commands_of_the_readme_parse(words: list[str]) -> None:
    command = next(" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS)
    assert parse(command, words[len(command.split()) :]).words == command


@pytest.mark.parametrize("words", COMMANDS)
def test_help_of_every_command_explains_it(words: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main([*words.split(), "--help"])
    assert ended.value.code == 0
    assert f"hooke {words}" in out.getvalue()
    assert "--json" in out.getvalue()


def test_pictures_and_links_of_the_readme_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_quoted_block_has_its_marks_once() -> None:
    assert README.count("<!-- demo:begin") == README.count("<!-- demo:end -->") == 1


def test_the_tree_reader_reads() -> None:
    text = "```text\nsrc/hooke/\n  cli/    commands\n  web/  mcp/  two on a line\n```\n"
    assert tree_names(text) == ["cli", "web", "mcp"]
