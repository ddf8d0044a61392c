"""Labels for earlier requests, over real sockets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.contract.messages import LabelBatch
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import Stream
from tests.edge_agent.serving.rest.requests import INFER, image
from tests.fakes.packages import answer, model_weights, reference_images
from tests.fakes.serving_device import Device

_FEEDBACK = "/v2/models/digits/feedback"


def _two(images: NDArray[np.float32]) -> dict[str, Any]:
    tensor = {"name": "image", "shape": [2, 64], "datatype": "FP32", "data": images.ravel().tolist()}
    return {"id": "two", "inputs": [tensor]}


def _ids(device: Device) -> list[str]:
    return [label.request_id for batch in device.sent(Stream.LABELS, LabelBatch) for label in batch.labels]


@pytest.mark.parametrize("label", ["7", 7])
def test_feedback_becomes_a_label_of_the_earlier_request(device: Device, label: str | int) -> None:
    device.ask_json("POST", INFER, image(id="r1"))
    told = {"request_id": "r1", "label": label, "source": "operator"}
    status, body = device.ask_json("POST", _FEEDBACK, told)
    assert (status, body) == (200, {"model_name": "digits", "request_id": "r1", "accepted": True, "sampled": True})
    (batch,) = device.sent(Stream.LABELS, LabelBatch)
    (kept,) = batch.labels
    assert (kept.request_id, kept.label, kept.source) == ("r1", "7", "operator")
    assert kept.package == device.slots.get("digits").digest
    assert kept.prediction == str(answer(*model_weights(), reference_images(1)).argmax())
    assert 0 < kept.inclusion_probability <= 1


def test_feedback_on_a_row_that_stays_on_the_device_says_so_and_is_counted(device: Device) -> None:
    device.ask_json("POST", INFER, image(id="sent"))
    device.monitor.set_policies({"digits": SamplingPolicy(samples_per_minute=0)})
    device.ask_json("POST", INFER, image(id="kept"))
    for name, sampled in (("sent", True), ("kept", False)):
        body = device.ask_json("POST", _FEEDBACK, {"request_id": name, "label": 7})[1]
        assert body["sampled"] is sampled
    page = device.ask("GET", "/metrics")[2].decode()
    for value in ("true", "false"):
        assert f'shoal_model_labels_total{{model="digits",version="1",sampled="{value}"}} 1\n' in page


def test_feedback_on_several_rows_names_the_row(device: Device) -> None:
    images = reference_images(2)
    device.ask_json("POST", INFER, _two(images))
    status, body = device.ask_json("POST", _FEEDBACK, {"request_id": "two", "label": 1})
    assert status == 404
    assert "name the row" in body["error"]
    told = {"request_id": "two", "label": 1, "row": 1}
    assert device.ask_json("POST", _FEEDBACK, told)[0] == 200
    (batch,) = device.sent(Stream.LABELS, LabelBatch)
    assert batch.labels[0].request_id == "two/1"


@pytest.mark.parametrize(
    ("told", "status", "text"),
    [
        ({"request_id": "never", "label": "7"}, 404, "does not remember request 'never'"),
        ({"request_id": "r1", "label": "cat"}, 400, "no such class; it has: 0, 1, 2"),
        ({"request_id": "r1", "label": 10}, 400, "no such class"),
        ({"request_id": "r1", "label": -1}, 400, "no such class"),
        ({"request_id": "r1", "label": 1.5}, 400, "label"),
        ({"request_id": "r1"}, 400, "missing required field `label`"),
        ({"request_id": "r1", "label": 1, "lable": 2}, 400, "unknown field `lable`"),
    ],
)
def test_wrong_feedback_is_refused_and_keeps_nothing(
    device: Device, told: dict[str, Any], status: int, text: str
) -> None:
    device.ask_json("POST", INFER, image(id="r1"))
    found, body = device.ask_json("POST", _FEEDBACK, told)
    assert found == status
    assert text in body["error"]
    assert device.sent(Stream.LABELS, LabelBatch) == []


def test_the_row_of_a_request_of_one_row_may_be_named_all_the_same(device: Device) -> None:
    device.ask_json("POST", INFER, image(id="one"))
    told = {"request_id": "one", "label": "7", "row": 0}
    status, body = device.ask_json("POST", _FEEDBACK, told)
    assert (status, body["request_id"]) == (200, "one")
    assert _ids(device) == ["one"]
    status, body = device.ask_json("POST", _FEEDBACK, {**told, "row": 1})
    assert (status, "'one', row 1:" in body["error"]) == (404, True)
    status, body = device.ask_json("POST", _FEEDBACK, {**told, "row": -1})
    assert (status, "rows count from 0" in body["error"]) == (400, True)


def test_row_0_of_several_is_that_row_and_not_the_request(device: Device) -> None:
    device.ask_json("POST", INFER, _two(reference_images(2)))
    assert device.ask_json("POST", _FEEDBACK, {"request_id": "two", "label": 1, "row": 0})[0] == 200
    assert _ids(device) == ["two/0"]


def test_a_label_for_a_model_asleep_is_kept_without_waking_it(device: Device) -> None:
    device.ask_json("POST", INFER, image(id="r1"))
    device.slots.unload("digits", reason="idle", idle_since=device.slots.get("digits").last_used + 1)
    assert device.ask_json("POST", _FEEDBACK, {"request_id": "r1", "label": "7"})[0] == 200
    assert _ids(device) == ["r1"]
    assert device.slots.models()[0].name != "digits"


def test_feedback_as_long_as_a_tensor_is_refused(shared: Device) -> None:
    status, body = shared.ask_json("POST", _FEEDBACK, {"request_id": "r" * 100_000, "label": "1"})
    assert status == 413
    assert "limit of 65536 bytes" in body["error"]


def test_feedback_for_a_model_that_is_not_here_is_a_404_whatever_it_says(shared: Device) -> None:
    status, body = shared.ask_json("POST", "/v2/models/cats/feedback", b"{")
    assert (status, "model 'cats'" in body["error"]) == (404, True)


def test_who_says_so_is_told_in_full_or_not_at_all(device: Device) -> None:
    device.ask_json("POST", INFER, image(id="r1"))
    status, body = device.ask_json("POST", _FEEDBACK, {"request_id": "r1", "label": 7, "source": "x" * 65})
    assert (status, body["error"]) == (400, "the feedback's source: at most 64 characters, got 65")
    assert device.ask_json("POST", _FEEDBACK, {"request_id": "r1", "label": 7, "source": "x" * 64})[0] == 200
