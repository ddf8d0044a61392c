"""The server's data folder: what lies where, with which mode, and clear words when the disk refuses."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edge_agent.contract.errors import ConfigurationError, StorageFull, StorageNotWritable, storage_error
from edge_agent.durable import write_durably

_log = logging.getLogger(__name__)
# SQLite and the lake need room to work; below this the server would stop within minutes anyway.
MINIMUM_FREE_BYTES = 32 * 1024 * 1024


class ServerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """What ``server.json`` says once the server is ready."""

    url: str
    broker: str
    pid: int


class DataFolder:
    """Paths inside the data folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "shoal.db"
        self.lake = root / "lake"
        self.repository = root / "repository"
        self.predictions = root / "predictions"  # indices of the tables of answers; made again where they are missing
        self.keys = root / "keys"
        self.director_key = self.keys / "director.pem"
        self.director_root = self.keys / "director-root.json"
        self.image_root = self.keys / "image-root.json"
        self.admin_token = root / "admin.token"
        self.address = root / "server.json"

    def prepare(self) -> None:
        """Make the folder, for its owner alone, and see that it can be written to.

        One that was there before keeps its mode, for others may have been let in on purpose; it is said, each time.

        Raises:
            StorageNotWritable, StorageFull: It cannot.
        """
        with self.storage():
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.lake, self.repository, self.keys):
                folder.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as probe:
                probe.write(b"\0" * 4096)
                probe.flush()
                os.fsync(probe.fileno())
            free = shutil.disk_usage(self.root).free
            mode = self.root.stat().st_mode & 0o777
        if free < MINIMUM_FREE_BYTES:
            raise StorageFull(f"{self.root}: only {free >> 20} MiB are free; make room, or choose another --data")
        if mode & 0o077:
            _log.warning(
                "%s: others on this machine may look into it, and it holds keys and samples (mode %o): chmod 700 %s",
                self.root, mode, self.root,
            )  # fmt: skip

    def lock(self) -> Callable[[], None]:
        """Keep other servers out of the folder; gives what ends that. The system ends it with the process, too.

        Raises:
            ConfigurationError: Another server works in it.
        """
        with self.storage():
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigurationError(f"{self.root}: another server works in this folder; end it first") from error
        return lambda: os.close(descriptor)

    def check_keys(self) -> None:
        """See that the director's key and the two roots of trust are there.

        Raises:
            ConfigurationError: One is missing.
        """
        for path in (self.director_key, self.image_root, self.director_root):
            if not path.is_file():
                raise ConfigurationError(
                    f"{path} is missing: make keys with `shoal keys init KEYS`, "
                    f"then `shoal server init --data {self.root} --keys KEYS`"
                )

    def take_keys(self, keys: Path) -> None:
        """Copy what the server needs from a folder that ``shoal keys init`` has made; offline keys stay where they are.

        Raises:
            ConfigurationError: It is no such folder.
        """
        roots = {self.image_root: keys / "image", self.director_root: keys / "director"}
        wanted = {self.director_key: keys / "server" / "director.pem"}
        wanted |= {path: newest_root(folder) for path, folder in roots.items()}
        for source in wanted.values():
            if not source.is_file():
                raise ConfigurationError(f"{source} is missing: {keys} was not made by `shoal keys init`")
        # Devices follow roots one by one: one that was enrolled with the first needs each that came between.
        for folder, served in ((keys / "image", "image"), (keys / "director", "director-roots")):
            roots_folder = self.repository / served
            with self.storage():
                roots_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for source in folder.glob("*.root.json"):
                self.write(roots_folder / source.name, source.read_bytes(), mode=0o644)
        for path, source in wanted.items():
            self.write(path, source.read_bytes(), mode=0o600 if path.suffix == ".pem" else 0o644)

    def write(self, path: Path, data: bytes, *, mode: int) -> None:
        """Replace a file whole, at once and durably.

        Raises:
            StorageNotWritable, StorageFull: The disk refuses.
        """
        with self.storage():
            write_durably(path, data, mode=mode)

    @contextmanager
    def storage(self) -> Iterator[None]:
        """Turn what the operating system says about the disk into an error of ours."""
        try:
            yield
        except (FileExistsError, NotADirectoryError) as error:
            raise StorageNotWritable(f"{self.root}: {error.strerror}; choose a folder for --data") from error
        except OSError as error:
            raise storage_error(error, str(error.filename or self.root)) or error from error


def newest_root(folder: Path) -> Path:
    """The root metadata of highest version in a folder; ``1.root.json`` where there is none."""
    found = [path for path in folder.glob("*.root.json") if path.name.partition(".")[0].isdigit()]
    return max(found, key=lambda path: int(path.name.partition(".")[0]), default=folder / "1.root.json")
