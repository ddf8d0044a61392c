"""Training runs as the server asks for them and the trainer answers (JSON over the server's REST API).

The server never trains: a worker beside the trainer claims a run under a lease, executes it as a process of its own
from a run file, and reports back. Signing keys live with the worker, never with the server.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """All that a training run is a function of, but the recipe's code.

    Args:
        logical_time: The slot this run stands for, RFC 3339 UTC.
        lake: URI of the lake.
        samples_version, labels_version: Delta versions to train on; None means the newest when the run starts.
        champion: Package digest of the model to beat; None for the first version.
        fence: Fencing token of the lease; the server refuses reports that carry an older one.
    """

    run: str
    model: str
    trigger: str
    reason: str
    logical_time: str
    lake: str
    seed: int
    fence: int
    samples_version: int | None = None
    labels_version: int | None = None
    champion: str | None = None
    champion_version: str | None = None


class RunState(str, enum.Enum):
    """Where a run is."""

    QUEUED = "queued"
    RUNNING = "running"
    RELEASED = "released"  # a better model was signed and published
    REFUSED = "refused"  # the challenger is not better; the reasons say why
    UNCHANGED = "unchanged"  # nothing to learn from
    FAILED = "failed"


class RunProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A heartbeat of a claimed run, which also renews its lease."""

    fence: int
    stage: str
    fraction: float
    message: str = ""


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended.

    Args:
        state: ``released``, ``refused``, ``unchanged`` or ``failed``.
        reasons: In words, for a person.
        evaluation: Champion against challenger, overall and by slice (the package's ``evaluation.json``).
    """

    fence: int
    state: RunState
    reasons: tuple[str, ...]
    package: str | None = None
    version: str | None = None
    evaluation: dict[str, Any] = msgspec.field(default_factory=dict)
