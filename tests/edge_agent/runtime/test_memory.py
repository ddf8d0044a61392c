"""Memory: what is unloaded goes back to the system. Measured in processes of their own, which load nothing else."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_agent.runtime import memory
from tests.fakes.large_package import MIB, make_large_package
from tests.fakes.packages import make_package

_LOAD_AND_UNLOAD = """
import json, sys
from pathlib import Path
from edge_agent.runtime.budget import MemoryBudget
from edge_agent.runtime.catalogue import Catalogue
from edge_agent.runtime.memory import resident_bytes
from edge_agent.runtime.optimised import OptimisedModels
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.slots import Slots

models, state, keep = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "keep"
slots, budget = Slots(), MemoryBudget(1 << 40)
cache = OptimisedModels(state / "optimised", own=state) if keep else None
repository = Repository(slots, Catalogue(models), policy="none", memory=budget, cache=cache)
repository.start()
repository.load("small")  # the runtime's own memory is taken with the first model
before = resident_bytes()
for number in range(5):
    repository.load(f"large{number}")
loaded, measured = resident_bytes(), budget.used_bytes
for number in range(5):
    repository.unload(f"large{number}")
print(json.dumps({"loaded": loaded - before, "measured": measured, "after": resident_bytes() - before}))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_package(folder / "small", name="small")
    for number in range(5):
        make_large_package(folder / f"large{number}", name=f"large{number}", seed=number, weights_mib=25)
    return folder


@pytest.mark.parametrize("keep", ["keep", "plain"])
def test_what_five_large_models_took_goes_back_when_they_are_unloaded(tmp_path: Path, models: Path, keep: str) -> None:
    command = [sys.executable, "-c", _LOAD_AND_UNLOAD, str(models), str(tmp_path / "state"), keep]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["loaded"] >= 5 * 25 * MIB
    assert found["loaded"] / 1.3 <= found["measured"] <= found["loaded"] * 1.3
    assert found["after"] <= 6 * MIB, found


_FIRST_AND_SECOND = """
import json, sys
from pathlib import Path
from edge_agent.runtime.loaded import load
from edge_agent.runtime.package import Package

models = [load(Package.open(Path(sys.argv[1]), verify=True)) for _ in range(2)]
print(json.dumps([model.memory_bytes for model in models]))
"""


def test_the_first_model_of_a_process_is_not_charged_for_the_runtimes_own_memory(models: Path) -> None:
    command = [sys.executable, "-c", _FIRST_AND_SECOND, str(models / "small")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert 0 < second <= first + MIB
    assert first < 5 * MIB, "11 MiB where the runtime's own memory is counted"


def test_memory_is_read_and_given_back_without_harm() -> None:
    before = memory.resident_bytes()
    memory.give_back()
    assert 0 < memory.resident_bytes() <= before + MIB


_ONE_LARGE_BATCH = """
import json, sys
from pathlib import Path
import numpy as np
from edge_agent.runtime.loaded import load
from edge_agent.runtime.memory import give_back, resident_bytes
from edge_agent.runtime.package import Package

backend = load(Package.open(Path(sys.argv[1]), verify=True)).backend

def run(rows, times=1):
    for _ in range(times):
        backend.infer({"image": np.zeros((rows, 64), np.float32)})
    give_back()
    return resident_bytes()

before = run(1)
print(json.dumps({"large": run(256) - before, "still": run(128) - before, "after": run(1, 20) - before}))
"""


def test_what_a_large_batch_took_goes_back_when_small_ones_follow(tmp_path: Path) -> None:
    package = make_large_package(tmp_path / "wide", weights_mib=10)  # 256 rows of 35,000 activations: 36 MB, twice
    command = [sys.executable, "-c", _ONE_LARGE_BATCH, str(package.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["large"] >= 30 * MIB
    assert found["still"] >= 30 * MIB, "another one is likely to follow"
    assert found["after"] <= 4 * MIB


_A_BURST = """
import json, time
from edge_agent.runtime.memory import Tidying, resident_bytes

tidying = Tidying(every_s=0.2)
before = resident_bytes()
blocks = [bytearray(50_000) for _ in range(1000)]
kept = blocks[-1]  # at the top of the heap: what lies below is not given back by itself
del blocks
after = resident_bytes()
tidying.start()
until = time.monotonic() + 60
while resident_bytes() - before > 25_000_000 and time.monotonic() < until:
    time.sleep(0.05)
tidying.stop()
print(json.dumps({"burst": after - before, "tidied": resident_bytes() - before}))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc's malloc")
def test_what_a_burst_has_left_behind_goes_back_by_and_by() -> None:
    done = subprocess.run([sys.executable, "-c", _A_BURST], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["burst"] > 40 * MIB
    assert found["tidied"] < 5 * MIB, found


_HEAPS_OF_SIX_THREADS = """
import ctypes, os, sys, threading
from edge_agent.runtime.memory import share_heap

share_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
all_there = threading.Barrier(6)

def allocate():
    all_there.wait()
    libc.malloc(5000)
    all_there.wait()

threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="needs glibc's malloc")
@pytest.mark.parametrize(("environment", "heaps"), [({}, {1}), ({"MALLOC_ARENA_MAX": "4"}, {3, 4})])
def test_threads_share_one_heap_unless_the_environment_says_otherwise(
    tmp_path: Path, environment: dict[str, str], heaps: set[int]
) -> None:
    around = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = tmp_path / "heaps.xml"
    command = [sys.executable, "-c", _HEAPS_OF_SIX_THREADS, str(found)]
    subprocess.run(command, check=True, timeout=100, env={**around, **environment})
    assert found.read_text().count("<heap nr=") in heaps
