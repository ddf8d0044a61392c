"""What a board is called and which NVIDIA software is on it, from files alone: nothing heavy is imported to know."""

from __future__ import annotations

import re
from pathlib import Path

from edge_agent.monitor.board import tegra
from edge_agent.monitor.board.system_files import SystemFiles

_MODEL = "proc/device-tree/model"  # also on boards of others, such as a Raspberry Pi
_DRIVER = "proc/driver/nvidia/version"
_GPUS = "proc/driver/nvidia/gpus/*/information"
_DISCRETE = "dev/nvidia0"
_CUDA_JSON = "usr/local/cuda/version.json"
_CUDA_TEXT = "usr/local/cuda/version.txt"
_TENSORRT = ("usr/lib/aarch64-linux-gnu/libnvinfer.so.*.*", "usr/lib/x86_64-linux-gnu/libnvinfer.so.*.*")
_PACKAGES = "var/lib/dpkg/status"

_L4T = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_VERSION = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")
_NAME = re.compile(r"^Model:\s*(.+?)\s*$", re.MULTILINE)
_LIBRARY = re.compile(r"\.so\.(\d+(?:\.\d+)+)$")
_JETPACK = b"Package: nvidia-jetpack\n"


def accelerator(files: SystemFiles) -> str:
    """What makes models fast here: a Jetson board's name, a GPU's (``2 x ...`` for several), or ``cpu``."""
    if tegra.is_tegra(files):
        model = files.text(_MODEL) or ""
        return model or f"NVIDIA {tegra.chip_name(files)}"
    names: dict[str, int] = {}
    for path in files.find(_GPUS):
        found = _NAME.search(files.text(path) or "")
        if found:
            names[found[1]] = names.get(found[1], 0) + 1
    if names:
        return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items())
    return "nvidia" if files.exists(_DISCRETE) else "cpu"


def versions(files: SystemFiles, root: Path = Path("/")) -> dict[str, str]:
    """Versions by name (``l4t``, ``jetpack``, ``nvidia-driver``, ``cuda``, ``tensorrt``); none without an accelerator.

    Args:
        root: Of the package database, which is too large to be read like the other files.
    """
    if not tegra.is_tegra(files) and not files.exists(_DISCRETE):
        return {}
    found = {
        "l4t": _l4t(files),
        "jetpack": _jetpack(root / _PACKAGES) if files.exists(tegra.RELEASE) else "",
        "nvidia-driver": _first(_VERSION, files.text(_DRIVER)),
        "cuda": _cuda(files),
        "tensorrt": _tensorrt(files),
    }
    return {name: version for name, version in found.items() if version}


def _l4t(files: SystemFiles) -> str:
    found = _L4T.search(files.text(tegra.RELEASE) or "")
    return f"{found[1]}.{found[2]}" if found else ""


def _jetpack(database: Path) -> str:
    """The version of the package that stands for a JetPack; where only parts were installed it is not there."""
    is_jetpack = False
    try:
        with database.open("rb") as lines:  # some MB, of which no more than a line is held
            for line in lines:
                if line == _JETPACK:
                    is_jetpack = True
                elif is_jetpack and line.startswith(b"Version: "):
                    return line[9:].strip().partition(b"+")[0].decode("ascii", "replace")
                elif line == b"\n":
                    is_jetpack = False
    except OSError:
        return ""
    return ""


def _cuda(files: SystemFiles) -> str:
    import json

    try:
        found = json.loads(files.text(_CUDA_JSON) or "{}")
        return str(found["cuda"]["version"])
    except (ValueError, KeyError, TypeError):  # CUDA 10.2 has a sentence instead: "CUDA Version 10.2.300"
        return _first(re.compile(r"CUDA Version ([\d.]+)"), files.text(_CUDA_TEXT))


def _tensorrt(files: SystemFiles) -> str:
    names = [name for pattern in _TENSORRT for name in files.find(pattern)]
    versions = [found[1] for name in names if (found := _LIBRARY.search(name))]
    return max(versions, key=lambda version: version.count("."), default="")


def _first(pattern: re.Pattern[str], text: str | None) -> str:
    found = pattern.search(text or "")
    return found[1] if found else ""
