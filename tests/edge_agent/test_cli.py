"""What the command line says before anything is done."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from click.testing import CliRunner
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Timestamp

from edge_agent.by_hand import install
from edge_agent.cli import log_to_stderr, main
from edge_agent.contract.messages import UpdateStep
from edge_agent.runtime.runtimes import RUNTIMES_FILE, Remembered, RuntimesFile
from edge_agent.update.slots_file import SlotRecord, SlotsFile
from tests.fakes.packages import make_package


def test_a_bare_onnx_file_is_refused_with_what_makes_a_package(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x")
    done = CliRunner().invoke(main, ["install", str(model), "--state", str(tmp_path / "state")])
    assert done.exit_code == 2
    assert "model.onnx is a file. A device serves packages" in done.output
    assert "The trainer makes one" in done.output
    assert not (tmp_path / "state").exists()


def test_a_folder_that_is_no_package_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    done = CliRunner().invoke(main, ["install", str(tmp_path), "--state", str(tmp_path / "state")])
    assert done.exit_code == 3
    assert "manifest.json: the file is missing" in done.output


def test_status_tells_what_serves_on_what_and_where_the_update_is(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    package = make_package(tmp_path / "package", version="7")
    install(state, package.folder)
    said = CliRunner().invoke(main, ["status", "--state", str(state)]).output.splitlines()
    short = package.digest[:12]
    assert said == [
        "not enrolled",
        "digits",
        f"  serves    version 7 ({short}), on onnxruntime-cpu",
        "  update    committed, by hand",
    ]
    RuntimesFile(state / RUNTIMES_FILE).put(
        package.digest, Remembered(machine="m", runtime="tensorrt", precision="fp16")
    )
    record = SlotRecord(
        active=package.digest, last_known_good="a" * 64, step=UpdateStep.SHADOW, target="b" * 64, release=4,
        announced=5, reason="12 of 12 rows agree", group=("digits", "reader"),
    )  # fmt: skip
    SlotsFile(state / "slots.json").put("digits", record)
    said = CliRunner().invoke(main, ["status", "--state", str(state)]).output.splitlines()
    assert said[2:] == [
        f"  serves    version 7 ({short}), on tensorrt fp16",
        "  back to   (aaaaaaaaaaaa)",
        "  update    shadow, release 4 (release 5 is announced), to (bbbbbbbbbbbb)",
        "  because   12 of 12 rows agree",
        "  together  with reader",
    ]


def test_status_of_a_damaged_folder_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "slots.json").write_bytes(b"rotten")
    done = CliRunner().invoke(main, ["status", "--state", str(tmp_path)])
    assert done.exit_code == 6
    assert "slots.json" in done.output
    assert "slots.before.json: it is gone" in done.output
    assert "models come anew from its server" in done.output


def test_status_of_a_damaged_journal_tells_what_it_said_one_step_before(tmp_path: Path) -> None:
    journal = SlotsFile(tmp_path / "slots.json")
    journal.put("digits", SlotRecord())
    journal.put("letters", SlotRecord())
    (tmp_path / "slots.json").write_bytes(b"rotten")
    done = CliRunner().invoke(main, ["status", "--state", str(tmp_path)])
    assert done.exit_code == 0
    _not_enrolled, first, *others = done.output.splitlines()
    assert "slots.json is damaged" in first
    assert "keeps it as slots.damaged and goes on from what it said one step before" in first
    assert "digits" in others


@pytest.mark.parametrize(("level", "lines"), [("info", 0), ("warning", 0), ("debug", 1)])
def test_a_key_that_need_not_sign_is_no_line_of_the_log(
    caplog: pytest.LogCaptureFixture, level: str, lines: int
) -> None:
    caplog.set_level("DEBUG")
    before = {name: logging.getLogger(name).level for name in ("tuf", "securesystemslib")}
    signs, away = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
    root = Root()
    for signer in (signs, away):
        root.add_key(signer.public_key, "timestamp")
    timestamp = Metadata(Timestamp())
    timestamp.sign(signs)
    try:
        log_to_stderr(level)
        root.verify_delegate("timestamp", timestamp.signed_bytes, timestamp.signatures)
    finally:
        for name, was in before.items():
            logging.getLogger(name).setLevel(was)
    assert len(caplog.records) == lines, caplog.text
