"""NVIDIA's driver by itself, through ctypes: whether there is a GPU that can be used, and which.

Asked before anything else: the lean TensorRT runtime is made without an error where there is no driver, and crashes
the process at its first engine.
"""

from __future__ import annotations

import ctypes
from typing import Any

from edge_agent.contract.errors import AcceleratorUnavailable
from edge_agent.runtime.gpu.device_memory import Gpu
from edge_agent.runtime.gpu.presence import LIBRARY

# The oldest for which TensorRT 10.3, and the bindings of CUDA that we use, are made.
OLDEST_DRIVER = (12, 0)

SUCCESS = 0
NOT_READY = 600
_ATTRIBUTE_INTEGRATED = 18
_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR = 75, 76


class CudaFailure(RuntimeError):
    """The driver has answered a call with an error.

    Args:
        call: The function of the driver.
        code: Its ``CUresult``.
        name: The code's name, as ``CUDA_ERROR_OUT_OF_MEMORY``.
    """

    def __init__(self, call: str, *, code: int, name: str) -> None:
        super().__init__(f"{call}: {name} ({code})")
        self.call, self.code, self.name = call, code, name


class CudaDriver:
    """The driver's functions by name. It calls without Python's lock, so that a wait holds up no other thread.

    Args:
        library: Name or path of the driver's library.
    Raises:
        AcceleratorUnavailable: There is no such library.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise AcceleratorUnavailable(
                f"no NVIDIA driver: {error}; install the driver, in a container run it with the NVIDIA runtime"
            ) from error

    def function(self, name: str, *types: Any) -> Any:
        """One of its functions, which returns its ``CUresult`` as an integer.

        Args:
            types: ctypes of its arguments.
        Raises:
            AcceleratorUnavailable: The driver is too old to have it.
        """
        try:
            function = self._library[name]
        except AttributeError as error:
            raise AcceleratorUnavailable(f"this NVIDIA driver has no {name}: install a newer one") from error
        function.argtypes = types
        function.restype = ctypes.c_int
        return function

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function whose arguments are ctypes values.

        Raises:
            CudaFailure: It says that it failed.
        """
        self.check(name, self.function(name, *map(type, arguments))(*arguments))

    def check(self, call: str, code: int) -> None:
        """Raise what a function returned, unless it is success.

        Raises:
            CudaFailure: It is not.
        """
        if code != SUCCESS:
            raise CudaFailure(call, code=code, name=self.error_name(code))

    def error_name(self, code: int) -> str:
        """What the driver calls one of its errors; it may be asked before ``cuInit``."""
        name = ctypes.c_char_p()
        answer = self.function("cuGetErrorName", ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))(code, name)
        return name.value.decode() if answer == SUCCESS and name.value else "an error that this driver cannot name"


def probe(library: str = LIBRARY) -> Gpu:
    """The first GPU that the driver shows to this process (``CUDA_VISIBLE_DEVICES`` chooses among several).

    It initialises the driver, which takes a while and cannot be undone: :func:`edge_agent.runtime.gpu.survey.survey`
    calls it in a process of its own.

    Raises:
        AcceleratorUnavailable: No driver, no GPU, or a driver that is too old; it says which, and what to do.
    """
    driver = CudaDriver(library)
    try:
        driver.call("cuInit", ctypes.c_uint(0))
        version = _version(driver)
        count = ctypes.c_int()
        driver.call("cuDeviceGetCount", ctypes.pointer(count))
        if count.value < 1:
            raise AcceleratorUnavailable("the NVIDIA driver shows no GPU; CUDA_VISIBLE_DEVICES may hide it")
        return _describe(driver, version)
    except CudaFailure as error:
        raise AcceleratorUnavailable(f"the NVIDIA driver does not work: {error}{_advice(error)}") from error


def _version(driver: CudaDriver) -> tuple[int, int]:
    number = ctypes.c_int()
    driver.call("cuDriverGetVersion", ctypes.pointer(number))
    version = number.value // 1000, number.value % 1000 // 10
    if version < OLDEST_DRIVER:
        raise AcceleratorUnavailable(
            f"the NVIDIA driver is made for CUDA {_dotted(version)}, older than {_dotted(OLDEST_DRIVER)}: update it "
            "(JetPack 6 or newer)"
        )
    return version


def _describe(driver: CudaDriver, version: tuple[int, int]) -> Gpu:
    index = 0
    device = ctypes.c_int()
    driver.call("cuDeviceGet", ctypes.pointer(device), ctypes.c_int(index))
    name = ctypes.create_string_buffer(256)
    driver.call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    memory_bytes = ctypes.c_size_t()
    driver.call("cuDeviceTotalMem_v2", ctypes.pointer(memory_bytes), device)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        driver.call("cuDeviceGetAttribute", ctypes.pointer(value), ctypes.c_int(number), device)
        return value.value

    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=(attribute(_ATTRIBUTE_MAJOR), attribute(_ATTRIBUTE_MINOR)),
        integrated=bool(attribute(_ATTRIBUTE_INTEGRATED)),
        memory_bytes=memory_bytes.value,
        driver_version=version,
    )


def _advice(error: CudaFailure) -> str:
    return {
        "CUDA_ERROR_NO_DEVICE": "; the driver finds no GPU, or CUDA_VISIBLE_DEVICES hides it",
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "; library and kernel module differ: restart the machine",
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "; the container's CUDA is too new for this machine's driver",
        "CUDA_ERROR_UNKNOWN": "; may this user open /dev/nvidia*? (on a Jetson: groups video and render)",
    }.get(error.name, "")


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
