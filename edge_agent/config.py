"""The agent's settings: one TOML file, each key with a default, unknown keys refused by name."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge_agent.contract.errors import ConfigurationError, StorageFull, storage_error
from edge_agent.contract.quantities import Name
from edge_agent.setting_errors import explained

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ADDRESS_FILE = "agent.json"

_log = logging.getLogger(__name__)


class AppSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One application that may use the API; who is named nowhere may not, once one is named.

    An application is known by a token, or on a unix socket by the user or group that its process runs as.

    Args:
        name: For logs and metrics.
        token_sha256: SHA-256 of its bearer token, in lowercase hexadecimal: `printf %s TOKEN | sha256sum`.
        uid, gid: User or group by number, on unix sockets.
        local: Whether it stands for whoever else comes from this machine, with no token.
        models: Models that it may ask; `*` stands for all.
        control: Whether it may load and unload models and register shared memory.
        requests_per_s: Most requests per second on average; None sets no limit.
        burst: Requests that may come at once beyond the average.
    """

    name: Name
    token_sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None
    uid: Annotated[int, msgspec.Meta(ge=0)] | None = None
    gid: Annotated[int, msgspec.Meta(ge=0)] | None = None
    local: bool = False
    models: tuple[str, ...] = ("*",)
    control: bool = False
    requests_per_s: Annotated[float, msgspec.Meta(gt=0.0)] | None = None
    burst: Annotated[int, msgspec.Meta(ge=1)] = 10


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where applications reach the models.

    Args:
        host: Address of the TCP port; empty listens on no TCP port. Off loopback every application needs a token.
        port: TCP port; 0 takes a free one, which ``agent.json`` in the state folder then names.
        unix_socket: Path of a unix socket for HTTP; empty for none.
        frames_socket: Path of a unix socket for frames; empty for none.
        grpc_port: TCP port for gRPC on ``host``, 0 takes a free one; None for none. Needs the extra ``grpc``.
        grpc_socket: Path of a unix socket for gRPC; empty for none.
        socket_mode: Permissions of the unix sockets, in octal: who may connect.
        max_rows: Rows that one request may hold (axis 0 of its inputs).
        max_body_mib: Largest body of one request, JSON or binary, once it is unpacked.
        max_pending: Requests that may be read, wait or run at once beside those that the event loop answers itself.
        max_connections: Connections on all sockets of HTTP and frames together; gRPC takes as many on each of its own.
        max_header_kib: Largest head of one HTTP request.
        head_timeout_s: Seconds in which the head of a request must arrive, once its first byte has.
        body_timeout_s: Seconds in which the body of a request must arrive.
        idle_timeout_s: Seconds after which a silent connection is closed.
        busy_poll_us: Microseconds for which the agent waits awake after an answer while requests follow each other as
            closely; 0 for never. Saves the time to wake it, and takes that much processor time. None takes 200, where
            this process may use more than one processor, else 0.
        cors_origins: Origins of web pages that may ask; empty for none, ``*`` for any.
        apps: Applications that may use the API; empty lets in whoever is on this machine.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8500
    unix_socket: str = ""
    frames_socket: str = ""
    grpc_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    grpc_socket: str = ""
    socket_mode: Annotated[str, msgspec.Meta(pattern=r"^0?[0-7]{3}\Z")] = "660"
    max_rows: Annotated[int, msgspec.Meta(ge=1)] = 1024
    max_body_mib: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    max_pending: Annotated[int, msgspec.Meta(ge=1)] = 64
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 256
    max_header_kib: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    head_timeout_s: Annotated[float, msgspec.Meta(gt=0.0)] = 10.0
    body_timeout_s: Annotated[float, msgspec.Meta(gt=0.0)] = 30.0
    idle_timeout_s: Annotated[float, msgspec.Meta(gt=0.0)] = 120.0
    busy_poll_us: Annotated[float, msgspec.Meta(ge=0.0, le=10_000.0)] | None = None
    cors_origins: tuple[str, ...] = ()
    apps: tuple[AppSettings, ...] = ()


class ReportSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often and how much the device reports.

    Args:
        interval_s: Seconds between reports, until the server asks for another pace; without a fleet 600 at least.
        outbox_limit_mib: What may wait on disk while the server is away; beyond it, samples are dropped first.
    """

    interval_s: Annotated[float, msgspec.Meta(ge=0.1)] = 10.0
    outbox_limit_mib: Annotated[int, msgspec.Meta(ge=1)] = 256


class RuntimeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How models are run.

    Args:
        threads: Threads that all models together may keep busy; 0 takes as many as this process has processors.
        threads_per_model: Threads within one inference.
        memory_mib: Memory that all loaded models together may take; 0 sets no limit.
        idle_unload_s: Seconds without a request after which a model's memory is given back, until the next request
            loads it again; 0 keeps models loaded.
        models: Folder of further packages, one folder each; they are served beside those that the fleet installs.
        load: Which of those folder's packages are loaded at the start: ``latest`` of each model, ``all``, or ``none``.
        precision: In which form models run on the processors: ``auto`` times a package's int8 form, where it was
            released with one, and takes the faster; ``fp32`` and ``int8`` take that one.
    """

    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    threads_per_model: Annotated[int, msgspec.Meta(ge=1)] = 1
    memory_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    idle_unload_s: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    models: str = ""
    load: Literal["latest", "all", "none"] = "latest"
    precision: Literal["auto", "fp32", "int8"] = "auto"


class AcceleratorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a GPU is used.

    Args:
        use: ``auto`` measures each model on each runtime and takes the fastest; ``off`` uses none; a runtime's name
            takes that one wherever it can run the model.
        precisions: What TensorRT may compute in, tried in this order until one is within the tolerance; ``int8`` is
            for packages that have that variant.
        tolerance: How far answers may be from a package's golden ones, relative and absolute.
        build_memory_mib: Most memory of the process that builds an engine; 0 allows half of the machine's.
        workspace_mib: Most GPU memory that a layer may have while it runs; 0 leaves it to TensorRT.
        gpu_memory_mib: GPU memory that all engines together may take; 0 sets no limit.
        streams: Runs of one model that may be on the GPU at once.
        cuda_graphs: Whether runs are recorded as CUDA graphs, where that works.
        new_weights: What is done for a model whose graph is the same and whose weights are new: ``refit`` an engine
            and build one only where its answers are wrong, or always ``rebuild``.
    """

    use: Literal["auto", "off", "tensorrt", "onnxruntime-cuda"] = "auto"
    precisions: Annotated[tuple[Literal["fp32", "fp16", "int8"], ...], msgspec.Meta(min_length=1)] = ("fp16", "fp32")
    tolerance: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.01
    build_memory_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    workspace_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    gpu_memory_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    streams: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    cuda_graphs: bool = False
    new_weights: Literal["refit", "rebuild"] = "refit"


class UpdateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How new versions come.

    Args:
        mirrors: Base URLs that package files are asked for before the server itself, in this order; they need no trust,
            and get no secret of this device's.
        max_kib_per_s: Most that downloads may take of the network; 0 sets no limit.
        window: When downloads may happen, local time, as ``22:00-05:00``; empty for always. What serves is watched and
            rolled back at any time.
        jitter_s: Longest wait, drawn by chance, before an update begins, so that a fleet does not ask at once.
        deltas: Whether files are asked for as differences from what is here.
    """

    mirrors: tuple[Annotated[str, msgspec.Meta(pattern=r"^https?://")], ...] = ()
    max_kib_per_s: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    window: Annotated[str, msgspec.Meta(pattern=r"^(([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d)?\Z")] = ""
    jitter_s: Annotated[float, msgspec.Meta(ge=0.0, le=86_400.0)] = 0.0
    deltas: bool = True


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of an agent.

    Args:
        state: Folder for identity, packages, trust and outbox.
    """

    state: str = "/var/lib/shoal"
    api: ApiSettings = ApiSettings()
    report: ReportSettings = ReportSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    accelerator: AcceleratorSettings = AcceleratorSettings()
    updates: UpdateSettings = UpdateSettings()


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
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: {explained(error, AgentConfig)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error


def prepare_state(state: Path) -> None:
    """Make the state folder, readable by its owner alone, and prove that it can be written.

    A full disk is said in the log and no more, where there is anything on it: that can be served.

    Raises:
        StorageNotWritable, StorageFull: It cannot be made, or not written by this user, or is new and has no room.
        ConfigurationError: Something else is there.
    """
    probe = state / ".writable"
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        known = storage_error(error, str(state))
        if isinstance(known, StorageFull) and state.is_dir():
            with contextlib.suppress(OSError):
                probe.unlink()
            if not any(state.iterdir()):
                raise known from error
            _log.error("%s; models that are there are served, nothing can be kept", known)
            return
        if known is not None:
            raise known from error
        raise ConfigurationError(f"{state}: cannot be the state folder: {error.strerror}") from error
