"""Code that is let go of: it comes back, and what was changed in memory is never lost. In a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.runtime.code_pages import CodeWatch, file_bytes, let_go_of_code
from tests.fakes.packages import make_package

MIB = 1 << 20

_RUN = """
import json, sys
from pathlib import Path
import numpy as np
from edge_agent.runtime.code_pages import CodeWatch, file_bytes, let_go_of_code
from edge_agent.runtime.loaded import load
from edge_agent.runtime.package import Package

loaded = load(Package.open(Path(sys.argv[1]), verify=True))
golden = loaded.golden().inputs
first = loaded.backend.infer(golden)
before = file_bytes()
watch = CodeWatch()
watch.look()
least = file_bytes()
again = loaded.backend.infer(golden)
same = all(np.array_equal(first[name], again[name]) for name in first)
watch.look()
settled = file_bytes()
watch.look()
print(json.dumps({"before": before, "least": least, "settled": settled, "still": file_bytes(), "same": same}))
"""

_PATCHED = """
import ctypes, mmap, sys
from pathlib import Path
from edge_agent.runtime.code_pages import let_go_of_code

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
kept = []
for name in ("patched", "gone"):
    path = Path(sys.argv[1]) / name
    path.write_bytes(b"a" * mmap.PAGESIZE)
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    mapped[:5] = b"mine!"
    at = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    assert libc.mprotect(at, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC) == 0
    if name == "gone":
        path.unlink()
    kept.append(mapped)
let_go_of_code()
print(b" ".join(mapped[:5] for mapped in kept).decode())
sys.stdout.flush()
import os
os._exit(0)
"""

linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")


@linux
def test_code_that_only_loading_needed_goes_and_the_model_answers_the_same(tmp_path: Path) -> None:
    make_package(tmp_path / "package")
    command = [sys.executable, "-c", _RUN, str(tmp_path / "package")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same"]
    assert found["least"] < found["before"] - 10 * MIB, found
    assert found["settled"] < found["before"] - 5 * MIB, found
    assert found["still"] >= found["settled"] - MIB, "what is in use is left alone"


@linux
def test_code_that_was_patched_in_memory_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PATCHED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout.strip()) == (0, "mine! mine!"), done.stderr


def test_it_is_no_harm_in_a_process_that_goes_on() -> None:
    let_go_of_code()
    CodeWatch().look()
    assert file_bytes() >= 0
