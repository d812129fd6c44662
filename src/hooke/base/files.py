"""Files that are whole or absent: atomic writes, checksums, and errors that name the broken file."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hooke.base import jsonable
from hooke.base.errors import DataError, FormatError

TEMPORARY_PREFIX = ".tmp-"  # readers of hooke's folders skip names that begin so


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file (or a folder) so that it appears whole or not at all.

    Yields a temporary path in the same folder, with the same suffix. What the block leaves there is flushed to disk and
    renamed to `path`; if the block raises, it is removed. A file at `path` is replaced in one step; a folder there is
    moved aside first, so that a crash in that instant leaves no folder rather than a mixture. Files get the mode that
    the umask gives new files, whatever their writer chose: safetensors makes files that only their owner may read.

    Raises:
        DataError: the disk is full, or the block wrote nothing.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-{target.name[-200:]}")
    try:
        yield temporary
        if not temporary.exists():
            raise DataError(f"nothing was written for {target}; write to the path that atomic_path gives")
        _open_to_the_umask(temporary)
        _flush(temporary)
        _move(temporary, target)
        fsync(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(target) from error
        raise
    finally:
        remove(temporary)


def disk_full(path: Path) -> DataError:
    """The error for a write that found no space."""
    return DataError(
        f"the disk is full: {path} was not written, and what was there before is kept; free some space and resume"
    )


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as strict, indented JSON, atomically; `jsonable.jsonable` says what it takes."""
    text = jsonable.dumps(value, indent=2) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        FormatError: naming the file and why it cannot be read.
    """
    path = Path(path)
    try:
        return jsonable.loads(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise FormatError(
            f"{path} is not valid JSON ({error}): truncated or altered; restore it or make it again"
        ) from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors and text metadata as one safetensors file, atomically.

    Tensors may be views, on any device, and may share memory: each is written in full.

    Raises:
        DataError: the disk is full.
    """
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if memory in seen else tensor  # safetensors refuses tensors that share memory
        seen.add(memory)
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            if "os error 28" in str(error) or "No space left" in str(error):
                raise disk_full(Path(path)) from error
            raise


def read_tensors(
    path: str | os.PathLike[str], *, sha256: str | None = None, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every tensor of a safetensors file, and its metadata.

    Args:
        path: the file.
        sha256: the checksum that the file must have; `None` trusts the file.
        device: where the tensors go.

    Raises:
        FormatError: the file is missing, truncated, altered, or no safetensors file.
    """
    path = Path(path)
    try:
        if sha256 is not None and (found := sha256_file(path)) != sha256:
            raise FormatError(
                f"{path} was altered: its sha256 is {found[:12]}..., expected {sha256[:12]}...; restore or remake it"
            )
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except OSError as error:
        raise _unreadable(path, error) from error
    except SafetensorError as error:
        raise FormatError(
            f"{path} is not a whole safetensors file ({error}): truncated or altered; restore or remake it"
        ) from error


def free_space_or_raise(path: str | os.PathLike[str], needed_bytes: int) -> None:
    """Check, before the work, that `needed_bytes` fit on the disk of `path` (which need not exist yet).

    Raises:
        DataError: with how much is needed and how much is free.
    """
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DataError(
            f"{path} needs {readable_bytes(needed_bytes)}, but the disk has only {readable_bytes(free)} free; "
            f"free some space, choose another folder, or ask for less"
        )


def readable_bytes(n_bytes: int) -> str:
    """A size for people, in powers of 1000.

    Example:
        >>> readable_bytes(1_234_567)
        '1.2 MB'
    """
    if n_bytes < 1000:
        return f"{n_bytes} B"
    size = float(n_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def fsync(path: Path) -> None:
    """Wait until a file (or a folder's list of names) is on the disk."""
    if os.name == "nt":  # Windows cannot flush a folder, nor a file that is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _unreadable(path: Path, error: OSError) -> FormatError:
    reason = "it does not exist" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
    return FormatError(f"{path} cannot be read: {reason}")


def _open_to_the_umask(path: Path) -> None:
    """Give a file, or the files of a folder, the mode of any new file in that place."""
    if os.name == "nt":
        return
    probe = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-mode")
    descriptor = os.open(
        probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666
    )  # asking os.umask would set it for a moment
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def _flush(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _flush(child)
    fsync(path)


def _move(temporary: Path, target: Path) -> None:
    if not (temporary.is_dir() and target.is_dir()):
        os.replace(temporary, target)
        return
    aside = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-old")
    os.replace(target, aside)
    os.replace(temporary, target)
    remove(aside)
