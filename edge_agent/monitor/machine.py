"""The machine itself: what it is made of, and how it is doing."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnxruntime as ort
import psutil

from edge_agent.contract.messages import DeviceMetrics, Hardware

_NVIDIA_DEVICE = Path("/dev/nvidia0")
_BOARD_NAME = Path("/proc/device-tree/model")  # on boards with a device tree, such as Jetson or Raspberry Pi


class Machine:
    """Reads the machine's state through psutil and sysfs.

    Args:
        state: Folder whose disk's free space is reported.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._process = psutil.Process()
        psutil.cpu_percent(interval=None)  # the first call only marks the beginning

    def metrics(self, *, outbox: tuple[int, int] = (0, 0), traffic: tuple[int, int] = (0, 0)) -> DeviceMetrics:
        """The machine's state now; cpu_percent is the mean since the last call.

        Args:
            outbox: Messages and bytes waiting.
            traffic: Bytes sent up and received down since the agent started.
        """
        return DeviceMetrics(
            cpu_percent=psutil.cpu_percent(interval=None),
            resident_bytes=self._process.memory_info().rss,
            memory_available_bytes=psutil.virtual_memory().available,
            disk_free_bytes=self._disk_free(),
            temperature_c=_hottest_c(),
            outbox_messages=outbox[0],
            outbox_bytes=outbox[1],
            bytes_up=traffic[0],
            bytes_down=traffic[1],
        )

    def _disk_free(self) -> int | None:
        try:
            return psutil.disk_usage(str(self._state)).free
        except OSError:
            return None


def hardware() -> Hardware:
    """What this machine is made of."""
    return Hardware(
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        accelerator=_accelerator(),
        runtimes={"onnxruntime": ort.__version__, "python": platform.python_version()},
        memory_bytes=psutil.virtual_memory().total,
        # What this process may use, which a container or a cpuset may have made fewer than there are.
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
    )


def _accelerator() -> str:
    try:
        board = _BOARD_NAME.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    except OSError:
        board = ""
    if "Jetson" in board or "Orin" in board or "Thor" in board:
        return board
    return "nvidia" if _NVIDIA_DEVICE.exists() else "cpu"


def _hottest_c() -> float | None:
    read = getattr(psutil, "sensors_temperatures", None)  # psutil has it on Linux only
    if read is None:
        return None
    readings = [sensor.current for sensors in read().values() for sensor in sensors if sensor.current]
    return max(readings, default=None)
