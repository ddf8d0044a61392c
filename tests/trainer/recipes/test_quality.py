from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from edge_agent import load
from edge_agent.contract.errors import SignatureMismatch
from edge_agent.runtime.package import Package
from tests.e2e.running_agent import agent, shoal_agent
from trainer.recipe import Recipe

# The first test to ask for the package waits until it is trained, with others on the same processors.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def data(quality: Recipe) -> Any:
    return quality.module("data")


@pytest.fixture(scope="module")
def quality(shipped: Callable[[str, int], Recipe]) -> Recipe:
    return shipped("quality", 15)


@pytest.fixture(scope="module")
def package(quality: Recipe, first_model: Callable[[Recipe], Package]) -> Package:
    return first_model(quality)


@pytest.fixture
def part(data: Any) -> dict[str, NDArray[Any]]:
    """One part with all its columns."""
    _, found = data.parts(20, seed=8)
    return dict(data.columns([next(each for each in found if None not in (each.material, each.weight, each.moisture))]))


def test_it_tells_faults_of_runs_that_it_has_never_seen(data: Any, package: Package) -> None:
    _, found = data.parts(80, seed=9)
    with load(package.folder) as model:
        answers = model.infer(data.columns(found)).outputs["probabilities"].argmax(axis=1)
    assert np.mean([data.CLASSES[answer] == each.defect for answer, each in zip(answers, found, strict=True)]) > 0.8


def test_the_packages_graph_takes_the_columns_as_text(package: Package, part: dict[str, NDArray[Any]]) -> None:
    session = onnxruntime.InferenceSession(str(package.path("model.onnx")))
    kinds = {node.name: node.type for node in session.get_inputs()}
    assert kinds["material"] == kinds["serviced_on"] == kinds["weight"] == "tensor(string)"
    assert [node.name for node in session.get_inputs()] == [spec.name for spec in package.manifest.signature.inputs]


def test_a_part_is_judged_whichever_of_its_columns_are_missing(package: Package, part: dict[str, NDArray[Any]]) -> None:
    with load(package.folder) as model:
        for name in ("material", "serviced_on", "weight"):
            part[name] = np.array([b""], dtype=object)
        for name in ("mould_temperature", "moisture"):
            part[name] = np.array([np.nan], dtype=np.float32)
        assert model.infer(part).outputs["probabilities"].sum() == pytest.approx(1, abs=1e-5)


def test_one_moment_written_in_two_ways_gives_one_answer(package: Package, part: dict[str, NDArray[Any]]) -> None:
    with load(package.folder) as model:
        answers = []
        for text in (b"2025-01-13T07:30:00", b"2025-01-13T06:30:00Z"):  # Berlin's winter time without an offset; UTC
            part["moulded_at"] = np.array([text], dtype=object)
            answers.append(model.infer(part).outputs["probabilities"])
        assert (answers[0] == answers[1]).all()


def test_an_older_mould_flashes_more(package: Package, data: Any) -> None:
    _, found = data.parts(60, seed=10)
    columns = data.columns(found)
    flash = []
    with load(package.folder) as model:
        for day in (b"%d.%02d.2024" % (1, 9), b"%d.%02d.2024" % (1, 4)):
            columns["moulded_at"][:] = b"2024-09-05T12:00:00Z"
            columns["serviced_on"][:] = day
            flash.append(model.infer(columns).outputs["probabilities"][:, 2].mean())
    assert flash[1] > flash[0] + 0.1


def test_a_new_material_is_let_through_and_told(package: Package, part: dict[str, NDArray[Any]]) -> None:
    part["material"] = np.array([b"PEEK"], dtype=object)
    with load(package.folder) as model:
        violation = model.infer(part).violations[0]
    assert (violation.tensor, violation.rule, violation.policy) == ("material", "enumeration", "flag")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("machine", b"M9", "'machine', row 0: enumeration: value 'M9'"),
        ("serviced_on", b"2024-09-02", "'serviced_on', row 0: date: .* no date of the form %d.%m.%Y"),
        ("weight", b"1,234.5", "'weight', row 0: number: .* no number of the form 1234,5"),
    ],
)
def test_what_the_contract_does_not_allow_is_refused_by_column(
    package: Package, part: dict[str, NDArray[Any]], column: str, value: bytes, said: str
) -> None:
    part[column] = np.array([value], dtype=object)
    with load(package.folder) as model, pytest.raises(SignatureMismatch, match=said):
        model.infer(part)


def test_an_agent_answers_applications_that_send_the_columns_as_json(package: Package, tmp_path: Path) -> None:
    columns = {
        "material": "PA6", "machine": "M3", "moulded_at": "2025-01-13 07:30", "serviced_on": "02.09.2024",
        "melt_temperature": 259.5, "mould_temperature": None, "hold_pressure": 905.0, "injection_time": 1.8,
        "moisture": 0.08, "weight": "1.259,1",
    }  # fmt: skip
    kinds = {spec.name: spec.datatype.value for spec in package.manifest.signature.inputs}
    tensors = [
        {"name": name, "datatype": kinds[name], "shape": [1], "data": [value]} for name, value in columns.items()
    ]
    with agent(tmp_path / "state") as device:
        done = shoal_agent("install", package.folder, "--config", device.settings)
        assert done.returncode == 0, done.stderr
        device.start()
        answer = httpx.post(f"http://{device.address}/v2/models/quality/infer", json={"inputs": tensors}).json()
    probabilities = answer["outputs"][0]["data"]
    assert package.manifest.task.labels[int(np.argmax(probabilities))] == "flash", answer
