"""What the agent and its build worker say to each other: one order as a file, then JSON lines.

The worker is a process of its own: it may crash, be killed for its memory, or take ten minutes; the agent serves on.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edge_agent.runtime.tensorrt.profiles import Profile

# How the ONNX model is taken: with the types it has, or cast to half precision where that is safe.
Precision = Literal["as-is", "fp16"]
# What comes out of it; "mixed" is a model that already had several.
EnginePrecision = Literal["fp32", "fp16", "int8", "mixed"]


class GraphFacts(msgspec.Struct, frozen=True, kw_only=True, tag="graph"):
    """What a model is, its weights aside.

    Args:
        graph: Hash of the graph without its weights; empty where it cannot be told (the package onnx is missing).
    """

    graph: str
    precision: EnginePrecision


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True, tag="engine"):
    """What is known of a built engine.

    Args:
        precision: What it computes in.
        refittable: Whether its weights can be replaced.
        was_cast: Whether the model was cast to half precision for it.
        kept_fp32: Nodes that an fp16 engine computes in full precision, for their range.
        difference: Largest difference of the fp16 model's golden outputs, by ONNX Runtime; None where not asked.
        seconds: How long it took.
        peak_bytes: Most memory of the worker, without files mapped.
        refitted: Whether it is another's engine with new weights.
    """

    precision: EnginePrecision = "fp32"
    refittable: bool = False
    was_cast: bool = False
    kept_fp32: tuple[str, ...] = ()
    difference: float | None = None
    seconds: float = 0.0
    peak_bytes: int = 0
    refitted: bool = False


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How far a golden output may be off: ``|a - b| <= atol + rtol * |b|``."""

    rtol: float = 1e-2
    atol: float = 1e-2


class InspectJob(msgspec.Struct, frozen=True, kw_only=True, tag="inspect"):
    """Tell what a model is. ``model``: path of the ONNX file."""

    model: str


class BuildJob(msgspec.Struct, frozen=True, kw_only=True, tag="build"):
    """Build an engine.

    Args:
        module, flavour: TensorRT's Python module.
        model: Path of the ONNX file; its weights may lie beside it.
        plan: Path to write.
        golden: Path of the golden samples, which fp16 is checked on; None checks nothing.
        refittable: Whether its weights can be replaced later; some layers are then fused less.
        this_gpu_only: Whether RTX builds for the GPU at hand alone; False builds without a GPU too.
        tf32: Whether float32 products may be rounded to 10 bits of mantissa, which Ampere and later do faster.
        workspace_bytes: Most GPU memory that a layer may have while it runs; 0 leaves it to TensorRT.
        timing_cache: Path of measured kernels, read and written; None keeps none.
    """

    module: str
    flavour: Literal["tensorrt", "tensorrt-rtx"]
    model: str
    plan: str
    profiles: tuple[Profile, ...]
    precision: Precision = "as-is"
    golden: str | None = None
    tolerance: Tolerance = Tolerance()
    refittable: bool = True
    this_gpu_only: bool = True
    tf32: bool = True
    workspace_bytes: int = 0
    optimisation_level: int | None = None
    timing_cache: str | None = None


class RefitJob(msgspec.Struct, frozen=True, kw_only=True, tag="refit"):
    """Make an engine with new weights out of another.

    Args:
        engine: Path of the plan whose graph is the same.
        facts: What is known of that engine.
        model: Path of the ONNX file with the new weights.
        plan: Path to write.
    """

    module: str
    flavour: Literal["tensorrt", "tensorrt-rtx"]
    engine: str
    facts: EngineFacts
    model: str
    plan: str


Job = InspectJob | BuildJob | RefitJob


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far it is.

    Args:
        phase: What is being done, in TensorRT's words where they are its own: ``Timing tactics``.
        percent: 0..100, never less than before.
    """

    phase: str
    percent: float


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """Why there is no engine. See :class:`edge_agent.contract.errors.EngineBuildFailed`."""

    text: str
    is_final: bool = False
    is_cancelled: bool = False


Line = Progress | EngineFacts | GraphFacts | Failure
