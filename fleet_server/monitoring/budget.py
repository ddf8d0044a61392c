"""The label budget: how many labels a model's devices ask for, raised while something is wrong. Pure."""

from __future__ import annotations

import msgspec

from edge_agent.contract.sampling import SamplingPolicy
from fleet_server.monitoring.settings import LabelBudget


def policy_for(
    base: SamplingPolicy, budget: LabelBudget, *, alert: str, used_today: int, devices: int
) -> tuple[SamplingPolicy, str]:
    """The sampling that a model's devices should follow, and why.

    Args:
        base: The package's own policy: the quiet trickle.
        alert: What is wrong, in words; empty where nothing is.
        used_today: Labels that came in since midnight UTC.
        devices: Devices that share the day's rest; the answer is what each of them may ask for.
    """
    wanted = max(base.labels_per_minute, budget.alert_per_minute) if alert else base.labels_per_minute
    reason = f"raised: {alert}" if alert else "as the package says"
    # What is left of the day is never promised away within less than a minute; the next evaluation comes before that.
    rest = max(0, budget.per_day - used_today) / max(1, devices)
    if wanted > rest:
        # Steps of a quarter: the devices need not hear of every single label.
        wanted, reason = int(rest * 4) / 4, f"limited: {used_today} of {budget.per_day} labels of today are used"
    policy = msgspec.structs.replace(
        base, labels_per_minute=wanted, samples_per_minute=max(base.samples_per_minute, wanted)
    )
    return policy, reason
