"""A model's configuration as the protocol's model-configuration extension has it: Triton's ``ModelConfig`` in JSON.

Load tools read ``max_batch_size``, ``dynamic_batching`` and ``ensemble_scheduling`` out of it. Members that would only
say "default" of features that are not here are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.contract.manifest import Batching, Overflow, PipelineStep
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.choice import CPU
from edge_agent.runtime.slots import LoadedModel

_BACKENDS = {"onnx_onnxv1": "onnxruntime", "tensorrt_plan": "tensorrt"}
# What Triton calls a TensorRT engine's file; here it is made on the device, and lies in no package.
_ENGINE_FILE = "model.plan"


def model_config(
    loaded: LoadedModel, versions: Sequence[str], *, max_rows: int, others: Mapping[str, Signature]
) -> dict[str, Any]:
    """The configuration.

    Args:
        versions: All that serve under this name.
        max_rows: Rows that one request may hold; what a batch may where the manifest asks for no batching.
        others: Signatures of the models that serve, by name: those of a pipeline's steps among them.
    """
    manifest = loaded.manifest
    batched = has_batch_axis(loaded.signature)
    rows = manifest.batching.max_rows if manifest.batching is not None else max_rows
    config: dict[str, Any] = {
        "name": loaded.name,
        "platform": "ensemble" if manifest.pipeline else _platform(loaded),
        "backend": "" if manifest.pipeline else _BACKENDS.get(loaded.backend.platform, loaded.backend.platform),
        "version_policy": _version_policy(versions),
        "max_batch_size": rows if batched else 0,
        "input": [_input(spec, batched=batched) for spec in loaded.signature.inputs],
        "output": [_tensor(spec, batched=batched) for spec in loaded.signature.outputs],
        "parameters": {
            "package": {"string_value": loaded.digest},
            "max_run_s": {"string_value": f"{manifest.max_run_s:g}"},
            "runtime": {"string_value": loaded.runtime.name},
            "precision": {"string_value": loaded.runtime.precision},
            "runtime_reason": {"string_value": loaded.runtime_text},
        },
    }
    if manifest.pipeline:
        config["ensemble_scheduling"] = {"step": [_step(step, others.get(step.model)) for step in manifest.pipeline]}
        return config
    on_cpu = loaded.runtime.name == CPU
    kind, gpus = ("KIND_CPU", []) if on_cpu else ("KIND_GPU", [0])
    config["instance_group"] = [{"name": f"{loaded.name}_0", "kind": kind, "count": 1, "gpus": gpus}]
    is_engine = loaded.backend.platform == "tensorrt_plan"
    config["default_model_filename"] = _ENGINE_FILE if is_engine else manifest.variants[loaded.variant].model
    config["model_warmup"] = [{"name": "golden", "batch_size": 1, "count": 1, "inputs": _warmup(loaded.signature)}]
    if manifest.batching is not None:
        config["dynamic_batching"] = _dynamic_batching(manifest.batching)
    return config


def has_batch_axis(signature: Signature) -> bool:
    """Whether rows may be put together: axis 0 of every tensor is open."""
    return all(spec.shape[0] is None for spec in (*signature.inputs, *signature.outputs))


def _platform(loaded: LoadedModel) -> str:
    return "onnxruntime_onnx" if loaded.backend.platform == "onnx_onnxv1" else loaded.backend.platform


def _version_policy(versions: Sequence[str]) -> dict[str, Any]:
    # Triton's versions are numbers; ours are text that may look like one.
    return {"latest": {"num_versions": 1}} if len(versions) < 2 else {"specific": {"versions": list(versions)}}


def config_datatype(datatype: Datatype) -> str:
    """A datatype as the configuration calls it: ``TYPE_STRING`` for BYTES."""
    return "TYPE_STRING" if datatype is Datatype.BYTES else f"TYPE_{datatype.value}"


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    axes = spec.shape[1:] if batched else spec.shape
    tensor: dict[str, Any] = {
        "name": spec.name,
        "data_type": config_datatype(spec.datatype),
        "dims": [-1 if axis is None else axis for axis in axes] or [1],
    }
    if not axes:  # the configuration knows no empty dims: one number per row is a reshape from [1]
        tensor["reshape"] = {"shape": []}
    return tensor


def _input(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    return {**_tensor(spec, batched=batched), "format": "FORMAT_NONE", "optional": False}


def _warmup(signature: Signature) -> dict[str, Any]:
    return {
        spec.name: {
            "data_type": config_datatype(spec.datatype),
            "dims": [-1 if axis is None else axis for axis in spec.shape[1:]],
            "input_data_file": f"golden.npz:{spec.name}",
        }
        for spec in signature.inputs
    }


def _dynamic_batching(batching: Batching) -> dict[str, Any]:
    return {
        "preferred_batch_size": list(batching.preferred_rows),
        "max_queue_delay_microseconds": batching.max_delay_us,
        "preserve_ordering": False,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": batching.timeout_us,
            "allow_timeout_override": True,
            "max_queue_size": batching.max_queue,
        },
        # Not of Triton's: it knows rejecting only.
        "shoal_drop_oldest": batching.overflow is Overflow.DROP_OLDEST,
    }


def _step(step: PipelineStep, signature: Signature | None) -> dict[str, Any]:
    """One step; what the manifest leaves out keeps its own name, which the configuration has to say."""
    inputs = {} if signature is None else {spec.name: spec.name for spec in signature.inputs}
    outputs = {} if signature is None else {spec.name: spec.name for spec in signature.outputs}
    return {
        "model_name": step.model,
        "model_version": -1 if step.version is None else step.version,
        "input_map": {**inputs, **step.inputs},
        "output_map": {**outputs, **step.outputs},
    }
