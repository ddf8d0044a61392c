"""A custom MLServer runtime around ONNX Runtime, as its documentation shows one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from mlserver import MLModel  # type: ignore[import-not-found]  # it lives in an environment of its own
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]


class OnnxModel(MLModel):  # type: ignore[misc]  # untyped
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        (node,) = self.session.get_inputs()
        self.input, self.shape = node.name, [1, *node.shape[1:]]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (answer,) = self.session.run(None, {self.input: self._row(payload.inputs[0])})
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(name="probabilities", payload=answer)]
        )

    def _row(self, tensor: Any) -> Any:
        if tensor.datatype == "BYTES":  # base64, which its codec has decoded already
            (data,) = self.decode(tensor)
            return np.frombuffer(data, np.float32).reshape(self.shape)
        return NumpyCodec.decode_input(tensor)
