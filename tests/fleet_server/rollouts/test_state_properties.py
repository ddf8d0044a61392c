"""Whatever devices do and in whatever order, a rollout keeps its promises."""

from __future__ import annotations

import dataclasses

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.contract.messages import UpdateStep
from fleet_server.rollouts import state
from fleet_server.rollouts.rollout import ALLOWED, Gate, Progress, Rollout, Sight, State

NEW, OLD = "b" * 64, "a" * 64
DEVICES = [f"d{number}" for number in range(7)]
devices = st.sampled_from(DEVICES)


class RolloutMachine(RuleBasedStateMachine):
    """A fleet that commits, fails, leaves and comes back as it pleases, and an operator who presses every button."""

    def __init__(self) -> None:
        super().__init__()
        gate = Gate(soak_s=5, max_failures=1, device_timeout_s=60, offline_timeout_s=20)
        draft = Rollout(id="r-1", model="m", package=NEW, version="2", waves=(1, 0.5, 1.0), gate=gate)
        self.rollout = state.join(state.move(draft, State.RUNNING), DEVICES[:5])
        self.sights = {device: Sight(online=True, package=OLD, step=UpdateStep.COMMITTED) for device in DEVICES}
        self.now_ms = 0
        self.waves = [0]
        self.canaries_committed = False

    @rule(seconds=st.integers(1, 40))
    def tick(self, seconds: int) -> None:
        self.now_ms += seconds * 1000
        before = self.rollout
        self.rollout = state.observe(before, self.sights, self.now_ms)
        self._check_move(before)
        self.waves.append(self.rollout.wave)
        for device in state.due(self.rollout, self.sights):
            wave = self.rollout.wave
            # Nobody beyond the canary before one has committed.
            assert wave == 0 or self.canaries_committed
            self.rollout = state.assigned(self.rollout, device, release=2, previous=OLD, now_ms=self.now_ms)
        self.canaries_committed |= self.rollout.count(Progress.COMMITTED) > 0
        for member in state.to_revert(self.rollout):
            self.rollout = state.reverted(self.rollout, member.device)
        assert state.to_revert(self.rollout) == ()

    @rule(device=devices)
    def commits(self, device: str) -> None:
        if self._assigned(device):
            self._see(device, online=True, package=NEW, target=NEW, step=UpdateStep.COMMITTED, release=2)

    @rule(device=devices)
    def fails(self, device: str) -> None:
        if self._assigned(device):
            self._see(device, online=True, package=OLD, target=NEW, step=UpdateStep.FAILED, release=2)

    @rule(device=devices, failed=st.integers(0, 100))
    def answers(self, device: str, failed: int) -> None:
        self._see(device, requests=100, failed=failed)

    @rule(device=devices, online=st.booleans())
    def connects_or_leaves(self, device: str, online: bool) -> None:
        self._see(device, online=online)

    @rule(fleet=st.sets(devices))
    def fleet_changes(self, fleet: set[str]) -> None:
        if self.rollout.state is State.RUNNING:
            self.rollout = state.join(self.rollout, sorted(fleet))

    @precondition(lambda self: self.rollout.state is State.RUNNING)
    @rule()
    def pause(self) -> None:
        self.rollout = state.move(self.rollout, State.PAUSED)

    @precondition(lambda self: self.rollout.state is State.PAUSED)
    @rule()
    def resume(self) -> None:
        self.rollout = state.move(self.rollout, State.RUNNING)

    @invariant()
    def waves_never_go_back(self) -> None:
        assert self.waves == sorted(self.waves)

    @invariant()
    def only_a_running_rollout_assigns(self) -> None:
        if self.rollout.state is not State.RUNNING:
            assert state.due(self.rollout, self.sights) == ()

    @invariant()
    def too_many_failures_always_halt(self) -> None:
        if self.rollout.state is State.DONE:
            assert self.rollout.count(Progress.FAILED) <= self.rollout.gate.max_failures

    @invariant()
    def done_means_that_nobody_was_forgotten(self) -> None:
        if self.rollout.state is State.DONE:
            assert self.rollout.count(Progress.WAITING, Progress.ASSIGNED) == 0

    def _assigned(self, device: str) -> bool:
        member = self.rollout.members.get(device)
        return member is not None and member.assigned_at_ms is not None

    def _see(self, device: str, **changes: object) -> None:
        self.sights[device] = dataclasses.replace(self.sights[device], **changes)  # type: ignore[arg-type]

    def _check_move(self, before: Rollout) -> None:
        if self.rollout.state is not before.state:
            assert self.rollout.state in ALLOWED[before.state]


TestRollout = RolloutMachine.TestCase
TestRollout.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
