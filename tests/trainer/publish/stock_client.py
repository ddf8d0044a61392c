"""python-tuf's own client over a folder of metadata: what any TUF client would believe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater


class StockClient:
    """A device that keeps what it has seen in a folder of its own.

    Args:
        state: Its folder; made where it is missing.
        metadata: The repository's files.
    """

    def __init__(self, state: Path, metadata: Path) -> None:
        self._state, self._fetcher = state, _FromFolder(metadata)
        state.mkdir(parents=True, exist_ok=True)
        self._root = (metadata / "1.root.json").read_bytes()

    def target(self, path: str) -> TargetFile | None:
        """What the repository says of a path, after a refresh."""
        updater = Updater(str(self._state), "https://server/", fetcher=self._fetcher, bootstrap=self._root)
        updater.refresh()
        return updater.get_targetinfo(path)

    @property
    def fetched(self) -> list[str]:
        """The files that it asked for."""
        return self._fetcher.fetched


class _FromFolder(FetcherInterface):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.fetched: list[str] = []

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        self.fetched.append(name)
        path = self._folder / name
        if not path.exists():
            raise DownloadHTTPError(name, 404)
        yield path.read_bytes()
