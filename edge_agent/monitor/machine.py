"""The machine itself: what it is made of, and how it is doing."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnxruntime as ort
import psutil

from edge_agent.contract.messages import DeviceMetrics, Hardware
from edge_agent.monitor.board.board import find_board
from edge_agent.monitor.board.system_files import SystemFiles
from edge_agent.monitor.board.versions import accelerator, versions

_NO_BOARD = DeviceMetrics()


class Machine:
    """Reads the machine's state through psutil, and its board's where it tells (see :mod:`edge_agent.monitor.board`).

    Args:
        state: Folder whose disk's free space is reported.
        root: Of the kernel's files; another in tests.
    """

    def __init__(self, state: Path, root: Path = Path("/")) -> None:
        self._state = state
        self._process = psutil.Process()
        psutil.cpu_percent(interval=None)  # the first call only marks the beginning
        self.board = find_board(root)
        if self.board is not None:
            self.board.start()

    def close(self) -> None:
        """Stop reading the board."""
        if self.board is not None:
            self.board.close()

    def metrics(self, *, outbox: tuple[int, int] = (0, 0), traffic: tuple[int, int] = (0, 0)) -> DeviceMetrics:
        """The machine's state now; its loads are means since the last call, its energy is what it took since then.

        Args:
            outbox: Messages and bytes waiting.
            traffic: Bytes sent up and received down since the agent started.
        """
        board = self.board.take() if self.board is not None else _NO_BOARD
        return DeviceMetrics(
            cpu_percent=psutil.cpu_percent(interval=None),
            resident_bytes=self._process.memory_info().rss,
            memory_available_bytes=psutil.virtual_memory().available,
            disk_free_bytes=self._disk_free(),
            temperature_c=_hottest_c() if board.temperature_c is None else board.temperature_c,
            outbox_messages=outbox[0],
            outbox_bytes=outbox[1],
            bytes_up=traffic[0],
            bytes_down=traffic[1],
            gpus=board.gpus,
            power_w=board.power_w,
            energy_j=board.energy_j,
            power_mode=board.power_mode,
            throttled=board.throttled,
        )

    def _disk_free(self) -> int | None:
        try:
            return psutil.disk_usage(str(self._state)).free
        except OSError:
            return None


def hardware(root: Path = Path("/")) -> Hardware:
    """What this machine is made of, and what on it runs models; read from files, nothing is imported to know.

    Args:
        root: Of the kernel's files and the system's packages; another in tests.
    """
    files = SystemFiles(root)
    return Hardware(
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        accelerator=accelerator(files),
        runtimes={"onnxruntime": ort.__version__, "python": platform.python_version(), **versions(files, root)},
        memory_bytes=psutil.virtual_memory().total,
        # What this process may use, which a container or a cpuset may have made fewer than there are.
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
    )


def _hottest_c() -> float | None:
    read = getattr(psutil, "sensors_temperatures", None)  # psutil has it on Linux only
    if read is None:
        return None
    readings = [sensor.current for sensors in read().values() for sensor in sensors if sensor.current]
    return max(readings, default=None)
