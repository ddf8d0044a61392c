"""New weights for an engine."""

from __future__ import annotations

from pathlib import Path

import onnx

from tests.fakes.tensorrt_module.building import ParserError
from tests.fakes.tensorrt_module.enums import ILogger
from tests.fakes.tensorrt_module.faults import fault
from tests.fakes.tensorrt_module.plan import structure_of, weights_of, whole_model
from tests.fakes.tensorrt_module.running import ICudaEngine


class Refitter:
    """Changes an engine's weights in place."""

    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        if not engine.refittable:
            raise TypeError("pybind11::init(): factory function returned nullptr")  # as the real one says it
        self._engine, self.logger = engine, logger
        self.max_threads = 1
        self._new: onnx.ModelProto | None = None

    def get_all_weights(self) -> list[str]:
        return sorted(weights_of(onnx.load_model_from_string(self._engine._plan.model)))

    def get_missing_weights(self) -> list[str]:
        return [] if self._new is not None else self.get_all_weights()

    def refit_cuda_engine(self) -> bool:
        if self._new is None or fault("REFIT") == "fail":
            self.logger.log(ILogger.ERROR, "IRefitter::refitCudaEngine: Error Code 4: weights are missing")
            return False
        model = onnx.load_model_from_string(self._engine._plan.model)
        new = weights_of(self._new)
        for weight in model.graph.initializer:
            if fault("REFIT") == "stale" and len(weight.dims) == 1:
                continue
            weight.CopyFrom(new[weight.name])
        self._engine._plan.model = model.SerializeToString(deterministic=True)
        self._engine._load()
        return True


class OnnxParserRefitter:
    """Takes the weights from an ONNX model of the same graph."""

    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self._refitter, self._logger = refitter, logger
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors = []

    def refit_from_file(self, model: str) -> bool:
        return self.refit_from_bytes(Path(model).read_bytes(), model)

    def refit_from_bytes(self, model: bytes, path: str | None = None) -> bool:
        new = whole_model(bytes(model), str(Path(path).parent) if path else ".")
        old = onnx.load_model_from_string(self._refitter._engine._plan.model)
        if structure_of(new) != structure_of(old):
            self._errors.append(ParserError("the model's graph differs from the engine's"))
            self._logger.log(ILogger.ERROR, "[onnxparser] refit: the graph differs")
            return False
        self._refitter._new = new
        return True
