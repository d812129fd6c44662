"""What a result depends on besides its settings: versions, the state of the code, the machine."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("hooke", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pydantic")


def describe() -> dict[str, Any]:
    """Versions, git state of the working folder, and the machine, as plain JSON values.

    Holds nothing that identifies a person: no user or host name, no path, no environment variable, no git remote. What
    cannot be found out is `None`.
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in _PACKAGES},
        "git": git_state(Path.cwd()),
        "machine": {
            "cpu": _cpu(),
            "cores": _cores(),
            "memory_bytes": memory_bytes(),
            "torch_threads": torch.get_num_threads(),
            "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and whether tracked files were changed, or `None` outside a git repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    branch = _git(folder, "symbolic-ref", "--short", "-q", "HEAD")
    return {"commit": commit, "branch": branch, "dirty": None if changes is None else bool(changes)}


def memory_bytes() -> int | None:
    """Memory that this process may use: the machine's, or the container's limit where that is less."""
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # no such limit, or the word "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def _git(folder: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # never get in the way of the user's own git command
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    if package == "torch":
        return torch.__version__  # with the build, such as +cpu or +cu130, which the package's metadata may leave out
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@functools.cache
def _cpu() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None
