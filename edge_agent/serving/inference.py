"""One inference, whatever brought it: check, run, count, tell the monitor."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident
from time import perf_counter_ns
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import Checked
from edge_agent.contract.errors import Busy, CallerError, DeadlineExceeded, ModelFailed, ShoalError, SignatureMismatch
from edge_agent.runtime.asked_inputs import AskedInputs
from edge_agent.runtime.backend import RunCancelled
from edge_agent.runtime.slots import LoadedModel
from edge_agent.runtime.watchdog import Run, Watchdog
from edge_agent.serving.batching import Job, Scheduler, late
from edge_agent.serving.request import InferenceAnswer, InferenceRequest, check_outputs
from edge_agent.serving.request_ids import RequestIds
from edge_agent.serving.together import Together

P = ParamSpec("P")
T = TypeVar("T")
Tensors = Mapping[str, NDArray[Any]]
log = logging.getLogger(__name__)

# Checking so many bytes takes as long as a hand-over to a thread: larger inputs are checked there.
_CHECKED_HERE_BYTES = 64 * 1024
# Of a batch's output a smaller part is copied (0.2 us for 4 KiB, 2.4 us for this much), and so does not keep the whole
# batch alive in the monitor's buffer; a larger part stays a view: it would take longer, and goes with its encoding.
_COPIED_BYTES = 64 * 1024
# A request that surely takes so long, or has so much to check, is no matter for the event loop, however quick its model
# is for one row. Rows rarely add up (1,000 of a tiny model's take 20 times as long as one), so the limit is generous.
_LONG_US = 10_000.0
#: So much is checked on the event loop's own thread.
LONG_BYTES = 1024 * 1024
# A run is begun anew where another one of its model, which hung, was broken off and took it along.
_TRIES = 3


class Observer(Protocol):
    """Who is told of every request that is not a probe; called from several threads."""

    def observe(
        self,
        loaded: LoadedModel,
        request_id: str,
        inputs: Tensors,
        outputs: Tensors,
        *,
        latency_us: float,
        group: str,
    ) -> bool:
        """A request was answered; whether the application is asked for a label.

        Args:
            inputs: As the application sent them, missing values not yet filled; not to be changed.
        """

    def refused(self, loaded: LoadedModel, error: CallerError) -> None:
        """A request was refused because it was wrong."""

    def failed(self, loaded: LoadedModel) -> None:
        """A request failed though it was right."""


class Waker(Protocol):
    """Who loads again what was unloaded because nobody asked; see :class:`edge_agent.runtime.repository.Repository`."""

    def wake(self, model: str, version: str | None = None) -> object:
        """Load the model; blocks."""


class Inference:
    """Answers inference requests; the caller holds the model's lease for the whole call.

    Args:
        threads: Runs at once of models that are too slow for the event loop's own thread.
        watchdog: Breaks off runs that hang; its own where None.
        asked: Remembers what applications send; its own where None, which nobody reads.
    """

    def __init__(
        self, observer: Observer, *, threads: int, watchdog: Watchdog | None = None, asked: AskedInputs | None = None
    ) -> None:
        self._observer = observer
        self._asked = asked or AskedInputs()
        self._ids = RequestIds()
        self._watchdog = watchdog or Watchdog()
        self._running = self._watchdog.running
        self._closing = False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="inference")
        self._errands = ThreadPoolExecutor(threads, thread_name_prefix="errand")
        # A model that is being woken for seconds must not stand in the way of those that are awake. One thread: models
        # are loaded one after the other.
        self._wakers = ThreadPoolExecutor(1, thread_name_prefix="waker")
        self._waking: dict[tuple[str, str | None], asyncio.Future[object]] = {}
        #: Answers requests that meet in one turn of the event loop, where they can be.
        self.together = Together(self._infer, observer, self._ids.of_run, self._asked)
        self._scheduler = Scheduler(self._pool, threads, self._run_batch, self._not_run)

    @property
    def running(self) -> Collection[object]:
        """The runs in progress, by thread; a live view."""
        return self._running.keys()

    def inline(self, loaded: LoadedModel) -> bool:
        """Whether :meth:`answer` is to be called here and now, in the event loop's thread."""
        return loaded.inline and loaded.manifest.batching is None

    def is_long(self, loaded: LoadedModel, request: InferenceRequest) -> bool:
        """Whether this one request is better answered later, though its model is quick."""
        run_us, row_bytes = loaded.run_us, loaded.row_bytes
        for name, array in request.inputs.items():
            size = array.nbytes
            if size * run_us > _LONG_US * row_bytes.get(name, size) or size > LONG_BYTES:
                return True
        return False

    def longest_inline(self, loaded: LoadedModel) -> float:
        """Rows of a small request that the event loop answers itself; 0 for none."""
        return _LONG_US / max(loaded.run_us, 1e-3) if self.inline(loaded) else 0.0

    def waiting(self, loaded: LoadedModel) -> int:
        """Requests that wait for their turn; to be asked in the event loop's thread."""
        return self._scheduler.waiting(loaded)

    def answer(self, loaded: LoadedModel, request: InferenceRequest, came_ns: int | None = None) -> InferenceAnswer:
        """The model's answer, without waiting for other requests; blocks, on any thread.

        Args:
            came_ns: When the request came, by ``perf_counter_ns``; None for now.
        Raises:
            CallerError: The request is wrong; counted as refused.
            DeadlineExceeded: The request's time was over before its turn; counted as failed.
            ModelFailed: The model failed or hung on a right request; counted as failed.
        """
        begin_ns = perf_counter_ns()
        if came_ns is None:
            came_ns = begin_ns
        elif request.timeout_us and begin_ns - came_ns > request.timeout_us * 1000:
            raise self._too_late(loaded, request, begin_ns - came_ns)
        try:
            checked = loaded.check(request.inputs)
            if request.outputs is not None:
                check_outputs(request, loaded.signature)
        except CallerError as error:
            self._refused(loaded, request, error)
            raise
        start_ns = perf_counter_ns()
        try:
            outputs = self._infer(loaded, checked.inputs, start_ns)
        except Exception as error:
            self._count_failure(loaded, request, error, perf_counter_ns() - came_ns)
            raise
        end_ns = perf_counter_ns()
        answer = self._tell(loaded, request, checked, outputs, end_ns - came_ns)
        if request.monitored:
            loaded.statistics.answered(
                _rows(checked.inputs),
                start_ns - begin_ns,
                end_ns - start_ns,
                perf_counter_ns() - end_ns,
                begin_ns - came_ns,
            )
        return answer

    async def answer_later(
        self, loaded: LoadedModel, request: InferenceRequest, came_ns: int | None = None
    ) -> InferenceAnswer:
        """The model's answer when its turn has come: in a thread, in a batch where the manifest says so.

        Args:
            came_ns: When the request came, by ``perf_counter_ns``, from which its own timeout counts; None for now.
        Raises:
            CallerError: The request is wrong; counted as refused.
            Busy: The queue is full. DeadlineExceeded: The request's time came before its turn.
            ModelFailed: The model failed or hung on a right request. All of these are counted as failed.
        """
        begin_ns = perf_counter_ns()
        try:
            if request.outputs is not None:
                check_outputs(request, loaded.signature)
            large = _form_of_large(loaded, request.inputs)
            checked = loaded.check(request.inputs) if large is None else None
        except CallerError as error:
            self._refused(loaded, request, error)
            raise
        from_ns = came_ns if came_ns is not None and request.timeout_us else begin_ns
        job = Job(request, checked, from_ns, perf_counter_ns() - begin_ns)
        rows, form = large or _form(checked.inputs if checked is not None else {})
        return await self._scheduler.submit(loaded, job, rows=rows, key=form)

    def in_thread(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Awaitable[T]:
        """Do other work in as many threads again, such as decoding a large body; event loop only."""
        call = functools.partial(work, *arguments, **named) if named or arguments else work
        return asyncio.get_running_loop().run_in_executor(self._errands, call)

    async def wake(self, repository: Waker, model: str, version: str | None) -> None:
        """Have a sleeping model loaded; those who wait for the same one wait for one load. Event loop only.

        Raises:
            ShoalError: It cannot be loaded.
        """
        key = (model, version)
        waking = self._waking.get(key)
        if waking is None:
            loop = asyncio.get_running_loop()
            waking = self._waking[key] = loop.run_in_executor(self._wakers, repository.wake, model, version)
            waking.add_done_callback(functools.partial(self._woken, key))
        await asyncio.shield(waking)  # who goes away must not take it from the others

    def refused(self, loaded: LoadedModel, error: CallerError) -> None:
        """Count a request that was refused while it was decoded; from any thread."""
        loaded.statistics.refused(error.rule if isinstance(error, SignatureMismatch) else None)
        self._observer.refused(loaded, error)

    async def start(self) -> None:
        """Say that this thread is an event loop's, so that no run may hold it for long."""
        self._watchdog.loop_thread = get_ident()

    async def stop(self, grace_s: float) -> None:
        """Nothing to wait for: who waits for an answer has a connection."""

    def close(self) -> None:
        """End the threads; runs in progress are broken off."""
        self._closing = True
        for _, loaded in list(self._running.values()):
            loaded.backend.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._errands.shutdown(wait=True, cancel_futures=True)
        self._wakers.shutdown(wait=True, cancel_futures=True)
        self._watchdog.close()

    def _woken(self, key: tuple[str, str | None], waking: asyncio.Future[object]) -> None:
        del self._waking[key]
        if not waking.cancelled():
            waking.exception()  # whoever still waits is told; where nobody does, it is no mistake either

    def _infer(self, loaded: LoadedModel, inputs: Tensors, start_ns: int) -> dict[str, NDArray[Any]]:
        """One run under the watchdog's eyes."""
        run = (start_ns, loaded)
        thread = get_ident()
        watchdog = self._watchdog
        self._running[thread] = run
        if watchdog.asleep:
            watchdog.wake()
        try:
            return loaded.backend.infer(inputs)
        except ShoalError:
            raise
        except RunCancelled as error:
            return self._once_more(loaded, inputs, run, error)
        except Exception as error:
            # A runtime may raise anything; whatever it is, this request was right and the model is not.
            log.warning("model %s %s failed on a request: %s", loaded.name, loaded.version, error)
            raise ModelFailed(
                f"model '{loaded.name}' version '{loaded.version}' failed on this input: {error}"
            ) from error
        finally:
            del self._running[thread]

    def _once_more(
        self, loaded: LoadedModel, inputs: Tensors, run: Run, error: RunCancelled
    ) -> dict[str, NDArray[Any]]:
        """After a run was broken off: its own fault, or that of another run of the same model."""
        for _ in range(_TRIES):
            if self._closing:
                break
            if self._watchdog.has_hung(run):
                seconds = (perf_counter_ns() - run[0]) / 1e9
                if loaded.inline and get_ident() == self._watchdog.loop_thread:
                    loaded.inline = False  # whatever it was measured to take: never again where all others wait
                    if seconds < loaded.manifest.max_run_s:
                        raise Busy(
                            f"model '{loaded.name}' version '{loaded.version}' was thought to be quick, and was broken "
                            f"off after {seconds:.1f} s: ask again, it will have a thread of its own"
                        ) from error
                raise ModelFailed(
                    f"model '{loaded.name}' version '{loaded.version}' hung on this input: broken off after "
                    f"{seconds:.1f} s, its limit is {loaded.manifest.max_run_s:g} s"
                ) from error
            run = self._running[get_ident()] = (perf_counter_ns(), loaded)
            try:
                return loaded.backend.infer(inputs)
            except RunCancelled as again:
                error = again
            except ShoalError:
                raise
            except Exception as failure:
                raise ModelFailed(
                    f"model '{loaded.name}' version '{loaded.version}' failed on this input: {failure}"
                ) from failure
        raise ModelFailed(f"model '{loaded.name}' version '{loaded.version}': the run was broken off") from error

    def _tell(
        self,
        loaded: LoadedModel,
        request: InferenceRequest,
        checked: Checked,
        outputs: dict[str, NDArray[Any]],
        latency_ns: int,
    ) -> InferenceAnswer:
        """The answer, once the observer knows of it."""
        request_id = request.id or self._ids.new()
        wanted = False
        violations = request.flagged + checked.violations
        if request.monitored:
            if violations:
                loaded.statistics.violated(violations)
            asked = self._asked
            asked.left -= 1
            try:
                if asked.left < 0:
                    asked.note(loaded, request.inputs, request.outputs)
                wanted = self._observer.observe(
                    loaded, request_id, request.inputs, outputs, latency_us=latency_ns / 1000, group=request.group
                )
            except Exception:
                # The application has its answer coming, whatever is wrong with what is watched beside it.
                log.exception("a request of model %s %s could not be observed", loaded.name, loaded.version)
        return InferenceAnswer(loaded.name, loaded.version, loaded.digest, request_id, outputs, wanted, violations)

    def _too_late(self, loaded: LoadedModel, request: InferenceRequest, waited_ns: int) -> DeadlineExceeded:
        """Count a request whose time is over."""
        if request.monitored:
            loaded.statistics.not_run(waited_ns)
        return late(loaded.name, waited_ns, request.timeout_us * 1000, whose="the request")

    def _refused(self, loaded: LoadedModel, request: InferenceRequest, error: CallerError) -> None:
        if request.monitored:
            self.refused(loaded, error)

    def _count_failure(self, loaded: LoadedModel, request: InferenceRequest, error: BaseException, ns: int) -> None:
        if isinstance(error, CallerError):  # only the run could find it: text that is no UTF-8
            self._refused(loaded, request, error)
        elif request.monitored and isinstance(error, Busy):
            loaded.statistics.not_run(ns)
        elif request.monitored:
            loaded.statistics.failed(ns)
            self._observer.failed(loaded)

    def _not_run(self, loaded: LoadedModel, job: Job) -> None:
        """Count a request that found no room or no time: not the model's failure, so the observer is not told."""
        if job.request.monitored:
            loaded.statistics.not_run(perf_counter_ns() - job.begin_ns)

    def _run_batch(self, loaded: LoadedModel, jobs: Sequence[Job]) -> None:
        """Set the outcome of every job; in a thread of the pool."""
        start_ns = perf_counter_ns()
        for job in jobs:
            if job.vanished:
                job.outcome = asyncio.CancelledError()
            elif job.checked is None:
                self._check_late(loaded, job)
        ready = [job for job in jobs if job.outcome is None]
        if len(ready) > 1:
            try:
                self._run_together(loaded, ready, start_ns)
            except Exception as error:  # noqa: BLE001 - one of them is to blame: which one, shows when each runs alone
                log.warning(
                    "model %s %s failed on a batch of %d requests, which are run one by one now: %s",
                    loaded.name,
                    loaded.version,
                    len(ready),
                    error,
                )
        for job in ready:
            if job.outcome is None:
                self._run_alone(loaded, job, start_ns)

    def _check_late(self, loaded: LoadedModel, job: Job) -> None:
        begin_ns = perf_counter_ns()
        try:
            job.checked = loaded.check(job.request.inputs)
        except CallerError as error:
            self._refused(loaded, job.request, error)
            job.outcome = error
        job.input_ns += perf_counter_ns() - begin_ns

    def _run_together(self, loaded: LoadedModel, jobs: Sequence[Job], start_ns: int) -> None:
        checks = [job.checked for job in jobs if job.checked is not None]
        sizes = [_rows(checked.inputs) for checked in checks]
        inputs = {name: np.concatenate([each.inputs[name] for each in checks]) for name in checks[0].inputs}
        infer_ns = perf_counter_ns()
        outputs = self._infer(loaded, inputs, infer_ns)
        end_ns = perf_counter_ns()
        parts = split(outputs, sizes)
        loaded.statistics.executed(sum(sizes), end_ns - infer_ns)
        for job, checked, part in zip(jobs, checks, parts, strict=True):
            self._finish(loaded, job, checked, part, (start_ns, infer_ns, end_ns))

    def _run_alone(self, loaded: LoadedModel, job: Job, start_ns: int) -> None:
        checked = job.checked
        if checked is None:
            raise AssertionError("checked before")
        if self._closing:
            job.outcome = Busy("the agent stops")
            return
        infer_ns = perf_counter_ns()
        try:
            outputs = self._infer(loaded, checked.inputs, infer_ns)
        except Exception as error:  # noqa: BLE001 - it is raised where the answer is awaited
            self._count_failure(loaded, job.request, error, perf_counter_ns() - job.begin_ns)
            job.outcome = error
            return
        end_ns = perf_counter_ns()
        loaded.statistics.executed(_rows(checked.inputs), end_ns - infer_ns)
        self._finish(loaded, job, checked, outputs, (start_ns, infer_ns, end_ns))

    def _finish(
        self,
        loaded: LoadedModel,
        job: Job,
        checked: Checked,
        outputs: dict[str, NDArray[Any]],
        times_ns: tuple[int, int, int],
    ) -> None:
        """Answer a job; times are when its batch began, when the run did, and when that ended."""
        start_ns, infer_ns, end_ns = times_ns
        job.outcome = self._tell(loaded, job.request, checked, outputs, end_ns - job.begin_ns)
        if job.request.monitored:
            input_ns = job.input_ns + infer_ns - start_ns
            loaded.statistics.succeeded(
                _rows(checked.inputs),
                queue_ns=max(0, start_ns - job.begin_ns - job.input_ns),
                input_ns=input_ns,
                infer_ns=end_ns - infer_ns,
                output_ns=perf_counter_ns() - end_ns,
            )


def split(outputs: Tensors, sizes: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
    """The outputs of a batch, request by request.

    Args:
        sizes: Rows of each request.
    Raises:
        ModelFailed: An output has other rows than the inputs, so that nobody can tell whose they are.
    """
    total = sum(sizes)
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != total:
            raise ModelFailed(
                f"output '{name}' has shape {list(array.shape)} for a batch of {total} rows: a model whose outputs are "
                "not by row cannot be batched; take 'batching' out of its manifest"
            )
    parts: list[dict[str, NDArray[Any]]] = []
    begin = 0
    for rows in sizes:
        part = {name: array[begin : begin + rows] for name, array in outputs.items()}
        parts.append({name: view.copy() if view.nbytes <= _COPIED_BYTES else view for name, view in part.items()})
        begin += rows
    return parts


def _rows(inputs: Tensors) -> int:
    for array in inputs.values():
        return len(array)
    return 0


def _form(inputs: Tensors) -> tuple[int, object]:
    """Rows, and what must be equal for two requests to make a batch."""
    return _rows(inputs), tuple(array.shape[1:] for array in inputs.values())


def _form_of_large(loaded: LoadedModel, inputs: Tensors) -> tuple[int, object] | None:
    """The form of inputs whose values are better checked in a thread; None where they are to be checked here."""
    if sum(array.nbytes for array in inputs.values()) <= _CHECKED_HERE_BYTES:
        return None
    specs = loaded.signature.inputs
    if len(specs) != len(inputs) or any(not getattr(inputs.get(spec.name), "ndim", 0) for spec in specs):
        return None  # refused at once
    return _form({spec.name: inputs[spec.name] for spec in specs})
