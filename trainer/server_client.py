"""What the worker asks of the fleet server, over its REST API."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from edge_agent.contract.errors import DigestMismatch, ManifestError, NetworkError, ServerRefused
from edge_agent.contract.manifest import MANIFEST_FILE, decode_manifest, digest_of
from edge_agent.contract.names import check_digest, check_name
from edge_agent.contract.repository import blob_path
from edge_agent.contract.runs import RunFile, RunKind, RunProgress, RunResult
from edge_agent.runtime.package import Package
from trainer.errors import TokenRefused

_CHUNK_BYTES = 1 << 20
_CONFLICT = 409
_NOT_FOUND = 404
_TOKEN_REFUSED = (401, 403)
# How the server says that a run was ended, and why.
_CANCELLED = re.compile(r"is cancelled, not running \((.*)\); stop this run$", re.DOTALL)
T = TypeVar("T")


class LeaseLost(NetworkError):
    """Another worker has this run now, or it was ended: whatever this one finds is not wanted any more."""


class RunCancelled(LeaseLost):
    """A person has ended this run; the text is why."""


class ReleasedPackage(msgspec.Struct, frozen=True):
    """A package that the server shows."""

    version: str
    digest: str = ""


class ReleasedModel(msgspec.Struct, frozen=True):
    """A model of the server.

    Args:
        champion: Digest of what the whole fleet runs, else of the newest published; None where there is neither.
    """

    champion: str | None = None
    versions: tuple[ReleasedPackage, ...] = ()


class WaitingRelease(msgspec.Struct, frozen=True):
    """A release that waits for an approver's signature."""

    model: str
    version: str


class ServerClient:
    """A connection to the fleet server in the role ``trainer``. Safe to use from several threads.

    Args:
        token: Of role trainer.
    """

    def __init__(self, server_url: str, token: str, *, timeout_s: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self._client = httpx.Client(base_url=server_url.rstrip("/"), headers=headers, timeout=timeout_s)

    def claim(
        self,
        worker: str,
        models: Sequence[str],
        *,
        kinds: Sequence[RunKind] = (RunKind.TRAIN,),
        cpus: float | None = None,
        gpus: int | None = None,
        holding: Sequence[str] = (),
    ) -> RunFile | None:
        """A run to execute, now under this worker's lease, or None where none waits.

        Args:
            cpus, gpus: What is free; None: not counted.
            holding: Runs that this worker works on; what else is under its name is queued again.
        Raises:
            TokenRefused: The token is not taken (of any call here).
            ServerRefused, NetworkError: The server refuses, or is away.
        """
        body = {"worker": worker, "models": models, "kinds": kinds, "cpus": cpus, "gpus": gpus, "holding": holding}
        reply = self._send("POST", "/api/v1/runs/claim", body)
        if reply.status_code == 204:
            return None
        run = self._decode(reply, RunFile)
        try:  # they become folders here: a stolen server must not choose which
            check_name(run.run, "run")
            check_name(run.model, "model")
            if run.champion is not None:
                check_digest(run.champion, "champion")
        except ManifestError as error:
            raise NetworkError(f"{reply.url}: the answer is not what was agreed: {error}") from error
        return run

    def progress(self, run: str, progress: RunProgress) -> None:
        """Say how far a run is, which renews its lease.

        Raises:
            LeaseLost: The run is not this worker's any more.
            ServerRefused, NetworkError: The server refuses, or is away.
        """
        self._send("POST", f"/api/v1/runs/{run}/progress", progress)

    def hand_back(self, run: str, fence: int, reason: str) -> None:
        """Give a run back: another worker goes on with it at once.

        Raises:
            LeaseLost, ServerRefused, NetworkError: As :meth:`progress`.
        """
        self._send("POST", f"/api/v1/runs/{run}/hand-back", {"fence": fence, "reason": reason})

    def result(self, run: str, result: RunResult) -> None:
        """Say how a run ended.

        Raises:
            LeaseLost, ServerRefused, NetworkError: As :meth:`progress`.
        """
        self._send("POST", f"/api/v1/runs/{run}/result", result)

    def versions(self, model: str) -> set[str]:
        """The versions of a model that are taken: those that the server shows, and those that wait for approval.

        Raises:
            ServerRefused, NetworkError: The server refuses, or is away.
        """
        found = self.released(model)
        shown = {package.version for package in found.versions} if found is not None else set()
        return shown | self._waiting(model)

    def _waiting(self, model: str) -> set[str]:
        try:
            reply = self._send("GET", "/api/v1/approvals")
        except ServerRefused as error:
            if error.status == _NOT_FOUND:  # a server that knows of no approvals
                return set()
            raise
        return {one.version for one in self._decode(reply, list[WaitingRelease]) if one.model == model}

    def released(self, model: str) -> ReleasedModel | None:
        """A model's packages, the newest first, and its champion; None where the server does not know the model.

        Raises:
            ServerRefused, NetworkError: The server refuses, or is away.
        """
        try:
            reply = self._send("GET", f"/api/v1/models/{model}")
        except ServerRefused as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return self._decode(reply, ReleasedModel)

    def serve_answers(self, job: str, kind: str, path: str) -> None:
        """Let the server serve a batch job's answers by key, from a table that it can read.

        Raises:
            ServerRefused, NetworkError: The server refuses, cannot read the table, or is away.
        """
        self._send("PUT", f"/api/v1/predictions/{job}", {"kind": kind, "path": path})

    def download(self, digest: str, folder: Path) -> Package:
        """Bring a package into ``folder``, which appears whole or not at all, with every file's digest verified.

        Raises:
            ManifestError: ``digest`` is none.
            DigestMismatch: The server sent other bytes than the digest names.
            ServerRefused, NetworkError: The server refuses, or is away.
        """
        check_digest(digest, "package")
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name[:12]}-", dir=folder.parent))
        try:
            self._blob(digest, building / MANIFEST_FILE)
            data = (building / MANIFEST_FILE).read_bytes()
            if digest_of(data) != digest:
                raise DigestMismatch(MANIFEST_FILE, expected=digest, actual=digest_of(data))
            for name, entry in decode_manifest(data).files.items():
                path = building / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self._blob(entry.sha256, path)
            Package.open(building, verify=True)
            building.chmod(0o755)  # mkdtemp makes it private
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return Package.open(folder, verify=False)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _blob(self, sha256: str, path: Path) -> None:
        url = blob_path(sha256)
        try:
            with self._client.stream("GET", url) as reply, path.open("wb") as file:
                if not reply.is_success:
                    reply.read()
                    refuse_token(reply)
                    raise ServerRefused(str(reply.url), status=reply.status_code, detail=_detail(reply))
                for chunk in reply.iter_bytes(_CHUNK_BYTES):
                    file.write(chunk)
        except httpx.HTTPError as error:
            raise NetworkError(f"{self._client.base_url}{url}: {type(error).__name__}: {error}") from error

    def _send(self, method: str, url: str, body: Any = None) -> httpx.Response:
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            reply = self._client.request(method, url, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise NetworkError(f"{self._client.base_url}{url}: {type(error).__name__}: {error}") from error
        refuse_token(reply)
        if reply.status_code == _CONFLICT:
            detail = _detail(reply)
            cancelled = _CANCELLED.search(detail)
            raise RunCancelled(cancelled[1]) if cancelled else LeaseLost(detail)
        if not reply.is_success:
            raise ServerRefused(str(reply.url), status=reply.status_code, detail=_detail(reply))
        return reply

    def _decode(self, reply: httpx.Response, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(reply.content, type=kind)
        except msgspec.DecodeError as error:
            raise NetworkError(f"{reply.url}: the answer is not what was agreed: {error}") from error


def refuse_token(reply: httpx.Response) -> None:
    """Tell a token that the server does not take from other refusals.

    Raises:
        TokenRefused: The answer is 401 or 403.
    """
    if reply.status_code not in _TOKEN_REFUSED:
        return
    server = str(reply.url.copy_with(path="/", query=None)).rstrip("/")
    raise TokenRefused(
        f"{server}: the token was refused ({reply.status_code}: {_detail(reply)}); it needs one of role trainer, in "
        "SHOAL_TOKEN or --token"
    )


def _detail(reply: httpx.Response) -> str:
    """The error's own sentence, wherever the server has put it."""
    try:
        found = reply.json()
    except ValueError:
        return reply.text[:300]
    if isinstance(found, dict):
        return str(found.get("error") or found.get("detail") or found)[:300]
    return str(found)[:300]
