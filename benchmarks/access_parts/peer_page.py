"""Runs the page "Coming from TransformerLens or nnsight": each package's blocks, and whether their answers agree.

Run: PYTHONPATH=benchmarks python -m access_parts.peer_page [PEERS]. PEERS is the folder of the peers' environment, the
benchmark's own by default; it has to exist.

A block is fenced with its package's name (hooke's with "python"). A package's blocks are one program, run in its own
process from top to bottom. A block answers by leaving a tensor named `answer`. Blocks that follow each other without
text between them, one of each package, are a round; hooke's answer ends it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from access_parts import peers
from hooke.model.load import builtin_folder

PAGE = Path(__file__).parents[2] / "docs" / "coming_from.md"
HOOKE = "python"
AGREE = 1e-4  # eager attention and SDPA differ in the last bits; logits are of the order of ten
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code of the page; `line` is its first one, from 1."""

    language: str
    code: str
    line: int
    round: int


def blocks(text: str) -> list[Block]:
    """Every block of one of the three languages. A round ends after a block of hooke's."""
    found, number = [], 0
    for match in _FENCE.finditer(text):
        if match[1] in (HOOKE, *peers.PACKAGES):
            line = text[: match.start(2)].count("\n") + 1
            found.append(Block(match[1], match[2], line, number))
            number += match[1] == HOOKE
    return found


def program(text: str, language: str) -> str:
    """A package's blocks as one program with the page's line numbers; on the line of the closing fence, the answer is
    kept.
    """
    lines: list[str] = []
    for block in blocks(text):
        if block.language == language:
            lines += [""] * (block.line - 1 - len(lines))
            lines += [*block.code.splitlines(), f"_keep({block.round}, globals())"]
    return "\n".join(lines) + "\n"


def answers(text: str, language: str, python: Path | str, model: Path) -> dict[int, torch.Tensor]:
    """What a package's blocks answer, by round.

    Raises:
        PeerError: where a block fails, with the end of the traceback; its line numbers are the page's.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / f"coming_from_{language}.py", Path(folder) / "answers.pt"
        file.write_text(program(text, language))
        ended = subprocess.run(
            [str(python), str(Path(__file__).with_name("page_process.py")), str(file), str(model), str(out)],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        if ended.returncode:
            raise peers.PeerError(f"the {language} blocks of {PAGE.name} fail:\n{ended.stderr[-2000:]}")
        return torch.load(out)


@dataclass(frozen=True)
class Compared:
    """A peer's answer beside hooke's, in one round: the largest difference, and the line of hooke's block."""

    package: str
    line: int
    difference: float


def compare(text: str, python: Path, model: Path) -> list[Compared]:
    """Run all sides, and compare what several of them answer.

    Raises:
        PeerError: where a block fails, or a round lacks an answer or has them in different shapes.
    """
    sides = {package: answers(text, package, python, model) for package in peers.PACKAGES}
    ours = answers(text, HOOKE, sys.executable, model)
    lines = {block.round: block.line for block in blocks(text) if block.language == HOOKE}
    found = []
    for block in blocks(text):
        if block.language == HOOKE:
            continue
        mine, theirs = ours.get(block.round), sides[block.language].get(block.round)
        if mine is None or theirs is None or mine.shape != theirs.shape:
            shapes = ["nothing" if answer is None else tuple(answer.shape) for answer in (theirs, mine)]
            raise peers.PeerError(f"line {block.line}: {block.language} answers {shapes[0]}, hooke {shapes[1]}")
        difference = float((mine.double() - theirs.double()).abs().max())
        found.append(Compared(block.language, lines[block.round], difference))
    return found


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else peers.default_folder()
    rows = compare(PAGE.read_text(), folder / "bin" / "python", builtin_folder("hooke/stdlib"))
    for row in rows:
        print(f"{row.package:17} line {row.line:4} difference {row.difference:.1e}")
    worst = max(row.difference for row in rows)
    print(f"{len(rows)} answers compared; the largest difference is {worst:.1e} (at most {AGREE:.0e})")
    sys.exit(not worst <= AGREE)


if __name__ == "__main__":
    main()
