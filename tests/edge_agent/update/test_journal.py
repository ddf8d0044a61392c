"""What is told of the updates."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from edge_agent.contract.messages import Event, EventKind
from edge_agent.update.journal import Journal


def test_a_failure_that_repeats_itself_is_told_once_and_that_of_another_release_again(tmp_path: Path) -> None:
    events: list[Event] = []
    journal = Journal(
        tmp_path, events.append, utc_now=lambda: dt.datetime.now(dt.UTC), after_step=lambda *_: None, boot=""
    )
    for package, release in (("a" * 64, 2), ("a" * 64, 2), ("b" * 64, 3), ("b" * 64, 4), ("b" * 64, 4)):
        journal.tell(EventKind.UPDATE_FAILED, "digits", package, "no memory", release=release)
    assert [(event.package[0], event.detail["release"]) for event in events] == [("a", 2), ("b", 3), ("b", 4)]
