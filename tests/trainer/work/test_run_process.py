"""Processes that hang, leave children behind, or write what nobody agreed on."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil

from trainer.work.bounded_log import BoundedLog
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


def test_a_log_that_grows_without_end_keeps_its_newest_part(tmp_path: Path) -> None:
    path = tmp_path / "log"
    heard, errors = os.pipe()
    log = BoundedLog(os.fdopen(heard, "rb", buffering=0), path, most_bytes=100_000)
    shown, read = RunLog(path), ""
    shown.begin()
    with os.fdopen(errors, "wb") as writing:
        for at in range(20_000):
            writing.write(f"line {at:06d}\n".encode())
            if at % 4_000 == 0:
                writing.flush()
                piece = shown.piece()
                shown.sent(piece)
                read += piece
    assert log.wait(30)
    log.close()
    kept = path.with_name("log.before").read_bytes() + path.read_bytes()
    assert len(kept) <= 200_000
    assert kept.endswith(b"line 019999\n")
    assert path.stat().st_size <= 100_000
    while piece := shown.piece():
        shown.sent(piece)
        read += piece
    assert read.endswith("line 019999\n")


def test_a_run_whose_guard_is_killed_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    kill = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    script = f"sleep 600 & echo $! $$ > {tmp_path}/pids; {sys.executable} -c 'import time; time.sleep(0.5)'; "
    script += f"exec {sys.executable} -c '{kill}; import time; time.sleep(600)'"
    status, _, _ = shell(script, tmp_path)
    assert status == -signal.SIGKILL
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_a_log_that_cannot_be_written_does_not_hold_the_run_up(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")  # the kernel's own full disk
    heard, errors = os.pipe()
    log = BoundedLog(os.fdopen(heard, "rb", buffering=0), tmp_path / "log")
    with os.fdopen(errors, "wb") as writing:
        writing.write(b"more than a pipe holds\n" * 50_000)
    assert log.wait(30)
    log.close()
