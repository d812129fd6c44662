"""The peers, seen from here: their throw-away environment, and a process of each that works on order."""

from __future__ import annotations

import getpass
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from access_parts.timing import Side

PACKAGES = ("transformer_lens", "nnsight")
NAMES = {"transformer_lens": "TransformerLens", "nnsight": "nnsight"}
PATIENCE = 3600.0  # seconds that one order may take
LOGITS_AGREE = 1e-3  # so that the peers do the same work

Say = Callable[[str], None]


class PeerError(Exception):
    """A peer that cannot be installed, started or used, with the reason."""


def default_folder() -> Path:
    """Where the environment goes: below the temporary folder, one for each user."""
    return Path(tempfile.gettempdir()) / f"hooke-bench-peers-{getpass.getuser()}"


def environment(folder: Path, say: Say) -> Path:
    """The Python of an environment with the peers; made and filled where it does not exist yet (minutes, 2 GB).

    torch is the release that runs here; everything else is what pip resolves beside it.

    Raises:
        PeerError: where it cannot be made, with pip's last words.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if folder.exists() and hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise PeerError(f"{folder} belongs to somebody else; give another folder for the peers")
    if not python.exists():
        say(f"making an environment for the peers in {folder} ...")
        _call([sys.executable, "-m", "venv", str(folder)], say)
    probe = f"import importlib.metadata as m; [m.version(p) for p in {PACKAGES!r}]"
    if subprocess.run([str(python), "-c", probe], capture_output=True).returncode:
        say("installing TransformerLens and nnsight there, with their own dependencies ...")
        release = torch.__version__.split("+")[0]
        _call([str(python), "-m", "pip", "install", "--progress-bar", "off", f"torch=={release}", *PACKAGES], say)
    return python


def _call(command: list[str], say: Say) -> None:
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = line.strip() or last
            if line.startswith(("Collecting ", "Processing ", "Installing ")):
                say(f"  {line.strip()[:100]}")
    if process.returncode:
        raise PeerError(f"{' '.join(command[1:4])} failed: {last[:300]}")


class Peer:
    """One peer's process, with a model loaded."""

    def __init__(self, package: str, python: Path, folder: Path, *, threads: int, clock: str, log: Path) -> None:
        script = Path(__file__).with_name("peer_process.py")
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads)}
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [str(python), str(script), package, str(folder), str(threads), clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **quiet},
        )
        self.log = log
        try:
            facts = self._answer()
        except PeerError:
            self.close()
            raise
        self.versions: dict[str, str] = facts["versions"]
        self.label = f"{NAMES[package]} {self.versions[package]}"
        if not facts["logit_error"] <= LOGITS_AGREE:
            self.close()
            raise PeerError(f"{self.label}: its logits are {facts['logit_error']:.1e} away from Hugging Face's")

    def do(self, order: str) -> tuple[float, Tensor | None]:
        """Seconds and values of one order.

        Raises:
            PeerError: with what the peer raised.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": order}) + "\n")
        self._process.stdin.flush()
        facts = self._answer()
        return facts["seconds"], None if facts["values"] is None else torch.tensor(facts["values"])

    def side(self, order: str) -> Side:
        """An order as a side of a comparison, timed inside the peer's process."""
        return lambda: self.do(order)[0]

    def _answer(self) -> dict:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], PATIENCE)
        line = stdout.readline() if ready else ""
        if not line:
            state = "ended" if ready else f"gave no answer in {PATIENCE:.0f} s"
            raise PeerError(f"the peer's process {state}; see {self.log}")
        facts = json.loads(line)
        if "error" in facts:
            raise PeerError(facts["error"][:300])
        return facts

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
