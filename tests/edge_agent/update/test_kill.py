"""The agent is killed at every step of an update; whatever it was, a model serves and the update completes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.contract.manifest import Shadow
from edge_agent.contract.messages import UpdateStep
from edge_agent.runtime.package import Package
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice

STEPS = [step for step in UpdateStep if step is not UpdateStep.FAILED]


@pytest.mark.parametrize("with_shadow", [False, True], ids=["straight", "shadow"])
@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_an_agent_killed_at_any_step_sync_or_rename_serves_after_a_restart_and_completes_the_update(
    tmp_path: Path, server: UpdateServer, device: UpdatingDevice, second: Package, stride: int, *, with_shadow: bool
) -> None:
    """Killed after each step is written down, and before each (or every seventh) sync and rename of the update."""
    old, first = device.infer(), device.reported().package
    if with_shadow:
        second = make_package(tmp_path / "built", version="3", seed=3, shadow=Shadow(seconds=60.0))
        server.publisher.publish(second)
    desired, version = server.assign(second), second.manifest.version
    steps = [step for step in STEPS if with_shadow or step is not UpdateStep.SHADOW]
    device.close()
    order = {
        "state": str(device.state),
        "enrolment": msgspec.to_builtins(server.enrolment()),
        "desired": msgspec.to_builtins(desired),
        "scratch": str(tmp_path / "killed"),
        "stride": stride,
        "steps": [step.value for step in steps],
        "with_shadow": with_shadow,
    }
    (tmp_path / "order.json").write_text(json.dumps(order))
    command = [sys.executable, "-m", "tests.edge_agent.update.killed_updates", str(tmp_path / "order.json")]
    subprocess.run(command, cwd=Path(__file__).parents[3], check=True, timeout=200)
    states = sorted((tmp_path / "killed").iterdir())
    reached = {path.name for path in states}
    assert {f"step-{step.value}" for step in steps} <= reached
    assert sum(name.startswith("operation-") for name in reached) * stride > 40
    new = None
    for state in states:
        restarted = UpdatingDevice(state, server.enrolment(), with_shadows=with_shadow)
        answer = restarted.infer()
        assert restarted.version in ("1", version), state.name
        assert np.array_equal(answer, old) == (restarted.version == "1"), state.name
        restarted.pass_probation()
        for _ in range(2 if with_shadow else 1):
            if not restarted.apply(desired):
                restarted.pass_probation()
        assert restarted.apply(desired), (state.name, restarted.reported())
        assert (restarted.version, restarted.reported().step) == (version, UpdateStep.COMMITTED), state.name
        new = restarted.infer() if new is None else new
        np.testing.assert_array_equal(restarted.infer(), new)
        assert restarted.packages() == {first, second.digest}, state.name
        restarted.close()
