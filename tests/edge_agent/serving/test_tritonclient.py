"""An unchanged client of the protocol gets the right answers and the right errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.edge_agent.serving.conftest import Device
from tests.fakes.packages import answer, model_weights, reference_images


@pytest.fixture
def client(shared: Device) -> Iterator[Any]:
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{shared.port}")
    yield client
    client.close()


def test_it_reads_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert not client.is_model_ready("cats")
    assert client.get_server_metadata()["name"] == "shoal-agent"
    assert client.get_model_metadata("digits", "1")["inputs"][0]["shape"] == [-1, 64]
    assert [model["name"] for model in client.get_model_repository_index()] == ["digits", "echo"]


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_it_infers_with_binary_and_json_tensors(client: Any, binary_input: bool, binary_output: bool) -> None:
    images = reference_images(3)
    given = tritonclient.http.InferInput("image", list(images.shape), "FP32")
    given.set_data_from_numpy(images, binary_data=binary_input)
    wanted = tritonclient.http.InferRequestedOutput("probabilities", binary_data=binary_output)
    result = client.infer("digits", [given], outputs=[wanted], request_id="abc", query_params={"a": 1})
    np.testing.assert_allclose(result.as_numpy("probabilities"), answer(*model_weights(), images), atol=1e-6)
    assert result.get_response()["id"] == "abc"
    assert result.get_response()["parameters"]["label_wanted"] is True


@pytest.mark.parametrize("binary", [True, False])
def test_it_sends_and_reads_text(client: Any, binary: bool) -> None:
    words = np.array([["né"], [""], ["b"]], dtype=object)
    given = tritonclient.http.InferInput("text", [3, 1], "BYTES")
    given.set_data_from_numpy(words, binary_data=binary)
    wanted = [tritonclient.http.InferRequestedOutput("echo", binary_data=binary)]
    result = client.infer("echo", [given], outputs=wanted)
    found = [word.decode() if isinstance(word, bytes) else word for word in result.as_numpy("echo").ravel()]
    assert found == ["né", "", "b"]


def test_it_shows_the_text_of_our_errors(client: Any) -> None:
    given = tritonclient.http.InferInput("image", [1, 32], "FP32")
    given.set_data_from_numpy(np.zeros((1, 32), dtype=np.float32))
    with pytest.raises(InferenceServerException, match=r"input 'image': shape: expected \[-1, 64\], got \[1, 32\]"):
        client.infer("digits", [given])
    with pytest.raises(InferenceServerException, match="model 'cats' is not served here"):
        client.get_model_metadata("cats")
