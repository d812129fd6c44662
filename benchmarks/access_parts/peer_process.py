"""A peer at work: runs inside the throw-away environment, takes orders as JSON lines and answers in JSON lines.

Usage: python peer_process.py SIDE FOLDER THREADS CLOCK. Orders are `{"do": NAME}`, a method of the side; the answer has
the seconds that it took and, where the method returns a tensor, its values. What the peers print goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path

SIDES = {"transformer_lens": ("peer_lens", "Lens"), "nnsight": ("peer_nnsight", "Sight")}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a stray print must not end up among the answers

    def answer(**facts: object) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    name, folder, threads, clock = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        import torch

        torch.set_num_threads(int(threads))
        from access_parts import shapes

        module, side = SIDES[name]
        worker = getattr(importlib.import_module(f"access_parts.{module}"), side)(Path(folder))
        error = float((worker.logits() - shapes.reference_logits(Path(folder))).abs().max())
    except Exception as problem:
        traceback.print_exc()
        answer(error=f"{type(problem).__name__}: {problem}")
        return
    versions = {package: version(package) for package in (name, "transformers", "torch")}
    answer(versions=versions, logit_error=error)
    now = getattr(time, clock)
    for line in sys.stdin:
        try:
            work = getattr(worker, json.loads(line)["do"])
            start = now()
            result = work()
            seconds = now() - start
            answer(seconds=seconds, values=None if result is None else result.tolist())
        except Exception as problem:
            traceback.print_exc()
            answer(error=f"{type(problem).__name__}: {problem}")


if __name__ == "__main__":
    main()
