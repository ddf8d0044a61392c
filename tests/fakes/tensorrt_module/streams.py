"""How work gets onto a stream: of the memory that stands for a GPU's, or of a driver without a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from tests.fakes.host_memory import stream_of

_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# A captured graph calls them again, whenever it is launched.
_kept: list[object] = []


def enqueue(handle: int, work: Callable[[], None]) -> None:
    """Do it when the stream comes to it, or whenever a graph does that is being captured.

    Raises:
        Exception: Of the work, where the driver does it at once.
    """
    stream = stream_of(handle)
    if stream is not None:
        stream.enqueue(work)
        return
    ended: list[BaseException | None] = []

    def run(_: object) -> None:
        try:
            work()
            ended.append(None)
        except Exception as error:  # noqa: BLE001 - C has no way to take it
            ended.append(error)

    function = _HOST_FUNCTION(run)
    driver = ctypes.CDLL("libcuda.so.1")
    code = driver.cuLaunchHostFunc(ctypes.c_void_p(handle), function, None)
    if code:
        raise RuntimeError(f"cuLaunchHostFunc: {code}")
    if not ended:
        _kept.append(function)
    elif ended[0] is not None:
        raise ended[0]
