"""The name of an engine: a digest of all that a plan depends on.

A plan holds for one version and flavour of TensorRT, one kind of GPU and one system. Of two models with the same graph
one engine can be refitted into the other's: their *family* is the same, their keys differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_agent.runtime.tensorrt.profiles import Profile

if TYPE_CHECKING:
    from edge_agent.runtime.gpu.device_memory import Gpu
    from edge_agent.runtime.gpu.survey import TensorRtLibrary

# Raised when engines are built otherwise than before.
_FORMAT = 1
_L4T_FILE = Path("/etc/nv_tegra_release")


@dataclasses.dataclass(frozen=True, slots=True)
class EngineConditions:
    """Where an engine runs; another in any of it needs another engine.

    Args:
        version: TensorRT's, in full: plans do not survive even a patch release.
        l4t: Release of Jetson Linux (``36.4.0``); empty elsewhere.
    """

    flavour: str
    version: tuple[int, ...]
    gpu: str
    compute_capability: tuple[int, int]
    system: str
    architecture: str
    l4t: str

    def digest(self) -> str:
        """A name for it; the timing cache is kept under it."""
        return _digest(dataclasses.astuple(self))


def conditions_here(gpu: Gpu, library: TensorRtLibrary, *, l4t_file: Path = _L4T_FILE) -> EngineConditions:
    """Those of this machine."""
    return EngineConditions(
        flavour=library.flavour,
        version=library.version,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        system=platform.system(),
        architecture=platform.machine(),
        l4t=_l4t(l4t_file),
    )


def engine_key(
    conditions: EngineConditions,
    *,
    model: Sequence[str],
    profiles: Sequence[Profile],
    precision: str,
    flags: Sequence[str] = (),
) -> str:
    """The key of one model's engine.

    Args:
        model: SHA-256 of the ONNX file and of its files of weights, in the manifest's order.
        precision: What was asked for: ``as-is`` or ``fp16``.
        flags: Whatever else the build was told, such as a limit on the workspace.
    """
    return _digest(["engine", *model, *_built(conditions, profiles, precision, flags)])


def family_key(
    conditions: EngineConditions, *, graph: str, profiles: Sequence[Profile], precision: str, flags: Sequence[str] = ()
) -> str:
    """The key that all models with the same graph have; empty where ``graph`` (its weight-free hash) is not known."""
    return _digest(["family", graph, *_built(conditions, profiles, precision, flags)]) if graph else ""


def _built(
    conditions: EngineConditions, profiles: Sequence[Profile], precision: str, flags: Sequence[str]
) -> list[object]:
    shapes = [[dataclasses.astuple(each) for each in profile] for profile in profiles]
    return [_FORMAT, dataclasses.astuple(conditions), shapes, precision, sorted(flags)]


def _digest(parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _l4t(file: Path) -> str:
    """``# R36 (release), REVISION: 4.0, GCID: ...`` as ``36.4.0``."""
    try:
        found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", file.read_text(errors="replace"))
    except OSError:
        return ""
    return ".".join(found.groups()) if found else ""
