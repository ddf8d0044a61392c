"""The agent's settings: one TOML file, each key with a default, unknown keys refused by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec

from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.errors import ConfigurationError, storage_error

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

IDENTITY_FILE = "identity.json"
ADDRESS_FILE = "agent.json"


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where applications reach the models.

    Args:
        port: TCP port; 0 takes a free one, which ``agent.json`` in the state folder then names.
        unix_socket: Path of a socket to listen on instead of TCP; empty for none.
        max_rows: Rows that one request may hold (axis 0 of its inputs).
        max_body_mib: Largest body of one request, JSON or binary.
        max_pending: Requests that may be read, wait or run at once beside those that the event loop answers itself.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8500
    unix_socket: str = ""
    max_rows: Annotated[int, msgspec.Meta(ge=1)] = 1024
    max_body_mib: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    max_pending: Annotated[int, msgspec.Meta(ge=1)] = 64


class ReportSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often and how much the device reports.

    Args:
        interval_s: Seconds between reports, until the server asks for another pace.
        outbox_limit_mib: What may wait on disk while the server is away; beyond it, samples are dropped first.
    """

    interval_s: Annotated[float, msgspec.Meta(ge=0.1)] = 10.0
    outbox_limit_mib: Annotated[int, msgspec.Meta(ge=1)] = 256


class RuntimeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How models are run.

    Args:
        threads: Threads per model inside the runtime.
    """

    threads: Annotated[int, msgspec.Meta(ge=1)] = 1


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of an agent.

    Args:
        state: Folder for identity, packages, trust and outbox.
    """

    state: str = "/var/lib/shoal"
    api: ApiSettings = ApiSettings()
    report: ReportSettings = ReportSettings()
    runtime: RuntimeSettings = RuntimeSettings()


def read_config(path: Path | None) -> AgentConfig:
    """The settings in a TOML file, or the defaults where there is none.

    Raises:
        ConfigurationError: The file cannot be read, is no TOML, or has a key or value that does not belong.
    """
    if path is None:
        return AgentConfig()
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), AgentConfig)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; give an existing file to --config") from error
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error


def prepare_state(state: Path) -> None:
    """Make the state folder, readable by its owner alone, and prove that it can be written.

    Raises:
        StorageNotWritable, StorageFull: It cannot be made or written.
        ConfigurationError: Something else is there.
    """
    probe = state / ".writable"
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        known = storage_error(error, str(state))
        if known is not None:
            raise known from error
        raise ConfigurationError(f"{state}: cannot be the state folder: {error.strerror}") from error


def read_identity(state: Path) -> Enrolment | None:
    """Who this device is, or None where it has not enrolled yet.

    Raises:
        ConfigurationError: The file is there, but is not what enrolment wrote.
    """
    path = state / IDENTITY_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Enrolment)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}; enrol this device again") from error
