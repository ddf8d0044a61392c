"""A BentoML service; the model's file is named by the environment variable BENCH_MODEL."""

from __future__ import annotations

import base64
import os

import bentoml  # type: ignore[import-not-found]  # it lives in an environment of its own
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1, traffic={"timeout": 60})
class Bench:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
        (node,) = self.session.get_inputs()
        self.name, self.shape = node.name, [1, *node.shape[1:]]

    # "async def" keeps these short inferences on the event loop, which is the faster of the two here.
    @bentoml.api  # type: ignore[untyped-decorator]
    async def numbers(self, image: list[float]) -> list[float]:
        (answer,) = self.session.run(None, {self.name: np.array(image, np.float32).reshape(self.shape)})
        return answer[0].tolist()  # type: ignore[no-any-return]

    @bentoml.api  # type: ignore[untyped-decorator]
    async def encoded(self, image: str) -> list[float]:
        row = np.frombuffer(base64.b64decode(image), np.float32).reshape(self.shape)
        (answer,) = self.session.run(None, {self.name: row})
        return answer[0].tolist()  # type: ignore[no-any-return]
