"""What this device should run: what the director names and the image repository confirms (Uptane 5.4.4)."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import msgspec
from tuf.api.metadata import TargetFile, Targets

from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.errors import ManifestError, MetadataRefused, storage_error
from edge_agent.contract.repository import Assignment, director_metadata_path, image_metadata_path, parse_target
from edge_agent.update.clock_floor import ClockFloor
from edge_agent.update.server_files import ServerFiles
from edge_agent.update.tuf_client import TrustedClient


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedTarget:
    """A package that both repositories agree on.

    Args:
        digest: SHA-256 of its manifest, ``length`` the manifest's bytes.
        release, rollout: As the director signed them.
    """

    model: str
    version: str
    digest: str
    length: int
    release: int
    rollout: str


class Resolver:
    """Asks both repositories and believes neither alone.

    Args:
        trust: Folder of the verified metadata.
        clock: Gives the time in UTC; the floor kept in ``trust`` holds it up.
    """

    def __init__(
        self, trust: Path, enrolment: Enrolment, files: ServerFiles, *, clock: Callable[[], dt.datetime]
    ) -> None:
        self._trust, self._enrolment, self._files = trust, enrolment, files
        self._floor = ClockFloor(trust / "time", clock)

    def resolve(self, model: str, *, lowest_release: int) -> ResolvedTarget:
        """The package that ``model`` should be at on this device.

        Args:
            lowest_release: Highest release that this device has accepted so far.
        Raises:
            MetadataRefused: Metadata is not to be trusted, or the two repositories do not agree.
            NetworkError: The server cannot be reached.
            StorageFull, StorageNotWritable: Verified metadata cannot be kept.
        """
        now = self._floor.now()
        director = self._client("director", director_metadata_path(self._enrolment.device), now)
        path, named, assignment = self._assigned(director.refresh(), model)
        if assignment.release < lowest_release:
            raise MetadataRefused(
                f"director: release {assignment.release} of {model} is older than release {lowest_release}, seen before"
            )
        image = self._client("image", image_metadata_path(), now)
        confirmed = image.target(path)
        digest = _agreed(path, named, confirmed)
        try:
            self._floor.rise(now)
        except OSError as error:
            raise storage_error(error, str(self._trust)) or error from error
        return ResolvedTarget(
            model=model, version=parse_target(path)[1], digest=digest, length=named.length,
            release=assignment.release, rollout=assignment.rollout,
        )  # fmt: skip

    def _client(self, name: str, path: str, now: dt.datetime) -> TrustedClient:
        root = self._enrolment.director_root if name == "director" else self._enrolment.image_root
        url = self._files.url(path)
        return TrustedClient(name, self._trust / name, url, self._files, root=root.encode(), now=now)

    def _assigned(self, targets: Targets, model: str) -> tuple[str, TargetFile, Assignment]:
        if targets.delegations is not None:
            raise MetadataRefused("director: delegates, which a director must not (Uptane 5.4.4.3)")
        found: list[tuple[str, TargetFile, Assignment]] = []
        for path, target in targets.targets.items():
            try:
                named = parse_target(path)[0]
                assignment = msgspec.convert(target.custom or {}, Assignment)
            except (ManifestError, msgspec.ValidationError) as error:
                raise MetadataRefused(f"director: target {path!r}: {error}") from error
            if assignment.device != self._enrolment.device:
                raise MetadataRefused(
                    f"director: target {path!r} is for device {assignment.device!r}, this is {self._enrolment.device!r}"
                )
            if named == model:
                found.append((path, target, assignment))
        if len(found) != 1:
            paths = sorted(path for path, _, _ in found)
            raise MetadataRefused(f"director: names {len(found)} packages of {model} for this device: {paths}")
        return found[0]


def _agreed(path: str, named: TargetFile, confirmed: TargetFile | None) -> str:
    if confirmed is None:
        raise MetadataRefused(f"the director names {path!r}, which the image repository does not sign")
    digest = named.hashes.get("sha256")
    if digest is None or named.hashes != confirmed.hashes or named.length != confirmed.length:
        raise MetadataRefused(
            f"director and image repository disagree on {path!r}: "
            f"{named.length} bytes {named.hashes} against {confirmed.length} bytes {confirmed.hashes}"
        )
    return digest
