"""Triton's Python backend around ONNX Runtime: the onnxruntime backend is not in the wheel that brings the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # Triton brings it


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.output = self.session.get_outputs()[0].name

    def execute(self, requests: list[Any]) -> list[Any]:
        images = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        batch = images[0] if len(images) == 1 else np.concatenate(images)
        (answer,) = self.session.run([self.output], {self.input: batch})
        answers, at = [], 0
        for image in images:
            rows = answer[at : at + len(image)]
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor(self.output, rows)]))
            at += len(image)
        return answers
