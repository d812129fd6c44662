"""Run `hooke demo` and write its figures into README.md, between the marks. Nothing there is written by hand.

Run: python scripts/quote_demo.py [more options of hooke demo]
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- demo:begin[^>]*-->\n).*?(<!-- demo:end -->)", re.DOTALL)


def run_demo(options: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        code = "import sys; from hooke.cli.main import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "demo", "--no-serve", "--json", "--run", f"{folder}/demo", *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def block(found: dict, cores: int) -> str:
    """The quoted text for the numbers of one demo."""
    rows = [
        ("loss recovered (against zeros)", "loss_recovered", ".3f"),
        ("fraction of variance unexplained", "fvu", ".3f"),
    ]
    names = ("random", "pca", "mean")
    table = ["| score | dictionary | random dictionary | PCA, as many as L0 | mean |", "|---|---|---|---|---|"]
    for label, name, form in rows:
        cells = [format(float(found[key]), form) for key in (name, *(f"{control}.{name}" for control in names))]
        table.append(f"| {label} | **{cells[0]}** | {' | '.join(cells[1:])} |")
    cost = f"{found['seconds']:.0f} s and {found['peak_memory_gb']:.2f} GB of memory on {cores} cores"
    facts = (
        f"`hooke demo` at `{found['site']}`, scored on {found['n_scored']:,} tokens of modules that neither the model\n"
        f"nor the dictionary has seen: {found['l0']:.1f} latents active a token, {found['dead_share']:.1%} dead.\n"
        f"It took {cost} (Python {platform.python_version()})."
    )
    return "\n".join([*table, "", facts.replace("%", " %"), ""])


def main() -> None:
    text = README.read_text()
    if len(BLOCK.findall(text)) != 1:
        sys.exit("README.md needs the marks <!-- demo:begin ... --> and <!-- demo:end --> exactly once")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quoted = block(run_demo(sys.argv[1:]), cores)
    README.write_text(BLOCK.sub(lambda found: found[1] + quoted + found[2], text))


if __name__ == "__main__":
    main()
