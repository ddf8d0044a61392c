"""Processes that hang, leave children behind, or write what nobody agreed on."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from trainer.work.run_log import RunLog
from trainer.work.run_process import ProgressLine, run_to_end


def shell(
    script: str, folder: Path, *, limit_s: float = 60.0, given_up: bool = False
) -> tuple[int, list[str], list[str]]:
    said: list[ProgressLine] = []
    command = ["/bin/sh", "-c", script]
    status, words = run_to_end(command, folder / "log", say=said.append, given_up=lambda: given_up, limit_s=limit_s)
    return status, words, [line.stage for line in said]


def gone(pid: int) -> bool:
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_lines_that_are_no_progress_are_passed_over(tmp_path: Path) -> None:
    script = (
        """printf 'hello\\n\\377\\n{"stage": "fit", "fraction": 0.5}\\n'; printf 'last \\377 words\\n' >&2; exit 3"""
    )
    assert shell(script, tmp_path) == (3, ["last \ufffd words"], ["fit"])


def test_a_process_that_hangs_is_ended_with_what_it_has_started(tmp_path: Path) -> None:
    status, words, _ = shell(f"sleep 600 & echo $! > {tmp_path}/pid; wait", tmp_path, limit_s=1.0)
    assert status < 0
    assert words == ["ended after 1 s, the limit of a run"]
    assert gone(int((tmp_path / "pid").read_text()))


def test_what_outlives_a_process_and_holds_its_output_is_ended(tmp_path: Path) -> None:
    status, _, _ = shell(f"sleep 600 & echo $! > {tmp_path}/pid", tmp_path)
    assert status == 0
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_process_that_is_given_up_is_ended(tmp_path: Path) -> None:
    assert shell("sleep 600", tmp_path, given_up=True)[0] < 0


def test_of_a_log_as_long_as_the_disk_the_last_words_are_read(tmp_path: Path) -> None:
    script = "yes 'the same again' | head -c 9000000 >&2; printf '\nlast words\n' >&2; exit 1"
    status, words, _ = shell(script, tmp_path)
    assert (status, len(words), words[-1]) == (1, 12, "last words")


def test_the_log_of_an_earlier_attempt_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("of the first attempt\n" * 100)
    log = RunLog(path)
    log.note("begins")
    piece = log.piece()
    assert piece.endswith(" begins\n")
    assert "first attempt" not in piece
    log.sent(piece)
    path.write_text("of the second\n")
    log.begin()
    assert log.piece() == "of the second\n"
