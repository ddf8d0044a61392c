from __future__ import annotations

from edge_agent.contract.sampling import SamplingPolicy
from fleet_server.monitoring.budget import policy_for
from fleet_server.monitoring.settings import LabelBudget

BASE = SamplingPolicy(samples_per_minute=6, labels_per_minute=2, uniform_share=0.5)
BUDGET = LabelBudget(alert_per_minute=12, per_day=100)


def test_while_all_is_well_the_packages_own_policy_holds() -> None:
    assert policy_for(BASE, BUDGET, alert="", used_today=0, devices=3) == (BASE, "as the package says")


def test_an_alert_raises_the_labels_and_the_samples_that_carry_them() -> None:
    policy, reason = policy_for(BASE, BUDGET, alert="2 of 3 devices drifted", used_today=0, devices=3)
    assert (policy.labels_per_minute, policy.samples_per_minute, policy.uniform_share) == (12, 12, 0.5)
    assert reason == "raised: 2 of 3 devices drifted"


def test_what_is_left_of_the_day_is_shared_by_the_devices() -> None:
    policy, reason = policy_for(BASE, BUDGET, alert="drift", used_today=85, devices=4)
    assert policy.labels_per_minute == 3.75
    assert reason == "limited: 85 of 100 labels of today are used"


def test_even_the_quiet_trickle_ends_with_the_days_budget() -> None:
    assert policy_for(BASE, BUDGET, alert="", used_today=120, devices=4)[0].labels_per_minute == 0
