"""The bodies that travel: one per stream, the twin's two halves, status and acknowledgement.

Times are Unix milliseconds of the sender's clock. ``package`` is always a package digest.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any

import msgspec

from edge_agent.contract.envelope import Message
from edge_agent.contract.latency import BUCKETS
from edge_agent.contract.profile import FeatureCounts
from edge_agent.contract.quantities import Amount, Count, Identifier, Name, Probability, Share, TimeMs
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.tensors import Tensor

LatencyCounts = Annotated[tuple[Count, ...], msgspec.Meta(min_length=BUCKETS, max_length=BUCKETS)]


class ModelMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What one model did in a window.

    Args:
        requests: Requests answered; ``rows``: rows in them.
        refused: Requests refused for breaking the signature.
        failed: Requests that failed though they were right: the ones that count against a rollout.
        latency_counts: Requests per bucket of :data:`edge_agent.contract.latency.BOUNDS_US`.
    """

    model: Name
    version: str
    package: str
    requests: Count
    rows: Count
    refused: Count
    failed: Count
    latency_counts: LatencyCounts


class GpuMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU at the end of a window; None where it does not tell.

    Args:
        busy_percent: Share of the time in which it computed, 0..100.
        memory_used_bytes: Of its own memory, or of what GPU and processors share.
        clock_mhz: Now; ``max_clock_mhz``: what the power mode allows.
        throttled: Why it runs slower than it could, in the vendor's words; empty where it does not.
    """

    name: str
    busy_percent: float | None = None
    memory_used_bytes: Count | None = None
    memory_total_bytes: Count | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    clock_mhz: float | None = None
    max_clock_mhz: float | None = None
    throttled: tuple[str, ...] = ()


class DeviceMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's own state at the end of a window; None where the machine does not tell.

    Args:
        power_w: What the whole board takes; ``energy_j``: what it took in the window; divided by the window's
            inferences, the energy of one.
        power_mode: As the board names it: ``15W``, ``MAXN``.
        throttled: Why the board runs slower than it could: over-current, temperature.
    """

    cpu_percent: float | None = None
    resident_bytes: Count | None = None
    memory_available_bytes: Count | None = None
    disk_free_bytes: Count | None = None
    temperature_c: float | None = None
    outbox_bytes: Count = 0
    outbox_messages: Count = 0
    bytes_up: Count = 0
    bytes_down: Count = 0
    gpus: tuple[GpuMetrics, ...] = ()
    power_w: float | None = None
    energy_j: float | None = None
    power_mode: str = ""
    throttled: tuple[str, ...] = ()


class MetricsReport(Message, frozen=True, kw_only=True):
    """Stream ``metrics``: one window of a device."""

    from_ms: TimeMs
    until_ms: TimeMs
    models: tuple[ModelMetrics, ...]
    machine: DeviceMetrics = DeviceMetrics()


class ProfileReport(Message, frozen=True, kw_only=True):
    """Stream ``profiles``: the counts of one window of one package, by feature name of its reference profile."""

    model: Name
    package: str
    from_ms: TimeMs
    until_ms: TimeMs
    rows: Count
    counts: dict[str, FeatureCounts]


class SampleReason(str, enum.Enum):
    """Why a request was chosen."""

    UNIFORM = "uniform"
    MARGIN = "margin"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One row that a device chose to send home.

    Args:
        inclusion_probability: Probability with which a row like this one was chosen, in 0 < p <= 1.
        group: What the rows of one subject share (a specimen, a patient, a machine), as the application names it;
            a split never parts a group. Empty where the application says nothing.
        label_wanted: Whether the application was asked for a label.
    """

    request_id: str
    package: str
    at_ms: TimeMs
    reason: SampleReason
    inclusion_probability: Probability
    prediction: str
    confidence: float
    margin: float
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    group: str = ""
    label_wanted: bool = False


class SampleBatch(Message, frozen=True, kw_only=True):
    """Stream ``samples``: chosen rows of one model."""

    model: Name
    samples: tuple[Sample, ...]


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's answer should have been, as the application or a person says.

    Args:
        inclusion_probability: With which the row was asked for a label; 0 where the application volunteered.
        prediction: What the model had answered.
        source: Who says so.
    """

    request_id: str
    package: str
    label: str
    prediction: str
    confidence: float
    inclusion_probability: Share
    at_ms: TimeMs
    labelled_at_ms: TimeMs
    source: str = "application"


class LabelBatch(Message, frozen=True, kw_only=True):
    """Stream ``labels``: feedback on one model's earlier requests."""

    model: Name
    labels: tuple[Label, ...]


class EventKind(str, enum.Enum):
    """What happened."""

    AGENT_STARTED = "agent-started"
    UPDATE_STEP = "update-step"
    UPDATE_COMMITTED = "update-committed"
    UPDATE_FAILED = "update-failed"
    ROLLED_BACK = "rolled-back"
    METADATA_REFUSED = "metadata-refused"
    OUTBOX_DROPPED = "outbox-dropped"
    STORAGE = "storage"
    RUNTIME_CHANGED = "runtime-changed"


class Event(Message, frozen=True, kw_only=True):
    """Stream ``events``: one thing worth knowing, with its reason in words."""

    kind: EventKind
    at_ms: TimeMs
    model: str = ""
    package: str = ""
    reason: str = ""
    detail: dict[str, Any] = msgspec.field(default_factory=dict)


class Ack(Message, frozen=True, kw_only=True):
    """What the server has committed: by stream, the highest sequence of ``epoch``; the device forgets up to there."""

    epoch: Identifier
    watermarks: dict[str, Count]


class DesiredModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a device should serve: a hint; what may be installed is what both repositories sign.

    Args:
        release: Counter of the director for this device; a higher one means new director metadata.
        rollout: Identifier of the rollout that asks for it; empty for a single assignment.
    """

    version: str
    package: str
    release: Count
    rollout: str = ""


class Desired(Message, frozen=True, kw_only=True):
    """What a device should be; ``revision`` increases with each change."""

    revision: Count
    models: dict[Name, DesiredModel] = msgspec.field(default_factory=dict)
    sampling: dict[Name, SamplingPolicy] = msgspec.field(default_factory=dict)
    report_interval_s: Amount | None = None


class UpdateStep(str, enum.Enum):
    """Where an update is; written down on the device before the step begins."""

    RESOLVED = "resolved"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    STAGED = "staged"
    SELF_TESTED = "self-tested"
    SHADOW = "shadow"
    PROBATION = "probation"
    COMMITTED = "committed"
    FAILED = "failed"


# A device's word on itself is stored, shown and signed: a longer one is cut, for the report says other things too.
WORD_CHARS, REASON_CHARS, HARDWARE_RUNTIMES = 128, 1_000, 32


def _cut(said: msgspec.Struct, *names: str, to: int = WORD_CHARS) -> None:
    for name in names:
        if len(word := getattr(said, name)) > to:
            msgspec.structs.force_setattr(said, name, word[:to])


class ReportedRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """What a model runs on, and why. Words are cut to 128 characters, sentences to 1,000.

    Args:
        name: ``onnxruntime-cpu``, ``onnxruntime-cuda``, ``tensorrt``, ``tensorrt-rtx`` or ``pipeline``.
        precision: ``fp32``, ``fp16``, ``int8``.
        reason: Why this one, in words, with the figures measured.
        building: What is being made ready meanwhile: ``building a TensorRT engine``; empty for nothing.
        building_percent: How far that is, 0..100; None where it is not known.
    """

    name: str
    precision: str = "fp32"
    reason: str = ""
    building: str = ""
    building_percent: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] | None = None

    def __post_init__(self) -> None:
        _cut(self, "name", "precision")
        _cut(self, "reason", "building", to=REASON_CHARS)


class ReportedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a device. Words are cut to 128 characters, the reason to 1,000.

    Args:
        runtime: None from agents that do not tell.
        version, package: What serves now.
        step: Where the latest update is; ``target``: the package it is about; ``reason``: why it failed.
        requests, failed: Since the swap; what a rollout's health gate looks at.
        waits_until_ms: When the update may go on that waits for the device's own window, or for a while that chance
            drew; None where it does not wait, and from agents that do not tell.
        retries: Of a failed update: whether the device tries it again by itself, for what failed was room, memory or
            its disk, and not what the package should be. False from agents that do not tell.
    """

    version: str
    package: str
    step: UpdateStep
    target: str = ""
    reason: str = ""
    release: Count = 0
    rollout: str = ""
    requests: Count = 0
    failed: Count = 0
    runtime: ReportedRuntime | None = None
    waits_until_ms: TimeMs | None = None
    retries: bool = False

    def __post_init__(self) -> None:
        _cut(self, "version", "package", "target", "rollout")
        _cut(self, "reason", to=REASON_CHARS)


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is made of. Names and versions are cut to 128 characters, runtimes to 32."""

    architecture: str
    system: str
    accelerator: str = "cpu"
    runtimes: dict[str, str] = msgspec.field(default_factory=dict)
    memory_bytes: Count = 0
    cpus: Count = 0

    def __post_init__(self) -> None:
        _cut(self, "architecture", "system", "accelerator")
        first = list(self.runtimes.items())[:HARDWARE_RUNTIMES]
        cut = {name[:WORD_CHARS]: version[:WORD_CHARS] for name, version in first}
        msgspec.structs.force_setattr(self, "runtimes", cut)


class Reported(Message, frozen=True, kw_only=True):
    """What a device is; ``desired_revision`` is the newest desired state it has acted on.

    ``agent_version`` and ``api`` are cut to 128 characters.
    """

    agent_version: str
    started_at_ms: TimeMs
    desired_revision: Count
    hardware: Hardware
    models: dict[Name, ReportedModel] = msgspec.field(default_factory=dict)
    api: str = ""

    def __post_init__(self) -> None:
        _cut(self, "agent_version", "api")


class Status(Message, frozen=True, kw_only=True):
    """Whether a device is connected; the last will is one with ``online`` false."""

    online: bool
    at_ms: TimeMs
