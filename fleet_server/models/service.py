"""The registry of models: packages come in signed and verified, and leave by being withdrawn, never by deletion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from edge_agent.contract.manifest import Manifest, decode_manifest, digest_of, encode_manifest
from fleet_server.clock import Clock, now_ms
from fleet_server.database import Database
from fleet_server.errors import Conflict, NotFound
from fleet_server.models.records import ModelRecord, PackageRecord, ReleaseState
from fleet_server.models.tables import packages


class ModelService:
    """Released packages by model.

    Args:
        unreleased: What became of a version that is none yet, given model and version or digest: a sentence, or "".
    """

    def __init__(
        self,
        db: Database,
        *,
        unreleased: Callable[[str, str], str] = lambda _model, _version: "",
        clock: Clock = now_ms,
    ) -> None:
        self._db, self._unreleased, self._clock = db, unreleased, clock

    def register(
        self, manifest: Manifest, digest: str, evaluation: dict[str, Any], *, manifest_bytes: bytes | None = None
    ) -> None:
        """Take a published package into the registry; the same package again changes nothing.

        Args:
            manifest_bytes: The signed bytes, where the manifest was written by other code than ours.
        Raises:
            Conflict: The version exists already with other content, or the bytes are not those of the digest.
        """
        data = manifest_bytes if manifest_bytes is not None else encode_manifest(manifest)
        if digest_of(data) != digest:
            raise Conflict(
                f"{manifest.name} {manifest.version}: the manifest's bytes are not those of digest {digest[:12]}"
            )
        now = self._clock()
        with self._db.write() as connection:
            same = (packages.c.model == manifest.name) & (packages.c.version == manifest.version)
            known = connection.scalar(sa.select(packages.c.digest).where(same))
            if known == digest:
                return
            if known is not None:
                raise Conflict(
                    f"{manifest.name} {manifest.version} is published already as {known[:12]}; "
                    "give the new content a new version"
                )
            connection.execute(
                sa.insert(packages).values(
                    digest=digest,
                    model=manifest.name,
                    version=manifest.version,
                    parent=manifest.parent,
                    manifest=data,
                    evaluation=evaluation,
                    published_at_ms=now,
                    state=ReleaseState.PUBLISHED.value,
                    state_at_ms=now,
                    state_reason="",
                )
            )

    def champion(self, model: str) -> tuple[str, str] | None:
        """Digest and version of the package to beat: the newest rolled out to all, else the newest published.

        Returns:
            None where the model has no package that is neither halted nor withdrawn.
        """
        with self._db.read() as connection:
            found = self.current(connection, model) or _newest(connection, model, ReleaseState.PUBLISHED)
        return (found.digest, found.version) if found is not None else None

    def current(self, connection: sa.Connection, model: str) -> PackageRecord | None:
        """The package that every device of the fleet should have: the newest whose rollout is done."""
        return _newest(connection, model, ReleaseState.ROLLED_OUT)

    def is_known(self, connection: sa.Connection, digest: str) -> bool:
        """Whether a package of that digest was published here and not withdrawn."""
        query = sa.select(packages.c.digest).where(packages.c.digest == digest)
        return connection.scalar(query.where(packages.c.state != ReleaseState.WITHDRAWN.value)) is not None

    def package(self, connection: sa.Connection, digest: str) -> PackageRecord:
        """One package.

        Raises:
            NotFound: There is none of that digest.
        """
        row = connection.execute(sa.select(packages).where(packages.c.digest == digest)).mappings().first()
        if row is None:
            raise NotFound(f"there is no package {digest[:12]}; `shoal models list` shows those there are")
        return _record(row)

    def find(self, model: str, version_or_digest: str) -> PackageRecord:
        """A model's package by version, by digest, or by the digest's first 8 or more digits.

        Raises:
            NotFound: There is none, or it waits for approval, or was refused.
            Conflict: Several digests begin so.
        """
        matches = [
            one
            for known in self.list()
            for one in known.versions
            if known.name == model
            if one.version == version_or_digest
            or (len(version_or_digest) >= 8 and one.digest.startswith(version_or_digest))
        ]
        if len(matches) > 1:
            raise Conflict(f"model {model!r}: {version_or_digest!r} is {len(matches)} packages; give more digits")
        if not matches and (why := self._unreleased(model, version_or_digest)):
            raise NotFound(why)
        if not matches:
            self.get(model)  # where there is no such model, that is said
            raise NotFound(
                f"model {model!r} has no version or package {version_or_digest!r}: shoal models show {model}"
            )
        return matches[0]

    def get(self, model: str) -> ModelRecord:
        """One model with all its versions, newest first.

        Raises:
            NotFound: Nothing was ever published under that name.
        """
        found = [one for one in self.list() if one.name == model]
        if not found:
            raise NotFound(f"there is no model {model!r}; `shoal models list` shows those there are")
        return found[0]

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a package.

        Raises:
            NotFound: There is none of that digest.
        """
        with self._db.read() as connection:
            data = connection.scalar(sa.select(packages.c.manifest).where(packages.c.digest == digest))
        if data is None:
            raise NotFound(f"there is no package {digest[:12]}; `shoal models list` shows those there are")
        return decode_manifest(data)

    def set_state(self, connection: sa.Connection, digest: str, state: ReleaseState, reason: str) -> None:
        """Write down where a package is; a withdrawn one stays withdrawn."""
        change = sa.update(packages).where(
            packages.c.digest == digest, packages.c.state != ReleaseState.WITHDRAWN.value
        )
        connection.execute(change.values(state=state.value, state_at_ms=self._clock(), state_reason=reason))

    def names(self, connection: sa.Connection) -> Sequence[str]:
        """Names of all models."""
        return connection.scalars(sa.select(packages.c.model).distinct().order_by(packages.c.model)).all()

    def list(self) -> Sequence[ModelRecord]:
        """All models, by name."""
        order = (packages.c.model, packages.c.published_at_ms.desc(), packages.c.version.desc())
        with self._db.read() as connection:
            records = [_record(row) for row in connection.execute(sa.select(packages).order_by(*order)).mappings()]
        models = []
        for name in dict.fromkeys(one.model for one in records):
            versions = tuple(one for one in records if one.model == name)
            champion = self.champion(name)
            models.append(
                ModelRecord(
                    name=name,
                    champion=champion[0] if champion else None,
                    champion_version=champion[1] if champion else None,
                    versions=versions,
                )
            )
        return models


def _newest(connection: sa.Connection, model: str, state: ReleaseState) -> PackageRecord | None:
    query = sa.select(packages).where(packages.c.model == model, packages.c.state == state.value)
    order = (packages.c.state_at_ms.desc(), packages.c.published_at_ms.desc(), packages.c.version.desc())
    row = connection.execute(query.order_by(*order).limit(1)).mappings().first()
    return _record(row) if row is not None else None


def _record(row: sa.RowMapping) -> PackageRecord:
    manifest = decode_manifest(row["manifest"])
    fields = {name: value for name, value in row.items() if name not in {"manifest", "state"}}
    return PackageRecord(
        **fields,
        state=msgspec.convert(row["state"], ReleaseState),
        manifest_bytes=len(row["manifest"]),
        size_bytes=manifest.size_bytes,
        labels=manifest.task.labels,
        lineage=manifest.lineage,
    )
