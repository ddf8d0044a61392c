from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import signal

from edge_agent import load
from edge_agent.contract.errors import SignatureMismatch
from edge_agent.runtime.package import Package
from trainer.recipe import Recipe

# The first test to ask for the package waits until it is trained, with others on the same processors.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def bearing(shipped: Callable[[str, int], Recipe]) -> Recipe:
    return shipped("bearing", 7)


@pytest.fixture(scope="module")
def data(bearing: Recipe) -> Any:
    return bearing.module("data")


@pytest.fixture(scope="module")
def package(bearing: Recipe, first_model: Callable[[Recipe], Package]) -> Package:
    return first_model(bearing)


def test_defect_frequencies_are_those_of_the_bearings_data_sheet(data: Any) -> None:
    # As published for the drive end bearing of the Case Western Reserve University rig (SKF 6205-2RS), per turn.
    assert data.BEARING.inner == pytest.approx(5.4152, rel=1e-3)
    assert data.BEARING.outer == pytest.approx(3.5848, rel=1e-3)
    assert data.BEARING.cage == pytest.approx(0.39828, rel=1e-2)
    assert data.BEARING.ball == pytest.approx(4.7135, rel=1e-3)


@pytest.mark.parametrize("condition", ["outer", "inner"])
def test_the_envelope_of_a_damaged_bearing_beats_at_its_defect_frequency(data: Any, condition: str) -> None:
    speed, samples = 30.0, 48_000
    machine = data.Machine(resonance_hz=3_000, damping=0.04, noise=0.5, shaft=0.5, severity=10.0)
    found = machine.vibration(condition, speed, np.random.default_rng(1), samples=samples)
    band = signal.sosfilt(signal.butter(4, [2_000, 4_000], "bandpass", fs=data.RATE_HZ, output="sos"), found)
    envelope = np.abs(signal.hilbert(band))
    # Averaged over segments: slip makes each line of a long spectrum a broad one.
    frequencies, power = signal.welch(envelope, data.RATE_HZ, nperseg=8_192)
    orders = frequencies / speed
    wide = (orders > 2) & (orders < 8)  # where the shaft's own turn, which modulates an inner ring's, is not
    assert orders[wide][power[wide].argmax()] == pytest.approx(getattr(data.BEARING, condition), rel=0.03)


def test_it_tells_bearings_apart_that_it_has_never_seen(data: Any, package: Package) -> None:
    right, rows = 0, 0
    with load(package.folder) as model:
        for at, condition in enumerate(data.CLASSES):
            _, inputs = data.windows(condition, bearings=8, each=5, seed=77)
            found = model.infer(inputs).outputs["probabilities"].argmax(axis=1)
            right, rows = right + int((found == at).sum()), rows + len(found)
    assert right / rows > 0.88


@pytest.mark.parametrize("samples", [3_072, 5_001, 24_576])
def test_windows_of_any_allowed_length_are_answered_and_rightly(data: Any, package: Package, samples: int) -> None:
    with load(package.folder) as model:
        _, inputs = data.windows("outer", bearings=10, each=2, seed=5, samples=samples)
        found = model.infer(inputs).outputs["probabilities"].argmax(axis=1)
    assert (found == data.CLASSES.index("outer")).mean() >= 0.8


def test_a_window_that_is_too_short_is_refused_by_name(data: Any, package: Package) -> None:
    _, inputs = data.windows("healthy", bearings=1, each=1, seed=1)
    with (
        load(package.folder) as model,
        pytest.raises(SignatureMismatch, match=r"'vibration': shape: axis 1 must be at least 3072 .* got 1000"),
    ):
        model.infer(vibration=inputs["vibration"][:, :1000], speed=inputs["speed"])


def test_the_anomaly_score_sees_a_fault_of_which_there_is_no_class(data: Any, package: Package) -> None:
    scores = {}
    with load(package.folder) as model:
        for condition in ("healthy", data.UNKNOWN):
            _, inputs = data.windows(condition, bearings=12, each=4, seed=31)
            scores[condition] = model.infer(inputs).outputs["anomaly"]
    # Pairs in which the dry bearing has the higher score: the area under the curve.
    assert (scores[data.UNKNOWN][:, None] > scores["healthy"][None, :]).mean() > 0.97
    assert np.median(scores["healthy"]) < 2 < np.median(scores[data.UNKNOWN])
