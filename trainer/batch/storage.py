"""Files on the local disk or in an object store, named by path or URI: what a batch stages, and what it commits."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from edge_agent.contract.errors import ShoalError, storage_error
from edge_agent.durable import sync_folder
from trainer.batch.errors import InputUnreadable, OutputRefused

_REMOVALS = 5


def locate(uri: str) -> tuple[Any, str]:
    """The file system of a path or URI (``s3://``, ``gs://``, ``abfs://``, ``file://``), and the path within it.

    Raises:
        InputUnreadable: There is no such file system here.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).absolute())
    try:
        found: tuple[Any, str] = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError, NotImplementedError) as error:
        raise InputUnreadable(f"{uri}: cannot be reached: {error}") from error
    return found


class Storage:
    """A folder and what lies in it; names are relative to it, with ``/``.

    Args:
        uri: Path or URI of the folder; it need not be there.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.fs, self.root = locate(self.uri)
        self.is_local = isinstance(self.fs, pafs.LocalFileSystem)
        if "://" not in self.uri:
            self.uri = self.root  # whoever reads the name elsewhere has another working folder

    def path(self, name: str) -> str:
        """The path of ``name`` within the file system."""
        return f"{self.root}/{name}" if name else self.root

    def inner(self, name: str) -> Storage:
        """A folder within this one."""
        return Storage(f"{self.uri}/{name}")

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None where there is none."""
        try:
            with self.fs.open_input_stream(self.path(name)) as file:
                data: bytes = file.read()
        except FileNotFoundError:
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Write a file: it is there whole, after a power cut too, or not at all.

        Raises:
            StorageFull, StorageNotWritable, OutputRefused: It cannot be written.
        """
        with writing(self.path(name)):
            if self.is_local:
                path = Path(self.path(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                _write_apart(path, data)
                return
            with self.fs.open_output_stream(self.path(name)) as file:  # an object appears when its upload ends
                file.write(data)

    def names(self, folder: str = "") -> list[str]:
        """The names in a folder, sorted; of a folder that is not there none."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        try:
            return sorted(info.base_name for info in self.fs.get_file_info(selector))
        except FileNotFoundError:
            # Arrow finds no folder, looks whether there is none, and another attempt has made it meanwhile.
            return []

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where there is none."""
        info = self.fs.get_file_info(self.path(name))
        return None if info.type != pafs.FileType.File else int(info.size)

    def make(self, folder: str = "") -> None:
        """Make a folder, those above it too.

        Raises:
            StorageFull, StorageNotWritable, OutputRefused: It cannot be made.
        """
        with writing(self.path(folder)):
            self.fs.create_dir(self.path(folder), recursive=True)

    def remove(self, folder: str) -> None:
        """Remove a folder and all in it; again is no harm.

        Where another attempt writes into it meanwhile, some may stay: whoever comes next removes it.
        """
        for _ in range(_REMOVALS):
            try:
                self.fs.delete_dir(self.path(folder))
            except FileNotFoundError:  # the folder; or something in it, which another attempt removes as well
                if self.fs.get_file_info(self.path(folder)).type == pafs.FileType.NotFound:
                    return
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
            else:
                return

    def sync(self, name: str) -> None:
        """Make a written file durable; what an object store has taken is."""
        if not self.is_local:
            return
        path = Path(self.path(name))
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(path.parent)


def _write_apart(path: Path, data: bytes) -> None:
    """Replace a file durably, by way of one of this writer's own: two attempts at one plan write the same marks."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.new")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def writing(path: str) -> Any:
    """Tell an ``OSError`` within the block as an error of ours that names ``path``.

    Raises:
        StorageFull, StorageNotWritable: The disk is full, or not ours.
        OutputRefused: Anything else that the system says.
    """
    try:
        yield
    except ShoalError:
        raise
    except OSError as error:
        raise storage_error(error, path) or OutputRefused(f"{path}: cannot be written: {error}", retry=True) from error
