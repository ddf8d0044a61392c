"""What earlier versions of the director kept as files, one folder per device, brought into its store."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from tuf.api.metadata import Metadata, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from fleet_server.updates.director_store import DirectorStore, Signed

_log = logging.getLogger(__name__)
_BATCH = 500


def import_folders(folder: Path, store: DirectorStore) -> frozenset[str]:
    """Bring every device's newest version into the store, then remove its folder; a crash in between does no harm.

    Args:
        folder: ``director``, with a folder per device; it need not be there.
    Returns:
        Devices whose files are damaged: their folders stay, for a backup to be put in their place.
    Raises:
        OSError, ConfigurationError, StorageFull, StorageNotWritable: It cannot be read or stored.
    """
    if not folder.is_dir():
        return frozenset()
    damaged: set[str] = set()
    places = sorted(path for path in folder.iterdir() if path.is_dir())
    for start in range(0, len(places), _BATCH):
        read: list[tuple[Path, Signed]] = []
        for place in places[start : start + _BATCH]:
            try:
                read.append((place, _newest(place)))
            except (DeserializationError, ValueError, OSError) as error:
                _log.error("%s is damaged (%s); restore it from a backup, then start again", place, error)
                damaged.add(place.name)
        known = {place.name: store.newest(place.name) for place, _ in read}
        # What the store has is newer, where an earlier start was cut off between storing and removing.
        store.put([row for _, row in read if (have := known[row.device]) is None or have[0] < row.version])
        for place, _ in read:
            shutil.rmtree(place)
    if not damaged:
        shutil.rmtree(folder)
    if places:
        _log.info("brought the metadata of %d devices from files into the store", len(places) - len(damaged))
    return frozenset(damaged)


def _newest(place: Path) -> Signed:
    stamped = (place / "timestamp.json").read_bytes()
    timestamp = Metadata[Timestamp].from_bytes(stamped)
    version = timestamp.signed.version
    snapshot, targets = (
        (place / f"{version}.{role}.json").read_bytes() for role in (Snapshot.type, Targets.type)
    )  # fmt: skip
    Metadata[Targets].from_bytes(targets)
    return Signed(
        device=place.name, version=version, expires_s=int(timestamp.signed.expires.timestamp()),
        keyid=next(iter(timestamp.signatures), ""), targets=targets, snapshot=snapshot, timestamp=stamped,
    )  # fmt: skip
