"""Whether a package can run on this device at all, found out from its manifest before a file is downloaded. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from edge_agent.contract.manifest import Manifest, Requirements
from edge_agent.contract.messages import Hardware
from edge_agent.runtime.versions import natural_order

_MIB = 1 << 20
# Left for the rest of the machine, beyond what a candidate takes beside the model that serves.
MEMORY_RESERVE_BYTES = 16 * _MIB


def lacking(requires: Requirements, hardware: Hardware) -> list[str]:
    """What a device lacks of what a package asks for, in words; empty where it has all."""
    found = []
    architectures, accelerators = requires.architectures, requires.accelerators
    if architectures and hardware.architecture not in architectures:
        found.append(f"runs on {_either(architectures)}; this machine is {hardware.architecture}")
    if accelerators and hardware.accelerator not in accelerators:
        found.append(f"needs an accelerator of kind {_either(accelerators)}; this device has '{hardware.accelerator}'")
    for runtime, lowest in sorted(requires.runtimes.items()):
        version = hardware.runtimes.get(runtime)
        if version is None:
            found.append(f"needs {runtime} {lowest} or newer; this device has none")
        elif natural_order(version) < natural_order(lowest):
            found.append(f"needs {runtime} {lowest} or newer; this device has {version}")
    return found


def memory_lacking(need_bytes: int, *, total_bytes: int, available_bytes: int) -> tuple[str, bool]:
    """Why a candidate would not fit into this machine's memory beside what serves; empty where it would.

    Args:
        need_bytes: Of the candidate, when it is loaded.
    Returns:
        The reason, and whether it is so for good: the whole machine is too small.
    """
    need = f"needs about {_mib(need_bytes)} of memory"
    if need_bytes > total_bytes:
        return f"{need}, the whole machine has {_mib(total_bytes)}: {_mib(need_bytes - total_bytes)} too little", True
    lacks = need_bytes + MEMORY_RESERVE_BYTES - available_bytes
    if lacks > 0:
        return (
            f"{need} beside what serves, and {_mib(MEMORY_RESERVE_BYTES)} are kept free; {_mib(available_bytes)} are "
            f"available: {_mib(lacks)} too little"
        ), False
    return "", False


def named(manifest: Manifest, reasons: Sequence[str]) -> str:
    """The reasons as one text that says which package they are about."""
    return f"{manifest.name} {manifest.version} {'; '.join(reasons)}"


def _either(kinds: Sequence[str]) -> str:
    return " or ".join(f"'{kind}'" for kind in kinds)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB"
