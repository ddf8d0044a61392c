"""What the command line says before anything is done."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from edge_agent.cli import main


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
