"""Publishing: a package's files and its signed metadata, on their way to the fleet server."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from edge_agent.contract.errors import NetworkError, ServerRefused
from edge_agent.contract.manifest import MANIFEST_FILE
from edge_agent.contract.repository import image_metadata_path, target_name
from edge_agent.runtime.package import Package
from trainer.publish.errors import PublishRefused
from trainer.publish.image_signing import ImageSigning, Lifetimes
from trainer.publish.keys import KeyFolder, utc_now
from trainer.publish.proposals import Proposal, metadata_of, signatures_of
from trainer.server_client import refuse_token

_CHUNK_BYTES = 1 << 20
_ERROR_TEXT = 500
_OK, _CONFLICT, _UNPROCESSABLE = 200, 409, 422
_DONE = (200, 201)
_ROUNDS = 100
_log = logging.getLogger(__name__)


class Publisher:
    """Signs packages and brings them to a server. One at a time per key folder, across processes.

    Args:
        keys_dir: As ``shoal keys init`` made it; ``offline/`` is not needed.
        token: Of role trainer.
        passphrase: Of the keys; None takes ``SHOAL_KEYS_PASSPHRASE`` from the environment, if set.
        lifetimes: Of what is signed; None takes those that the keys were made with.
    """

    def __init__(
        self,
        keys_dir: Path,
        server_url: str,
        token: str,
        *,
        passphrase: str | None = None,
        lifetimes: Lifetimes | None = None,
        now: Callable[[], dt.datetime] = utc_now,
        timeout_s: float = 60.0,
    ) -> None:
        keys = KeyFolder(keys_dir, passphrase=passphrase) if passphrase else KeyFolder.from_environment(keys_dir)
        self._keys = keys
        self._signing = ImageSigning(keys, lifetimes=lifetimes, now=now)
        self._refused: dict[tuple[str, str], str] = {}
        headers = {"Authorization": f"Bearer {token}"}
        self._client = httpx.Client(base_url=server_url, headers=headers, timeout=timeout_s)

    def publish(self, package: Package) -> str | None:
        """Sign a package and show it on the server; what is there already is not sent again.

        Returns:
            None where it is visible; else what it waits for, in words.
        Raises:
            DigestMismatch, PackageError: The package on disk is damaged.
            PublishRefused: Its version is taken, its model has no key here, or an administrator has refused it.
            SigningKeyError: A key is missing.
            TokenRefused: The server does not take the token.
            ServerRefused, NetworkError: The server refuses, or is away; publish again.
        """
        package.verify()
        manifest = package.manifest
        data = (package.folder / MANIFEST_FILE).read_bytes()
        with self._keys.alone():
            self._upload_file(package.digest, package.folder / MANIFEST_FILE)
            for name, entry in manifest.files.items():
                self._upload_file(entry.sha256, package.path(name))
            path = target_name(manifest.name, manifest.version)
            self._signing.add_target(manifest.name, path, len(data), package.digest)
            self._signing.refresh()
            self._upload_metadata()
            self._exchange()
        if (why := self._refused.pop((manifest.name, manifest.version), None)) is not None:
            raise PublishRefused(f"{why}; give the next package another version")
        return self._lacks(manifest.name, manifest.version)

    def refresh(self) -> bool:
        """Sign anew what is about to expire, fetch approvals, bring the server up to date; call it every hour or so.

        Returns:
            Whether a release still waits for approval: then call it again soon.
        Raises:
            SigningKeyError, ServerRefused, NetworkError: As :meth:`publish`.
        """
        with self._keys.alone():
            self._signing.refresh()
            self._upload_metadata()
            self._exchange()
        return bool(self._signing.releases.waiting.all())

    def _lacks(self, model: str, version: str) -> str | None:
        proposal = self._signing.releases.waiting.get(model, version)
        if proposal is None:
            return None
        results = signatures_of(proposal, self._signing.store.roles()).values()
        missing = max(one.missing for one in results)
        return f"waits for approval: {missing} of {max(one.threshold for one in results)} signatures are missing"

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _upload_file(self, sha256: str, path: Path) -> None:
        url = f"/api/v1/repository/blobs/{sha256}"
        if self._send("HEAD", url, accepted=(200, 404)).status_code == 404:
            headers = {"Content-Length": str(path.stat().st_size)}
            self._send("PUT", url, content=_chunks(path), headers=headers)

    def _upload_metadata(self) -> None:
        files = self._signing.files()
        shown = self._send("GET", f"{image_metadata_path()}timestamp.json", accepted=(200, 404))
        if shown.status_code == 200 and shown.content == files["timestamp.json"]:
            return
        lacked = {name: files[name] for name in files.keys() - self._held(files, shown)}
        if len(lacked) < len(files) and self._post_metadata(lacked, accepted=(*_DONE, _UNPROCESSABLE)) in _DONE:
            return
        self._post_metadata(files)  # what it holds may be other bytes of the same name

    def _post_metadata(self, files: Mapping[str, bytes], *, accepted: tuple[int, ...] = _DONE) -> int:
        texts = {name: data.decode() for name, data in files.items()}
        return self._send("POST", "/api/v1/repository/metadata", json={"files": texts}, accepted=accepted).status_code

    def _held(self, files: Mapping[str, bytes], shown: httpx.Response) -> set[str]:
        """The files that the server shows already: of thousands of bins a release changes a few."""
        if shown.status_code != _OK:
            return set()
        roots = [name for name in files if name.endswith(".root.json")]
        held = set(roots) if self._shown(roots[-1]) == files[roots[-1]] else set[str]()
        try:
            timestamp = Metadata[Timestamp].from_bytes(shown.content).signed
            snapshot = self._shown(f"{timestamp.snapshot_meta.version}.snapshot.json")
            meta = Metadata[Snapshot].from_bytes(snapshot or b"").signed.meta
        except RepositoryError:
            return held
        return held | {f"{one.version}.{file}" for file, one in meta.items()}

    def _shown(self, name: str) -> bytes | None:
        answer = self._send("GET", f"{image_metadata_path()}{name}", accepted=(_OK, 404))
        return answer.content if answer.status_code == _OK else None

    def _exchange(self) -> bool:
        """Propose to the server what waits here, and take the signatures that it has collected."""
        completed = False
        for _ in range(_ROUNDS):  # each release that is completed lets those beside it be signed anew
            proposals = self._signing.releases.rebase()
            if not any(self._settled(proposal) for proposal in proposals):
                break
            self._upload_metadata()
            completed = True
        return completed

    def _settled(self, proposal: Proposal) -> bool:
        """Whether a release has all its signatures now; one that was refused is dropped."""
        waiting = self._signing.releases.waiting
        if waiting.get(proposal.model, proposal.version) is None:
            return False  # rebased away by one before it
        names = ("model", "version", "roles", "path", "length", "package")
        answer = self._send(
            "POST",
            "/api/v1/approvals",
            json={name: getattr(proposal, name) for name in names},
            accepted=(200, 409, 422),
        )
        if answer.status_code == _CONFLICT and "was refused" in answer.text:
            _log.warning("%s %s is dropped: %s", proposal.model, proposal.version, answer.json()["error"])
            waiting.forget(proposal.model, proposal.version)
            self._refused[proposal.model, proposal.version] = str(answer.json()["error"])
            return False
        if answer.status_code != _OK:
            # Of another one that came first, or files that are gone: said each time, and the others go on.
            _log.warning("%s %s: %s", proposal.model, proposal.version, answer.text[:_ERROR_TEXT])
            return False
        details = self._send("GET", f"/api/v1/approvals/{proposal.model}/{proposal.version}").json()
        collected = {name: _signatures(text, name) for name, text in details["proposal"]["roles"].items()}
        return self._signing.releases.complete(proposal, collected)

    def _send(
        self,
        method: str,
        url: str,
        *,
        accepted: tuple[int, ...] = _DONE,
        content: Iterator[bytes] | None = None,
        json: object = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        try:
            answer = self._client.request(method, url, content=content, json=json, headers=headers)
        except httpx.HTTPError as error:
            where = f"{method} {self._client.base_url.join(url)}"
            raise NetworkError(f"{where}: {error}; is the server running and reachable? Publish again then") from error
        refuse_token(answer)
        if answer.status_code not in accepted:
            raise ServerRefused(str(answer.url), status=answer.status_code, detail=answer.text[:_ERROR_TEXT])
        return answer


def _signatures(text: str, role: str) -> dict[str, str]:
    return {keyid: one.signature for keyid, one in metadata_of(text, role).signatures.items()}


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
