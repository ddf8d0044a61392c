"""What this device should run: what the director names and the image repository confirms (Uptane 5.4.4)."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import msgspec
from tuf.api.metadata import TargetFile, Targets

from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.errors import DeviceError, ManifestError, MetadataRefused, storage_error
from edge_agent.contract.messages import Hardware
from edge_agent.contract.repository import (
    AssignedHardware,
    Assignment,
    director_metadata_path,
    image_metadata_path,
    parse_target,
)
from edge_agent.update.accepted_releases import AcceptedReleases
from edge_agent.update.clock_floor import ClockFloor
from edge_agent.update.owner_thread import OwnerThread
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
    """Asks both repositories and believes neither alone. It belongs to the thread that first calls it.

    Args:
        trust: Folder of the verified metadata.
        clock: Gives the time in UTC; the floor kept in ``trust`` holds it up.
        hardware: What this device is; packages assigned for other hardware are refused. None: it does not tell.
    """

    def __init__(
        self,
        trust: Path,
        enrolment: Enrolment,
        files: ServerFiles,
        *,
        clock: Callable[[], dt.datetime],
        hardware: Hardware | None = None,
    ) -> None:
        self._trust, self._enrolment, self._files, self._hardware = trust, enrolment, files, hardware
        self._floor = ClockFloor(trust / "time", clock)
        self._accepted = AcceptedReleases(trust / "releases.json")
        self._owner = OwnerThread("what this device trusts")

    def resolve(self, model: str, *, lowest_release: int) -> ResolvedTarget:
        """The package that ``model`` should be at on this device.

        Args:
            lowest_release: Highest release that this device has accepted so far. It binds a director with the same
                keys; an offline root that has named new ones since has taken the old ones' word back (as TUF 5.3.11
                does with versions), so that a thief who counted far ahead does not lock the device out for good.
        Raises:
            MetadataRefused: Metadata is not to be trusted, or the two repositories do not agree.
            NetworkError: The server cannot be reached, or is too slow.
            DeviceError: Verified metadata cannot be kept.
            WrongThread: The resolver belongs to another thread.
        """
        self._owner.check()
        now = self._floor.now()
        director = self._client("director", director_metadata_path(self._enrolment.device), now)
        path, named, assignment = self._assigned(director.refresh(), model)
        keys = director.target_keys()
        if assignment.release < lowest_release and self._accepted.binds(model, keys):
            raise MetadataRefused(
                f"director: release {assignment.release} of {model} is older than release {lowest_release}, seen before"
            )
        self._check_hardware(path, assignment.hardware)
        image = self._client("image", image_metadata_path(), now)
        confirmed = image.target(path)
        digest = _agreed(path, named, confirmed)
        try:
            self._floor.rise(now)
            self._accepted.note(model, assignment.release, keys)
        except OSError as error:
            where = str(error.filename or self._trust)
            raise storage_error(error, where) or DeviceError(f"{where}: {error.strerror}") from error
        return ResolvedTarget(
            model=model, version=parse_target(path)[1], digest=digest, length=named.length,
            release=assignment.release, rollout=assignment.rollout,
        )  # fmt: skip

    def _client(self, name: str, path: str, now: dt.datetime) -> TrustedClient:
        root = self._enrolment.director_root if name == "director" else self._enrolment.image_root
        url = self._files.url(path)
        return TrustedClient(name, self._trust / name, url, self._files, root=root.encode(), now=now, same_keys=True)

    def _check_hardware(self, path: str, assigned: AssignedHardware | None) -> None:
        if assigned is None or self._hardware is None:
            return
        ours = self._hardware
        if (assigned.architecture, assigned.accelerator) != (ours.architecture, ours.accelerator):
            raise MetadataRefused(
                f"director: target {path!r} is for {assigned.architecture} with {assigned.accelerator}, this device is "
                f"{ours.architecture} with {ours.accelerator}; the server assigns it anew once it has heard so"
            )

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
