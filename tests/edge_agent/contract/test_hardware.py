"""What a device says of itself is cut to what somebody may store, show and sign."""

from __future__ import annotations

import msgspec

from edge_agent.contract.messages import HARDWARE_RUNTIMES, REASON_CHARS, WORD_CHARS, Hardware, Reported

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
    assert {len(word) for word in words} == {WORD_CHARS}
    assert len(found.runtimes) == HARDWARE_RUNTIMES
    assert len(msgspec.msgpack.encode(found)) < 10_000


def test_what_a_report_says_of_the_agent_and_its_models_is_cut_too() -> None:
    runtime = {"name": LONG, "precision": LONG, "reason": LONG, "building": LONG}
    words = dict.fromkeys(("version", "package", "target", "rollout", "reason"), LONG)
    report = {
        "agent_version": LONG, "api": LONG, "started_at_ms": 1, "desired_revision": 0,
        "hardware": {"architecture": "aarch64", "system": "Linux"},
        "models": {"digits": {"step": "failed", "runtime": runtime, **words}},
    }  # fmt: skip
    found = msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=Reported)
    one = found.models["digits"]
    assert one.runtime is not None
    cut = (found.agent_version, found.api, one.version, one.package, one.target, one.rollout)
    assert {len(word) for word in (*cut, one.runtime.name, one.runtime.precision)} == {WORD_CHARS}
    assert {len(text) for text in (one.reason, one.runtime.reason, one.runtime.building)} == {REASON_CHARS}


def test_what_was_stored_before_there_was_a_bound_is_read_with_the_words_cut() -> None:
    assert msgspec.convert({"architecture": LONG, "system": "Linux"}, Hardware).architecture == "x" * WORD_CHARS


def test_what_a_device_is_stays_as_it_is() -> None:
    runtimes = {"tensorrt": "10.3.0", "onnxruntime": "1.23.2", "python": "3.10.12"}
    one = Hardware(architecture="aarch64", system="Linux 5.15.148-tegra", accelerator="Orin", runtimes=runtimes)
    assert (one.architecture, one.system, one.accelerator) == ("aarch64", "Linux 5.15.148-tegra", "Orin")
    assert list(one.runtimes.items()) == list(runtimes.items())
    assert msgspec.json.decode(msgspec.json.encode(one), type=Hardware) == one
