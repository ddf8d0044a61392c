"""From a trained network to ONNX, and back to weights to start the next training from."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_agent.contract.constraint import AxisLimit
from edge_agent.contract.manifest import TENSORS_FILE
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.stored_tensors import encode_stored_tensors
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.package import Package
from trainer.errors import ExportFailed
from trainer.front_end import FrontEnd, encoded_name
from trainer.release.graph import strip_notes
from trainer.release.stored import stored_tensors

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
STATE_FILE = "state.npz"
# With an example batch of 1 the exporter takes the axis for a constant and says nothing (measured).
_EXAMPLE_ROWS = 3
_EXAMPLE_AXIS = 5


def export(network: LightningModule, signature: Signature, folder: Path) -> dict[str, Path]:
    """Write ``model.onnx`` with its weights beside it, so that a new version differs from the old in one file.

    Args:
        signature: Names, datatypes and shapes; axes that it leaves open stay open in the model.
        folder: An empty folder.
    Returns:
        The files by name, with the weights' layout in ``tensors.json``; ``state.npz`` is among them where the graph
        does not hold all of the network's weights under their own names.
    Raises:
        ExportFailed: The network cannot be traced, or its outputs are not those of the signature.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODEL_FILE
    front_end = FrontEnd(signature)
    example = tuple(_example(spec, front_end) for spec in signature.inputs)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of the exporter's own insides
            _quiet()
            program = torch.onnx.export(
                network.eval(),
                example,
                dynamo=True,
                input_names=[_name_in_torch(spec) for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
                dynamic_shapes=_as_arguments(network, _dynamic_shapes(signature)),
                verbose=False,
            )
        if program is None:
            raise ExportFailed("torch.onnx.export gave no program")
        program.save(path, external_data=True)
        _check_open_axes(path, signature)
        if front_end.text:
            model = onnx.load(str(path), load_external_data=False)
            front_end.attach(model)
            onnx.save(model, str(path))
    except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
        raise ExportFailed(f"{type(network).__name__} cannot be exported to ONNX: {error}") from error
    strip_notes(path)
    (folder / TENSORS_FILE).write_bytes(encode_stored_tensors(stored_tensors(path)))
    files = {path.name: path for path in sorted(folder.iterdir())}
    if missing := _not_held(network, path):
        np.savez(folder / STATE_FILE, allow_pickle=False, **missing)
        files[STATE_FILE] = folder / STATE_FILE
    return files


def weights_of(package: Package) -> dict[str, NDArray[Any]]:
    """All initialisers of a package's model, and its ``state.npz``, by name: where the next training starts from.

    Raises:
        PackageError: The package lacks its model.
    """
    weights = _initialisers(package.path(package.manifest.variants["fp32"].model))
    if STATE_FILE in package.manifest.files:
        with np.load(package.path(STATE_FILE), allow_pickle=False) as state:
            weights.update({name: state[name] for name in state.files})
    return weights


def state_from(package: Package, network: LightningModule) -> dict[str, NDArray[Any]] | None:
    """The package's weights for exactly the network's names and shapes, or None where it has not all of them."""
    found = weights_of(package)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if any(name not in found or found[name].shape != shape for name, shape in wanted.items()):
        return None
    return {name: found[name] for name in wanted}


def _name_in_torch(spec: TensorSpec) -> str:
    return encoded_name(spec.name) if spec.datatype is Datatype.BYTES else spec.name


def _example(spec: TensorSpec, front_end: FrontEnd) -> torch.Tensor:
    limits = {limit.axis: limit for limit in spec.constraint.axes}
    shape = [_EXAMPLE_ROWS, *(axis or _example_axis(limits.get(at)) for at, axis in enumerate(spec.shape[1:], 1))]
    if spec.datatype is Datatype.BYTES:
        return torch.from_numpy(front_end.example(spec, np.random.default_rng(0).uniform(size=shape)))
    low = spec.constraint.minimum or 0.0
    high = spec.constraint.maximum if spec.constraint.maximum is not None else low + 1.0
    values = np.random.default_rng(0).uniform(low, high, size=shape)
    return torch.from_numpy(values.astype(spec.datatype.numpy))


def _example_axis(limit: AxisLimit | None) -> int:
    """Length of an open axis in the example: one that the model takes."""
    if limit is None:
        return _EXAMPLE_AXIS
    longest = _EXAMPLE_AXIS if limit.maximum is None else min(_EXAMPLE_AXIS, limit.maximum)
    return max(longest, limit.minimum)


def _dynamic_shapes(signature: Signature) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("N")
    return tuple(
        {at: batch if at == 0 else _open_axis(spec, at) for at, axis in enumerate(spec.shape) if axis is None}
        for spec in signature.inputs
    )


def _check_open_axes(path: Path, signature: Signature) -> None:
    """Refuse a model in which the exporter, without a word, has made a constant of an axis that the signature opens."""
    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in onnx.load(str(path), load_external_data=False).graph.input
    }
    for spec in signature.inputs:
        for at, dimension in enumerate(shapes.get(_name_in_torch(spec), ())):
            if spec.shape[at] is None and dimension.HasField("dim_value"):
                raise ExportFailed(
                    f"input '{spec.name}': the exporter made a constant of axis {at}, the {dimension.dim_value} of its "
                    "example: forward takes its length for a Python number. len(x), int(x.shape[0]) and loops over an "
                    "axis do that; x.shape[0], x.flatten(1) and x.mean(dim=1) do not"
                )


def _as_arguments(network: LightningModule, shapes: tuple[dict[int, Any], ...]) -> tuple[Any, ...]:
    """As ``forward`` takes them: ``forward(self, *columns)`` has one argument, which is a tuple."""
    kinds = [each.kind for each in inspect.signature(network.forward).parameters.values()]
    if not kinds or kinds[-1] is not inspect.Parameter.VAR_POSITIONAL:
        return shapes
    named = len(kinds) - 1
    return (*shapes[:named], shapes[named:])


def _open_axis(spec: TensorSpec, at: int) -> Any:
    """An axis that stays open, within the contract's limits: what the network needs of it must hold for all of them."""
    limit = next((limit for limit in spec.constraint.axes if limit.axis == at), None)
    if limit is None:
        return torch.export.Dim(f"{spec.name}_{at}")
    return torch.export.Dim(f"{spec.name}_{at}", min=limit.minimum, max=limit.maximum)


def _initialisers(path: Path) -> dict[str, NDArray[Any]]:
    model = onnx.load(str(path))
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _not_held(network: LightningModule, path: Path) -> dict[str, NDArray[Any]]:
    """Weights that the exporter folded away or changed: without them the next training could not start warm."""
    held = _initialisers(path)
    state = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    return {name: array for name, array in state.items() if name not in held or not np.array_equal(held[name], array)}


def _quiet() -> None:
    for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.onnx._internal.exporter._registration"):
        logging.getLogger(name).setLevel(logging.ERROR)
