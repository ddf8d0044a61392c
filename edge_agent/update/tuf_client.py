"""The metadata of one TUF repository as the rest of the device sees it: errors of ours, one thread, bounded time."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from pathlib import Path

from tuf.api import exceptions
from tuf.api.metadata import TargetFile, Targets
from tuf.api.serialization import DeserializationError

from edge_agent.contract.errors import DeviceError, MetadataRefused, NetworkError, storage_error
from edge_agent.update.durable_updater import TOTAL_S, DurableUpdater
from edge_agent.update.owner_thread import OwnerThread
from edge_agent.update.server_files import ServerFiles


class TrustedClient:
    """The metadata of one TUF repository, verified from a root that came with the device's enrolment.

    It belongs to the thread that first calls it; see :class:`edge_agent.update.owner_thread.OwnerThread`.

    Args:
        name: What errors call the repository: ``image`` or ``director``.
        folder: Where verified metadata is kept; made where it is missing.
        now: Time that expiry is measured by.
        total_s: Longest time that the metadata may take in all.
        target_folder, target_url: Where :meth:`download` keeps files and finds them; packages come another way.
        same_keys: Roles may delegate to their own keys only; see :class:`DurableUpdater`.
    Raises:
        MetadataRefused: ``root`` is no valid root metadata.
        DeviceError: The folder cannot be written.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        url: str,
        files: ServerFiles,
        *,
        root: bytes,
        now: dt.datetime,
        total_s: float = TOTAL_S,
        target_folder: Path | None = None,
        target_url: str | None = None,
        same_keys: bool = False,
    ) -> None:
        self._name, self._folder = name, folder
        self._owner = OwnerThread(f"the client of the {name} repository")
        with self._errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._updater = DurableUpdater(
                folder, url, files, root=root, now=now, total_s=total_s, target_folder=target_folder,
                target_url=target_url, same_keys=same_keys,
            )  # fmt: skip

    def refresh(self) -> Targets:
        """Bring all top-level metadata up to date, once; gives the top-level targets.

        Raises:
            MetadataRefused: Unsigned, expired, rolled back or mixed metadata.
            NetworkError: The server cannot be reached, is too slow, or what comes is no metadata at all.
            DeviceError: It cannot be kept.
            WrongThread: The client belongs to another thread.
        """
        with self._errors(), self._strange_answers():
            self._updater.refresh()
        return self._updater.top_level_targets()

    def target(self, path: str) -> TargetFile | None:
        """What the repository says about a target, delegations followed; None where it does not know it.

        Raises:
            As :meth:`refresh`, which is called where it has not been.
        """
        with self._errors(), self._strange_answers():
            return self._updater.get_targetinfo(path)

    def target_keys(self) -> tuple[str, ...]:
        """Identifiers of the keys that the root trusts with the top-level targets, sorted."""
        return tuple(sorted(self._updater.top_level_root().roles[Targets.type].keyids))

    def download(self, target: TargetFile) -> Path:
        """The file of a target, verified; not fetched again where it is here already.

        Raises:
            As :meth:`refresh`.
        """
        with self._errors():
            return Path(self._updater.find_cached_target(target) or self._updater.download_target(target))

    @contextlib.contextmanager
    def _strange_answers(self) -> Iterator[None]:
        """A page of somebody else's network says nothing, not even that somebody lies."""
        try:
            yield
        except DeserializationError as error:
            text = f"{self._name} repository: what came is no metadata, as where a network wants a login first: {error}"
            raise NetworkError(text) from error

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        self._owner.check()
        try:
            yield
        except (exceptions.RepositoryError, exceptions.DownloadLengthMismatchError) as error:
            raise MetadataRefused(f"{self._name} repository: {error}") from error
        except exceptions.DownloadError as error:
            cause = error.__cause__
            raise cause if isinstance(cause, NetworkError) else NetworkError(f"{self._name}: {error}") from error
        except OSError as error:
            where = str(error.filename or self._folder)
            raise storage_error(error, where) or DeviceError(f"{where}: {error.strerror}") from error
