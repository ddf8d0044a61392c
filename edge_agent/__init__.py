"""Shoal on the device: serves models, watches their data, reports, and updates itself.

``from edge_agent import load`` runs a model package inside a program (:mod:`edge_agent.embedded`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_agent.embedded import load as load

__version__ = "0.1.0"

# ONNX Runtime 1.32 tells Microsoft of each process and session, where it is not told otherwise before it is imported;
# a device talks to its fleet alone. "0" in the environment lets it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """``load`` on its first use: it imports the runtime, which most who import this package do not need."""
    if name == "load":
        from edge_agent.embedded import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
