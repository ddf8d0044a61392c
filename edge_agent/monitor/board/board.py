"""The board, sampled once a second in a thread of its own: nobody else reads, so a reading that hangs harms nobody.

Load and power change faster than reports go out: a sample a second gives a window's mean load, and its energy by
trapezoids. A device whose board tells nothing has no thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from edge_agent.contract.errors import AcceleratorUnavailable
from edge_agent.contract.messages import DeviceMetrics, GpuMetrics
from edge_agent.monitor.board import tegra
from edge_agent.monitor.board.energy import Energy
from edge_agent.monitor.board.system_files import SystemFiles

if TYPE_CHECKING:
    from edge_agent.monitor.board.nvml import Nvml

log = logging.getLogger(__name__)

_NOTHING = DeviceMetrics()
_INTERVAL_S = 1.0
# A sample that is older is no state of now: the thread hangs in a driver.
_STALE_S = 10.0
_PATIENCE_S = 5.0
_ON_DISCRETE = ("dev/nvidiactl", "dev/nvidia0")


class Source(Protocol):
    """Reads one kind of board; opened, used and closed in the board's thread."""

    def sample(self) -> DeviceMetrics:
        """The board now: its GPUs, power, power mode, throttling and temperature."""

    def close(self) -> None:
        """Give back what it holds."""


class DiscreteGpus:
    """GPUs on cards, by NVML; what their machine takes as a whole nobody tells."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml

    def sample(self) -> DeviceMetrics:
        """The GPUs now."""
        return DeviceMetrics(gpus=self._nvml.gpus())

    def close(self) -> None:
        """Let go of NVML."""
        self._nvml.close()


class Board:
    """Keeps the newest sample, and what adds up over a window; every method may be called from any thread.

    Args:
        open_source: Called once, in the board's thread.
        interval_s: Between samples.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        *,
        interval_s: float = _INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_source, self._interval_s, self._clock = open_source, interval_s, clock
        self._lock = threading.Lock()
        self._latest: tuple[float, DeviceMetrics] | None = None
        self._energy = Energy()
        self._busy: dict[int, list[float]] = {}  # of each GPU: the sum of its loads, and how many they are
        self._gpu_throttled: dict[int, dict[str, None]] = {}
        self._throttled: dict[str, None] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="board", daemon=True)

    @property
    def energy_j(self) -> float:
        """What the board took since the agent started, as far as it told."""
        with self._lock:
            return self._energy.total_j

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def close(self) -> None:
        """Stop sampling; a thread that hangs in a driver is left behind."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE_S)

    def latest(self) -> DeviceMetrics:
        """The newest sample; empty where there is none, or only an old one."""
        with self._lock:
            return self._fresh()

    def take(self) -> DeviceMetrics:
        """The window since the last call, which ends now.

        Returns:
            The newest sample, with each GPU's mean load, every reason for throttling in the window, and its energy.
        """
        with self._lock:
            newest = self._fresh()
            taken = msgspec.structs.replace(
                newest,
                gpus=tuple(self._windowed(index, gpu) for index, gpu in enumerate(newest.gpus)),
                throttled=tuple(self._throttled),
                energy_j=self._energy.take(self._clock()),
            )
            self._busy, self._gpu_throttled, self._throttled = {}, {}, {}
            return taken

    def keep(self, at_s: float, sample: DeviceMetrics) -> None:
        """Add a sample to the window."""
        with self._lock:
            self._latest = (at_s, sample)
            if sample.power_w is not None:
                self._energy.add(at_s, sample.power_w)
            self._throttled.update(dict.fromkeys(sample.throttled))
            for index, gpu in enumerate(sample.gpus):
                self._gpu_throttled.setdefault(index, {}).update(dict.fromkeys(gpu.throttled))
                if gpu.busy_percent is not None:
                    sums = self._busy.setdefault(index, [0.0, 0])
                    sums[0] += gpu.busy_percent
                    sums[1] += 1

    def _fresh(self) -> DeviceMetrics:
        if self._latest is None or self._clock() - self._latest[0] > _STALE_S:
            return _NOTHING
        return self._latest[1]

    def _windowed(self, index: int, gpu: GpuMetrics) -> GpuMetrics:
        total, count = self._busy.get(index, (0.0, 0))
        mean = total / count if count else gpu.busy_percent
        reasons = tuple(self._gpu_throttled.get(index, gpu.throttled))
        return msgspec.structs.replace(gpu, busy_percent=mean, throttled=reasons)

    def _run(self) -> None:
        try:
            source = self._open_source()
        except AcceleratorUnavailable as error:  # a driver without its library, as in a container: nothing is wrong
            log.info("the board does not tell how its GPU is doing: %s", error)
            return
        except Exception:
            log.exception("the board cannot be read; its state is reported as unknown")
            return
        is_told = False
        try:
            while not self._stopped.is_set():
                try:
                    sample = source.sample()
                except Exception:
                    # Boards differ in ways that nobody here has seen; none of them may end the reports of the rest.
                    if not is_told:
                        log.exception("the board could not be read; tried again, and not told again")
                    is_told = True
                else:
                    self.keep(self._clock(), sample)
                self._stopped.wait(self._interval_s)
        finally:
            source.close()


def find_board(
    root: Path = Path("/"),
    *,
    nvml_library: str | None = None,
    search_path: str | None = None,
    interval_s: float = _INTERVAL_S,
) -> Board | None:
    """What reads this machine's board, not yet started; None where there is nothing to read.

    Args:
        root: Of the files; a recorded tree in tests.
        nvml_library: Its path; the driver's where None.
        search_path: Folders of ``tegrastats`` and ``nvpmodel``; ``PATH``'s where None.
    """
    files = SystemFiles(root)
    is_tegra = tegra.is_tegra(files)
    if not is_tegra and not _has_any(files, _ON_DISCRETE):
        return None

    def open_source() -> Source:
        # Here, so that a device without a GPU does not load what reads one.
        import shutil

        from edge_agent.monitor.board.jetson import Jetson
        from edge_agent.monitor.board.nvml import LIBRARY, Nvml

        library = nvml_library or LIBRARY
        if not is_tegra:
            return DiscreteGpus(Nvml(library))
        return Jetson(
            files,
            open_nvml=lambda: Nvml(library),
            tegrastats=shutil.which("tegrastats", path=search_path),
            nvpmodel=shutil.which("nvpmodel", path=search_path),
        )

    return Board(open_source, interval_s=interval_s)


def _has_any(files: SystemFiles, paths: Sequence[str]) -> bool:
    return any(files.exists(path) for path in paths)
