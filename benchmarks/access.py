"""Model access against plain Hugging Face, against hand-written floors, and against TransformerLens and nnsight.

Run: python benchmarks/access.py [--json] [--peers FOLDER | --no-peers] [--shape NAME] [--clock cpu]

Two shapes with random weights (GPT-2 small, and a 4-layer Llama) that every side loads from one folder. All sides
take turns in one run, A B C, C B A; a ratio is the median of the ratios within a turn, `spread` their quartiles. Before
anything is timed, what is compared is checked to be equal: logits of the peers, every sweep on every side against one
hooked forward a patch, attribution against gradients by hand, unsteered generation against `generate`.

What is inside a sweep's time, for all sides: the clean run (where one is used), making the edits or hooks, and all
patched runs. The corrupted run that the patches come from is outside, for all sides.

The peers run in an environment of their own, made once (minutes) below the temporary folder, in processes that work
while the others wait. Where they cannot be installed, their rows say so and why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from hooke.base.jsonable import dumps

sys.path.insert(0, str(Path(__file__).parent))  # `hooke bench` loads this file by its path

from access_parts import peers, shapes
from access_parts.bench import Bench, Options


def main(
    chosen: Sequence[shapes.Shape] = (shapes.GPT2_SMALL, shapes.LLAMA_4),
    *,
    options: Options | None = None,
    models: Path | None = None,
) -> list[dict]:
    """The rows of the benchmark: median milliseconds; `against` over `ours` where the name says "times as fast", else
    `ours` over `against`.

    Args:
        models: folder for the random models, kept; a temporary one by default.
    """
    options = options or Options(peers.default_folder())
    if options.clock == "process_time" and options.threads > 1:
        raise ValueError("processor time counts what idle threads spin away; use it with one thread")
    python, reason = None, "left out"
    if options.peers is not None:
        try:
            python = peers.environment(options.peers, options.say)
        except (peers.PeerError, OSError) as error:
            reason = str(error)
    threads, bars = torch.get_num_threads(), logging.is_progress_bar_enabled()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    rows = []
    try:
        with tempfile.TemporaryDirectory() as temporary:
            for shape in chosen:
                bench = Bench(shape, (models or Path(temporary)) / shape.name.replace(" ", "-"), options)
                try:
                    bench.start_peers(python, reason)
                    rows += bench.rows()
                finally:
                    bench.close()
    finally:
        torch.set_num_threads(threads)
        if bars:
            logging.enable_progress_bar()
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the rows")
    parser.add_argument("--peers", type=Path, default=peers.default_folder(), help="folder of the peers' environment")
    parser.add_argument("--no-peers", action="store_true", help="leave TransformerLens and nnsight out")
    parser.add_argument("--shape", help="only shapes whose name contains this")
    parser.add_argument("--models", type=Path, help="folder to keep the random models in")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--peer-turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a busy machine, one thread")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    clock = {"wall": "perf_counter", "cpu": "process_time"}[given.clock]
    how = Options(None if given.no_peers else given.peers, given.threads, given.turns, given.peer_turns, clock)
    wanted = [s for s in (shapes.GPT2_SMALL, shapes.LLAMA_4) if given.shape is None or given.shape in s.name]
    results = main(wanted, options=how, models=given.models)
    for row in results:
        verdict = {True: "holds", False: "does not hold", None: "no target"}[row["holds"]]
        low, high = row["spread"]
        print(f"{row['name']}: {row['ours']:,.1f} / {row['against']:,.1f} ms, ratio {row['ratio']:.3f}", end=" ")
        print(f"({low:.3f} to {high:.3f}; target {row['target']}: {verdict})")
    if given.json:
        print(dumps({"rows": results}))
