"""A model package inside an application's own process: the same checks and monitoring as in the agent, no server.

::

    from edge_agent import load

    with load("packages/digits", state="state") as model:
        answer = model.infer(image=image)  # image: float32[N, 64]
        model.feedback(answer.request_id, "7")
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from edge_agent.config import ReportSettings
from edge_agent.contract.errors import CallerError, MalformedRequest, ModelUnavailable, Unsupported
from edge_agent.contract.signature import Signature
from edge_agent.recorder import Recorder
from edge_agent.runtime.loaded import load as load_package
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import prove
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.runtime.statistics import StatisticsSnapshot
from edge_agent.runtime.variants import Variants
from edge_agent.serving.inference import Inference, Observer
from edge_agent.serving.labels import keep_label
from edge_agent.serving.request import MAX_ID_LENGTH, InferenceAnswer, InferenceRequest, WantedOutput

__all__ = ["InferenceAnswer", "Model", "load"]


def load(
    folder: str | os.PathLike[str],
    *,
    state: str | os.PathLike[str] | None = None,
    threads: int = 1,
    variant: str = "auto",
    report_interval_s: float = 10.0,
) -> Model:
    """A model from its package, ready to answer; every file's digest is verified, the golden samples are answered.

    Args:
        folder: The package.
        state: A folder for what is kept and reported: counts, samples and labels, as an agent does it. They wait there
            until its owner has enrolled (``shoal-agent enrol --state``), then go to its fleet. One program at a time
            may use it. None keeps and reports nothing: requests are checked and counted in memory.
        threads: Within one inference.
        variant: Which form of the model; ``auto`` takes its int8 form where that is faster here.
        report_interval_s: Seconds between reports, until the fleet asks for another pace.
    Raises:
        PackageError, DigestMismatch: The package is wrong, or its model fails the golden samples here.
        ConfigurationError: An agent, or another program, uses the state folder.
        StorageFull, StorageNotWritable: The state folder cannot be used.
    """
    package = Package.open(Path(folder), verify=True)
    slots = Slots()
    recorder = Recorder(Path(state), slots, ReportSettings(interval_s=report_interval_s)) if state is not None else None
    try:

        def load_as(form: str) -> LoadedModel:
            return load_package(package, variant=form, threads=threads, slots=slots)

        loaded = Variants().load(package, load_as) if variant == "auto" else load_as(variant)
        try:
            prove(loaded)
        except BaseException:
            loaded.close()
            raise
        slots.install(loaded)
    except BaseException:
        if recorder is not None:
            recorder.close()
        raise
    if recorder is not None:
        recorder.start()
    return Model(slots, package, recorder)


@final
class Model:
    """A loaded model; made by :func:`load`. Every method may be called from any thread, several at once."""

    def __init__(self, slots: Slots, package: Package, recorder: Recorder | None) -> None:
        self._slots, self._recorder = slots, recorder
        self._manifest, self._digest = package.manifest, package.digest
        self._loaded = slots.get(self._manifest.name)
        self._calm = threading.Condition()
        self._calls, self._is_closed = 0, False
        observer: Observer = recorder if recorder is not None else _Nobody()
        self._inference = Inference(observer, threads=1)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for answers on their way, report a last time, give the memory back; again is no harm."""
        with self._calm:
            if self._is_closed:
                return
            self._is_closed = True
            self._calm.wait_for(lambda: self._calls == 0)
        self._inference.close()
        self._slots.close()
        if self._recorder is not None:
            self._recorder.close()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._manifest.name

    @property
    def version(self) -> str:
        """Its version."""
        return self._manifest.version

    @property
    def package(self) -> str:
        """SHA-256 of its package."""
        return self._digest

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        return self._manifest.signature

    def infer(
        self,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        /,
        *,
        request_id: str = "",
        group: str = "",
        outputs: tuple[str, ...] | None = None,
        monitor: bool = True,
        **named: NDArray[Any],
    ) -> InferenceAnswer:
        """The model's answer to one request, computed in this thread.

        Args:
            inputs: By name, axis 0 is N, the same for all; or give each as an argument of its name.
            request_id: For feedback; one is made where it is empty.
            group: What the rows of one subject share.
            outputs: Names of those wanted; None for all.
            monitor: False for a probe, which is neither counted nor sampled.
        Raises:
            SignatureMismatch: An input breaks the signature; it names tensor, rule and row.
            MalformedRequest: An unknown output is wanted, a name is too long, or the inputs have no names.
            ModelFailed: The model failed or hung on a right request.
            ModelUnavailable: It is closed.
        """
        for what, text in (("request_id", request_id), ("group", group)):
            if len(text) > MAX_ID_LENGTH:
                raise MalformedRequest(f"{what}: at most {MAX_ID_LENGTH} characters, got {len(text)}")
        if inputs is not None and type(inputs) is not dict:
            self._refuse_nameless(inputs)
        request = InferenceRequest(
            id=request_id,
            inputs={name: np.asarray(array) for name, array in {**(inputs or {}), **named}.items()},
            outputs=None if outputs is None else tuple(WantedOutput(name) for name in outputs),
            monitored=monitor,
            group=group,
        )
        with self._open():
            answer = self._inference.answer(self._loaded, request)
        if outputs is not None:
            answer = answer._replace(outputs={name: answer.outputs[name] for name in outputs})
        return answer

    def feedback(
        self, request_id: str, label: str | int, *, source: str = "application", row: int | None = None
    ) -> bool:
        """Tell the true label of an earlier request; it is on disk when this returns.

        Args:
            label: A class by name or by index.
            row: Of a request of several rows.
        Returns:
            Whether the row itself goes home: only then can models learn from the label.
        Raises:
            UnknownRequest: The request is not remembered.
            MalformedRequest: The model has no such class.
            Unsupported: The model was loaded without a state folder.
        """
        if self._recorder is None:
            raise Unsupported(f"model '{self.name}' was loaded without a state folder, so no request is remembered")
        with self._open():
            return keep_label(self._recorder, self._loaded, request_id, label, source=source, row=row)

    def statistics(self) -> StatisticsSnapshot:
        """What it has done since it was loaded."""
        return self._loaded.statistics.snapshot()

    def _refuse_nameless(self, inputs: object) -> None:
        if not isinstance(inputs, Mapping):
            takes = ", ".join(spec.name for spec in self.signature.inputs)
            raise MalformedRequest(
                "inputs: expected a mapping from input name to array, or each array as an argument of its name, got "
                f"{type(inputs).__name__}; model '{self.name}' takes: {takes}"
            )

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Keep it open for the length of a ``with`` block."""
        with self._calm:
            if self._is_closed:
                raise ModelUnavailable(f"model '{self.name}' is closed: load its package again")
            self._calls += 1
        try:
            yield
        finally:
            with self._calm:
                self._calls -= 1
                if not self._calls:
                    self._calm.notify_all()


class _Nobody:
    """Watches nothing."""

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
        """No label is wanted."""
        del loaded, request_id, inputs, outputs, latency_us, group
        return False

    def refused(self, loaded: LoadedModel, error: CallerError) -> None:
        """The model's own statistics count it."""

    def failed(self, loaded: LoadedModel) -> None:
        """The model's own statistics count it."""
