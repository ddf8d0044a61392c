"""Requests to the model "digits"."""

from __future__ import annotations

from typing import Any

from tests.fakes.packages import reference_images

INFER = "/v2/models/digits/infer"


def image(pixels: float | None = None, **more: Any) -> dict[str, Any]:
    """A request of one image, all of its pixels the same or one of the reference images."""
    data = reference_images(1).ravel().tolist() if pixels is None else [pixels] * 64
    return {"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": data}], **more}
