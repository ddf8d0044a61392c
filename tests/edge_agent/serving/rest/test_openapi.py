"""The OpenAPI document: valid, as precise as the signatures, with examples that work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import ApiSettings, AppSettings
from edge_agent.contract.constraint import Constraint, DateFormat, NumberFormat, Policy, Rule
from edge_agent.contract.signature import TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.rest.examples import example_value
from edge_agent.serving.rest.schemas import tensor_schema
from tests.edge_agent.serving.rest.requests import INFER, image
from tests.fakes.packages import make_package
from tests.fakes.sensor_package import make_sensor_package
from tests.fakes.serving_device import Device, serving


@pytest.fixture(scope="module")
def described(shared: Device) -> dict[str, Any]:
    return dict(shared.ask_json("GET", "/openapi.json")[1])


def _validate(described: dict[str, Any]) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(described, cls=validator.OpenAPIV31SpecValidator)


def _schema(described: dict[str, Any], name: str) -> dict[str, Any]:
    """A schema that a validator of plain JSON Schema can use: with the components that it refers to."""
    return {"$ref": f"#/components/schemas/{name}", "components": described["components"]}


def _holds(described: dict[str, Any], name: str, value: Any) -> bool:
    return bool(pytest.importorskip("jsonschema").Draft202012Validator(_schema(described, name)).is_valid(value))


def _examples(device: Device, described: dict[str, Any]) -> dict[str, Any]:
    """By path: the request of its example."""
    found = {}
    for path, item in described["paths"].items():
        if path.endswith("/infer"):
            probe = item["post"]["requestBody"]["content"]["application/json"]["examples"]["probe"]
            found[path] = probe["value"] if "value" in probe else device.ask_json("GET", probe["externalValue"])[1]
    return found


def test_the_document_is_valid_and_every_operation_has_a_name_of_its_own(described: dict[str, Any]) -> None:
    _validate(described)
    names = [one["operationId"] for item in described["paths"].values() for one in item.values()]
    assert len(set(names)) == len(names)
    assert {"inferDigits", "inferSensorGuard", "sendFeedbackEcho", "getModel", "loadModel"} <= set(names)
    assert all(name.isidentifier() for name in names)
    assert "securitySchemes" not in described["components"]


def test_every_example_works_and_fits_its_schema_and_so_does_its_answer(
    shared: Device, described: dict[str, Any]
) -> None:
    examples = _examples(shared, described)
    assert set(examples) == {f"/v2/models/{name}/infer" for name in ("digits", "echo", "sensor-guard")}
    types = {"digits": "Digits", "echo": "Echo", "sensor-guard": "SensorGuard"}
    for path, request in examples.items():
        name = types[path.split("/")[3]]
        assert _holds(described, f"{name}Request", request)
        status, answer = shared.ask_json("POST", path, request)
        assert status == 200, answer
        assert "violations" not in answer["parameters"]
        assert _holds(described, f"{name}Response", answer), answer
    assert shared.slots.get("digits").requests == 0  # examples are probes


def test_the_schemas_refuse_what_the_device_refuses(shared: Device, described: dict[str, Any]) -> None:
    request = _examples(shared, described)["/v2/models/sensor-guard/infer"]
    wrong = {
        "temperature": [-40.5, 0.0, 0.0],
        "mode": [3],
        "armed": ["yes"],
        "note": ["no"],
        "loudness": [0.5, 0.5, 0.5],  # four are announced
    }
    for name, data in wrong.items():
        inputs = [{**one, "data": data} if one["name"] == name else one for one in request["inputs"]]
        if name != "loudness":  # an open axis: the schema cannot tell how many elements there must be
            assert not _holds(described, "SensorGuardRequest", {**request, "inputs": inputs}), name
        assert shared.ask("POST", "/v2/models/sensor-guard/infer", {**request, "inputs": inputs})[0] == 400, name
    assert not _holds(described, "SensorGuardRequest", {**request, "inputs": request["inputs"][:-1]})
    assert not _holds(described, "DigitsRequest", {"inputs": [{**image()["inputs"][0], "shape": [1, 63]}]})


def test_the_schemas_let_through_what_the_device_lets_through(shared: Device, described: dict[str, Any]) -> None:
    request = _examples(shared, described)["/v2/models/sensor-guard/infer"]
    for name, data in {"temperature": [None, 85.0, -40.0], "loudness": [7.0, 0.5, 0.5, 0.5]}.items():
        inputs = [{**one, "data": data} if one["name"] == name else one for one in request["inputs"]]
        assert _holds(described, "SensorGuardRequest", {**request, "inputs": inputs}), name
        status, answer = shared.ask_json("POST", "/v2/models/sensor-guard/infer", {**request, "inputs": inputs})
        assert status == 200, answer
    assert answer["parameters"]["violations"] == "loudness/range/clip=1"


def test_units_labels_and_bounds_are_told(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    temperature = schemas["SensorGuardInputTemperature"]
    assert temperature["x-unit"] == "Cel"
    assert temperature["description"] == "FP32 [-1, 3]; from -40 to 85; in Cel; may be missing (then 20.0)"
    share = Constraint(maximum=1.0, unit="1", fill=0.5, policies={Rule.RANGE: Policy.FILL})
    told = tensor_schema(
        TensorSpec(name="share", datatype=Datatype.FP32, shape=(None,), constraint=share), "Share", request=True
    )
    assert told["description"] == "FP32 [-1]; to 1; no unit; range: fill with 0.5"
    element = temperature["properties"]["data"]["items"]
    assert element == {"type": ["number", "null"], "format": "float", "minimum": -40.0, "maximum": 85.0}
    assert temperature["properties"]["data"]["minItems"] == 3
    mode = schemas["SensorGuardInputMode"]["properties"]["data"]["items"]
    assert (mode["enum"], mode["format"]) == ([1, 2, 4], "int64")
    note = schemas["SensorGuardInputNote"]["properties"]["data"]["items"]
    assert note == {"type": "string", "minLength": 3, "maxLength": 12}
    loudness = schemas["SensorGuardInputLoudness"]
    assert loudness["properties"]["shape"]["prefixItems"][1] == {"type": "integer", "minimum": 2, "maximum": 8}
    assert "minimum" not in loudness["properties"]["data"]["items"]
    assert "range: clip" in loudness["description"]
    assert schemas["SensorGuardOutputProbabilities"]["x-labels"] == ["fine", "alarm"]
    assert schemas["SensorGuardFeedback"]["properties"]["label"]["enum"] == ["fine", "alarm"]
    items = schemas["SensorGuardRequest"]["properties"]["inputs"]["items"]
    assert items["discriminator"]["mapping"]["seen-at"] == "#/components/schemas/SensorGuardInputSeenAt"


def test_the_document_follows_the_models(device: Device) -> None:
    make_package(device.models / "newer", version="2", seed=5)
    device.repository.load("digits", "2")
    described = device.ask_json("GET", "/openapi.json")[1]
    _validate(described)
    assert "/v2/models/digits/versions/1/infer" in described["paths"]
    assert "/v2/models/digits/versions/2/infer" not in described["paths"]  # the default: its path needs no version
    assert "DigitsV1Request" in described["components"]["schemas"]
    device.repository.unload("digits")
    assert not [path for path in device.ask_json("GET", "/openapi.json")[1]["paths"] if "digits" in path]


def test_a_device_without_models_describes_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with serving(tmp_path) as empty:
        _validate(empty.ask_json("GET", "/openapi.json")[1])


def test_long_examples_have_an_address_of_their_own(tmp_path: Path) -> None:
    make_sensor_package(tmp_path / "models" / "sensor", readings=5000)
    with serving(tmp_path) as device:
        status, _, body = device.ask("GET", "/openapi.json")
        assert (status, len(body) < 40_000) == (200, True)
        described = json.loads(body)
        _validate(described)
        ((path, request),) = _examples(device, described).items()
        assert len(request["inputs"][0]["data"]) > 4096
        assert device.ask_json("POST", path, request)[0] == 200


def test_tokens_are_described_where_there_are_any(tmp_path: Path) -> None:
    make_package(tmp_path / "models" / "digits")
    apps = (AppSettings(name="phone", token_sha256="0" * 64), AppSettings(name="here", local=True, models=("cats",)))
    with serving(tmp_path, ApiSettings(port=0, apps=apps)) as device:
        described = device.ask_json("GET", "/openapi.json")[1]
        _validate(described)
        assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
        assert described["security"] == [{"token": []}, {}]
        assert INFER not in described["paths"]  # only the models that this application may ask


@pytest.mark.parametrize(
    ("datatype", "constraint", "value"),
    [
        (Datatype.UINT8, Constraint(minimum=10.4), 11),
        (Datatype.INT8, Constraint(maximum=-3.5), -4),
        (Datatype.INT32, Constraint(minimum=-9.0, maximum=-4.0), -7),
        (Datatype.FP32, Constraint(), 0.0),
        (Datatype.FP64, Constraint(minimum=1.0), 1.0),
        (Datatype.FP16, Constraint(allowed=(0.5, 1.5)), 0.5),
        (Datatype.BOOL, Constraint(), True),
        (Datatype.BYTES, Constraint(allowed=("left", "right")), "left"),
        (Datatype.BYTES, Constraint(min_length=9), "examplexx"),
        (Datatype.BYTES, Constraint(max_length=2), "ex"),
        (Datatype.BYTES, Constraint(number=NumberFormat(decimal=","), minimum=1.0, maximum=2.0), "1,5"),
        (Datatype.BYTES, Constraint(date=DateFormat(format="%d.%m.%Y %H:%M", zone="UTC")), "02.03.2026 12:00"),
    ],
)
def test_values_of_examples_lie_within_the_bounds(datatype: Datatype, constraint: Constraint, value: Any) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=(None, 1), constraint=constraint)
    found = example_value(spec)
    assert (found, type(found)) == (value, type(value))
    element = tensor_schema(spec, "X", request=True)["properties"]["data"]["items"]
    assert pytest.importorskip("jsonschema").Draft202012Validator(element).is_valid(found)


def test_an_output_of_whole_numbers_and_a_missing_value_that_is_filled_are_told_right() -> None:
    whole = TensorSpec(name="x", datatype=Datatype.UINT16, shape=(2, 3))
    schema = tensor_schema(whole, "X", request=False)
    assert schema["properties"]["data"]["items"] == {
        "type": "integer",
        "format": "uint16",
        "minimum": 0,
        "maximum": 65535,
    }
    assert schema["properties"]["data"]["maxItems"] == 6
    filled = Constraint(fill=0.0, policies={Rule.MISSING: Policy.FILL})
    spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=(None,), constraint=filled)
    assert "null" in tensor_schema(spec, "X", request=True)["properties"]["data"]["items"]["type"]
