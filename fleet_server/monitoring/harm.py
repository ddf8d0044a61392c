"""Harm: whether labels show that a model does worse than it promised. Pure.

Labels are a random trickle with known inclusion probabilities. Weighting each by its inverse probability (Hajek 1971)
gives the accuracy over all rows, though uncertain rows are asked for more often. The bound is Wilson's (1927) on Kish's
effective sample size, (sum w)^2 / sum w^2. The estimate is for these very devices, each of which is asked, not for
devices at large: no variance between devices enters it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from scipy import special

from fleet_server.monitoring.settings import HarmRule


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledRow:
    """One row whose truth is known.

    Args:
        probability: With which it was asked for a label, 0 < p <= 1; rows that were volunteered (0) tell nothing of the
            others and are left out by the estimator.
    """

    device: str
    correct: bool
    probability: float


@dataclasses.dataclass(frozen=True, slots=True)
class Accuracy:
    """An accuracy with its one-sided bounds.

    Args:
        value: Hajek estimate, 0..1; None without labels.
        labels: Labels it rests on; ``effective``: how many equally likely ones these are worth.
        low, high: Each bound holds with the rule's confidence by itself.
    """

    value: float | None
    labels: int
    effective: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True)
class HarmVerdict:
    """Whether the model does harm.

    Args:
        harmed: The fleet's upper bound, or that of a quorum of devices, lies below what the package promised.
        reason: In words, also where nothing can be said yet.
        fleet, devices: The accuracies it rests on.
    """

    harmed: bool
    reason: str
    fleet: Accuracy
    devices: dict[str, Accuracy]
    harmed_devices: tuple[str, ...] = ()


def estimate_accuracy(rows: Iterable[LabelledRow], *, confidence: float) -> Accuracy:
    """Hajek estimate and Wilson bounds at ``confidence`` (one-sided) on the effective sample size."""
    drawn = [row for row in rows if row.probability > 0]
    if not drawn:
        return Accuracy(None, 0, 0.0, 0.0, 1.0)
    weights = [1 / min(row.probability, 1.0) for row in drawn]
    total = math.fsum(weights)
    value = math.fsum(weight for weight, row in zip(weights, drawn, strict=True) if row.correct) / total
    effective = total**2 / math.fsum(weight * weight for weight in weights)
    low, high = wilson(value, effective, confidence=confidence)
    return Accuracy(value, len(drawn), effective, low, high)


def wilson(share: float, size: float, *, confidence: float) -> tuple[float, float]:
    """Wilson's score bounds of a share out of ``size`` trials; each holds one-sidedly with ``confidence``."""
    z = float(special.ndtri(confidence))
    middle = share + z * z / (2 * size)
    spread = z * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    scale = 1 + z * z / size
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def judge(rows: Sequence[LabelledRow], *, reference: float | None, rule: HarmRule) -> HarmVerdict:
    """Whether the labels of one package show harm.

    Args:
        rows: Labels of rows that this package answered, on devices that it serves now.
        reference: Accuracy that the package promised on its reference data; None: nothing can be said.
    """
    by_device: dict[str, list[LabelledRow]] = {}
    for row in rows:
        by_device.setdefault(row.device, []).append(row)
    fleet = estimate_accuracy(rows, confidence=rule.confidence)
    # Bonferroni: with many devices, one of them looks bad by chance.
    single = 1 - (1 - rule.confidence) / max(1, len(by_device))
    devices = {device: estimate_accuracy(own, confidence=single) for device, own in sorted(by_device.items())}
    if reference is None:
        return HarmVerdict(False, "the package states no reference accuracy to compare with", fleet, devices)
    floor = reference - rule.tolerance
    harmed = tuple(
        device for device, accuracy in devices.items() if accuracy.labels >= rule.min_labels and accuracy.high < floor
    )
    if fleet.labels < rule.min_labels or fleet.value is None:
        reason = f"{fleet.labels} labels so far; {rule.min_labels} are needed to judge"
        return HarmVerdict(False, reason, fleet, devices, harmed)
    promise = f"{reference:.1%} promised less {rule.tolerance:.1%} tolerance"
    facts = f"accuracy {fleet.value:.1%}, at most {fleet.high:.1%} with {rule.confidence:.0%} confidence"
    if fleet.high < floor:
        reason = f"{facts}, is below {promise} ({fleet.labels} labels of {len(devices)} devices)"
        return HarmVerdict(True, reason, fleet, devices, harmed)
    if len(harmed) >= rule.quorum:
        reason = f"{len(harmed)} devices are each below {promise}: {', '.join(harmed[:5])}; fleet {facts}"
        return HarmVerdict(True, reason, fleet, devices, harmed)
    return HarmVerdict(False, f"{facts}, is not below {promise} ({fleet.labels} labels)", fleet, devices, harmed)
