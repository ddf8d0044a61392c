"""What is remembered of runtimes over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.runtime.choice import Candidate
from edge_agent.runtime.runtimes import Remembered, RuntimesFile

FOUND = Remembered(machine="orin", runtime="tensorrt", precision="fp16", engine="e" * 64, reason="0.9 ms against 6 ms")


def test_what_was_found_is_known_after_a_restart_on_the_same_machine_alone(tmp_path: Path) -> None:
    path = tmp_path / "runtimes.json"
    RuntimesFile(path).put("a" * 64, FOUND)
    again = RuntimesFile(path)
    assert again.get("a" * 64, "orin") == FOUND
    assert again.get("a" * 64, "another TensorRT") is None
    assert again.get("b" * 64, "orin") is None
    assert again.of("a" * 64) == FOUND
    assert again.engines() == {"e" * 64}
    assert path.stat().st_mode & 0o777 == 0o600


def test_packages_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    runtimes = RuntimesFile(tmp_path / "runtimes.json")
    for digest in ("a" * 64, "b" * 64, "c" * 64):
        runtimes.put(digest, FOUND)
    runtimes.drop("c" * 64)
    runtimes.collect(["b" * 64])
    again = RuntimesFile(tmp_path / "runtimes.json")
    assert [again.of(digest * 64) is not None for digest in "abc"] == [False, True, False]


def test_what_has_failed_twice_is_not_used_any_more(tmp_path: Path) -> None:
    runtimes, digest = RuntimesFile(tmp_path / "runtimes.json"), "a" * 64
    runtimes.put(digest, FOUND)
    runtimes.count_trouble(digest, +1)
    runtimes.count_trouble(digest, -1)
    runtimes.count_trouble(digest, -1)
    runtimes.count_trouble(digest, +1)
    runtimes.count_trouble("of nobody", +1)
    after_one = RuntimesFile(tmp_path / "runtimes.json")
    assert (found := after_one.get(digest, "orin")) is not None
    assert found.is_usable
    after_one.count_trouble(digest, +1)
    assert (found := after_one.get(digest, "orin")) is not None
    assert not found.is_usable
    assert "tensorrt fp16 has failed here 2 times" in found.why_on_cpu
    assert Remembered(machine="orin", runtime="onnxruntime-cpu", reason="faster").why_on_cpu == "faster"


def test_what_ends_the_process_while_it_is_first_tried_is_a_trouble_at_the_next_start(tmp_path: Path) -> None:
    path, digest, candidate = tmp_path / "runtimes.json", "a" * 64, Candidate("tensorrt", "fp16")
    runtimes = RuntimesFile(path)
    with runtimes.trying(digest, "orin", candidate, "e" * 64):
        after_one = RuntimesFile(path)  # as the next start would find it
    assert runtimes.of(digest) is None, "it did not end the process"
    assert (found := after_one.get(digest, "orin")) is not None
    assert (found.untested, found.is_usable, after_one.engines()) == (True, True, {"e" * 64})
    with after_one.trying(digest, "orin", candidate, "e" * 64):
        after_two = RuntimesFile(path)
    assert (found := after_two.get(digest, "orin")) is not None
    assert not found.is_usable
    assert "tensorrt fp16 has failed here 2 times" in found.why_on_cpu
    assert after_one.of(digest) is None, "the first was the power plug"


def test_what_was_known_before_a_trial_is_known_after_it(tmp_path: Path) -> None:
    runtimes, digest = RuntimesFile(tmp_path / "runtimes.json"), "a" * 64
    runtimes.put(digest, FOUND)
    with runtimes.trying(digest, "another TensorRT", FOUND.candidate, "f" * 64):
        assert runtimes.get(digest, "orin") is None
    assert runtimes.get(digest, "orin") == FOUND


def test_a_damaged_file_is_said_and_counts_as_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "runtimes.json"
    path.write_bytes(b'{"packages": {"a')
    runtimes = RuntimesFile(path)
    assert runtimes.engines() == set()
    assert "runtimes.json is damaged" in caplog.text
    runtimes.put("a" * 64, FOUND)
    assert RuntimesFile(path).get("a" * 64, "orin") == FOUND


def test_a_disk_that_refuses_costs_only_the_memory_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runtimes = RuntimesFile(tmp_path / "gone" / "runtimes.json")
    runtimes.put("a" * 64, FOUND)
    assert runtimes.get("a" * 64, "orin") == FOUND
    assert "models are measured anew" in caplog.text
