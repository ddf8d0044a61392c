"""The server's settings: a TOML file, a few variables of the environment above it, a default for everything.

::

    fleet = "line-3"
    [http]
    port = 8080
    [rollouts]
    waves = [1, 0.5, 1.0]
    [rollouts.gate]
    soak_s = 60
    [monitoring.drift]
    min_rows = 500
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edge_agent.contract.errors import ConfigurationError, MalformedRequest, ManifestError
from edge_agent.contract.names import check_name
from fleet_server.monitoring.settings import MonitoringSettings
from fleet_server.rollouts.rollout import Gate, check_waves
from fleet_server.rollouts.service import DEFAULT_WAVES
from fleet_server.schedules.service import RunSettings


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the REST API and the console listen.

    Args:
        port: 0 takes a free one, which ``server.json`` in the data folder then names.
        public_url: How devices and people reach it; where it is empty, as whoever asks came.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str = ""


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The MQTT broker.

    Args:
        external: Use the broker at ``host:port`` instead of starting one, as ``user`` with ``password``.
        host, port: Where the embedded broker listens, or the external one is.
        public_host, public_port: How devices reach it, where that is another address.
    """

    external: bool = False
    host: str = "127.0.0.1"
    port: int = 1883
    user: str = ""
    password: str = ""
    public_host: str = ""
    public_port: int = 0


class RolloutSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How releases reach the fleet.

    Args:
        automatic: Roll out what a training run releases without asking a person.
        waves, gate, revert: Of automatic rollouts, and of those whose request does not say.
    """

    automatic: bool = True
    waves: tuple[int | float, ...] = DEFAULT_WAVES
    gate: Gate = Gate()
    revert: bool = False


class UpdateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What devices download.

    Args:
        deltas_mib: Most that is kept of deltas between packages; what was asked for least lately goes first.
    """

    deltas_mib: Annotated[int, msgspec.Meta(ge=0)] = 4096


class PredictionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers of batch jobs, by key.

    Args:
        folders: Folders and URIs below which tables of answers are served, beside the sample lake; relative ones lie in
            the data folder. Nothing else is read for whoever holds a token of role trainer.
    """

    folders: tuple[str, ...] = ()


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of the server.

    Args:
        fleet: Name of the fleet; part of every topic, so it must not change once devices have enrolled.
        data: Folder of everything that the server keeps.
        database: SQLAlchemy URL; empty: SQLite in the data folder.
        lake: Folder or URI of the sample lake; empty: in the data folder.
        report_interval_s: How often devices report; None leaves it to them.
        tick_s: Pause between two looks at rollouts, schedules and drift.
    """

    fleet: str = "main"
    data: str = ""
    database: str = ""
    lake: str = ""
    report_interval_s: float | None = None
    tick_s: float = 1.0
    http: HttpSettings = HttpSettings()
    broker: BrokerSettings = BrokerSettings()
    rollouts: RolloutSettings = RolloutSettings()
    updates: UpdateSettings = UpdateSettings()
    runs: RunSettings = RunSettings()
    predictions: PredictionSettings = PredictionSettings()
    monitoring: MonitoringSettings = MonitoringSettings()


# Environment variable -> place in the file: for what differs per machine, or must not stand in a file.
VARIABLES: Mapping[str, tuple[str, ...]] = {
    "SHOAL_DATA": ("data",),
    "SHOAL_FLEET": ("fleet",),
    "SHOAL_DATABASE": ("database",),
    "SHOAL_LAKE": ("lake",),
    "SHOAL_PUBLIC_URL": ("http", "public_url"),
    "SHOAL_BROKER_PASSWORD": ("broker", "password"),
}


def read_config(
    path: Path | None,
    overrides: Mapping[tuple[str, ...], Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> ServerConfig:
    """The settings: ``overrides`` (of the command line) before the environment before the file before the defaults.

    Raises:
        ConfigurationError: The file cannot be read, is no TOML, or has a key or value that does not belong.
    """
    environment = os.environ if environment is None else environment
    fields = _file(path) if path is not None else {}
    for variable, place in VARIABLES.items():
        if variable in environment:
            _put(fields, place, environment[variable])
    for place, value in (overrides or {}).items():
        if value is not None:
            _put(fields, place, value)
    where = f"{path}: " if path is not None else ""
    try:
        _check_keys(fields, ServerConfig, "")
        config = msgspec.convert(fields, ServerConfig)
        check_name(config.fleet, "fleet")
        check_waves(config.rollouts.waves)
    except (msgspec.ValidationError, ManifestError, MalformedRequest, ConfigurationError) as error:
        raise ConfigurationError(f"{where}{error}") from error
    if not config.data:
        raise ConfigurationError(f"{where}no data folder: give --data DIR, or set `data` in the file, or SHOAL_DATA")
    for name, port in (("http", config.http.port), ("broker", config.broker.port)):
        if not 0 <= port <= 65_535:
            raise ConfigurationError(f"{where}{name}.port: {port} is not between 0 and 65535")
    return config


def _file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; give an existing file with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _put(fields: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    *sections, key = place
    for section in sections:
        fields = fields.setdefault(section, {})
        if not isinstance(fields, dict):
            raise ConfigurationError(f"{section}: must be a section, [{section}]")
    fields[key] = value


def _check_keys(fields: Any, kind: Any, where: str) -> None:
    """Refuse unknown keys by name; msgspec does so for its own structs only, not for dataclasses."""
    if not isinstance(fields, dict) or not (dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct)):
        return
    known = {field.name: field.type for field in _fields(kind)}
    for key, value in fields.items():
        if key not in known:
            raise ConfigurationError(f"unknown key {where}{key}; known here: {', '.join(sorted(known))}")
        if isinstance(known[key], type):
            _check_keys(value, known[key], f"{where}{key}.")


def _fields(kind: Any) -> tuple[msgspec.inspect.Field, ...] | list[Any]:
    info = msgspec.inspect.type_info(kind)
    return [_Field(field.name, getattr(field.type, "cls", None)) for field in getattr(info, "fields", ())]


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    type: Any
