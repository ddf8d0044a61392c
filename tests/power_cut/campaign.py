"""``make power-cut``: cuts an agent's power wherever an update can be cut, and counts how many cuts it survived.

After each cut the agent is started again. It must serve the old or the new version at once, complete the update, and
end in an orderly way.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import queue
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.power_cut.disk import Crash, Disk, inodes_of
from tests.power_cut.fleet import (
    NEW,
    VERSIONS,
    Fleet,
    address_of,
    copy_state,
    fleet,
    has_committed,
    listens,
    said_address,
    version_that_answers,
    wait_for,
    write_config,
)
from tests.power_cut.power import (
    FULL,
    KILL,
    KILLED,
    OFF,
    RECORD,
    TEAR,
    Outlet,
    PoweredAgent,
    build_interposer,
    compiler,
)
from tests.power_cut.record import Operation, read_record

_PATIENCE_S = 60.0
_TAKE_ROOM = {"create", "write", "mkdir", "symlink", "link"}
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one trial ended.

    Args:
        trial: What was done to the device; ``kind``: to count it under.
        wrong: What did not hold; empty where all did.
    """

    kind: str
    trial: str
    wrong: str = ""


class Campaign:
    """Trials on one device, one after the other.

    Args:
        base: Its state folder before the update; never touched.
    """

    def __init__(self, fleet: Fleet, outlet: Outlet, base: Path) -> None:
        self._fleet, self._outlet, self.base = fleet, outlet, base
        self._work = base.with_name(f"{base.name}-trials")
        self._work.mkdir()

    def record(self) -> tuple[list[Operation], dict[str, int], Path]:
        """One whole update with all its operations written down; the inodes are those before it."""
        state = copy_state(self.base, self._work / "recorded")
        inodes, record = inodes_of(state), self._work / "operations"
        agent = self._outlet.start(state, write_config(state), fate=RECORD, record=record)
        done = wait_for(lambda: has_committed(state, self._fleet.new), _PATIENCE_S)
        assert done, f"the update did not complete: {_said(agent)}"
        time.sleep(0.3)  # what is tidied up after the commit
        assert agent.stop() == 0, _said(agent)
        operations = read_record(record, state)
        return operations, inodes, state

    def killed(self, fate: int, at: int) -> Outcome | None:
        """Cut the power at an operation; None where the update and the agent ended before it came."""
        kind = {KILL: "killed before an operation", TEAR: "killed within a write"}[fate]
        state = copy_state(self.base, self._work / f"{'kill' if fate == KILL else 'tear'}-{at}")
        agent = self._outlet.start(state, write_config(state), fate=fate, at=at)
        wait_for(lambda: agent.has_ended() or has_committed(state, self._fleet.new), _PATIENCE_S)
        if not agent.has_ended():
            wait_for(agent.has_ended, 0.3)
        status = agent.stop()
        if status == 0:
            shutil.rmtree(state)
            return None
        if status != KILLED:
            return Outcome(kind, f"operation {at}", f"it ended with {status} by itself: {_said(agent)}")
        return Outcome(kind, f"operation {at}", self._verified(state))

    def full(self, at: int) -> Outcome | None:
        """Let the disk be full from an operation on, and have room again after a restart."""
        state = copy_state(self.base, self._work / f"full-{at}")
        agent = self._outlet.start(state, write_config(state), fate=FULL, at=at)
        kind, trial = "disk full from an operation on", f"operation {at}"
        # By the log: the file that names its address may have no room.
        if not wait_for(lambda: said_address(agent) or agent.has_ended(), _PATIENCE_S):
            return Outcome(kind, trial, f"it neither listens nor ends: {_said(agent)}")
        wait_for(lambda: agent.has_ended() or has_committed(state, self._fleet.new), 0.7)
        wrong = "" if agent.has_ended() else _answers(said_address(agent))
        status = agent.stop()
        if wrong or status != 0:
            return Outcome(kind, trial, f"on a full disk: {wrong or f'it ended with {status}'}: {_said(agent)}")
        return Outcome(kind, trial, self._verified(state))

    def crashed(self, disk: Disk, crash: Crash, number: int) -> Outcome:
        """Start from what is left of the disk after a power cut."""
        state = self._work / f"crash-{number}"
        disk.materialise(crash, state)
        wrong = self._verified(state)
        return Outcome(
            "un-synced writes lost", f"state {number}: before operation {crash.operation}, lost: {crash.why}", wrong
        )

    def flipped(self, state: Path, file: str, at: int, number: int) -> Outcome:
        """Flip one bit of a file."""
        state = copy_state(state, self._work / f"flip-{number}")
        with (state / file).open("r+b") as opened:
            opened.seek(at)
            byte = opened.read(1)[0]
            opened.seek(at)
            opened.write(bytes([byte ^ 0x10]))
        return Outcome("a bit flipped", f"{file}, byte {at}", self._verified(state))

    def _verified(self, state: Path) -> str:
        """Start the agent on what is left; gives what is wrong, and keeps the folder then."""
        agent = self._outlet.start(state, write_config(state), fate=OFF)
        wrong = self._serves_and_completes(agent)
        status = agent.stop()
        if not wrong and status != 0:
            wrong = f"it ended with {status}"
        if wrong:
            return f"{wrong}; it said: {_said(agent)}"
        shutil.rmtree(state)
        agent.log.unlink()
        return ""

    def _serves_and_completes(self, agent: PoweredAgent) -> str:
        if not wait_for(lambda: listens(agent) or agent.has_ended(), _PATIENCE_S):
            return "it does not listen"
        if agent.has_ended():
            return f"it did not start again: status {agent.status}"
        if wrong := _answers(address_of(agent.state)):
            return wrong
        if not wait_for(lambda: has_committed(agent.state, self._fleet.new), _PATIENCE_S):
            return "the update does not complete"
        if (version := version_that_answers(address_of(agent.state))) != NEW:
            return f"it has committed to version {NEW}, and version {version} answers"
        return ""


def _answers(address: str) -> str:
    """What is wrong with the answers that an agent gives; empty where nothing is."""
    try:
        version = version_that_answers(address)
    except (OSError, ValueError) as error:
        return f"it does not serve: {error}"
    return "" if version in VERSIONS else "it answers what no version answers"


def _said(agent: PoweredAgent) -> str:
    return agent.log.read_text()[-1500:]


Trial = Callable[[Campaign], Outcome | None]


def trials(first: Campaign, share: float) -> Iterator[Trial]:
    """Every way in which the update of this fleet can be cut, or an even share of them."""
    operations, inodes, state = first.record()
    room = [number for number, one in enumerate(operations) if one.kind in _TAKE_ROOM]
    writes = [number for number, one in enumerate(operations) if one.kind == "write"]
    # A run may take a few more operations than the recorded one.
    for at in _some(range(len(operations) + len(operations) // 10), share):
        yield partial(Campaign.killed, fate=KILL, at=at)
    for at in _some(writes, share):
        yield partial(Campaign.killed, fate=TEAR, at=at)
    for at in _some(room, share):
        yield partial(Campaign.full, at=at)
    disk = Disk(first.base, inodes, operations)
    for number, crash in _some(enumerate(disk.crashes()), share):
        yield partial(Campaign.crashed, disk=disk, crash=crash, number=number)
    flips = [(each, file, at) for each in (first.base, state) for file, at in _bits(each)]
    for number, (each, file, at) in _some(enumerate(flips), share):
        yield partial(Campaign.flipped, state=each, file=file, at=at, number=number)


def _some(of: Iterable[T], share: float) -> Iterator[T]:
    """An even share of these, the first among them."""
    taken = 0.0
    for one in of:
        if taken <= 0.0:
            yield one
            taken += 1.0
        taken -= share


def _bits(state: Path) -> Iterator[tuple[str, int]]:
    """A byte near the beginning, in the middle and at the end of each file."""
    for base, folders, files in os.walk(state):
        folders.sort()
        for name in sorted(files):
            path = Path(base, name)
            size = 0 if path.is_symlink() else path.stat().st_size
            for at in sorted({size // 10, size // 2, size - 1} if size else ()):
                yield os.path.relpath(path, state), at


def run(folder: Path, *, share: float, workers: int, say: Callable[[str], None]) -> list[Outcome]:
    """The whole campaign, or an even share of it.

    Args:
        share: 1.0 for every trial.
        workers: Devices that are tried side by side.
    """
    library = build_interposer(folder)
    with contextlib.ExitStack() as stack:
        outlets = [stack.enter_context(Outlet(library)) for _ in range(workers)]
        devices = stack.enter_context(fleet(folder, outlets[0]))
        states = [devices.device(f"device-{number}") for number in range(workers)]
        devices.bring_old(states)
        devices.offer_new(states)
        campaigns = [Campaign(devices, outlet, state) for outlet, state in zip(outlets, states, strict=True)]
        return _side_by_side(campaigns, trials(campaigns[0], share), say)


def _side_by_side(campaigns: list[Campaign], todo: Iterator[Trial], say: Callable[[str], None]) -> list[Outcome]:
    waiting: queue.SimpleQueue[Trial] = queue.SimpleQueue()
    for trial in todo:
        waiting.put(trial)
    say(f"{waiting.qsize()} trials, {len(campaigns)} at once")
    with concurrent.futures.ThreadPoolExecutor(len(campaigns)) as pool:
        working = [pool.submit(_work, campaign, waiting, say) for campaign in campaigns]
        return [outcome for each in working for outcome in each.result()]


def _work(campaign: Campaign, waiting: queue.SimpleQueue[Trial], say: Callable[[str], None]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while True:
        try:
            trial = waiting.get_nowait()
        except queue.Empty:
            return outcomes
        outcome = trial(campaign)
        if outcome is None:
            continue
        outcomes.append(outcome)
        if outcome.wrong:
            say(f"WRONG  {outcome.kind}: {outcome.trial}: {outcome.wrong}")
        if len(outcomes) % 50 == 0:
            say(f"about {waiting.qsize()} trials to go")


def table(outcomes: list[Outcome]) -> str:
    """How many trials of each kind went well."""
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for outcome in outcomes:
        counts[outcome.kind][0] += not outcome.wrong
        counts[outcome.kind][1] += 1
    lines = [f"{good:6} of {all_:<6} {kind}" for kind, (good, all_) in counts.items()]
    good = sum(not outcome.wrong for outcome in outcomes)
    return "\n".join([*lines, f"power cuts survived: {good} of {len(outcomes)}"])


def main() -> int:
    """Run it; 1 where anything was wrong, 3 where it cannot run here."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--share", type=float, default=1.0, help="try an even share of all cuts only")
    options.add_argument("--workers", type=int, default=4, help="devices tried side by side")
    options.add_argument("--keep", type=Path, help="keep what is wrong in this folder")
    given = options.parse_args()
    if compiler() is None:
        _say("not run: it needs a C compiler (apt-get install gcc)")
        return 3
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="power-cut-")))
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        outcomes = run(folder.resolve(), share=given.share, workers=given.workers, say=_say)
        _say(f"{table(outcomes)}\nin {time.monotonic() - began:.0f} s")
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
