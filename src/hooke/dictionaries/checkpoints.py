"""Training checkpoints: one file each, whole or absent, from which training goes on as if it had never stopped."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooke.base import jsonable
from hooke.base.errors import ConfigError, FormatError
from hooke.base.files import read_tensors, write_tensors

FORMAT = "hooke.checkpoint.1"
_NAME = re.compile(r"step-(\d{10})\.safetensors")


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often to write checkpoints.

    Args:
        folder: for this training only.
        every: steps between checkpoints.
        keep: how many of the newest to keep.
        resume: go on from the newest in the folder; otherwise a folder that has any is refused.

    Raises:
        ConfigError: for counts below 1.
    """

    folder: str | PathLike[str]
    every: int = 200
    keep: int = 2
    resume: bool = True

    def __post_init__(self) -> None:
        if min(self.every, self.keep) < 1:
            raise ConfigError(f"checkpoints every {self.every} steps, keeping {self.keep}: both must be at least 1")

    def newest(self) -> Path | None:
        """The newest checkpoint of the folder, or `None`.

        Raises:
            ConfigError: there is one, and `resume` is false.
        """
        found = self.all()
        if found and not self.resume:
            raise ConfigError(f"{self.folder} already has checkpoints; resume, or choose another folder")
        return found[-1] if found else None

    def all(self) -> list[Path]:
        """Every checkpoint of the folder, oldest first."""
        folder = Path(self.folder)
        return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))

    @staticmethod
    def step_of(path: Path) -> int:
        """How many steps a checkpoint of this folder had seen."""
        return int(path.stem.removeprefix("step-"))

    def write(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after `step` steps, then drop checkpoints that are no longer kept."""
        path = Path(self.folder) / f"step-{step:010d}.safetensors"
        tensors: dict[str, Tensor] = {}
        plain = _without_tensors(state, "", tensors)
        write_tensors(path, tensors, {"format": FORMAT, "state": jsonable.dumps(plain)})
        for old in self.all()[: -self.keep]:
            old.unlink()
        return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `Checkpoints.write` stored.

    Raises:
        FormatError: the file is truncated, altered or something else.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise FormatError(f"{path} is not a {FORMAT} file; remove it to start over")
    return _with_tensors(jsonable.loads(metadata["state"]), tensors)


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Plain values, with each tensor moved to `tensors` and a reference left in its place."""
    if isinstance(value, Tensor):
        key = name or "/"
        tensors[key] = value.reshape(1) if value.ndim == 0 else value
        return {"__tensor__": key, "scalar": value.ndim == 0}
    if isinstance(value, dict):
        return {str(key): _without_tensors(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, float) and value != value or value in (float("inf"), float("-inf")):
        return _without_tensors(torch.tensor([value], dtype=torch.float64), name, tensors)
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "__tensor__" in value:
            tensor = tensors[value["__tensor__"]]
            return tensor.reshape(()) if value["scalar"] else tensor
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value
