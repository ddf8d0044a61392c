"""Who this device is: kept twice, for a disk that loses a bit must not cost a device its fleet."""

from __future__ import annotations

import hashlib
import logging
import stat
from pathlib import Path

import msgspec

from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.errors import ConfigurationError
from edge_agent.durable import sync_folder, write_durably

_log = logging.getLogger(__name__)

IDENTITY_FILE = "identity.json"
COPY_FILE = "identity.copy.json"


class DamagedIdentity(ConfigurationError):
    """Nobody can tell any more who this device was."""


class _Copy(msgspec.Struct, kw_only=True):
    """The text of ``identity.json`` once more, with what tells whether it is whole."""

    sha256: str
    text: str

    @property
    def data(self) -> bytes:
        return self.text.encode()


def keep_identity(state: Path, enrolment: Enrolment) -> None:
    """Write down who this device is, readable by its owner alone.

    Raises:
        OSError: The disk refuses.
    """
    data = msgspec.json.encode(enrolment)
    if (copy_of_another := state / COPY_FILE).exists():  # which would be believed, should the power go in between
        copy_of_another.unlink()
        sync_folder(state)
    write_durably(state / IDENTITY_FILE, data, mode=0o600)
    copy = _Copy(sha256=hashlib.sha256(data).hexdigest(), text=data.decode())
    write_durably(state / COPY_FILE, msgspec.json.encode(copy), mode=0o600)


def read_identity(state: Path, *, mend: bool = False) -> Enrolment | None:
    """Who this device is, or None where it has not enrolled yet. Its copy stands in for a file damaged or gone.

    Args:
        mend: Write the file again from its copy. Only for who holds the lock of the state folder and runs as its user:
            what another writes, the agent could not read any more.
    Raises:
        DamagedIdentity: The file is there, but is not what enrolment wrote, and no copy is whole.
        ConfigurationError: This user may not read it.
    """
    path = state / IDENTITY_FILE
    kept = _whole_copy(state / COPY_FILE)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if kept is None:
            return None
        data = b""
    except OSError as error:
        if isinstance(error, PermissionError):
            raise ConfigurationError(f"{path}: {error.strerror}; run this as the user who enrolled it") from error
        if kept is None:
            raise _damaged(path, str(error.strerror)) from error
        data = b""  # a sector that the disk cannot read any more
    if kept is not None and kept != data:
        data = kept
        _log.error(
            "%s is not what enrolment wrote: %s is taken for it%s. To change it by hand, or to enrol anew, "
            "remove %s too.", path, COPY_FILE, _mended(path, kept) if mend else "", COPY_FILE,
        )  # fmt: skip
    try:
        return msgspec.json.decode(data, type=Enrolment)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error


def identity_to_serve_with(state: Path, *, mend: bool = False) -> tuple[Enrolment | None, str]:
    """Who this device is, for whoever serves models, which needs no fleet.

    Args:
        mend: As of :func:`read_identity`.
    Returns:
        The identity, None where there is none; and what is wrong with it where it is damaged beyond mending.
    Raises:
        ConfigurationError: This user may not read it.
    """
    try:
        return read_identity(state, mend=mend), ""
    except DamagedIdentity as error:
        return None, str(error)


def _mended(path: Path, data: bytes) -> str:
    """Write the file again, as its owner's; what has become of it, in words."""
    try:
        was = path.stat()
    except OSError:
        was = path.parent.stat()
    mode = was.st_mode & 0o777 if stat.S_ISREG(was.st_mode) else 0o600
    try:
        write_durably(path, data, mode=mode, owner=(was.st_uid, was.st_gid))
    except OSError as error:  # a disk that refuses keeps nobody from serving; the next start comes again
        return f", but it could not be mended ({error.strerror})"
    return ", and it is mended"


def _damaged(path: Path, why: str) -> DamagedIdentity:
    return DamagedIdentity(
        f"{path}: {why}, and no copy of it is whole; models are served, but the fleet is not connected to: "
        "enrol this device again (shoal-agent enrol --help)"
    )


def _whole_copy(path: Path) -> bytes | None:
    try:
        copy = msgspec.json.decode(path.read_bytes(), type=_Copy)
    except FileNotFoundError:
        return None  # of a device that enrolled when there was none
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        _log.warning("%s: %s", path, error)
        return None
    return copy.data if hashlib.sha256(copy.data).hexdigest() == copy.sha256 else None
