"""Endpoints as people write them: JSON by pydantic, and raw bytes. python fastapi_endpoint.py MODEL PORT."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel


class Asked(BaseModel):
    image: list[float]


class Answered(BaseModel):
    probabilities: list[float]


def main() -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    (node,) = session.get_inputs()
    shape = [1, *node.shape[1:]]
    app = FastAPI()

    # "async def", so that the event loop answers itself: a hand-over to a thread costs more than these models.
    async def as_json(asked: Asked) -> Answered:
        (answer,) = session.run(None, {node.name: np.array(asked.image, np.float32).reshape(shape)})
        return Answered(probabilities=answer[0].tolist())

    async def as_bytes(request: Request) -> Response:
        body = await request.body()
        (answer,) = session.run(None, {node.name: np.frombuffer(body, np.float32).reshape(shape)})
        return Response(answer.tobytes(), media_type="application/octet-stream")

    # Annotations are looked up where the function was defined, which a local name does not survive.
    as_json.__annotations__ = {"asked": Asked, "return": Answered}
    as_bytes.__annotations__ = {"request": Request, "return": Response}
    app.post("/json")(as_json)
    app.post("/bytes")(as_bytes)
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[2]), loop="uvloop", http="httptools", log_level="warning",
        access_log=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
