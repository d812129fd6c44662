"""One package's side of a page: runs inside the package's environment, and keeps the answers.

Usage: python page_process.py PROGRAM FOLDER OUT. PROGRAM is a file of Python that `peer_page.program` made, with the
page's line numbers. OUT takes the answers, by number.
"""

from __future__ import annotations

import runpy
import sys

import torch


def main() -> None:
    program, folder, out = sys.argv[1:]
    answers: dict[int, torch.Tensor] = {}

    def keep(number: int, names: dict) -> None:
        """Called after each block: its answer, if it left one."""
        answer = names.pop("answer", None)
        if answer is not None:
            answers[number] = answer.detach().clone()

    runpy.run_path(program, {"FOLDER": folder, "_keep": keep})
    torch.save(answers, out)


if __name__ == "__main__":
    main()
