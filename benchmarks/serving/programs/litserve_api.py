"""LitServe as its documentation has it, one worker on the CPU. python litserve_api.py MODEL PORT [base64]."""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve as ls  # type: ignore[import-not-found]  # it lives in an environment of its own
import numpy as np
import onnxruntime as ort


class Api(ls.LitAPI):  # type: ignore[misc]  # untyped
    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe passes it
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        (node,) = self.session.get_inputs()
        self.name, self.shape = node.name, [1, *node.shape[1:]]

    def decode_request(self, request: dict[str, Any]) -> Any:
        image = request["image"]
        if isinstance(image, str):
            return np.frombuffer(base64.b64decode(image), np.float32).reshape(self.shape)
        return np.array(image, np.float32).reshape(self.shape)

    def predict(self, image: Any) -> Any:
        return self.session.run(None, {self.name: image})[0]

    def encode_response(self, answer: Any) -> dict[str, Any]:
        return {"probabilities": answer[0].tolist()}


# LitServe reads the annotations themselves, not the names that stand for them; without any it takes the JSON as it is.
Api.decode_request.__annotations__.clear()
Api.encode_response.__annotations__.clear()

if __name__ == "__main__":
    server = ls.LitServer(Api(), accelerator="cpu", devices=1, workers_per_device=1, timeout=False)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False, log_level="warning",
        access_log=False,
    )  # fmt: skip
