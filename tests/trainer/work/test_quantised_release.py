"""Two trainings on the real path: the second travels as steps from the first, and is what devices serve."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_agent.contract.delta.apply import apply_delta
from edge_agent.contract.delta.make import make_delta
from edge_agent.contract.lake import LABELS, SAMPLES
from edge_agent.contract.runs import RunResult, RunState
from edge_agent.contract.stored_tensors import StoredFile, decode_stored_tensors
from edge_agent.runtime.loaded import load
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package, file_digest
from edge_agent.runtime.selftest import prove
from tests.trainer.conftest import field_rows, run_file
from trainer.cli import trainer
from trainer.data.lake import append
from trainer.recipe import Recipe
from trainer.release.export import weights_of
from trainer.release.quantised_update import apply_codes, codes_of
from trainer.work.run import PACKAGE_FOLDER, execute

DATA = "model.onnx.data"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def second_lake(recipe: Recipe, champion: Package, base_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = shutil.copytree(base_lake, tmp_path_factory.mktemp("second") / "lake")
    samples, labels = field_rows(recipe, champion, per_device=150, drifted=True)
    append(str(lake), SAMPLES, samples)
    append(str(lake), LABELS, labels)
    return lake


@pytest.fixture(scope="module")
def second(
    recipe: Recipe, champion: Package, second_lake: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Package, RunResult, list[str]]:
    """The second model, its result, and what its run said."""
    work = tmp_path_factory.mktemp("second-run")
    said: list[str] = []
    run = run_file(second_lake, champion, run="run-2")

    def report(stage: str, _: float, text: str, *__: object) -> None:
        said.append(f"{stage}: {text}")

    result = execute(run, recipe, work, champion=champion, version="2", report=report)
    assert result.state is RunState.RELEASED, result.reasons
    return Package.open(work / PACKAGE_FOLDER, verify=True), result, said


def layout_of(package: Package) -> StoredFile:
    return decode_stored_tensors(package.path("tensors.json").read_bytes()).files[DATA]


def test_the_second_model_is_a_few_bits_per_weight_away_from_the_first(
    champion: Package, second: tuple[Package, RunResult, list[str]]
) -> None:
    package, result, said = second
    update = json.loads(package.path("evaluation.json").read_text())["update"]
    assert (update["kind"], update["parent"]) == ("quantised", champion.digest)
    assert update["percent_of_full"] < 12
    assert update["comparison"]["difference"] > -0.005
    assert update["distances"]["probabilities"] <= 0.01
    assert result.evaluation["update"] == update
    assert any(line.startswith("update: the update is quantised in steps of ") for line in said)
    assert "## How it travels\n\nWeights: quantised in steps of" in package.path("card.md").read_text()
    layout, before, after = layout_of(package), weights_of(champion), weights_of(package)
    assert layout.base == champion.manifest.files[DATA].sha256
    stepped = {tensor.name: tensor.step for tensor in layout.tensors if tensor.step is not None}
    assert {"features.2.weight", "classifier.1.weight"} <= stepped.keys()
    assert "features.0.weight" not in stepped, "too small"
    for name, step in stepped.items():
        base, released = before[name].ravel(), after[name].ravel()
        codes = codes_of(base, released, step)
        assert apply_codes(base, step, codes).tobytes() == released.tobytes()
        assert len(np.unique(codes)) < 200


def test_a_device_that_has_the_first_makes_the_second_of_the_difference_alone(
    champion: Package, second: tuple[Package, RunResult, list[str]]
) -> None:
    package, *_ = second
    update = json.loads(package.path("evaluation.json").read_text())["update"]
    delta, made = io.BytesIO(), io.BytesIO()
    with champion.path(DATA).open("rb") as base, package.path(DATA).open("rb") as new:
        make_delta(base, new, delta, base_layout=layout_of(champion), layout=layout_of(package))
        assert delta.tell() == update["sent_bytes"] < 0.12 * package.manifest.files[DATA].size_bytes
        delta.seek(0)
        entry = package.manifest.files[DATA]
        before = champion.manifest.files[DATA].sha256
        apply_delta(delta, base, made, base_sha256=before, sha256=entry.sha256, size_bytes=entry.size_bytes)
        assert made.getvalue() == package.path(DATA).read_bytes()
    served = load(package)
    try:
        prove(served)
    finally:
        served.close()


def test_what_was_judged_and_made_golden_are_the_released_weights(
    second: tuple[Package, RunResult, list[str]],
) -> None:
    package, *_ = second
    parity = json.loads(package.path("parity.json").read_text())
    assert parity["exact"]["difference"] < 1e-3 < parity["forms"]["fp32"]["difference"]
    assert "| fp32, before its update was rounded |" in package.path("card.md").read_text()
    golden = package.golden()
    found = OnnxBackend(package).infer(dict(golden.inputs))
    for name, expected in golden.outputs.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-6)
    if "int8" in package.manifest.variants:
        said = decode_stored_tensors(package.path("tensors.json").read_bytes())
        assert "int8/model.onnx" in said.files


def test_training_again_gives_the_same_rounded_bytes(
    champion: Package, second: tuple[Package, RunResult, list[str]], second_lake: Path, recipes: Path
) -> None:
    package, *_ = second
    arguments = ["reproduce", str(package.folder), "--lake", str(second_lake), "--recipes", str(recipes)]
    environment = {"SHOAL_SERVER": "", "SHOAL_TOKEN": ""}
    done = CliRunner().invoke(trainer, [*arguments, "--champion", str(champion.folder)], env=environment)
    assert done.exit_code == 0, done.output
    for name in ("model.onnx ", DATA, "tensors.json"):
        assert f"equal   {name}" in done.output
    assert file_digest(package.path(DATA)) == package.manifest.files[DATA].sha256
