from __future__ import annotations

import pytest

from edge_agent.contract.errors import ConfigurationError
from edge_agent.contract.sampling import SamplingPolicy
from fleet_server.monitoring.budget import policy_for, unconfirmed
from fleet_server.monitoring.settings import LabelBudget

BASE = SamplingPolicy(samples_per_minute=6, labels_per_minute=2, uniform_share=0.5)
BUDGET = LabelBudget(alert_per_minute=12, confirm_s=600, per_day=100)
PACKAGE = "b" * 64


def asked(cause: str = "", held: str | None = None, *, used: int = 0, devices: int = 3) -> tuple[SamplingPolicy, str]:
    return policy_for(BASE, BUDGET, cause=cause, held=held, used_today=used, devices=devices)


def wanted(*since_s: int, labels: int = 0, now_s: int = 0) -> str:
    since_ms = [second * 1000 for second in since_s]
    return unconfirmed(PACKAGE, BUDGET, since_ms=since_ms, labels=labels, min_labels=50, now_ms=now_s * 1000)


def test_while_all_is_well_the_packages_own_policy_holds() -> None:
    assert asked() == (BASE, "as the package says")


def test_an_alert_raises_the_labels_and_the_samples_that_carry_them() -> None:
    policy, reason = asked("2 of 3 devices drifted")
    assert (policy.labels_per_minute, policy.samples_per_minute, policy.uniform_share) == (12, 12, 0.5)
    assert reason == "raised: 2 of 3 devices drifted"


def test_what_is_left_of_the_day_is_shared_by_the_devices() -> None:
    policy, reason = asked("drift", used=85, devices=4)
    assert policy.labels_per_minute == 3
    assert reason == "limited: 85 of 100 labels of today are used"


def test_towards_the_end_of_the_days_budget_the_devices_hear_of_a_few_steps_only() -> None:
    steps = [asked("drift", used=used, devices=4)[0].labels_per_minute for used in range(101)]
    assert sorted(steps, reverse=True) == steps
    assert sorted(set(steps)) == [0, 0.1875, 0.375, 0.75, 1.5, 3, 6, 12]
    assert all(4 * step <= 100 - used for used, step in enumerate(steps))


def test_even_the_quiet_trickle_ends_with_the_days_budget() -> None:
    assert asked(used=120, devices=4)[0].labels_per_minute == 0


def test_labels_that_could_not_be_used_are_not_asked_for() -> None:
    policy, reason = asked("drift", "run run-7 is running")
    assert policy == BASE
    assert reason == "as the package says, for more labels could not be used: run run-7 is running"
    assert asked("", "run run-7 is running") == (BASE, "as the package says")


def test_a_package_that_replaced_another_is_to_be_confirmed_until_the_harm_rule_can_judge_it() -> None:
    assert (
        wanted(0, labels=49, now_s=599) == f"whether package {PACKAGE[:12]} is better is to be confirmed by 50 labels"
    )
    assert wanted(0, labels=50, now_s=1) == ""


def test_labels_that_do_not_come_are_not_waited_for_for_ever() -> None:
    assert wanted(0, now_s=600) == ""
    assert wanted(now_s=0) == "", "no device serves it"


def test_the_time_to_confirm_begins_when_half_of_the_devices_were_updated() -> None:
    assert wanted(0, 1_000, 1_000, now_s=1_599), "the first wave was long before the others"
    assert wanted(0, 1_000, 1_000, now_s=1_600) == ""
    assert wanted(0, 0, 9_000, now_s=9_001) == "", "a device that enrols later finds the package confirmed"


def test_a_budget_is_never_negative() -> None:
    with pytest.raises(ConfigurationError, match="confirm_s"):
        LabelBudget(confirm_s=-1)
