"""Runs as the server asks for them and the trainer answers (JSON over the server's REST API).

The server never trains: a worker beside the trainer claims a run under a lease, executes it as a process of its own
from a run file, and reports back. Signing keys live with the worker, never with the server.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec


class RunKind(str, enum.Enum):
    """What a run does."""

    TRAIN = "train"  # a challenger is trained, judged and, where it is better, released
    BATCH = "batch"  # a model answers a whole dataset (edge_agent.contract.batch)
    UPKEEP = "upkeep"  # the lake: imports, compaction, retention


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run is a function of, but the recipe's code.

    Args:
        step: Name of the step of its schedule's graph; empty where the schedule has but one.
        attempt: 1 for the first claim; a later one goes on from the last checkpoint where there is one.
        options: What the step asks for besides: the job of a batch run, the engine of a training run.
        timeout_s: Seconds after which the run's process is ended; None: the worker's own limit.
        cpus, gpus: What the run was given of its worker; 0: nothing was said.
        tried: Inputs digests of earlier runs of the model that came to a verdict, by run: the same inputs give the same
            answer, so that such a run ends as ``unchanged`` before it trains.
        logical_time: The slot this run stands for, RFC 3339 UTC.
        lake: URI of the lake.
        samples_version, labels_version: Delta versions to train on; None means the newest when the run starts.
        labels_until: Labels given later are not known to it, RFC 3339 UTC: a backfill of training is of what was known
            at its logical time. None: all of that version are.
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
    labels_until: str | None = None
    champion: str | None = None
    champion_version: str | None = None
    kind: RunKind = RunKind.TRAIN
    step: str = ""
    attempt: int = 1
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    timeout_s: float | None = None
    cpus: float = 0.0
    gpus: int = 0
    tried: dict[str, str] = msgspec.field(default_factory=dict)


class RunState(str, enum.Enum):
    """Where a run is."""

    BLOCKED = "blocked"  # waits for the steps that it needs
    QUEUED = "queued"
    RUNNING = "running"
    RELEASED = "released"  # a better model was signed and published
    REFUSED = "refused"  # the challenger is not better; the reasons say why
    UNCHANGED = "unchanged"  # nothing to learn from, or nothing new since the last run
    DONE = "done"  # what was not about a release: a batch was answered, the lake was tended
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # a step that it needs did not succeed


class RunProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A heartbeat of a claimed run, which also renews its lease."""

    fence: int
    stage: str
    fraction: float
    message: str = ""
    metrics: dict[str, float] = msgspec.field(default_factory=dict)  # newest values by name, e.g. "val_loss"
    log: str = ""  # lines of the run's log that are new since the last heartbeat


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended.

    Args:
        state: ``released``, ``refused``, ``unchanged``, ``done`` or ``failed``.
        reasons: In words, for a person.
        evaluation: Champion against challenger, overall and by slice (the package's ``evaluation.json``); of a
            batch run what it counted.
        inputs: Digest of all that the run is a function of; None where it ended before that was known.
        retry: Of a failure: whether the same run may succeed another time.
    """

    fence: int
    state: RunState
    reasons: tuple[str, ...]
    package: str | None = None
    version: str | None = None
    evaluation: dict[str, Any] = msgspec.field(default_factory=dict)
    inputs: str | None = None
    retry: bool = False
