"""A Jetson board's state: files first, NVML where its load stands in no file (Thor), tegrastats for the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from edge_agent.contract.errors import AcceleratorUnavailable
from edge_agent.contract.messages import DeviceMetrics, GpuMetrics
from edge_agent.monitor.board import rails, tegra
from edge_agent.monitor.board.nvml import Nvml
from edge_agent.monitor.board.power_mode import PowerMode
from edge_agent.monitor.board.system_files import SystemFiles
from edge_agent.monitor.board.tegrastats import Tegrastats, TegrastatsProcess
from edge_agent.monitor.board.throttling import Throttling

log = logging.getLogger(__name__)

_ZONES = "sys/class/thermal/thermal_zone*"
# Zones that measure nothing: PMIC-Die says 100 C for ever on Nano, TX2 and Xavier.
_NO_THERMOMETER = ("pmic",)
_COLDEST_C = -50.0  # below it: the part is off, and says -256
# Their NVML, where there is one, answers "success" with zeros for the GPU's load.
_WITHOUT_NVML = frozenset({"Tegra X1", "Tegra X2", "Xavier", "Orin"})
# Kernel drivers may come up after the agent: looked for again after so many samples, while something is missing.
_LOOK_AGAIN = 30
_GIVE_UP = 30


class Jetson:
    """Reads a Jetson board; of one thread.

    Args:
        open_nvml: Opens NVML, where no file tells the GPU's load.
        tegrastats: The program's path, for what neither tells; None does without.
        nvpmodel: The program's path, for a power mode that no file tells; None does without.
    """

    def __init__(
        self,
        files: SystemFiles,
        *,
        open_nvml: Callable[[], Nvml] = Nvml,
        tegrastats: str | None = None,
        nvpmodel: str | None = None,
    ) -> None:
        self._files, self._open_nvml = files, open_nvml
        self._name = tegra.chip_name(files)
        self._mode = PowerMode(files, nvpmodel)
        self._throttling = Throttling(files)
        self._nvml: Nvml | None = None
        self._nvml_tried = False
        self._tegrastats = TegrastatsProcess(tegrastats) if tegrastats else None
        self._samples = 0
        self._in_vain = 0  # lines of tegrastats, one after the other, that told nothing that is missing
        self._look()

    def sample(self) -> DeviceMetrics:
        """The board now; counts of throttling are those since the last sample."""
        self._samples += 1
        if self._samples % _LOOK_AGAIN == 0 and not (self._gpu.clocks and self._gpu.load and self._rails):
            self._look()
            self._throttling.look()
        watts = rails.read_rails(self._files, self._rails)
        zones = self._temperatures()
        gpu = self._read_gpu(watts, zones)
        if gpu.busy_percent is None and self._name not in _WITHOUT_NVML:
            gpu = _filled(gpu, self._by_nvml())
        if gpu.busy_percent is None or rails.whole_w(watts) is None:
            printed = self._printed()
            if printed is not None:
                watts = watts if rails.whole_w(watts) is not None else printed.rails_w
                zones = zones or printed.temperatures_c
                gpu = _filled(gpu, _printed_gpu(self._name, printed))
        elif self._tegrastats is not None:
            self._tegrastats.close()  # a file that was silent for a moment has started it
        return DeviceMetrics(
            gpus=(gpu,),
            temperature_c=hottest_c(zones),
            power_w=rails.whole_w(watts),
            power_mode=self._mode.read(),
            throttled=self._throttling.read(),
        )

    def close(self) -> None:
        """End what was started."""
        if self._tegrastats is not None:
            self._tegrastats.close()
        if self._nvml is not None:
            self._nvml.close()

    def _look(self) -> None:
        self._gpu = tegra.gpu_files(self._files)
        self._rails = rails.find_rails(self._files)
        kinds = {folder: self._files.text(f"{folder}/type") or "" for folder in self._files.find(_ZONES)}
        self._zones = {f"{folder}/temp": kind for folder, kind in kinds.items() if kind}

    def _read_gpu(self, watts: dict[str, float], zones: dict[str, float]) -> GpuMetrics:
        files = self._files
        load = files.number(self._gpu.load) if self._gpu.load else None
        clocks = [hertz for folder in self._gpu.clocks if (hertz := files.number(f"{folder}/cur_freq")) is not None]
        most = [hertz for folder in self._gpu.clocks if (hertz := files.number(f"{folder}/max_freq")) is not None]
        used, total = _memory(files)
        return GpuMetrics(
            name=self._name,
            busy_percent=load / 10 if load is not None and 0 <= load <= 1000 else None,
            memory_used_bytes=used,
            memory_total_bytes=total,
            temperature_c=_gpu_c(zones),
            power_w=rails.gpu_w(watts),
            clock_mhz=max(clocks) / 1e6 if clocks else None,
            max_clock_mhz=max(most) / 1e6 if most else None,
        )

    def _temperatures(self) -> dict[str, float]:
        """Degrees by the zone's name, of those that are on."""
        found: dict[str, float] = {}
        for path, kind in self._zones.items():
            thousandths = self._files.number(path)
            if thousandths is not None and thousandths / 1000 > _COLDEST_C:
                found[kind] = thousandths / 1000
        return found

    def _printed(self) -> Tegrastats | None:
        """What tegrastats says; it ends for good where it says nothing that is missing (a Nano 2GB has no monitors)."""
        printed = self._tegrastats.latest() if self._tegrastats is not None else None
        if printed is not None and self._tegrastats is not None:
            is_of_use = printed.gpu_busy_percent is not None or bool(printed.rails_w)
            self._in_vain = 0 if is_of_use else self._in_vain + 1
            if self._in_vain >= _GIVE_UP:
                self._tegrastats.close()
                self._tegrastats = None
        return printed

    def _by_nvml(self) -> GpuMetrics | None:
        if not self._nvml_tried:
            self._nvml_tried = True
            try:
                self._nvml = self._open_nvml()
            except AcceleratorUnavailable as error:
                log.info("the GPU's load stands in no file, and NVML does not tell it: %s", error)
        gpus = self._nvml.gpus() if self._nvml is not None else ()
        return gpus[0] if gpus else None


def hottest_c(zones: dict[str, float]) -> float | None:
    """The hottest of the zones that measure something.

    Args:
        zones: Degrees by the zone's name.
    """
    measured = [degrees for name, degrees in zones.items() if not name.lower().startswith(_NO_THERMOMETER)]
    return max(measured, default=None)


def _gpu_c(zones: dict[str, float]) -> float | None:
    return next((degrees for name, degrees in zones.items() if name.lower().startswith("gpu")), None)


def _memory(files: SystemFiles) -> tuple[int | None, int | None]:
    """Bytes used and in all, of the memory that GPU and processors share."""
    kilobytes: dict[str, int] = {}
    for line in (files.text("proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        value = rest.split()
        if value and value[0].isdigit():
            kilobytes[name] = int(value[0])
    total, available = kilobytes.get("MemTotal"), kilobytes.get("MemAvailable")
    if total is None or available is None:
        return None, None
    return (total - available) * 1024, total * 1024


def _printed_gpu(name: str, printed: Tegrastats) -> GpuMetrics:
    return GpuMetrics(
        name=name,
        busy_percent=printed.gpu_busy_percent,
        memory_used_bytes=printed.ram_used_bytes,
        memory_total_bytes=printed.ram_total_bytes,
        temperature_c=_gpu_c(printed.temperatures_c),
        power_w=rails.gpu_w(printed.rails_w),
        clock_mhz=printed.gpu_clock_mhz,
    )


def _filled(gpu: GpuMetrics, other: GpuMetrics | None) -> GpuMetrics:
    """``gpu``, with what it does not tell from ``other``."""
    if other is None:
        return gpu
    missing = {name: getattr(other, name) for name in gpu.__struct_fields__ if getattr(gpu, name) in (None, ())}
    return msgspec.structs.replace(gpu, **missing)
