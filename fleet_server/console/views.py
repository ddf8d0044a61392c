"""What the console shows, as plain values: the templates read nothing else, and nothing here reads a database."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fleet_server.console.approvals import ApprovalView
from fleet_server.console.badges import Badge, Tone
from fleet_server.console.board_views import BoardView, GpuView, RuntimeView
from fleet_server.console.chart_views import Chart


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The header's numbers.

    Args:
        alerts: Open ones; ``alert_kinds``: the same by kind, in words.
        rollout, run: What is under way, in words; empty where nothing is.
        now_ms: The server's time, which all ages are measured by.
    """

    fleet: str
    now_ms: int
    online: int
    offline: int
    alerts: int
    alert_kinds: str = ""
    rollout: str = ""
    run: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyView:
    """An accuracy from labels, 0..1, with its one-sided bounds and the labels that it rests on."""

    value: float
    low: float
    high: float
    labels: int

    @property
    def spread(self) -> float:
        """Half of the interval, 0..1: what stands behind the plus-minus sign."""
        return (self.high - self.low) / 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """One model on one device; a device without a model has one row too.

    Args:
        package: Digest of what serves; ``target``: of the package that an update under way is about.
        accuracy: From labels of this package; ``estimate``: without labels, 0..1.
        labels_used: Labels that this device gave for the model, all packages together.
        runtime: What it runs on; ``board``: power and throttling; None of a device that is away, or does not tell.
    """

    device: str
    status: Badge
    model: str = ""
    version: str = ""
    package: str = ""
    step: Badge | None = None
    target: str = ""
    requests_per_s: float | None = None
    p99_ms: float | None = None
    drift: Badge | None = None
    accuracy: AccuracyView | None = None
    estimate: float | None = None
    labels_used: int = 0
    last_seen_ms: int | None = None
    runtime: RuntimeView | None = None
    board: BoardView | None = None

    @property
    def key(self) -> str:
        """Names the row in the page, so that a refresh mends it in place."""
        return f"device-{self.device}-{self.model}"


# Bars are drawn to four times the threshold: what lies beyond is drifted beyond doubt, and the number stands beside it.
_BAR_END = 4.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FeatureBar:
    """One feature's distance from the reference.

    Args:
        psi: Population stability index; ``threshold``: above which it would be flagged, if significant too.
    """

    feature: str
    psi: float
    threshold: float
    flagged: bool

    @property
    def width(self) -> float:
        """Percent of the bar's room."""
        return round(min(1.0, self.psi / (self.threshold * _BAR_END)) * 100, 1) if self.threshold > 0 else 0.0

    @property
    def mark(self) -> float:
        """Where the threshold stands, in percent of the bar's room."""
        return 100 / _BAR_END

    @property
    def clipped(self) -> bool:
        """Whether the bar would be longer than its room."""
        return self.psi > self.threshold * _BAR_END


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DriftView:
    """The newest judged window of one device."""

    device: str
    model: str
    verdict: Badge
    rows: int
    until_ms: int
    features: tuple[FeatureBar, ...]

    @property
    def key(self) -> str:
        """Names the block in the page."""
        return f"drift-{self.device}-{self.model}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """One wave of a rollout: its devices and where each is; ``goal``: how much of the fleet it reaches."""

    number: int
    state: Badge
    goal: str
    devices: tuple[tuple[str, Badge], ...]

    @property
    def done(self) -> int:
        """Devices that serve the new package."""
        return sum(badge.tone is Tone.GOOD for _, badge in self.devices)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """One rollout. ``reason``: why it was begun; ``note``: why it stands where it stands."""

    id: str
    model: str
    version: str
    package: str
    state: Badge
    reason: str
    note: str
    created_at_ms: int
    waves: tuple[Wave, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run.

    Args:
        step: Name of its step, or its kind where it is no training; ``schedule``: empty where none made it.
        fraction: How far it is, 0..1; None where it is not under way.
        champion, challenger: Accuracies on the same held-out data, 0..1.
    """

    id: str
    model: str
    state: Badge
    trigger: str
    reason: str
    stage: str
    fraction: float | None
    champion: float | None
    challenger: float | None
    version: str
    reasons: tuple[str, ...]
    at_ms: int
    step: str = ""
    schedule: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """One thing that happened, wherever it was written down; ``order``: among those of one moment, the larger later."""

    key: str
    at_ms: int
    order: int
    tone: Tone
    kind: str
    where: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """The whole page at one moment.

    Args:
        model: The model that chart and drift are about; ``models``: those to choose from.
        span: Name of the time span of the chart; ``spans``: those to choose from.
        hidden_devices: Rows left out of the table, because it would be too long.
        approvals: Releases of all models that wait for a signature; ``hidden_approvals``: left out likewise.
    """

    summary: Summary
    model: str
    models: Sequence[str]
    span: str
    spans: Sequence[str]
    devices: Sequence[DeviceRow]
    hidden_devices: int
    chart: Chart
    drift: Sequence[DriftView]
    rollouts: Sequence[RolloutView]
    runs: Sequence[RunView]
    events: Sequence[EventView]
    approvals: Sequence[ApprovalView] = ()
    hidden_approvals: int = 0

    @property
    def has_runtimes(self) -> bool:
        """Whether any device tells what its models run on."""
        return any(row.runtime is not None for row in self.devices)

    @property
    def has_boards(self) -> bool:
        """Whether any device's board tells of its power."""
        return any(row.board is not None for row in self.devices)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One model on the page of one device.

    Args:
        package: Digest of what serves; ``target``: of the package that an update under way is about.
        asked_for: The version that it should serve, where that is another.
        requests, failed: Since the swap.
    """

    model: str
    version: str
    package: str
    step: Badge | None
    target: str
    asked_for: str
    requests: int
    failed: int
    runtime: RuntimeView | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DevicePage:
    """One device at one moment.

    Args:
        behind: Changes of its desired state that it has not acted on yet.
        board_at_ms: When its board was as ``board`` and ``gpus`` say, by the device's own clock.
        facts: Names and values of its machine.
    """

    fleet: str
    now_ms: int
    device: str
    status: Badge
    online: bool
    last_seen_ms: int | None
    enrolled_at_ms: int
    agent_version: str
    api: str
    behind: int
    board: BoardView
    board_at_ms: int | None
    gpus: Sequence[GpuView]
    facts: Sequence[tuple[str, str]]
    models: Sequence[ModelView]
    events: Sequence[EventView]
