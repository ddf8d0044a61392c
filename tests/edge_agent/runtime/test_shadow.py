"""Candidates beside what serves: real sessions, a real serving core, and nobody who waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.contract.manifest import Shadow
from edge_agent.contract.signature import Signature
from edge_agent.runtime.package import Package
from edge_agent.runtime.shadow import Shadows
from edge_agent.runtime.shadow_report import ShadowReport
from edge_agent.runtime.slots import LoadedModel, Slots, load
from edge_agent.runtime.watchdog import Watchdog
from edge_agent.serving.inference import Inference
from edge_agent.serving.request import InferenceRequest
from edge_agent.update.judgement import Bad, Good, Verdict, judge_shadow
from tests.edge_agent.serving.inference_parts import Ear
from tests.fakes.hanging_package import make_hanging_package
from tests.fakes.packages import INPUT, make_package, reference_images
from tests.fakes.pipeline_package import RAW, make_pipeline_package, make_scaler_package

RULE = Shadow(seconds=60.0, rows=64, min_agreement=0.95, max_latency_ratio=10.0)
LONG_S = 60.0


class Listener(Ear):
    """An observer that takes requests together as well, as the monitor does."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[tuple[str, str | int]] = []

    def observe(
        self,
        loaded: LoadedModel,
        request_id: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        *,
        latency_us: float,
        group: str,
    ) -> bool:
        given = {INPUT: next(iter(inputs.values()))}
        return super().observe(loaded, request_id, given, outputs, latency_us=latency_us, group=group)

    def observe_together(
        self,
        loaded: LoadedModel,  # noqa: ARG002
        request_ids: Sequence[str],
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        *,
        buckets: Mapping[int, int],  # noqa: ARG002
    ) -> Collection[int]:
        self.observed += [(name, inputs[INPUT], next(iter(outputs.values())), "") for name in request_ids]
        return ()

    def feedback(
        self,
        loaded: LoadedModel,  # noqa: ARG002
        request_id: str,
        label: str | int,
        source: str,  # noqa: ARG002
        *,
        row: int | None = None,  # noqa: ARG002
    ) -> bool:
        self.labels.append((request_id, label))
        return False


class Board:
    """A device that serves version 1 of "digits"."""

    def __init__(self, folder: Path, champion: Package | None = None) -> None:
        self.folder = folder
        self.slots, self.ear = Slots(), Listener()
        self.champion = load(champion or make_package(folder / "champion"))
        self.slots.install(self.champion)
        self.shadows = Shadows(self.ear, self.slots, share=1.0, watchdog=lambda: Watchdog(tick_s=0.05))
        self.inference = Inference(self.shadows, threads=1)
        self.candidates: list[LoadedModel] = []

    def candidate(self, package: Package | None = None, **settings: Any) -> LoadedModel:
        made = package or make_package(self.folder / "candidate", version="2", **settings)
        self.candidates.append(load(made))
        return self.candidates[-1]

    def ask(self, images: NDArray[np.float32], name: str = "") -> None:
        with self.slots.lease(self.champion.name) as loaded:
            self.inference.answer(loaded, InferenceRequest(name, {INPUT: images}))

    def report(self) -> ShadowReport:
        found = self.shadows.report(self.champion.name)
        assert found is not None
        return found

    def ask_until(self, enough: Callable[[ShadowReport], object], images: NDArray[np.float32]) -> ShadowReport:
        until = time.monotonic() + LONG_S
        while not enough(self.report()):
            assert time.monotonic() < until, self.report()
            for row in range(len(images)):
                self.ask(images[row : row + 1])
            time.sleep(0.005)
        return self.report()

    def close(self) -> None:
        self.shadows.close()
        self.inference.close()
        self.slots.close()
        for loaded in self.candidates:
            loaded.close()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path)
    yield board
    board.close()
    assert_nothing_runs()


def assert_nothing_runs() -> None:
    names = [thread.name for thread in threading.enumerate()]
    assert "shadow" not in names, names


def verdict(report: ShadowReport, rule: Shadow = RULE) -> Verdict:
    return judge_shadow(rule, report, elapsed_s=1.0)


def reason(report: ShadowReport, rule: Shadow = RULE) -> str:
    found = verdict(report, rule)
    assert isinstance(found, Bad), found
    return found.reason


def test_an_equal_candidate_passes(board: Board) -> None:
    board.shadows.begin(board.champion, board.candidate(), RULE)
    report = board.ask_until(lambda found: found.rows >= 64, reference_images(16))
    assert (report.champion, report.candidate) == ("1", "2")
    assert report.agreed == report.rows
    assert report.largest_difference == 0.0
    assert report.champion_us > 0.0
    assert report.champion_bytes == board.champion.memory_bytes
    assert isinstance(verdict(report), Good)
    assert board.champion.requests == len(board.ear.observed), "what the shadow runs counts for nobody"
    assert board.candidates[0].requests == 0


def test_a_candidate_with_other_answers_is_bad_and_the_reason_has_the_agreement(board: Board) -> None:
    board.shadows.begin(board.champion, board.candidate(seed=1), RULE)
    report = board.ask_until(lambda found: found.rows >= 64, reference_images(16))
    assert 0.0 < report.mean_difference < report.largest_difference <= 1.0
    assert f"on {report.agreed} of {report.rows} rows ({report.agreement:.1%})" in reason(report)


def test_a_slow_candidate_is_bad(board: Board) -> None:
    slow = make_hanging_package(board.folder / "slow", name="digits", version="2", turns=40_000.0)
    images = reference_images(16)
    images[:, 0] = 0.5  # some 20,000 turns of a loop
    board.shadows.begin(board.champion, board.candidate(slow), RULE)
    report = board.ask_until(lambda found: isinstance(verdict(found, RULE), Bad), images)
    assert report.agreed == report.rows
    assert report.timed >= 10, "less would be chance"
    assert "more than 10 times as long" in reason(report)


def test_a_candidate_that_hangs_is_broken_off_and_bad(board: Board) -> None:
    hangs = make_hanging_package(board.folder / "hangs", name="digits", version="2", turns=1e9, max_run_s=0.2)
    images = reference_images(4)
    images[:, 0] = 0.5
    board.shadows.begin(board.champion, board.candidate(hangs), RULE)
    report = board.ask_until(lambda found: found.failed, images)
    assert reason(report).endswith("it hung: broken off, its limit is 0.2 s")
    board.ask(images)  # what serves goes on


def test_ending_a_shadow_breaks_off_what_hangs_and_blames_nobody(board: Board) -> None:
    hangs = make_hanging_package(board.folder / "hangs", name="digits", version="2", turns=1e9, max_run_s=600.0)
    images = reference_images(1)
    images[:, 0] = 0.5
    candidate = board.candidate(hangs)
    board.shadows.begin(board.champion, candidate, RULE)
    board.ask(images)
    time.sleep(0.2)  # most likely it hangs by now; the test is as true where it does not
    began = time.monotonic()
    board.shadows.end("digits")
    assert time.monotonic() - began < LONG_S
    assert board.shadows.report("digits") is None
    assert_nothing_runs()


def test_a_candidate_that_crashes_is_bad(board: Board) -> None:
    board.shadows.begin(board.champion, board.candidate(fails_above=0.95), RULE)
    bright = reference_images(4)
    bright[:, 5] = 0.99
    report = board.ask_until(lambda found: found.failed, bright)
    assert "that version 1 answered; the first:" in reason(report)
    assert report.rows == 0


def test_a_candidate_whose_signature_refuses_what_applications_send_is_bad(tmp_path: Path) -> None:
    champion = make_hanging_package(tmp_path / "lenient", name="digits")
    board = Board(tmp_path, champion)
    board.shadows.begin(board.champion, board.candidate(), RULE)  # which takes pixels up to 1
    bright = reference_images(4)
    bright[:, 5] = 7.0
    report = board.ask_until(lambda found: found.refused, bright)
    assert "its signature refuses" in reason(report)
    assert "image" in report.why
    board.close()


def test_classes_are_compared_by_name(board: Board) -> None:
    candidate = board.candidate()
    task = candidate.manifest.task
    task = msgspec.structs.replace(task, labels=tuple(reversed(task.labels)))
    candidate.manifest = msgspec.structs.replace(candidate.manifest, task=task, signature=_without_labels(candidate))
    board.shadows.begin(board.champion, candidate, RULE)
    report = board.ask_until(lambda found: found.rows >= 32, reference_images(16))
    assert report.agreed == 0, "the same numbers under other names"


def _without_labels(loaded: LoadedModel) -> Signature:
    outputs = tuple(msgspec.structs.replace(spec, labels=None) for spec in loaded.signature.outputs)
    return msgspec.structs.replace(loaded.signature, outputs=outputs)


def test_a_flood_is_dropped_and_counted_and_keeps_its_bounds(board: Board) -> None:
    board.shadows.begin(board.champion, board.candidate(), RULE)
    board.ask_until(lambda found: found.dropped > 100, np.repeat(reference_images(16), 20, axis=0))
    pair = board.shadows._pairs["digits"]
    assert len(pair.queue) <= 64
    assert pair.queue.bytes <= 8 << 20


def test_no_request_waits_for_the_shadow(board: Board) -> None:
    """Whatever lock the shadow has, whatever it does: an answered request is only ever put down or dropped."""
    board.shadows.begin(board.champion, board.candidate(), RULE)
    pair = board.shadows._pairs["digits"]
    with board.shadows._changed, pair._lock, pair.queue._lock:
        done = threading.Thread(target=board.ask, args=(reference_images(1),))
        done.start()
        done.join(LONG_S)
        assert not done.is_alive()
    assert pair.queue.dropped >= 1


def test_without_a_shadow_nothing_stands_between_serving_and_the_observer(board: Board) -> None:
    assert board.shadows.observe == board.ear.observe
    assert board.shadows.observe_together == board.ear.observe_together
    board.shadows.begin(board.champion, board.candidate(), RULE)
    assert board.shadows.observe != board.ear.observe
    board.shadows.end("digits")
    assert board.shadows.observe == board.ear.observe
    assert board.shadows.observe_together == board.ear.observe_together
    assert_nothing_runs()


def test_the_observer_behind_is_told_of_everything(board: Board) -> None:
    board.shadows.begin(board.champion, board.candidate(), RULE)
    board.ask(reference_images(3), "one")
    assert [name for name, *_ in board.ear.observed] == ["one"]
    board.shadows.feedback(board.champion, "one", 3, "person")
    assert board.ear.labels == [("one", 3)]
    with pytest.raises(Exception, match="image"):
        board.ask(np.zeros((1, 3), np.float32))
    assert len(board.ear.refusals) == 1


def test_rows_of_requests_that_ran_together_are_shadowed_too(board: Board) -> None:
    board.shadows.begin(board.champion, board.candidate(), RULE)
    until = time.monotonic() + LONG_S
    while board.report().rows < 16 and time.monotonic() < until:
        like = InferenceRequest("", {})
        run = board.inference.together.answer(
            board.champion, like, {INPUT: reference_images(4)}, [time.perf_counter_ns()] * 4
        )
        assert run is not None
        time.sleep(0.005)
    assert board.report().agreed == board.report().rows >= 16
    assert len(board.ear.observed) >= 16


def test_a_champion_that_was_loaded_again_is_compared_on(board: Board, tmp_path: Path) -> None:
    candidate = board.candidate()
    board.shadows.begin(board.champion, candidate, RULE)
    before = board.ask_until(lambda found: found.rows >= 8, reference_images(8)).rows
    again = load(Package.open(tmp_path / "champion", verify=True))
    board.slots.install(again)
    board.shadows.begin(again, candidate, RULE)
    assert board.report().rows >= before, "it goes on"
    board.ask_until(lambda found: found.rows >= before + 8, reference_images(8))


def test_rows_of_a_champion_that_serves_no_more_are_skipped(board: Board) -> None:
    board.shadows.begin(board.champion, board.candidate(), RULE)
    pair = board.shadows._pairs["digits"]
    board.slots.remove("digits")
    pair.queue.offer({INPUT: reference_images(1)})
    until = time.monotonic() + LONG_S
    while not board.report().skipped and time.monotonic() < until:
        time.sleep(0.01)
    report = board.report()
    assert (report.skipped, report.failed, report.rows) == (1, 0, 0)


def test_another_candidate_takes_the_place_of_the_first(board: Board) -> None:
    board.shadows.begin(board.champion, board.candidate(), RULE)
    other = board.candidate(make_package(board.folder / "third", version="3"))
    board.shadows.begin(board.champion, other, RULE)
    assert board.report().candidate == "3"


def test_the_steps_of_a_shadowed_pipeline_count_what_live_requests_do(tmp_path: Path) -> None:
    board = Board(tmp_path)
    scaler = load(make_scaler_package(tmp_path / "scaler"))
    board.slots.install(scaler)
    champion, candidate = (
        load(make_pipeline_package(tmp_path / f"reader-{version}", version=version), slots=board.slots)
        for version in ("1", "2")
    )
    board.slots.install(champion)
    board.shadows.begin(champion, candidate, RULE)
    before, asked, until = scaler.requests, 0, time.monotonic() + LONG_S
    while (found := board.shadows.report("reader")) is not None and found.rows < 8:
        assert time.monotonic() < until, found
        with board.slots.lease("reader") as loaded:
            board.inference.answer(loaded, InferenceRequest("", {RAW: reference_images(1) * np.float32(255)}))
        asked += 1
        time.sleep(0.005)
    board.shadows.end("reader")
    assert scaler.requests == before + asked
    candidate.close()
    board.close()
