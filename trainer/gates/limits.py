"""Limits on what a model may take: time, memory, size. Pure."""

from __future__ import annotations

from edge_agent.contract.manifest import Manifest
from trainer.gates.footprint import Footprint
from trainer.recipe_file import Gates

_MIB = 1 << 20


def broken_limits(gates: Gates, manifest: Manifest, footprint: Footprint, *, form: str) -> list[str]:
    """The limits in ``[gates]`` that a model does not keep, in words.

    Args:
        manifest: Of a package with all that a device downloads but a few reports.
        footprint: Of the form that devices serve; ``form``: its name.
    """
    found = (
        ("max_p99_ms", gates.max_p99_ms, footprint.p99_us / 1000, "ms at the 99th percentile of a single row"),
        ("max_memory_mib", gates.max_memory_mib, footprint.memory_bytes / _MIB, "MiB of memory"),
        ("max_size_mib", gates.max_size_mib, manifest.size_bytes / _MIB, "MiB of files"),
    )
    return [
        f"it takes too much: {value:.3g} {what} ({form}); {name} allows {limit:g}"
        for name, limit, value, what in found
        if limit is not None and value > limit
    ]
