"""Where signed metadata and packages are found over HTTP, and what a target is called.

The image repository says which packages exist (offline keys); the director says which of them a device should
install (online key). A device installs only what both name with the same length and hashes (Uptane, 5.4.4.5).

========================================  ==========================================================
path under the server's base URL          what
========================================  ==========================================================
``/updates/image/{file}``                 TUF metadata of the image repository
``/updates/director/{device}/{file}``     TUF metadata of the director, per device
``/updates/targets/{sha256}``             a manifest or a package file by its SHA-256 (Range supported)
``/updates/deltas/{base}/{sha256}``       what makes that file of the one with SHA-256 ``base``; 404 where nothing would
                                          be saved. Unsigned: what it gives is held against the file's signed SHA-256
========================================  ==========================================================
"""

from __future__ import annotations

import msgspec

from edge_agent.contract.errors import ManifestError
from edge_agent.contract.manifest import MANIFEST_FILE
from edge_agent.contract.names import check_name, check_version
from edge_agent.contract.quantities import Count


def image_metadata_path() -> str:
    """Base path of the image repository's metadata."""
    return "/updates/image/"


def director_metadata_path(device: str) -> str:
    """Base path of the director's metadata for a device."""
    return f"/updates/director/{device}/"


def blob_path(sha256: str) -> str:
    """Path of a file of a package."""
    return f"/updates/targets/{sha256}"


def delta_path(base: str, sha256: str) -> str:
    """Path of the delta that makes one file of another, both by their SHA-256."""
    return f"/updates/deltas/{base}/{sha256}"


def target_name(model: str, version: str) -> str:
    """The TUF target path of a package: that of its manifest."""
    return f"{model}/{version}/{MANIFEST_FILE}"


def parse_target(target: str) -> tuple[str, str]:
    """Model and version of a target path.

    Raises:
        ManifestError: It is none.
    """
    parts = target.split("/")
    if len(parts) != 3 or parts[2] != MANIFEST_FILE:
        raise ManifestError(f"target {target!r} is not MODEL/VERSION/{MANIFEST_FILE}")
    return check_name(parts[0], "model"), check_version(parts[1])


class AssignedHardware(msgspec.Struct, frozen=True, kw_only=True):
    """For which hardware a package was assigned (Uptane's hardware identifier). A device that is other refuses it.

    Args:
        architecture: As ``platform.machine`` has it; ``accelerator``: ``cpu`` for none.
        runtimes: Versions of the runtimes that the device had when it was assigned; told, not compared.
    """

    architecture: str
    accelerator: str = "cpu"
    runtimes: dict[str, str] = {}


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """The director's ``custom`` field of a target: that this device, and no other, is to install it.

    Args:
        release: Counter per device and model, increasing; a lower one than installed is refused as a rollback.
        rollout: Identifier of the rollout that asks for it.
        hardware: What the device is, as far as the server knows; None from servers that do not tell.
    """

    device: str
    release: Count
    rollout: str = ""
    hardware: AssignedHardware | None = None
