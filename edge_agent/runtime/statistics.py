"""What one loaded model has done since it was loaded: requests, executions and time, as exact integer counts."""

from __future__ import annotations

import dataclasses
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from edge_agent.contract.checking import Violation
from edge_agent.contract.latency import BOUNDS_US, BUCKETS

_BOUNDS_NS = tuple(round(bound * 1000) for bound in BOUNDS_US)


@dataclasses.dataclass(frozen=True)
class StatisticsSnapshot:
    """The counts at one moment; what the protocol's statistics extension and the metrics page show.

    Args:
        success_count: Answered requests; ``success_ns`` the time they took, waiting included.
        fail_count: Requests that were right and got no answer: the model failed or hung, the queue was full, the
            deadline passed; ``fail_ns`` likewise.
        queue_ns: Of ``success_ns``, waiting for other requests or a thread.
        compute_input_ns: Of it, the check against the signature and what a batch took to put together.
        compute_infer_ns: Of it, the model's run; each request of a batch counts the whole run.
        compute_output_ns: Of it, taking a batch apart and telling the monitor.
        rows: Rows of the answered requests.
        execution_count: Runs of the model; fewer than requests where these were put into batches.
        batches: By rows of a run: how many there were, and nanoseconds they took.
        last_inference_ms: Unix time of the last answer in milliseconds; 0 before the first.
        refused: Requests that were wrong; ``refused_by_rule`` those of them that broke the signature, by rule.
        violations: Rows that broke a constraint and were let through, by (tensor, rule, policy).
        labels: Labels taken for rows that go home; ``labels_alone``: for such as stayed here.
        latency: Answered requests by time, in the buckets of :mod:`edge_agent.contract.latency`.
    """

    success_count: int
    success_ns: int
    fail_count: int
    fail_ns: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    rows: int
    execution_count: int
    batches: Mapping[int, tuple[int, int]]
    last_inference_ms: int
    refused: int
    refused_by_rule: Mapping[str, int]
    violations: Mapping[tuple[str, str, str], int]
    latency: tuple[int, ...]
    labels: int = 0
    labels_alone: int = 0


def latency_buckets(latencies_ns: Sequence[int]) -> Mapping[int, int]:
    """How many of these fall into which bucket of :mod:`edge_agent.contract.latency`.

    Args:
        latencies_ns: In nanoseconds, the longest first.
    """
    slowest, fastest = bisect_left(_BOUNDS_NS, latencies_ns[0]), bisect_left(_BOUNDS_NS, latencies_ns[-1])
    if slowest == fastest:
        return {slowest: len(latencies_ns)}
    found: dict[int, int] = {}
    bound, count = _BOUNDS_NS[slowest - 1], 0
    for ns in latencies_ns:  # a step for each, and two more where one falls into another bucket than the one before
        if ns <= bound:
            found[slowest] = count
            slowest, count = bisect_left(_BOUNDS_NS, ns), 0
            bound = _BOUNDS_NS[slowest - 1] if slowest else -1
        count += 1
    found[slowest] = count
    return found


class Statistics:
    """Counts for one loaded model; every method may be called from any thread."""

    __slots__ = (
        "_batches",
        "_fail_count",
        "_fail_ns",
        "_infer_ns",
        "_input_ns",
        "_labels",
        "_labels_alone",
        "_last_s",
        "_latency",
        "_lock",
        "_not_run",
        "_output_ns",
        "_queue_ns",
        "_refused",
        "_rows",
        "_rules",
        "_violations",
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue_ns = self._input_ns = self._infer_ns = self._output_ns = 0
        self._fail_count = self._fail_ns = self._not_run = self._rows = self._refused = 0
        self._labels = self._labels_alone = 0
        self._last_s = 0.0
        self._batches: dict[int, list[int]] = {}
        self._rules: dict[str, int] = {}
        self._violations: dict[tuple[str, str, str], int] = {}
        self._latency = [0] * BUCKETS

    @property
    def requests(self) -> int:
        """Requests that the model was run for, whether it answered or failed."""
        return sum(self._latency) + self._fail_count

    @property
    def failed_requests(self) -> int:
        """Those of them that it failed on though they were right."""
        return self._fail_count

    def answered(self, rows: int, input_ns: int, infer_ns: int, output_ns: int, queue_ns: int = 0) -> None:
        """Count a request that was run by itself: :meth:`succeeded` and :meth:`executed` in one."""
        # One bucket's count is the request's count as well: the sum is made when somebody asks.
        bucket = bisect_left(_BOUNDS_NS, queue_ns + input_ns + infer_ns + output_ns)
        with self._lock:
            self._rows += rows
            self._queue_ns += queue_ns
            self._input_ns += input_ns
            self._infer_ns += infer_ns
            self._output_ns += output_ns
            self._latency[bucket] += 1
            batch = self._batches.get(rows)
            if batch is None:
                batch = self._batches[rows] = [0, 0]
            batch[0] += 1
            batch[1] += infer_ns
            self._last_s = time.time()

    def answered_together(
        self, buckets: Mapping[int, int], *, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int
    ) -> None:
        """Count requests of one row each that were run as one and at once.

        Args:
            buckets: What they took, as :func:`latency_buckets` counts them.
            queue_ns: What they waited for each other, in all; the other times are those of each.
        """
        count = sum(buckets.values())
        with self._lock:
            self._rows += count
            self._queue_ns += queue_ns
            self._input_ns += input_ns * count
            self._infer_ns += infer_ns * count
            self._output_ns += output_ns * count
            for bucket, requests in buckets.items():
                self._latency[bucket] += requests
            batch = self._batches.setdefault(count, [0, 0])
            batch[0] += 1
            batch[1] += infer_ns
            self._last_s = time.time()

    def succeeded(self, rows: int, *, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count an answered request.

        Args:
            queue_ns: It waited; ``input_ns`` it was checked; ``infer_ns`` the model ran; ``output_ns`` the rest.
        """
        bucket = bisect_left(_BOUNDS_NS, queue_ns + input_ns + infer_ns + output_ns)
        with self._lock:
            self._rows += rows
            self._queue_ns += queue_ns
            self._input_ns += input_ns
            self._infer_ns += infer_ns
            self._output_ns += output_ns
            self._latency[bucket] += 1
            self._last_s = time.time()

    def executed(self, batch_rows: int, infer_ns: int) -> None:
        """Count a run of the model that ended well."""
        with self._lock:
            batch = self._batches.setdefault(batch_rows, [0, 0])
            batch[0] += 1
            batch[1] += infer_ns

    def failed(self, ns: int) -> None:
        """Count a request that failed though it was right, ``ns`` after it began."""
        with self._lock:
            self._fail_count += 1
            self._fail_ns += ns

    def not_run(self, ns: int) -> None:
        """Count a request that found no room, or whose time was over, ``ns`` after it began: no fault of the model."""
        with self._lock:
            self._not_run += 1
            self._fail_ns += ns

    def refused(self, rule: str | None = None) -> None:
        """Count a request that was wrong; ``rule`` is the rule of the signature that it broke, if it was one."""
        with self._lock:
            self._refused += 1
            if rule is not None:
                self._rules[rule] = self._rules.get(rule, 0) + 1

    def labelled(self, sampled: bool) -> None:
        """Count a label; ``sampled``: its row goes home too."""
        with self._lock:
            if sampled:
                self._labels += 1
            else:
                self._labels_alone += 1

    def violated(self, violations: Iterable[Violation]) -> None:
        """Count rows that broke a constraint and were let through."""
        with self._lock:
            for found in violations:
                key = (found.tensor, found.rule, found.policy)
                self._violations[key] = self._violations.get(key, 0) + found.rows

    def snapshot(self) -> StatisticsSnapshot:
        """The counts now, all of the same moment."""
        with self._lock:
            latency = tuple(self._latency)
            return StatisticsSnapshot(
                success_count=sum(latency),
                success_ns=self._queue_ns + self._input_ns + self._infer_ns + self._output_ns,
                fail_count=self._fail_count + self._not_run,
                fail_ns=self._fail_ns,
                queue_ns=self._queue_ns,
                compute_input_ns=self._input_ns,
                compute_infer_ns=self._infer_ns,
                compute_output_ns=self._output_ns,
                rows=self._rows,
                execution_count=sum(count for count, _ in self._batches.values()),
                batches={rows: (count, ns) for rows, (count, ns) in sorted(self._batches.items())},
                last_inference_ms=int(self._last_s * 1000),
                refused=self._refused,
                refused_by_rule=dict(self._rules),
                violations=dict(self._violations),
                latency=latency,
                labels=self._labels,
                labels_alone=self._labels_alone,
            )
