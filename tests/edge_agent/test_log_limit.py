"""What is logged of what goes wrong again and again."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest

from edge_agent.log_limit import RepeatLimit


class Logged:
    """A log with the limit, and a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self._stream = io.StringIO()
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(logging.Formatter("%(message)s%(repeats)s"))
        handler.addFilter(RepeatLimit(lambda: self.now))
        self.logger = logging.Logger("test")  # noqa: LOG001 - whose handlers nobody else has
        self.logger.addHandler(handler)

    def fails(self, model: str, why: str = "no reason", level: int = logging.WARNING) -> None:
        """What a model's failure writes."""
        self.logger.log(level, "model %s failed: %s", model, why)

    def lines(self) -> list[str]:
        """What came through since the last time."""
        found = self._stream.getvalue().splitlines()
        self._stream.seek(0)
        self._stream.truncate()
        return found


@pytest.fixture
def logged() -> Logged:
    return Logged()


def test_of_many_alike_ten_a_minute_are_logged_and_the_next_says_how_many_were_not(logged: Logged) -> None:
    for number in range(1000):
        logged.now = number * 0.05
        logged.fails("digits", f"row {number}")
    assert logged.lines() == [f"model digits failed: row {number}" for number in range(10)]
    logged.now = 61.0
    logged.fails("digits", "again")
    logged.fails("digits", "and again")
    assert logged.lines() == [
        "model digits failed: again (990 more like it were not logged)",
        "model digits failed: and again",
    ]


def test_a_model_that_always_fails_hides_no_other_and_nothing_else(logged: Logged) -> None:
    for _ in range(50):
        logged.fails("digits")
    logged.lines()
    logged.fails("pump")
    logged.logger.error("the disk is full")
    assert logged.lines() == ["model pump failed: no reason", "the disk is full"]


def test_what_is_no_warning_is_never_left_out(logged: Logged) -> None:
    for _ in range(50):
        logged.fails("digits", level=logging.INFO)
    assert len(logged.lines()) == 50


def test_memory_is_bounded_and_those_that_began_first_are_forgotten_first(logged: Logged) -> None:
    for _ in range(20):
        logged.fails("digits")
    for number in range(300):
        logged.fails(f"model {number}")
    logged.lines()
    logged.fails("digits")
    assert logged.lines() == ["model digits failed: no reason"]
    for _ in range(20):
        logged.fails("model 299")
    assert len(logged.lines()) == 9  # one was logged before


@pytest.mark.parametrize(("level", "lines"), [("info", 10), ("debug", 50)])
def test_the_agent_logs_so_but_where_a_person_asks_for_everything(level: str, lines: int) -> None:
    program = (
        "import logging, sys\n"
        "from edge_agent.cli import log_to_stderr\n"
        "log_to_stderr(sys.argv[1])\n"
        "for row in range(50):\n"
        "    logging.getLogger('edge_agent.serving').warning('model %s failed: row %d', 'digits', row)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, level], capture_output=True, text=True, timeout=60, check=True
    )
    assert [line.rpartition(" ")[2] for line in done.stderr.splitlines()] == [str(row) for row in range(lines)]
    assert "WARNING edge_agent.serving: model digits failed: row 0\n" in done.stderr
