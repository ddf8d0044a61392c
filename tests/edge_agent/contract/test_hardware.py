"""What a device says of itself is cut to what somebody may store, show and sign."""

from __future__ import annotations

import msgspec

from edge_agent.contract.messages import HARDWARE_CHARS, HARDWARE_RUNTIMES, Hardware, Reported

LONG = "x" * 1_000_000


def test_a_report_of_endless_words_is_taken_with_the_words_cut() -> None:
    hardware = {
        "architecture": LONG,
        "system": LONG,
        "accelerator": LONG,
        "runtimes": {f"{number}{LONG}": LONG for number in range(HARDWARE_RUNTIMES + 3)},
    }
    report = {"agent_version": "0.1.0", "started_at_ms": 1, "desired_revision": 0, "hardware": hardware}
    found = msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=Reported).hardware
    words = (found.architecture, found.system, found.accelerator, *found.runtimes, *found.runtimes.values())
    assert {len(word) for word in words} == {HARDWARE_CHARS}
    assert len(found.runtimes) == HARDWARE_RUNTIMES
    assert len(msgspec.msgpack.encode(found)) < 10_000


def test_what_was_stored_before_there_was_a_bound_is_read_with_the_words_cut() -> None:
    assert msgspec.convert({"architecture": LONG, "system": "Linux"}, Hardware).architecture == "x" * HARDWARE_CHARS


def test_what_a_device_is_stays_as_it_is() -> None:
    runtimes = {"tensorrt": "10.3.0", "onnxruntime": "1.23.2", "python": "3.10.12"}
    one = Hardware(architecture="aarch64", system="Linux 5.15.148-tegra", accelerator="Orin", runtimes=runtimes)
    assert (one.architecture, one.system, one.accelerator) == ("aarch64", "Linux 5.15.148-tegra", "Orin")
    assert list(one.runtimes.items()) == list(runtimes.items())
    assert msgspec.json.decode(msgspec.json.encode(one), type=Hardware) == one
