"""Asks a server with KServe's own clients; runs in an environment of its own, which has nothing of ours.

Usage: python ask_with_kserve.py REST_URL GRPC_TARGET < rows.json > answers.json
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import (  # type: ignore[import-not-found]
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)


def request(rows: list[list[float]], *, binary: bool) -> InferRequest:
    """One request for the model "digits"."""
    tensor = InferInput("image", [len(rows), len(rows[0])], "FP32")
    tensor.set_data_from_numpy(np.array(rows, dtype=np.float32), binary_data=binary)
    return InferRequest(model_name="digits", infer_inputs=[tensor], request_id="by-kserve")


def told(answer: Any) -> dict[str, Any]:
    """What came back, as plain values."""
    return {
        "id": answer.id,
        "model": answer.model_name,
        "outputs": {output.name: output.as_numpy().tolist() for output in answer.outputs},
    }


async def over_rest(url: str, rows: list[list[float]]) -> dict[str, Any]:
    """Everything that its REST client can ask."""
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    try:
        return {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, "digits"),
            "json": told(await client.infer(url, request(rows, binary=False), model_name="digits")),
            "binary": told(await client.infer(url, request(rows, binary=True), model_name="digits")),
        }
    finally:
        await client.close()


async def over_grpc(target: str, rows: list[list[float]]) -> dict[str, Any]:
    """Everything that its gRPC client can ask."""
    client = InferenceGRPCClient(target)
    try:
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready("digits"),
            "contents": told(await client.infer(request(rows, binary=False))),
            "raw": told(await client.infer(request(rows, binary=True))),
        }
    finally:
        await client.close()


async def main() -> None:
    """Ask all, and print the answers."""
    url, target = sys.argv[1:]
    rows = json.load(sys.stdin)
    print(json.dumps({"rest": await over_rest(url, rows), "grpc": await over_grpc(target, rows)}))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
