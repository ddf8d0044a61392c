"""The protocol over gRPC, asked by unchanged clients, on TCP and on a unix socket."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, shared_memory

from edge_agent.config import ApiSettings
from edge_agent.contract.messages import SampleBatch
from edge_agent.contract.topics import Stream
from edge_agent.serving.grpc import oip_pb2 as oip
from tests.edge_agent.serving.conftest import make_models
from tests.edge_agent.serving.grpc.asking import IMAGES, ask, image_input, right
from tests.fakes.packages import LABELS, answer, make_package, model_weights
from tests.fakes.serving_device import Device, serving

EXPECTED = answer(*model_weights(), IMAGES)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """Serves "digits" in two versions and "echo", over gRPC twice."""
    folder = tmp_path_factory.mktemp("grpc")
    make_models(folder)
    make_package(folder / "models" / "digits-2", version="2", seed=2)
    settings = ApiSettings(port=0, grpc_port=0, grpc_socket=str(folder / "grpc.sock"), max_body_mib=1)
    with serving(folder, settings) as device:
        yield device


@pytest.fixture(params=["grpc", "grpc_unix"])
def client(device: Device, request: pytest.FixtureRequest) -> Iterator[Any]:
    client = tritonclient.grpc.InferenceServerClient(device.api.addresses[request.param])
    yield client
    client.close()


def test_every_field_has_the_number_and_type_that_other_clients_know() -> None:
    """Theirs may have fields that ours leaves out; whatever ours has must be theirs."""

    def fields(descriptor: Any) -> dict[str, tuple[int, int, str]]:
        return {
            field.name: (field.number, field.type, field.message_type.name if field.message_type else "")
            for field in descriptor.fields
        }

    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name}
    config = tritonclient.grpc.model_config_pb2
    theirs.update(config.DESCRIPTOR.message_types_by_name)
    compared = 0
    for name, ours in oip.DESCRIPTOR.message_types_by_name.items():
        pairs = [(ours, theirs[name])]
        pairs += [(nested, theirs[name].nested_types_by_name[nested.name]) for nested in ours.nested_types]
        for mine, other in pairs:
            assert fields(mine).items() <= fields(other).items(), mine.full_name
            compared += 1
    assert compared > 60
    values = {value.name: value.number for value in oip.DataType.DESCRIPTOR.values}
    assert values == {value.name: value.number for value in config.DataType.DESCRIPTOR.values}


def test_it_reads_health_metadata_configuration_and_statistics(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("cats")
    assert client.get_server_metadata().name == "shoal-agent"
    metadata = client.get_model_metadata("digits")
    assert sorted(metadata.versions) == ["1", "2"]
    assert (metadata.inputs[0].name, metadata.inputs[0].datatype, list(metadata.inputs[0].shape)) == (
        "image",
        "FP32",
        [-1, 64],
    )
    config = client.get_model_config("digits").config
    assert (config.name, config.input[0].data_type, list(config.input[0].dims)) == ("digits", 11, [64])
    client.infer("digits", [image_input()], model_version="1")
    (found,) = client.get_inference_statistics("digits", "1").model_stats
    assert found.inference_count >= 3
    assert found.inference_stats.success.count >= 1
    assert [(one.name, one.version, one.state) for one in client.get_model_repository_index().models] == [
        ("digits", "1", "READY"),
        ("digits", "2", "READY"),
        ("echo", "1", "READY"),
    ]


def test_it_infers_and_is_told_package_and_request_id(client: Any, device: Device) -> None:
    result = client.infer("digits", [image_input()], model_version="1", request_id="abc", client_timeout=30)
    np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-6)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("digits", "1", "abc")
    assert response.parameters["package"].string_param == device.slots.get("digits", "1").digest
    device.monitor.flush()
    samples = [sample for batch in device.sent(Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    assert "abc/2" in {sample.request_id for sample in samples}


def test_a_model_called_as_a_path_is_named_is_still_no_model(client: Any) -> None:
    for name in ("stats", "config", "digits/stats", "digits/versions/1"):
        with pytest.raises(InferenceServerException) as unknown:
            client.get_model_metadata(name)
        assert unknown.value.status() == "StatusCode.NOT_FOUND"
        assert f"model '{name}'" in unknown.value.message()


def test_each_version_answers_for_itself(client: Any) -> None:
    for version, seed in (("1", 0), ("2", 2)):
        result = client.infer("digits", [image_input()], model_version=version)
        np.testing.assert_allclose(result.as_numpy("probabilities"), answer(*model_weights(seed), IMAGES), atol=1e-6)


def test_it_sends_and_reads_text(client: Any) -> None:
    text = np.array([["grün".encode()], [b"blue"]], dtype=object)
    tensor = tritonclient.grpc.InferInput("text", [2, 1], "BYTES")
    tensor.set_data_from_numpy(text)
    result = client.infer("echo", [tensor])
    assert result.as_numpy("echo").tolist() == text.tolist()


def test_an_output_may_be_wanted_as_its_best_classes(client: Any) -> None:
    wanted = tritonclient.grpc.InferRequestedOutput("probabilities", class_count=2)
    result = client.infer("digits", [image_input()], model_version="1", outputs=[wanted])
    best = result.as_numpy("probabilities")
    assert best.shape == (3, 2)
    for row, found in zip(EXPECTED, best, strict=True):
        value, index, label = found[0].decode().split(":")
        assert (int(index), label) == (row.argmax(), LABELS[row.argmax()])
        assert float(value) == pytest.approx(row.max(), abs=1e-5)


def test_priority_timeout_and_parameters_of_ones_own_are_taken(client: Any) -> None:
    result = client.infer(
        "digits",
        [image_input()],
        priority=1,
        timeout=30_000_000,
        parameters={"group": "tray", "mine": 1, "monitor": False},
    )
    assert result.as_numpy("probabilities").shape == (3, 10)
    with pytest.raises(InferenceServerException, match="stateful sequences") as refused:
        client.infer("digits", [image_input()], sequence_id=7, sequence_start=True)
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_tensors_may_lie_in_shared_memory(client: Any) -> None:
    given = shared_memory.create_shared_memory_region("given", "/shoal-test-given", IMAGES.nbytes)
    taken = shared_memory.create_shared_memory_region("taken", "/shoal-test-taken", EXPECTED.nbytes + 64)
    try:
        shared_memory.set_shared_memory_region(given, [IMAGES])
        client.register_system_shared_memory("given", "/shoal-test-given", IMAGES.nbytes)
        client.register_system_shared_memory("taken", "/shoal-test-taken", EXPECTED.nbytes + 64)
        assert set(client.get_system_shared_memory_status().regions) == {"given", "taken"}
        assert client.get_system_shared_memory_status("given").regions["given"].byte_size == IMAGES.nbytes
        tensor = tritonclient.grpc.InferInput("image", list(IMAGES.shape), "FP32")
        tensor.set_shared_memory("given", IMAGES.nbytes)
        wanted = tritonclient.grpc.InferRequestedOutput("probabilities")
        wanted.set_shared_memory("taken", EXPECTED.nbytes, offset=64)
        result = client.infer("digits", [tensor], model_version="1", outputs=[wanted])
        assert list(result.get_output("probabilities").shape) == [3, 10]
        assert list(result.get_response().raw_output_contents) == [b""]
        found = shared_memory.get_contents_as_numpy(taken, np.float32, [3, 10], offset=64)
        np.testing.assert_allclose(found, EXPECTED, atol=1e-6)
        tensor.set_shared_memory("given", IMAGES.nbytes, offset=64)
        with pytest.raises(
            InferenceServerException, match=r"region 'given': offset 64 and 768 bytes reach to byte 832"
        ):
            client.infer("digits", [tensor])
    finally:
        client.unregister_system_shared_memory()
        shared_memory.destroy_shared_memory_region(given)
        shared_memory.destroy_shared_memory_region(taken)
    assert not client.get_system_shared_memory_status().regions
    assert not client.get_cuda_shared_memory_status().regions
    client.unregister_cuda_shared_memory()


def test_a_stream_answers_each_request_in_turn_and_goes_on_after_an_error(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number, model in enumerate(["digits", "cats", "digits"]):
        client.async_stream_infer(model, [image_input()], request_id=str(number))
    found = [answers.get(timeout=30) for _ in range(3)]
    client.stop_stream()
    assert [error is not None for _, error in found] == [False, True, False]
    assert "model 'cats' is not served here" in str(found[1][1])
    assert [result.get_response().id for result, error in found if error is None] == ["0", "2"]


def test_a_model_is_unloaded_and_loaded_again(client: Any) -> None:
    client.unload_model("echo")
    assert not client.is_model_ready("echo")
    client.load_model("echo")
    assert client.is_model_ready("echo")
    with pytest.raises(InferenceServerException, match="config"):
        client.load_model("echo", config="{}")


def test_elements_may_stand_in_the_message_itself(device: Device) -> None:
    message = oip.ModelInferRequest(model_name="digits", model_version="1")
    tensor = message.inputs.add(name="image", datatype="FP32", shape=IMAGES.shape)
    tensor.contents.fp32_contents.extend(IMAGES.ravel().tolist())
    response = ask(device, message)
    found = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(3, 10)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (lambda m: setattr(m, "model_name", "cats"), "NOT_FOUND", "model 'cats' is not served here"),
        (lambda m: setattr(m, "model_version", "9"), "NOT_FOUND", "no version '9'"),
        (lambda m: setattr(m.inputs[0], "datatype", "BF16"), "INVALID_ARGUMENT", "no datatype 'BF16'"),
        (lambda m: setattr(m.inputs[0], "datatype", "FP64"), "INVALID_ARGUMENT", "input 'image': shape: FP64"),
        (lambda m: setattr(m.inputs[0], "name", "picture"), "INVALID_ARGUMENT", "no such input; it has: image"),
        (lambda m: m.inputs[0].shape.append(-1), "INVALID_ARGUMENT", "each at least 1"),
        (lambda m: m.raw_input_contents.append(b"x"), "INVALID_ARGUMENT", "more entries than inputs"),
        (lambda m: m.inputs.append(m.inputs[0]), "INVALID_ARGUMENT", "gives this input twice"),
        (lambda m: m.inputs.add(name="b", datatype="FP32", shape=[1]), "INVALID_ARGUMENT", "has no entry for it"),
        (lambda m: m.ClearField("raw_input_contents"), "INVALID_ARGUMENT", "needs 192 elements, data has 0"),
        (lambda m: setattr(m, "id", "x" * 200), "INVALID_ARGUMENT", "id: at most 128"),
        (lambda m: m.outputs.add(name="cats"), "INVALID_ARGUMENT", "no such output"),
        (lambda m: setattr(m.parameters["priority"], "string_param", "high"), "INVALID_ARGUMENT", "parameters: "),
        (lambda m: m.raw_input_contents.__setitem__(0, IMAGES.tobytes()[:-1]), "INVALID_ARGUMENT", "got 767"),
        (
            lambda m: m.raw_input_contents.__setitem__(0, (IMAGES * 0 + 2).tobytes()),
            "INVALID_ARGUMENT",
            "input 'image', row 0: range: value 2.0 at [0, 0] is above the maximum 1",
        ),
        (
            lambda m: m.raw_input_contents.__setitem__(0, (IMAGES * 0 + 0.99).astype(np.float32).tobytes()),
            "INTERNAL",
            "failed on this input",
        ),
        (lambda m: m.inputs[0].shape.__setitem__(0, 5000), "INVALID_ARGUMENT", "5000 rows, the limit is 1024"),
    ],
)
def test_a_wrong_request_gets_a_precise_error(device: Device, change: Any, code: str, text: str) -> None:
    message = oip.ModelInferRequest(model_name="digits", model_version="1")
    message.inputs.add(name="image", datatype="FP32", shape=IMAGES.shape)
    message.raw_input_contents.append(IMAGES.tobytes())
    change(message)
    with pytest.raises(grpc.RpcError) as refused:
        ask(device, message)
    assert refused.value.code().name == code
    assert text in (refused.value.details() or "")


def test_a_message_over_the_limit_is_refused(device: Device) -> None:
    message = oip.ModelInferRequest(model_name="digits")
    message.inputs.add(name="image", datatype="FP32", shape=[8192, 64])
    message.raw_input_contents.append(bytes(8192 * 64 * 4))
    with pytest.raises(grpc.RpcError) as refused:
        ask(device, message)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_that_are_no_message_hurt_nobody(device: Device) -> None:
    with grpc.insecure_channel(device.api.addresses["grpc"]) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", bytes, bytes)
        with pytest.raises(grpc.RpcError) as wrong:
            call(b"\xff\xff\xff", timeout=30)
        assert (wrong.value.code(), wrong.value.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "the message's bytes are no ModelInferRequest",
        )
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/inference.GRPCInferenceService/Fly", bytes, bytes)(b"", timeout=30)
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert ask(device, right()).model_name == "digits"
