"""Checkpoints: files that are whole or not there, in a folder that outlives the process that trains.

The SHA-256 of a checkpoint's bytes is a part of its name, so that a damaged one is known before it is read.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from edge_agent.contract.errors import storage_error
from edge_agent.durable import sync_folder

# Two: if the newest is damaged, the one before serves.
_KEPT = 2
_NAME = re.compile(r"(step-(?P<step>\d{10})|finished)\.(?P<sha256>[0-9a-f]{64})\.ckpt")
FINISHED = "finished"


class Checkpoints(CheckpointIO):
    """The checkpoints of one training, which Lightning writes and reads through this.

    Args:
        folder: Where they lie; made when the first is written.
        saved: Told of each one that was written; where processes share no disk it takes the file to where it is safe.
    """

    def __init__(self, folder: Path, *, saved: Callable[[Path], None] = lambda _path: None) -> None:
        self.folder = folder
        self._saved = saved
        self._read: tuple[Path, dict[str, Any]] | None = None

    def write(self, name: str, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint durably: after a crash at any point it is there whole, or not at all.

        Args:
            name: ``step-NNNNNNNNNN`` or ``finished``.
        Raises:
            StorageFull, StorageNotWritable: As the disk says.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{name}.new"
        try:
            with beside.open("wb") as file:
                hashing = _Hashing(file)
                try:
                    torch.save(dict(state), cast(BinaryIO, hashing))
                except RuntimeError as error:
                    # torch's writer says only that its file failed; the reason is the system's.
                    raise hashing.failure or error from error
                file.flush()
                os.fsync(file.fileno())
            path = self.folder / f"{name}.{hashing.hexdigest()}.ckpt"
            beside.replace(path)
            sync_folder(self.folder)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise storage_error(error, f"checkpoint {self.folder / name}") or error from error
        self._prune(path)
        self._saved(path)
        return path

    def finished(self) -> dict[str, Any] | None:
        """What a training that came to its end left here, or None."""
        for path in self._files():
            if path.name.startswith(FINISHED):
                return self._load(path, note=lambda _message: None)
        return None

    def newest(self, note: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that is whole, or None; ``note`` is told of each that is not."""
        for path in self._files():
            if path.name.startswith(FINISHED):
                continue
            state = self._load(path, note=note)
            if state is not None:
                self._read = (path, state)
                return path
            path.unlink(missing_ok=True)  # or it would be the one that is kept in place of a whole one
        return None

    def _files(self) -> list[Path]:
        found = [path for path in self.folder.glob("*.ckpt") if _NAME.fullmatch(path.name)]
        # Two checkpoints of one step are the same moment of the same training.
        return sorted(found, key=lambda path: path.name, reverse=True)

    def _load(self, path: Path, *, note: Callable[[str], None]) -> dict[str, Any] | None:
        match = _NAME.fullmatch(path.name)
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if match is None or digest != match["sha256"]:
                note(f"checkpoint {path.name[:15]} is damaged (its bytes are not those that were written)")
                return None
            # Safe loading: a checkpoint holds tensors, numbers and text, and no code to run.
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            first = next(iter(str(error).splitlines()), "")
            note(f"checkpoint {path.name[:15]} cannot be read ({type(error).__name__}: {first})")
            return None

    def _prune(self, newest: Path) -> None:
        steps = [path for path in self._files() if not path.name.startswith(FINISHED)]
        for old in [path for path in steps if path != newest][_KEPT - 1 :]:
            old.unlink(missing_ok=True)

    # What Lightning calls.

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        """Write under the name that ``path`` ends with."""
        self.write(Path(path).name, checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """What :meth:`newest` has just read and found whole; else the file."""
        if self._read is not None and self._read[0] == Path(path):
            return self._read[1]
        return dict(torch.load(path, map_location=map_location or "cpu", weights_only=weights_only is not False))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove one."""
        Path(path).unlink(missing_ok=True)


class _Hashing:
    """A file that is hashed while it is written, and remembers why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        self._digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
