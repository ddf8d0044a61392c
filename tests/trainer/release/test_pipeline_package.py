"""Pipeline packages made from the packages of their steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_agent.contract.errors import ManifestError, ModelLoadFailed
from edge_agent.runtime.package import Package
from edge_agent.runtime.pipeline import PipelineBackend
from edge_agent.runtime.selftest import prove
from edge_agent.runtime.slots import Slots, load
from tests.fakes.packages import LABELS, OUTPUT, make_package
from tests.fakes.pipeline_package import RAW, make_scaler_package
from trainer.cli import trainer
from trainer.errors import RecipeError
from trainer.release.pipeline import read_pipeline_file, write_pipeline

FILE = """
name = "reader"
version = "3"
max_run_s = 5

[batching]
max_rows = 8
max_delay_us = 2000

[[steps]]
package = "scaler"

[[steps]]
package = "digits"
pinned = true
inputs = { image = "scaled" }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The file, beside the packages that it names."""
    make_scaler_package(tmp_path / "scaler")
    make_package(tmp_path / "digits", version="7")
    path = tmp_path / "reader.toml"
    path.write_text(FILE)
    return path


def test_the_command_makes_a_package_that_a_device_loads_and_finds_right(recipe: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(trainer, ["pipeline", str(recipe), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    package = Package.open(tmp_path / "out", verify=True)
    assert package.digest in done.output
    manifest = package.manifest
    assert [spec.name for spec in manifest.signature.inputs] == [RAW]
    assert [spec.name for spec in manifest.signature.outputs] == [OUTPUT]
    assert manifest.task.labels == LABELS
    assert [(step.model, step.version) for step in manifest.pipeline] == [("scaler", None), ("digits", "7")]
    assert manifest.batching is not None
    slots = Slots()
    try:
        for name in ("scaler", "digits"):
            slots.install(load(Package.open(tmp_path / name, verify=True)))
        loaded = load(package, slots=slots)
        assert isinstance(loaded.backend, PipelineBackend)
        assert loaded.backend.is_as_made
        prove(loaded)
    finally:
        slots.close()


def test_its_profile_is_about_its_own_tensors(recipe: Path, tmp_path: Path) -> None:
    package = write_pipeline(tmp_path / "out", read_pipeline_file(recipe), tmp_path)
    profile = package.reference()
    assert {(feature.side, feature.tensor) for feature in profile.features} == {("input", RAW), ("output", OUTPUT)}
    digits = Package.open(tmp_path / "digits", verify=False).reference()
    assert profile.counts["confidence"] == digits.counts["confidence"]
    assert profile.margin_threshold == digits.margin_threshold
    assert np.isfinite(package.golden().outputs[OUTPUT]).all()


def test_other_outputs_may_be_chosen(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(FILE.replace("max_run_s", 'outputs = ["scaled", "probabilities"]\nmax_run_s'))
    package = write_pipeline(tmp_path / "out", read_pipeline_file(recipe), tmp_path)
    assert set(package.golden().outputs) == {"scaled", OUTPUT}
    recipe.write_text(FILE.replace("max_run_s", 'outputs = ["logits"]\nmax_run_s'))
    with pytest.raises(ManifestError, match="outputs: no step gives 'logits'"):
        write_pipeline(tmp_path / "out2", read_pipeline_file(recipe), tmp_path)


def test_steps_that_do_not_fit_are_refused_before_there_is_a_package(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(FILE.replace("image =", "picture ="))
    with pytest.raises(ModelLoadFailed, match="step 2 'digits' version '7': the model has no input 'picture'"):
        write_pipeline(tmp_path / "out", read_pipeline_file(recipe), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name =", "reader.toml"),
        (FILE.replace("pinned", "pined"), "pined"),
        ('name = "a"\nversion = "1"\nsteps = []', "step"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(recipe: Path, text: str, message: str) -> None:
    recipe.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_pipeline_file(recipe)
