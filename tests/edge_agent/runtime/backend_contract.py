"""What every runtime must do, whichever it is: one suite, run for each of them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import EngineBuildFailed, ModelUnavailable
from edge_agent.contract.manifest import Batching
from edge_agent.runtime.backend import InferenceBackend, RunCancelled
from edge_agent.runtime.batchable import check_batchable
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import self_test
from tests.fakes.graph_packages import LONGEST, make_mixed_package, mixed_inputs, mixed_outputs
from tests.fakes.hanging_package import FOREVER, make_hanging_package
from tests.fakes.packages import CLASSES, INPUT, OUTPUT, PIXELS, answer, make_package, model_weights, reference_images
from tests.fakes.text_package import TEXT, make_text_package

_WAIT_S = 60.0


class OpenBackend(Protocol):
    """Opens a package on the runtime in question; it is closed when the test ends."""

    def __call__(self, package: Package) -> InferenceBackend: ...


class BackendContract:
    """To be inherited by a class of tests whose module has a fixture ``open_backend``.

    Attributes:
        atol: How far an answer may be from numpy's.
        hangs_for: Turns of a loop that stand for a run that hangs.
    """

    atol = 1e-5
    hangs_for = FOREVER

    def let_go_of_hung_runs(self) -> None:
        """Called once a hung run was broken off: end what the runtime itself cannot end."""

    def test_it_answers_what_numpy_computes_whatever_the_number_of_rows(
        self, open_backend: OpenBackend, tmp_path: Path
    ) -> None:
        backend = open_backend(make_package(tmp_path / "p", seed=3, external_data=True, batching=Batching(max_rows=8)))
        for rows in (1, 8, 3, 1, 2, 3, 3, 3):
            images = reference_images(rows, seed=rows)
            outputs = backend.infer({INPUT: images})
            assert list(outputs) == [OUTPUT]
            assert outputs[OUTPUT].dtype == np.float32
            np.testing.assert_allclose(outputs[OUTPUT], answer(*model_weights(3), images), atol=self.atol)

    def test_more_rows_than_the_largest_batch_are_answered_too(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        backend = open_backend(make_package(tmp_path / "p", batching=Batching(max_rows=4)))
        images = reference_images(33)
        outputs = backend.infer({INPUT: images})
        np.testing.assert_allclose(outputs[OUTPUT], answer(*model_weights(), images), atol=self.atol)

    def test_no_rows_are_no_answers(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        backend = open_backend(make_package(tmp_path / "p"))
        outputs = backend.infer({INPUT: np.zeros((0, PIXELS), np.float32)})
        assert outputs[OUTPUT].shape == (0, CLASSES)
        assert outputs[OUTPUT].dtype == np.float32

    def test_datatypes_and_open_axes_are_those_of_the_signature(
        self, open_backend: OpenBackend, tmp_path: Path
    ) -> None:
        package = make_mixed_package(tmp_path / "p", batching=Batching(max_rows=4))
        backend = open_backend(package)
        for rows, length in ((1, 1), (4, LONGEST), (3, 7), (9, 2), (1, 1)):
            inputs = mixed_inputs(rows, length=length, seed=length)
            outputs, expected = backend.infer(inputs), mixed_outputs(inputs)
            assert list(outputs) == [spec.name for spec in package.manifest.signature.outputs]
            for spec in package.manifest.signature.outputs:
                assert outputs[spec.name].dtype == spec.datatype.numpy
                np.testing.assert_allclose(outputs[spec.name], expected[spec.name], atol=self.atol)

    def test_golden_samples_come_out_as_when_the_package_was_made(
        self, open_backend: OpenBackend, tmp_path: Path
    ) -> None:
        for package in (make_package(tmp_path / "p", batching=Batching()), make_mixed_package(tmp_path / "q")):
            backend = open_backend(package)
            assert backend.signature == package.manifest.signature
            assert backend.platform
            self_test(backend, package.golden())
            check_batchable(backend, InputCheck(backend.signature), package.manifest, package.golden())

    def test_an_answer_belongs_to_the_caller(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        backend = open_backend(make_package(tmp_path / "p"))
        first = backend.infer({INPUT: reference_images(2, seed=1)})[OUTPUT]
        kept = first.copy()
        second = backend.infer({INPUT: reference_images(2, seed=2)})[OUTPUT]
        np.testing.assert_array_equal(first, kept)
        first[:] = 0.0
        assert not np.shares_memory(first, second)
        assert second.any()

    def test_inputs_may_lie_in_memory_as_they_like_and_are_left_alone(
        self, open_backend: OpenBackend, tmp_path: Path
    ) -> None:
        backend = open_backend(make_package(tmp_path / "p"))
        images = reference_images(6)
        images.flags.writeable = False
        expected = answer(*model_weights(), images)
        for given, wanted in (
            (images, expected),
            (images[::2], expected[::2]),
            (np.asfortranarray(images), expected),
            (images[::-1], expected[::-1]),
        ):
            kept = given.copy()
            np.testing.assert_allclose(backend.infer({INPUT: given})[OUTPUT], wanted, atol=self.atol)
            np.testing.assert_array_equal(given, kept)

    def test_several_threads_at_once_get_each_their_own_answer(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        backend = open_backend(make_package(tmp_path / "p", batching=Batching(max_rows=4)))
        wrong: list[str] = []

        def ask(rows: int) -> None:
            images = reference_images(rows, seed=rows)
            expected = answer(*model_weights(), images)
            for turn in range(40):
                outputs = backend.infer({INPUT: images})[OUTPUT]
                if outputs.shape != expected.shape or not np.allclose(outputs, expected, atol=self.atol):
                    wrong.append(f"{rows} rows, turn {turn}")

        run_all([functools.partial(ask, rows) for rows in (1, 2, 3, 4, 5, 9)])
        assert not wrong

    def test_a_wrong_input_fails_and_the_next_request_is_answered(
        self, open_backend: OpenBackend, tmp_path: Path
    ) -> None:
        backend = open_backend(make_mixed_package(tmp_path / "p"))
        inputs = mixed_inputs(2)
        with pytest.raises(Exception, match="input"):
            backend.infer({name: array for name, array in inputs.items() if name != "count"})
        with pytest.raises(Exception, match=r"input|feed"):
            backend.infer({("other" if name == "count" else name): array for name, array in inputs.items()})
        np.testing.assert_array_equal(backend.infer(inputs)["next"], mixed_outputs(inputs)["next"])

    def test_a_run_that_hangs_is_broken_off_and_a_later_one_is_not_concerned(
        self, open_backend: OpenBackend, tmp_path: Path
    ) -> None:
        backend = open_backend(make_hanging_package(tmp_path / "p"))
        images = reference_images(2)
        hanging = images.copy()
        hanging[0, 0] = self.hangs_for
        expected = answer(*model_weights(), images)
        for _ in range(2):
            np.testing.assert_allclose(backend.infer({INPUT: images})[OUTPUT], expected, atol=self.atol)
            outcome: list[BaseException] = []
            runs = threading.Thread(target=lambda found=outcome: found.append(error_of(backend, hanging)))
            runs.start()
            for _ in range(int(_WAIT_S / 0.05)):
                backend.cancel()  # again and again, as a watchdog does: the first may come before the run begins
                runs.join(0.05)
                if not runs.is_alive():
                    break
            assert [type(error) for error in outcome] == [RunCancelled]
            self.let_go_of_hung_runs()
        np.testing.assert_allclose(backend.infer({INPUT: images})[OUTPUT], expected, atol=self.atol)

    def test_to_cancel_when_nothing_runs_is_no_harm(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        backend = open_backend(make_package(tmp_path / "p"))
        backend.cancel()
        assert backend.infer({INPUT: reference_images(1)})[OUTPUT].shape == (1, CLASSES)

    def test_what_is_closed_says_so(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        backend = open_backend(make_package(tmp_path / "p"))
        backend.infer({INPUT: reference_images(1)})
        backend.close()
        with pytest.raises(ModelUnavailable, match="closed"):
            backend.infer({INPUT: reference_images(1)})
        backend.close()

    def test_text_is_served_or_refused_for_good(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        try:
            backend = open_backend(make_text_package(tmp_path / "p"))
        except EngineBuildFailed as error:
            refused = error
        else:
            words = np.array([["né".encode()], [b"b"]], dtype=object)
            assert backend.infer({TEXT: words})["echo"].tolist() == words.tolist()
            return
        assert refused.is_final  # to be tried again is no use
        assert "text" in str(refused)


def error_of(backend: InferenceBackend, images: np.ndarray[Any, Any]) -> BaseException:
    """What a run ends with that must not end well."""
    try:
        backend.infer({INPUT: images})
    except BaseException as error:  # noqa: BLE001 - it is what is looked at
        return error
    return AssertionError("the run ended well")


def run_all(calls: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own, and wait for all."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_WAIT_S)
    assert not any(thread.is_alive() for thread in threads)
