"""What a board is called and what is installed on it, from files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edge_agent.monitor.board.system_files import SystemFiles
from edge_agent.monitor.board.versions import accelerator, versions
from tests.edge_agent.monitor.conftest import MakeBoard


def test_a_jetson_with_everything(make_board: MakeBoard) -> None:
    root = make_board("orin-nano")
    files = SystemFiles(root)
    assert accelerator(files) == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert versions(files, root) == {"l4t": "36.4.3", "jetpack": "6.2", "cuda": "12.6.11", "tensorrt": "10.3.0"}


def test_an_old_jetson(make_board: MakeBoard) -> None:
    root = make_board("nano")
    assert versions(SystemFiles(root), root) == {"l4t": "32.7.1", "cuda": "10.2.300", "tensorrt": "8.2.1"}


def test_a_jetson_whose_parts_were_installed_one_by_one(make_board: MakeBoard) -> None:
    root = make_board("thor")
    assert versions(SystemFiles(root), root) == {"l4t": "38.2.0"}


def test_a_machine_with_discrete_gpus(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    for slot in ("0000:01:00.0", "0000:02:00.0"):
        folder = tmp_path / "proc/driver/nvidia/gpus" / slot
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA L4\nIRQ:   \t\t 0\n")
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build\nGCC version: gcc 12\n"
    )
    files = SystemFiles(tmp_path)
    assert accelerator(files) == "2 x NVIDIA L4"
    assert versions(files, tmp_path) == {"nvidia-driver": "570.124.06"}


def test_a_gpu_whose_driver_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    assert accelerator(SystemFiles(tmp_path)) == "nvidia"


def test_a_machine_without_an_accelerator_names_none(tmp_path: Path) -> None:
    (tmp_path / "usr/local/cuda").mkdir(parents=True)
    (tmp_path / "usr/local/cuda/version.json").write_text('{"cuda": {"version": "13.0.0"}}')
    assert accelerator(SystemFiles(tmp_path)) == "cpu"
    assert versions(SystemFiles(tmp_path), tmp_path) == {}  # a toolkit alone computes nothing


def test_nothing_heavy_is_imported_to_know() -> None:
    program = (
        "import sys\n"
        "from edge_agent.monitor.machine import hardware\n"
        "hardware()\n"
        "print(sorted({'cuda', 'onnx', 'pycuda', 'pynvml', 'tensorrt', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
