"""NVIDIA's Tegra chips: which one this is, and where its GPU's files are in each JetPack's kernel."""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.monitor.board.system_files import SystemFiles

# Names as CUDA gives them, by what the device tree says the chip is compatible with.
_CHIPS = {
    "tegra210": "Tegra X1",  # Nano, TX1
    "tegra186": "Tegra X2",  # TX2
    "tegra194": "Xavier",
    "tegra234": "Orin",
    "tegra264": "Thor",
}
_COMPATIBLE = "proc/device-tree/compatible"
RELEASE = "etc/nv_tegra_release"
_FAMILY = "sys/devices/soc0/family"  # also what NVIDIA's device plugin for Kubernetes goes by
# Clocks: Nano 57000000.gpu; TX2 17000000.gp10b; Xavier 17000000.gv11b; Orin 17000000.ga10b (JetPack 5) or
# 17000000.gpu (6, 7); Thor gpu-gpc-0 (gpu-nvd-0 beside it is the video codec's).
_CLOCKS_OF_THOR = "sys/class/devfreq/gpu-gpc-*"
_CLOCKS = (*(f"sys/class/devfreq/*.{name}" for name in ("gpu", "gp10b", "gv11b", "ga10b")), _CLOCKS_OF_THOR)
# Tenths of a percent. Thor has no such file.
_LOADS = (
    "sys/devices/gpu.0/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/bus@0/*.gpu/load",
    "sys/devices/platform/*.gpu/load",
    "sys/devices/*.gpu/load",
)


@dataclass(frozen=True, slots=True)
class GpuFiles:
    """Where the GPU tells its load and its clocks; empty where it does not."""

    load: str = ""
    clocks: tuple[str, ...] = ()


def is_tegra(files: SystemFiles) -> bool:
    """Whether this is a Jetson board; also inside a container that does not see the device tree."""
    if "nvidia,tegra" in (files.text(_COMPATIBLE) or "") or files.exists(RELEASE):
        return True
    # By its clocks alone no GPU is known: Rockchip's Mali is fb000000.gpu.
    return (files.text(_FAMILY) or "").lower().startswith("tegra") or bool(files.find(_CLOCKS_OF_THOR))


def chip_name(files: SystemFiles) -> str:
    """The GPU's name; ``Tegra`` for a chip that nobody knows."""
    compatible = files.text(_COMPATIBLE) or ""
    return next((name for chip, name in _CHIPS.items() if f"nvidia,{chip}" in compatible), "Tegra")


def gpu_files(files: SystemFiles) -> GpuFiles:
    """The GPU's files; there once its driver is."""
    clocks = tuple(folder for pattern in _CLOCKS for folder in files.find(pattern))
    loads = [f"{folder}/device/load" for folder in clocks if files.exists(f"{folder}/device/load")]
    loads += [path for pattern in _LOADS for path in files.find(pattern)]
    return GpuFiles(load=loads[0] if loads else "", clocks=clocks)
