"""Requests that wait for a thread: one queue per model, and as many runs at once as there are threads.

All of it happens in the event loop's thread; only the runs themselves do not. Models without a batching policy wait
here too, each request by itself, so that priorities and deadlines mean the same for every model.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from edge_agent.contract.checking import Checked
from edge_agent.contract.errors import Busy, DeadlineExceeded
from edge_agent.contract.manifest import Batching
from edge_agent.runtime.batcher import Batcher, Waiting
from edge_agent.runtime.slots import LoadedModel
from edge_agent.serving.request import InferenceAnswer, InferenceRequest

# Each request by itself; how many may wait, admission has decided before.
ALONE = Batching(max_rows=1, max_queue=1_000_000)


@dataclasses.dataclass(slots=True, eq=False)
class Job:
    """One request on its way.

    Args:
        checked: None for large inputs, which the thread checks.
        begin_ns: When it came, by ``time.perf_counter_ns``.
        input_ns: What its check took.
        outcome: The answer, or why there is none; set once, by the thread or by the queue.
        vanished: Nobody waits for it any more.
    """

    request: InferenceRequest
    checked: Checked | None
    begin_ns: int
    input_ns: int = 0
    outcome: InferenceAnswer | BaseException | None = None
    vanished: bool = False
    future: asyncio.Future[None] | None = None
    over: asyncio.Future[None] | None = None


@dataclasses.dataclass(slots=True, eq=False)
class _Queue:
    loaded: LoadedModel
    batcher: Batcher[Job]
    policy: Batching
    running: int = 0
    wake_ns: int | None = None
    timer: asyncio.TimerHandle | None = None


class Scheduler:
    """Runs jobs in threads, in the order of their models' policies; models take turns.

    Args:
        pool: Has ``threads`` threads.
        run: Runs a batch in a thread and sets the outcome of every job in it; does not raise.
        failed: Told of a job that was never run, for the counts.
    """

    def __init__(
        self,
        pool: Executor,
        threads: int,
        run: Callable[[LoadedModel, Sequence[Job]], None],
        failed: Callable[[LoadedModel, Job], None],
    ) -> None:
        self._pool, self._free = pool, threads
        self._run, self._failed = run, failed
        self._queues: dict[LoadedModel, _Queue] = {}  # whose turn is next comes first

    def waiting(self, loaded: LoadedModel) -> int:
        """Requests in this model's queue."""
        queue = self._queues.get(loaded)
        return len(queue.batcher) if queue is not None else 0

    async def submit(self, loaded: LoadedModel, job: Job, *, rows: int, key: object) -> InferenceAnswer:
        """Wait for the job's turn and its answer.

        A cancelled wait ends at once if the job still waits, and else with the run: until then the model must stay
        leased.

        Raises:
            Busy: The queue is full, or the job had to leave it for a newer one.
            DeadlineExceeded: Its time came before its turn.
        """
        loop = asyncio.get_running_loop()
        queue = self._queues.get(loaded)
        if queue is None:
            policy = loaded.manifest.batching or ALONE
            queue = self._queues[loaded] = _Queue(loaded, Batcher(policy, loaded.name), policy)
        request = job.request
        timeout_us = request.timeout_us or queue.policy.timeout_us
        entry = Waiting(
            job,
            rows,
            key,
            request.priority,
            job.begin_ns,
            job.begin_ns + timeout_us * 1000 if timeout_us else 0,
        )
        job.future = loop.create_future()
        try:
            dropped = queue.batcher.add(entry)
        except Busy as error:
            self._refuse(queue, job, error)
            raise
        if dropped is not None:
            self._refuse(
                queue,
                dropped.work,
                Busy(f"model '{loaded.name}': its queue is full, and newer requests came; ask again"),
            )
        self._serve(queue)
        try:
            await job.future
        except asyncio.CancelledError:
            if queue.batcher.remove(entry):
                self._forget(queue)
            elif job.outcome is None:
                job.vanished, job.over = True, loop.create_future()
                await job.over
            raise
        if isinstance(job.outcome, InferenceAnswer):
            return job.outcome
        raise job.outcome or Busy("the agent stops")

    def _serve(self, queue: _Queue) -> None:
        """Start what can start, refuse what is late, and see to it that the queue is looked at in time."""
        now_ns = time.perf_counter_ns()
        for entry in queue.batcher.expired(now_ns):
            whose = "the request" if entry.work.request.timeout_us else "batching.timeout_us in the package's manifest"
            waited_ns, limit_ns = now_ns - entry.arrived_ns, entry.deadline_ns - entry.arrived_ns
            self._refuse(queue, entry.work, late(queue.loaded.name, waited_ns, limit_ns, whose=whose))
        while self._free and len(queue.batcher):
            batch = queue.batcher.take(now_ns, running=queue.running > 0)
            if not batch:
                break
            self._start(queue, [entry.work for entry in batch])
        self._arm(queue, now_ns)

    def _start(self, queue: _Queue, jobs: list[Job]) -> None:
        self._queues[queue.loaded] = self._queues.pop(queue.loaded)  # the other models are first now
        loop = asyncio.get_running_loop()
        try:
            self._pool.submit(self._work, loop, queue, jobs)
        except RuntimeError:  # shut down
            for job in jobs:
                self._refuse(queue, job, Busy("the agent stops"))
            return
        self._free -= 1
        queue.running += 1

    def _work(self, loop: asyncio.AbstractEventLoop, queue: _Queue, jobs: list[Job]) -> None:
        self._run(queue.loaded, jobs)
        try:
            loop.call_soon_threadsafe(self._end, queue, jobs)
        except RuntimeError:
            return  # the loop was closed: nobody waits any more

    def _end(self, queue: _Queue, jobs: list[Job]) -> None:
        self._free += 1
        queue.running -= 1
        for job in jobs:
            _wake(job.future)
            _wake(job.over)
        for other in list(self._queues.values()):
            self._serve(other)

    def _refuse(self, queue: _Queue, job: Job, error: Busy | DeadlineExceeded) -> None:
        job.outcome = error
        _wake(job.future)
        self._failed(queue.loaded, job)

    def _arm(self, queue: _Queue, now_ns: int) -> None:
        busy = queue.running > 0 or not self._free
        wake_ns = queue.batcher.wake_at(running=busy) if len(queue.batcher) else None
        if wake_ns != queue.wake_ns:
            if queue.timer is not None:
                queue.timer.cancel()
            queue.wake_ns, queue.timer = wake_ns, None
            if wake_ns is not None:
                loop = asyncio.get_running_loop()
                queue.timer = loop.call_later(max(0, wake_ns - now_ns) / 1e9, self._look_again, queue)
        self._forget(queue)

    def _look_again(self, queue: _Queue) -> None:
        queue.wake_ns = queue.timer = None
        self._serve(queue)

    def _forget(self, queue: _Queue) -> None:
        """Keep no model alive that nobody asks."""
        if not queue.running and not len(queue.batcher):
            if queue.timer is not None:
                queue.timer.cancel()
                queue.wake_ns = queue.timer = None
            if self._queues.get(queue.loaded) is queue:
                del self._queues[queue.loaded]


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def late(model: str, waited_ns: int, limit_ns: int, *, whose: str) -> DeadlineExceeded:
    """Of a request whose time was over before its turn; ``whose`` limit it was."""
    return DeadlineExceeded(
        f"model '{model}': waited {waited_ns / 1e6:.1f} ms for its turn, and {whose} allows {limit_ns / 1e6:.3g} ms; "
        "not run"
    )
