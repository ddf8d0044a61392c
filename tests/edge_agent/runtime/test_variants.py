from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.contract.errors import ModelUnavailable
from edge_agent.embedded import load as load_embedded
from edge_agent.runtime.loaded import LoadedModel, load
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import prove
from edge_agent.runtime.variants import Variants, has_int8
from tests.edge_agent.runtime.conftest import NewDevice
from tests.fakes.packages import INPUT, OUTPUT, answer, make_package, model_weights, reference_images


class Loader:
    """Loads a package's forms for real, and says of each how long a row took."""

    def __init__(self, package: Package, **run_us: float) -> None:
        self._package, self._run_us = package, run_us
        self.loaded: list[LoadedModel] = []

    def __call__(self, variant: str) -> LoadedModel:
        found = load(self._package, variant=variant)
        found.run_us = self._run_us[variant]
        self.loaded.append(found)
        return found

    @property
    def variants(self) -> list[str]:
        return [each.variant for each in self.loaded]


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return make_package(tmp_path / "package", seed=0, int8_seed=1)


def is_open(loaded: LoadedModel) -> bool:
    try:
        loaded.backend.infer({INPUT: reference_images(1)})
    except ModelUnavailable:
        return False
    return True


def test_the_int8_form_serves_where_it_is_faster_here_and_the_other_is_closed(package: Package) -> None:
    loader = Loader(package, fp32=100.0, int8=60.0)
    best = Variants().load(package, loader)
    assert (best.variant, best.runtime.precision) == ("int8", "int8")
    assert best.runtime.reason == "0.06 ms a row as int8, 0.1 ms as fp32"
    assert [is_open(each) for each in loader.loaded] == [False, True]
    images = reference_images(4)
    assert np.allclose(best.backend.infer({INPUT: images})[OUTPUT], answer(*model_weights(1), images), atol=1e-5)
    prove(best)


def test_full_precision_serves_where_int8_is_no_faster_here(package: Package) -> None:
    loader = Loader(package, fp32=100.0, int8=98.0)
    best = Variants().load(package, loader)
    assert best.variant == "fp32"
    assert best.runtime.reason.startswith("int8 is not faster here: ")
    assert [is_open(each) for each in loader.loaded] == [True, False]


def test_an_int8_form_that_answers_wrongly_here_is_not_used_and_the_reason_says_so(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package", int8_seed=1, int8_is_wrong=True)
    loader = Loader(package, fp32=100.0, int8=1.0)
    best = Variants().load(package, loader)
    assert best.variant == "fp32"
    assert best.runtime.reason.startswith("int8 is not used: output 'probabilities', row 3")
    assert [is_open(each) for each in loader.loaded] == [True, False]


def test_what_was_chosen_once_is_loaded_alone_the_next_time(package: Package) -> None:
    variants, loader = Variants(), Loader(package, fp32=100.0, int8=60.0)
    variants.load(package, loader)
    again = variants.load(package, loader)
    assert loader.variants == ["fp32", "int8", "int8"]
    assert again.runtime.reason == "0.06 ms a row as int8, 0.1 ms as fp32"


@pytest.mark.parametrize(("precision", "expected"), [("fp32", ["fp32"]), ("int8", ["fp32", "int8"])])
def test_a_setting_takes_one_form_whatever_is_faster(package: Package, precision: Any, expected: list[str]) -> None:
    loader = Loader(package, fp32=1.0, int8=60.0)
    assert Variants(precision).load(package, loader).variant == precision
    assert loader.variants == expected


def test_a_package_whose_int8_form_has_no_golden_samples_of_its_own_serves_in_full_precision(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    assert not has_int8(package)
    assert Variants("int8").load(package, Loader(package, fp32=1.0)).variant == "fp32"


def test_an_agents_models_and_embedded_ones_run_in_the_form_that_is_asked_for(
    new_device: NewDevice, tmp_path: Path
) -> None:
    device = new_device(precision="int8")
    package = device.add("1", int8_seed=1)
    device.repository.start()
    serving = device.slots.get("digits")
    assert (serving.variant, serving.runtime.precision) == ("int8", "int8")
    assert "runtime.precision asks for int8" in serving.runtime.reason
    with load_embedded(package.folder, variant="int8") as model:
        images = reference_images(2)
        assert np.allclose(model.infer({INPUT: images}).outputs[OUTPUT], answer(*model_weights(1), images), atol=1e-5)
