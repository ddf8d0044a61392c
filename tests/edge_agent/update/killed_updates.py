"""A program of the tests: forks one agent per moment of an update and lets each die there, with exit status 9.

It has no threads of its own, so that forking is safe and each agent starts with everything imported.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import edge_agent.update.resolver  # noqa: F401 - imported once, before the forks
from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.messages import Desired, UpdateStep
from tests.fakes.updating_device import UpdatingDevice

KILLED = 9
MOST_OPERATIONS = 400


class _Countdown:
    """Dies before the n-th sync or rename of this process."""

    def __init__(self, operations: int) -> None:
        self._left = operations

    def before(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                os._exit(KILLED)
            return operation(*args, **kwargs)

        return counted

    def arm(self) -> None:
        os.fsync = self.before(os.fsync)
        Path.replace = self.before(Path.replace)  # type: ignore[method-assign]
        Path.rename = self.before(Path.rename)  # type: ignore[method-assign]


def _agent(state: Path, order: dict[str, Any], step: UpdateStep | None, operations: int | None) -> None:
    """The whole life of one agent: start, update, probation."""

    def after_step(_model: str, reached: UpdateStep) -> None:
        if reached is step:
            os._exit(KILLED)

    enrolment = msgspec.convert(order["enrolment"], Enrolment)
    device = UpdatingDevice(state, enrolment, after_step=after_step, with_shadows=order["with_shadow"])
    if operations is not None:
        _Countdown(operations).arm()
    device.apply(msgspec.convert(order["desired"], Desired))
    device.pass_probation()
    if order["with_shadow"]:  # which is over, for want of requests; now the probation
        device.pass_probation()
    os._exit(0)


def _die(order: dict[str, Any], name: str, step: UpdateStep | None, operations: int | None) -> bool:
    """Run an agent on a copy of the state; gives whether it was killed."""
    state = Path(order["scratch"]) / name
    shutil.copytree(order["state"], state, symlinks=True)
    child = os.fork()
    if child == 0:
        try:
            _agent(state, order, step, operations)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        shutil.rmtree(state)
    elif code != KILLED:
        raise SystemExit(f"{name}: the agent ended with {code} instead of being killed")
    return code == KILLED


def main(order: dict[str, Any]) -> None:
    for value in order["steps"]:
        if not _die(order, f"step-{value}", UpdateStep(value), None):
            raise SystemExit(f"the update never came to step {value}")
    for operations in range(0, MOST_OPERATIONS, order["stride"]):
        if not _die(order, f"operation-{operations:03}", None, operations):
            return
    raise SystemExit(f"the update needs more than {MOST_OPERATIONS} operations")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_bytes()))
