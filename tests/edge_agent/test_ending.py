from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import atexit, ctypes, sys, threading, time
from edge_agent.ending import run_and_end

def later():
    time.sleep(0.2)
    print("the thread is through")

def main():
    atexit.register(print, "what was registered ran")
    libc = ctypes.CDLL(None)
    libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)
    threading.Thread(target=later).start()
    print("worked")
    {end}

run_and_end(main)
"""


def run(folder: Path, end: str) -> subprocess.CompletedProcess[str]:
    program = folder / "program.py"
    program.write_text(_PROGRAM.format(end=end))
    return subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("end", "status", "says"),
    [("return", 0, ""), ("sys.exit(7)", 7, ""), ("sys.exit()", 0, ""), ("sys.exit('no disk')", 1, "no disk\n")],
)
def test_a_program_ends_with_its_own_status_though_the_teardown_would_abort(
    *, tmp_path: Path, end: str, status: int, says: str
) -> None:
    done = run(tmp_path, end)
    assert done.returncode == status, done.stderr
    assert done.stdout == "worked\nthe thread is through\nwhat was registered ran\n"
    assert done.stderr == says


def test_an_error_ends_a_program_as_it_always_does(tmp_path: Path) -> None:
    done = run(tmp_path, "raise ValueError('no sense')")
    assert "ValueError: no sense" in done.stderr
    assert done.returncode != 0
