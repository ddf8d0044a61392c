"""What is made of a candidate's answers; the sessions are real, what they give is changed on its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.contract.errors import ModelUnavailable
from edge_agent.contract.manifest import Shadow
from edge_agent.contract.signature import Signature
from edge_agent.runtime import shadow, shadow_pair
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.shadow import Shadows
from edge_agent.runtime.shadow_pair import Pair
from edge_agent.runtime.slots import LoadedModel, Slots, load
from edge_agent.runtime.watchdog import Watchdog
from tests.edge_agent.runtime.test_shadow import Listener, assert_nothing_runs
from tests.fakes.packages import INPUT, LABELS, OUTPUT, make_package, reference_images

LONG_S = 60.0
Outputs = dict[str, NDArray[Any]]


class Changed:
    """A backend before another one that changes what it gives."""

    platform = "changed"

    def __init__(self, backend: InferenceBackend, change: Callable[[Outputs], Outputs]) -> None:
        self._backend, self._change = backend, change

    @property
    def signature(self) -> Signature:
        return self._backend.signature

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
        return self._change(self._backend.infer(inputs))

    def cancel(self) -> None:
        """As a driver that hangs."""

    def close(self) -> None:
        self._backend.close()


class Sides:
    def __init__(self, folder: Path) -> None:
        self.slots = Slots()
        self.champion = load(make_package(folder / "champion"))
        self.candidate = load(make_package(folder / "candidate", version="2"))
        self.slots.install(self.champion)
        self.watchdog = Watchdog(tick_s=0.05)

    def change(self, change: Callable[[Outputs], Outputs], side: LoadedModel | None = None) -> None:
        changed = side or self.candidate
        changed.backend = Changed(changed.backend, change)

    def labelled(self, *labels: str) -> None:
        manifest = self.candidate.manifest
        outputs = tuple(
            msgspec.structs.replace(spec, labels=None, shape=(None, len(labels))) for spec in manifest.signature.outputs
        )
        self.candidate.manifest = msgspec.structs.replace(
            manifest,
            task=msgspec.structs.replace(manifest.task, labels=labels),
            signature=msgspec.structs.replace(manifest.signature, outputs=outputs),
        )

    def pair(self, rows: int = 8) -> Pair:
        pair = Pair(self.slots, self.champion, self.candidate, Shadow(seconds=1.0, max_latency_ratio=2.0))
        pair.compare({INPUT: reference_images(rows)}, self.watchdog)
        return pair


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[Sides]:
    sides = Sides(tmp_path)
    yield sides
    sides.watchdog.close()
    sides.slots.close()
    sides.candidate.close()


def test_differences_are_those_of_the_probabilities(sides: Sides) -> None:
    def shifted(outputs: Outputs) -> Outputs:
        changed = outputs[OUTPUT].copy()
        changed[:, 0] -= 0.25
        changed[0, 1] += 0.5
        return {OUTPUT: changed}

    sides.change(shifted)
    report = sides.pair().report()
    assert report.rows == 8
    assert report.largest_difference == pytest.approx(0.5)
    assert report.mean_difference == pytest.approx((7 * 0.25 + 0.5) / 8)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda outputs: {OUTPUT: outputs[OUTPUT] * np.nan}, "a probability that is not finite"),
        (lambda outputs: {OUTPUT: outputs[OUTPUT][:3]}, "output 'probabilities': shape [3, 10] for 8 rows"),
        (lambda outputs: {OUTPUT: outputs[OUTPUT][0]}, "output 'probabilities': shape [10] for 8 rows"),
        (lambda outputs: {"other": outputs[OUTPUT]}, "output 'probabilities': none for 8 rows"),
        (lambda outputs: {OUTPUT: outputs["none"]}, "none"),
    ],
)
def test_what_is_no_answer_is_a_failure(sides: Sides, change: Callable[[Outputs], Outputs], why: str) -> None:
    sides.change(change)
    report = sides.pair().report()
    assert (report.failed, report.rows) == (1, 0)
    assert why in report.why


def test_rows_that_the_champion_does_not_answer_either_are_not_compared(sides: Sides) -> None:
    def first_is_none(outputs: Outputs) -> Outputs:
        changed = outputs[OUTPUT].copy()
        changed[0] = np.inf
        return {OUTPUT: changed}

    for side in (sides.champion, sides.candidate):
        sides.change(first_is_none, side)
    report = sides.pair().report()
    assert (report.rows, report.agreed, report.failed) == (7, 7, 0)


def test_what_the_champion_fails_on_now_says_nothing_of_the_candidate(sides: Sides) -> None:
    sides.change(lambda outputs: {OUTPUT: outputs["none"]}, sides.champion)
    report = sides.pair().report()
    assert (report.skipped, report.failed, report.rows) == (1, 0, 0)


def test_a_step_that_is_not_loaded_is_no_fault_of_the_candidate(sides: Sides) -> None:
    def unavailable(_outputs: Outputs) -> Outputs:
        raise ModelUnavailable("its step is not loaded")

    sides.change(unavailable)
    report = sides.pair().report()
    assert (report.skipped, report.failed) == (1, 0)


def test_a_class_that_is_new_agrees_with_none(sides: Sides) -> None:
    sides.labelled("new", *LABELS[1:])
    best = sides.champion.backend.infer({INPUT: reference_images(64)})[OUTPUT].argmax(axis=1)
    report = sides.pair(8).report()
    assert report.agreed == int((best[:8] != 0).sum())


def test_classes_in_another_order_agree_by_name(sides: Sides) -> None:
    sides.labelled(*reversed(LABELS))
    sides.change(lambda outputs: {OUTPUT: outputs[OUTPUT][:, ::-1]})
    report = sides.pair().report()
    assert (report.agreed, report.rows, report.largest_difference) == (8, 8, 0.0)


def test_fewer_classes_are_compared_where_both_have_them(sides: Sides) -> None:
    sides.labelled(*LABELS[:9])
    sides.change(lambda outputs: {OUTPUT: outputs[OUTPUT][:, :9]})
    best = sides.champion.backend.infer({INPUT: reference_images(8)})[OUTPUT].argmax(axis=1)
    report = sides.pair().report()
    assert report.agreed == int((best != 9).sum())
    assert report.largest_difference == 0.0


def test_both_begin_in_turn_and_quick_runs_are_made_twice(sides: Sides) -> None:
    order: list[str] = []

    def noting(name: str) -> Callable[[Outputs], Outputs]:
        def note(outputs: Outputs) -> Outputs:
            order.append(name)
            return outputs

        return note

    sides.change(noting("champion"), sides.champion)
    sides.change(noting("candidate"))
    pair = sides.pair()
    pair.compare({INPUT: reference_images(1)}, sides.watchdog)
    # Each comparison is XY or, where both are quick (on a busy machine they are not), XYXY; the next begins with Y.
    assert order.count("champion") == order.count("candidate") in (2, 3, 4)
    assert order[0] == order[-1]
    assert pair.report().timed == 2


def test_a_run_that_cannot_be_broken_off_is_told_and_left_alone(
    sides: Sides, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shadow, "_END_S", 0.3)
    monkeypatch.setattr(shadow_pair, "_GRACE_NS", 0)
    sides.candidate.manifest = msgspec.structs.replace(sides.candidate.manifest, max_run_s=0.05)
    free = threading.Event()

    def stuck(outputs: Outputs) -> Outputs:
        free.wait(LONG_S)
        return outputs

    sides.change(stuck)
    shadows = Shadows(Listener(), sides.slots, watchdog=lambda: Watchdog(tick_s=0.05))
    shadows.begin(sides.champion, sides.candidate, Shadow(seconds=1.0))
    inputs = {INPUT: reference_images(1)}
    outputs = sides.champion.backend.infer(inputs)
    shadows.observe(sides.champion, "one", inputs, outputs, latency_us=1.0, group="")
    until = time.monotonic() + LONG_S
    while (report := shadows.report("digits")) is None or not report.failed:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert "cannot be broken off" in report.why
    shadows.end("digits")
    other = load(make_package(tmp_path / "third", version="3"))
    shadows.begin(sides.champion, other, Shadow(seconds=1.0))
    while (report := shadows.report("digits")) is None or not report.rows:
        assert time.monotonic() < until
        shadows.observe(sides.champion, "two", inputs, outputs, latency_us=1.0, group="")
        time.sleep(0.01)
    assert report.failed == 0
    free.set()
    shadows.close()
    while any(thread.name == "shadow" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert_nothing_runs()
    other.close()
