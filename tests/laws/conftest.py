"""Fixtures of the laws."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_MADE = {".venv", "node_modules", "__pycache__", "static", "runs", "site", "dist", "build", "test-output", ".git"}


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """Relative paths of the files that git tracks or would track; without git, all that no build made."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        return sorted(path for path in found if not _MADE & set(path.parts))
    return sorted(Path(name) for name in listed if name and (ROOT / name).is_file())
