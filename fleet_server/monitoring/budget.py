"""The label budget: how many labels a model's devices ask for. Pure.

It is raised while something is wrong, so that labels can say whether it does harm; and after an update, so that they
can say whether it helped: an alert that closes because a new reference expects the new data proves nothing by itself.
It is not raised while a run or a rollout is under way: the run no longer reads new labels, and the rollout is about to
replace the package that they would speak of.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from edge_agent.contract.sampling import SamplingPolicy
from fleet_server.monitoring.settings import LabelBudget


def policy_for(
    base: SamplingPolicy, budget: LabelBudget, *, cause: str, held: str | None, used_today: int, devices: int
) -> tuple[SamplingPolicy, str]:
    """The sampling that a model's devices should follow, and why.

    Args:
        base: The package's own policy: the quiet trickle.
        cause: Why more labels are wanted, in words: an alert, or an update to be confirmed; empty where none are.
        held: Why they could not be used now, in words; None where they could.
        used_today: Labels that came in since midnight UTC.
        devices: Devices that share the day's rest; the answer is what each of them may ask for.
    """
    wanted, reason = base.labels_per_minute, "as the package says"
    if cause and held is not None:
        reason = f"as the package says, for more labels could not be used: {held}"
    elif cause:
        wanted, reason = max(wanted, budget.alert_per_minute), f"raised: {cause}"
    # What is left of the day is never promised away within less than a minute; the next evaluation comes before that.
    rest = max(0, budget.per_day - used_today) / max(1, devices)
    if wanted > rest:
        wanted, reason = _halved(wanted, rest), f"limited: {used_today} of {budget.per_day} labels of today are used"
    policy = msgspec.structs.replace(
        base, labels_per_minute=wanted, samples_per_minute=max(base.samples_per_minute, wanted)
    )
    return policy, reason


def _halved(wanted: float, most: float) -> float:
    """Halved until it fits: devices begin their draws anew with each policy, and must not with every single label."""
    if most <= 0:
        return 0.0
    return wanted / 2.0 ** math.ceil(math.log2(wanted / most))


def unconfirmed(
    package: str, budget: LabelBudget, *, since_ms: Sequence[int], labels: int, min_labels: int, now_ms: int
) -> str:
    """Why labels are wanted of a package that has replaced another, in words; empty where they are not (any more).

    Args:
        since_ms: When it took over on each device that it serves. What counts is when half of them had it: neither the
            first wave's head start nor a device that enrols later moves that.
        labels: Asked-for labels of its answers so far.
        min_labels: Labels with which the harm rule can judge it.
    """
    if labels >= min_labels or not since_ms:
        return ""
    ends_ms = statistics.median_low(since_ms) + budget.confirm_s * 1000
    return (
        f"whether package {package[:12]} is better is to be confirmed by {min_labels} labels"
        if now_ms < ends_ms
        else ""
    )
