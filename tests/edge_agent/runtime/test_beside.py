"""Models loaded beside those that serve, and swapped together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract.errors import ModelLoadFailed, UnknownModel
from edge_agent.contract.manifest import PipelineStep
from edge_agent.runtime.beside import Beside, swap_together
from edge_agent.runtime.slots import LoadedModel, Slots, load
from tests.fakes.packages import INPUT, OUTPUT, answer, make_package, model_weights, reference_images
from tests.fakes.pipeline_package import RAW, SCALED, make_pipeline_package, make_scaler_package

RAW_IMAGES = reference_images(3) * np.float32(255)


def generation(folder: Path, version: str, beside: Beside | Slots) -> list[LoadedModel]:
    """A scaler, a digits and a reader that is pinned to them."""
    scaler = load(make_scaler_package(folder / f"scaler{version}", version=version))
    digits = load(make_package(folder / f"digits{version}", version=version, seed=int(version)))
    for loaded in (scaler, digits):
        beside.add(loaded) if isinstance(beside, Beside) else beside.install(loaded)
    steps = (
        PipelineStep(model="scaler", version=version),
        PipelineStep(model="digits", version=version, inputs={INPUT: SCALED}),
    )
    reader = make_pipeline_package(folder / f"reader{version}", version=version, steps=steps, seed=int(version))
    return [scaler, digits, load(reader, slots=beside)]


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[Slots]:
    """Where generation 1 serves."""
    slots = Slots()
    slots.install(generation(tmp_path, "1", slots)[-1])
    yield slots
    slots.close()


def expected(version: str) -> np.ndarray:
    return answer(*model_weights(int(version)), RAW_IMAGES / np.float32(255))


def test_a_pipeline_finds_its_steps_among_the_candidates_before_they_serve(tmp_path: Path, slots: Slots) -> None:
    beside = Beside(slots)
    *steps, reader = generation(tmp_path, "2", beside)
    np.testing.assert_allclose(reader.backend.infer({RAW: RAW_IMAGES})[OUTPUT], expected("2"), rtol=1e-4)
    assert beside.get("digits") is steps[1]
    assert beside.get("digits", "1").version == "1", "what serves is there too"
    beside.forget()
    with pytest.raises(UnknownModel):
        beside.get("digits", "2")
    for loaded in steps:
        loaded.close()


def test_a_request_that_began_on_a_pipeline_that_leaves_ends_on_its_steps(tmp_path: Path, slots: Slots) -> None:
    beside = Beside(slots)
    new = generation(tmp_path, "2", beside)
    with slots.lease("reader") as old:
        held = [slots.get(model) for model in ("scaler", "digits")]
        swap_together(slots, *new)
        beside.forget()
        assert [loaded.version for loaded in slots.models()] == ["2", "2", "2"]
        assert all(loaded.leases for loaded in held), "not closed under it"
        np.testing.assert_allclose(old.backend.infer({RAW: RAW_IMAGES})[OUTPUT], expected("1"), rtol=1e-4)
    assert not any(loaded.leases for loaded in held), "let go with the last request"
    with slots.lease("reader") as reader:
        np.testing.assert_allclose(reader.backend.infer({RAW: RAW_IMAGES})[OUTPUT], expected("2"), rtol=1e-4)


def test_nobody_who_looks_ever_finds_some_swapped_and_others_not(tmp_path: Path, slots: Slots) -> None:
    mixed: list[list[str]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            found = sorted({loaded.version for loaded in slots.models()})
            if len(found) != 1:
                mixed.append(found)

    thread = threading.Thread(target=look)
    thread.start()
    for version in "234":
        beside = Beside(slots)
        swap_together(slots, *generation(tmp_path, version, beside))
        beside.forget()
    stop.set()
    thread.join()
    assert mixed == []


def test_where_one_was_closed_before_none_is_swapped(tmp_path: Path, slots: Slots) -> None:
    beside = Beside(slots)
    new = generation(tmp_path, "2", beside)
    new[1].retired = True
    with pytest.raises(ModelLoadFailed, match="load its package again"):
        slots.install_together(new)
    assert [loaded.version for loaded in slots.models()] == ["1", "1", "1"]
    for loaded in new:
        loaded.close()


def test_a_pipeline_loaded_once_more_keeps_its_place_and_its_counts(tmp_path: Path, slots: Slots) -> None:
    reader = slots.get("reader")
    reader.statistics.answered(1, 1, 1, 1)
    again = load(reader.package, slots=slots)
    swap_together(slots, again=[again])
    assert slots.get("reader") is again
    assert again.requests == 1
    assert slots.default_version("reader") == "1"
