"""NVIDIA's management library (NVML) through ctypes: discrete GPUs, and Jetson Thor's, whose load no file tells.

It comes with the driver, so that its absence is a normal state of a device. Its few functions used here have kept their
names and shapes since 2012 (docs.nvidia.com/deploy/nvml-api); the package ``nvidia-ml-py`` would bring the same ctypes,
1 MB of them.
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import byref, c_char_p, c_int, c_uint, c_ulonglong, c_void_p, create_string_buffer
from typing import Any

from edge_agent.contract.errors import AcceleratorUnavailable
from edge_agent.contract.messages import GpuMetrics

log = logging.getLogger(__name__)

LIBRARY = "libnvidia-ml.so.1"

_SUCCESS = 0
# This GPU, driver or library has no such reading: NVML_ERROR_NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND.
_NEVER = frozenset({3, 4, 13})
_TEMPERATURE_OF_GPU = 0
_GRAPHICS_CLOCK = 0
_NAME_BYTES = 96
# nvmlClocksEventReasons. What a person set (application clocks), and idling, slow a GPU down but do not throttle it.
_THROTTLED_BY = {
    0x04: "SW power cap",
    0x08: "HW slowdown",
    0x20: "SW thermal slowdown",
    0x40: "HW thermal slowdown",
    0x80: "HW power brake slowdown",
}
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", c_uint), ("memory", c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class Nvml:
    """The GPUs that the driver shows; of one thread.

    Args:
        library: Its name, or path.
    Raises:
        AcceleratorUnavailable: No library, no driver, or the two do not fit.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise AcceleratorUnavailable(f"{library}: {error}") from error
        self._told: set[tuple[int, str]] = set()
        self._never: set[tuple[int, str]] = set()
        code = self._run("nvmlInit_v2")
        if code != _SUCCESS:
            raise AcceleratorUnavailable(f"{library}: nvmlInit_v2: {self._error(code)}")
        self._handles: list[c_void_p] = []
        count = c_uint()
        if self._run("nvmlDeviceGetCount_v2", byref(count)) == _SUCCESS:
            for index in range(count.value):
                handle = c_void_p()
                if self._is_told(index, "nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle)):
                    self._handles.append(handle)
        self._names = [self._name(index) for index in range(len(self._handles))]

    def gpus(self) -> tuple[GpuMetrics, ...]:
        """Every GPU now; None for what it does not tell."""
        return tuple(self._metrics(index) for index in range(len(self._handles)))

    def close(self) -> None:
        """Give the library's resources back."""
        self._run("nvmlShutdown")

    def _metrics(self, index: int) -> GpuMetrics:
        utilization, memory = _Utilization(), _Memory()
        has_utilization = self._ask(index, "nvmlDeviceGetUtilizationRates", byref(utilization))
        has_memory = self._ask(index, "nvmlDeviceGetMemoryInfo", byref(memory)) and memory.total > 0
        temperature = self._number(index, "nvmlDeviceGetTemperature", c_int(_TEMPERATURE_OF_GPU))
        milliwatts = self._number(index, "nvmlDeviceGetPowerUsage")
        clock = self._number(index, "nvmlDeviceGetClockInfo", c_int(_GRAPHICS_CLOCK))
        max_clock = self._number(index, "nvmlDeviceGetMaxClockInfo", c_int(_GRAPHICS_CLOCK))
        return GpuMetrics(
            name=self._names[index],
            busy_percent=float(utilization.gpu) if has_utilization and utilization.gpu <= 100 else None,
            memory_used_bytes=memory.used if has_memory else None,
            memory_total_bytes=memory.total if has_memory else None,
            temperature_c=None if temperature is None else float(temperature),
            power_w=None if milliwatts is None else milliwatts / 1000,
            clock_mhz=None if clock is None else float(clock),
            max_clock_mhz=None if max_clock is None else float(max_clock),
            throttled=self._throttled(index),
        )

    def _throttled(self, index: int) -> tuple[str, ...]:
        reasons = c_ulonglong()
        for name in _REASONS:  # the newer name first; both give the same bits
            if self._ask(index, name, byref(reasons)):
                return tuple(text for bit, text in _THROTTLED_BY.items() if reasons.value & bit)
        return ()

    def _name(self, index: int) -> str:
        name = create_string_buffer(_NAME_BYTES)
        if self._ask(index, "nvmlDeviceGetName", name, c_uint(_NAME_BYTES)):
            return name.value.decode("utf-8", "replace")
        return f"GPU {index}"

    def _number(self, index: int, function: str, *arguments: Any) -> int | None:
        number = c_uint()
        return number.value if self._ask(index, function, *arguments, byref(number)) else None

    def _ask(self, index: int, function: str, *arguments: Any) -> bool:
        """Whether a GPU has told; what it can never tell is not asked again."""
        if (index, function) in self._never:
            return False
        return self._is_told(index, function, self._handles[index], *arguments)

    def _is_told(self, index: int, function: str, *arguments: Any) -> bool:
        code = self._run(function, *arguments)
        if code in _NEVER:
            self._never.add((index, function))
        elif code != _SUCCESS and (index, function) not in self._told:
            self._told.add((index, function))
            log.warning("GPU %d: %s: %s; reported as unknown", index, function, self._error(code))
        return code == _SUCCESS

    def _run(self, function: str, *arguments: Any) -> int:
        try:
            return int(getattr(self._library, function)(*arguments))
        except AttributeError:
            return 13  # NVML_ERROR_FUNCTION_NOT_FOUND: a library older, or newer, than the function

    def _error(self, code: int) -> str:
        try:
            describe = self._library.nvmlErrorString
        except AttributeError:
            return f"error {code}"
        describe.restype = c_char_p
        return f"{describe(c_int(code)).decode('utf-8', 'replace')} ({code})"
