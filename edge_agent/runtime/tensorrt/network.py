"""An ONNX file as a TensorRT network, with the profiles that it is built for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.contract.errors import EngineBuildFailed
from edge_agent.runtime.tensorrt.bindings import Bindings
from edge_agent.runtime.tensorrt.job import EnginePrecision
from edge_agent.runtime.tensorrt.profiles import Profile

# Enough to see what is wrong; a model of unknown operators has hundreds.
_MOST_ERRORS = 3


def parse_network(bindings: Bindings, builder: Any, logger: Any, model: Path) -> tuple[Any, Any]:
    """The network of a model, and the parser, which owns its weights and is to outlive it.

    Raises:
        EngineBuildFailed: TensorRT cannot run it; it names the nodes. Final.
    """
    bindings.register_plugins(logger)
    network = builder.create_network(bindings.network_flags())
    parser = bindings.trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        raise EngineBuildFailed(f"TensorRT does not take the model: {parser_errors(parser)}", is_final=True)
    return network, parser


def parser_errors(parser: Any) -> str:
    """What an ``OnnxParser`` or ``OnnxParserRefitter`` found wrong, in words."""
    found: list[str] = []
    for number in range(min(parser.num_errors, _MOST_ERRORS)):
        error = parser.get_error(number)
        node = f"node '{error.node_name()}' ({error.node_operator()}): " if error.node_operator() else ""
        found.append(f"{node}{error.desc()}")
    more = parser.num_errors - len(found)
    return "; ".join(found) + (f"; and {more} more" if more > 0 else "") or "it does not say why"


def network_precision(bindings: Bindings, network: Any) -> EnginePrecision:
    """What a network computes in: int8 where it quantises, else the types of what its layers give."""
    kinds, types = bindings.trt.LayerType, bindings.trt.DataType
    found: set[Any] = set()
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type in (kinds.QUANTIZE, kinds.DEQUANTIZE):
            return "int8"
        found.update(layer.get_output(place).dtype for place in range(layer.num_outputs))
    if types.HALF in found:
        return "mixed" if types.FLOAT in found else "fp16"
    return "mixed" if types.BF16 in found else "fp32"


def add_profiles(builder: Any, network: Any, config: Any, profiles: Sequence[Profile]) -> None:
    """Give a build its shapes.

    Raises:
        EngineBuildFailed: The network has other inputs than the profiles, or refuses the shapes; final.
    """
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    names = {tensor.name for tensor in inputs}
    for tensor in inputs:
        if tensor.is_shape_tensor:
            raise EngineBuildFailed(
                f"input '{tensor.name}' decides shapes within the model; such models stay on ONNX Runtime",
                is_final=True,
            )
    for shapes in profiles:
        if {each.name for each in shapes} != names:
            raise EngineBuildFailed(
                f"the model's inputs are {sorted(names)}, its signature's {sorted(each.name for each in shapes)}",
                is_final=True,
            )
        profile = builder.create_optimization_profile()
        for each in shapes:
            profile.set_shape(each.name, each.minimum, each.optimum, each.maximum)
        if config.add_optimization_profile(profile) < 0:
            raise EngineBuildFailed(f"TensorRT refuses the shapes {shapes}", is_final=True)
