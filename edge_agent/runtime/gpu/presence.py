"""Whether it is worth looking for a GPU at all: all that a device without one ever loads of this folder."""

from __future__ import annotations

import ctypes
from pathlib import Path

# NVIDIA's driver.
LIBRARY = "libcuda.so.1"

# A Jetson's GPU is no PCI device: its nodes have other names. The last is the Linux inside Windows.
_NODES = ("nvidia", "nvhost", "nvgpu", "nvmap", "dxg")


def may_have_gpu(library: str = LIBRARY, *, devices: Path = Path("/dev")) -> bool:
    """Whether it is worth a process to look: there are nodes of a GPU, or the driver's library. Microseconds.

    The library counts too, as a discrete GPU's nodes may be made only when the driver is first used.

    Args:
        library: Name or path of the driver's library.
        devices: The folder of device nodes.
    """
    try:
        if any(node.name.startswith(_NODES) for node in devices.iterdir()):
            return True
    except OSError:  # a folder that nobody may read says nothing
        pass
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
