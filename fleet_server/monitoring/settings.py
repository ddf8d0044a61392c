"""The thresholds of monitoring, with the reasons for their defaults."""

from __future__ import annotations

import dataclasses

from edge_agent.contract.errors import ConfigurationError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DriftRule:
    """When a device's data counts as drifted.

    Args:
        min_rows: Rows that an evaluation window gathers before it is judged.
        alpha: False discovery rate across a device's features (Benjamini-Hochberg).
        effect_floor: PSI, less what chance alone gives, under which a difference is too small to matter; with many
            rows everything is significant. 0.1 to 0.25 is commonly called a moderate shift, more a major one.
        persistence: Consecutive windows in which a feature must be flagged; as many quiet ones end the drift.
        cells: Cells that the bins are pooled to; fewer cells, more power against smooth shifts.
        quorum: Drifted devices that a fleet alert needs (all of them in a smaller fleet).
        device_false_alarms: Share of devices taken to be drifted by chance alone (measured: see ``drift.py``).
        fleet_alpha: Probability by chance under which that many drifted devices make an alert.
        stale_after_s: A device whose last judged window is older does not count in the fleet's verdict.
    """

    min_rows: int = 200
    alpha: float = 0.05
    effect_floor: float = 0.25
    persistence: int = 2
    cells: int = 10
    quorum: int = 2
    device_false_alarms: float = 0.01
    fleet_alpha: float = 0.05
    stale_after_s: float = 86_400.0

    def __post_init__(self) -> None:
        if self.min_rows < 20 or self.persistence < 1 or self.cells < 2 or self.quorum < 1:
            raise ConfigurationError(
                "drift: needs min_rows >= 20, persistence >= 1, cells >= 2 and quorum >= 1, got "
                f"{self.min_rows}, {self.persistence}, {self.cells} and {self.quorum}"
            )
        if not (0 < self.alpha < 1 and 0 < self.fleet_alpha < 1 and 0 < self.device_false_alarms < 1):
            raise ConfigurationError("drift: alpha, fleet_alpha and device_false_alarms must lie between 0 and 1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HarmRule:
    """When labels show that a model does worse than it promised.

    Args:
        min_labels: Labels without which nothing is said.
        tolerance: Accuracy that may be lost before it counts as harm, 0..1.
        confidence: Of the one-sided upper bound that must lie below ``reference - tolerance``.
        quorum: Devices that, each harmed by itself, make the model count as harmed though the fleet's mean does not.
        window_s: How far back labels count; while a device drifts, only those since its drift began.
    """

    min_labels: int = 50
    tolerance: float = 0.05
    confidence: float = 0.95
    quorum: int = 2
    window_s: float = 86_400.0

    def __post_init__(self) -> None:
        if self.min_labels < 1 or self.quorum < 1 or self.window_s <= 0:
            raise ConfigurationError("harm: min_labels, quorum and window_s must be positive")
        if not (0 <= self.tolerance < 1 and 0.5 <= self.confidence < 1):
            raise ConfigurationError(
                f"harm: tolerance {self.tolerance} must be in [0, 1) and confidence {self.confidence} in [0.5, 1)"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelBudget:
    """What labels may cost.

    Args:
        alert_per_minute: Labels asked of each device and minute while an alert is open, and after an update until the
            harm rule has enough of them to judge the new package.
        confirm_s: How long after an update they are asked for at most; 0: not at all.
        per_day: Labels of one model that all devices together may give in a UTC day; then none are asked any more.
    """

    alert_per_minute: float = 10.0
    confirm_s: float = 3_600.0
    per_day: int = 2_000

    def __post_init__(self) -> None:
        if self.alert_per_minute < 0 or self.confirm_s < 0 or self.per_day < 0:
            raise ConfigurationError("label budget: alert_per_minute, confirm_s and per_day must not be negative")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringSettings:
    """All rules of monitoring, and how long its rows are kept."""

    drift: DriftRule = DriftRule()
    harm: HarmRule = HarmRule()
    budget: LabelBudget = LabelBudget()
    retention_days: float = 90.0
