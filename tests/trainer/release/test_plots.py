from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from trainer.gates.comparison import Comparison
from trainer.gates.statistics import calibration_error
from trainer.release import plots


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    sure = 1 - 0.6 * rng.random(300) ** 2
    return sure, rng.random(300) < sure


def test_equal_numbers_give_equal_bytes_that_are_svg(answers: tuple[np.ndarray, np.ndarray]) -> None:
    targets = np.arange(90) % 3
    guesses = np.where(np.arange(90) % 7, targets, (targets + 1) % 3)
    part = Comparison(90, 0.9, 0.85, sure=(0.83, 0.95))
    draws: list[Callable[[], bytes]] = [
        lambda: plots.reliability(*answers),
        lambda: plots.confusion(targets, guesses, ["a", "b", "worn out"]),
        lambda: plots.slices({"today": part, "class a": part}),
    ]
    for draw in draws:
        drawn = draw()
        assert drawn == draw()
        assert ET.fromstring(drawn).tag.endswith("svg")  # noqa: S314 - our own
        assert len(drawn) < 20_000  # devices download it


def test_numbers_that_are_read_keep_all_their_digits() -> None:
    drawn = plots.slices({"today": Comparison(90, 0.9, sure=(0.72, 0.95)), "device 1.75": Comparison(20, 0.8)}).decode()
    assert "device 1.75 (20)" in drawn
    assert ">0.75<" in drawn
    sure = np.linspace(0.5, 1.0, 200)
    assert "error 0.250" in plots.reliability(sure, np.ones(200, dtype=bool)).decode()


def test_what_is_never_confused_is_not_drawn() -> None:
    targets = np.arange(40) % 40
    drawn = plots.confusion(targets, targets, [f"c{at}" for at in range(40)])
    assert drawn.count(b"<path") < 100


def test_of_many_slices_the_largest_are_shown_and_the_plot_says_so() -> None:
    parts = {f"device d{at}": Comparison(at + 1, 0.9, sure=(0.8, 1.0)) for at in range(60)}
    drawn = plots.slices(parts).decode()
    assert "20 smaller ones left out" in drawn
    assert "device d59 (60)" in drawn
    assert "device d3 " not in drawn


def test_a_boaster_has_a_calibration_error_and_an_honest_model_has_none(
    answers: tuple[np.ndarray, np.ndarray],
) -> None:
    sure, right = answers
    assert calibration_error(sure, right) < 0.1
    assert calibration_error(np.full(100, 0.95), np.arange(100) < 60) == pytest.approx(0.35)
