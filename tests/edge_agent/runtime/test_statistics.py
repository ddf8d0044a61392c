"""What a loaded model counts."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left

from edge_agent.contract.checking import Violation
from edge_agent.contract.latency import BOUNDS_US, BUCKETS, bucket_of
from edge_agent.runtime.statistics import Statistics, latency_buckets

MS = 1_000_000


def test_at_first_there_is_nothing() -> None:
    counts = Statistics().snapshot()
    assert (counts.success_count, counts.fail_count, counts.execution_count, counts.last_inference_ms) == (0, 0, 0, 0)
    assert counts.latency == (0,) * BUCKETS
    assert not counts.batches


def test_requests_of_one_batch_are_many_and_its_run_is_one() -> None:
    statistics = Statistics()
    statistics.executed(3, 5 * MS)
    for rows in (1, 2):
        statistics.succeeded(rows, queue_ns=2 * MS, input_ns=MS, infer_ns=5 * MS, output_ns=MS)
    counts = statistics.snapshot()
    assert (counts.success_count, counts.rows, counts.execution_count) == (2, 3, 1)
    assert counts.batches == {3: (1, 5 * MS)}
    assert counts.success_ns == 2 * 9 * MS
    assert (counts.queue_ns, counts.compute_input_ns, counts.compute_infer_ns, counts.compute_output_ns) == (
        4 * MS,
        2 * MS,
        10 * MS,
        2 * MS,
    )
    assert counts.latency[bucket_of(9000)] == 2
    assert abs(counts.last_inference_ms - time.time() * 1000) < 60_000


def test_a_request_by_itself_is_a_run_as_well() -> None:
    statistics = Statistics()
    statistics.answered(4, MS, 2 * MS, MS)
    counts = statistics.snapshot()
    assert (counts.success_count, counts.rows, counts.batches) == (1, 4, {4: (1, 2 * MS)})
    assert counts.success_ns == 4 * MS


def test_what_was_never_run_is_no_failure_of_the_model() -> None:
    statistics = Statistics()
    statistics.failed(MS)
    statistics.not_run(2 * MS)
    assert (statistics.requests, statistics.failed_requests) == (1, 1)
    counts = statistics.snapshot()
    assert (counts.fail_count, counts.fail_ns) == (2, 3 * MS)


def test_refusals_and_violations_are_counted_by_rule() -> None:
    statistics = Statistics()
    statistics.refused()
    statistics.refused("range")
    statistics.refused("range")
    statistics.violated([Violation("image", "range", "clip", 3, 0, "7"), Violation("age", "missing", "fill", 1, 0, "")])
    statistics.violated([Violation("image", "range", "clip", 2, 1, "9")])
    counts = statistics.snapshot()
    assert (counts.refused, counts.refused_by_rule) == (3, {"range": 2})
    assert counts.violations == {("image", "range", "clip"): 5, ("age", "missing", "fill"): 1}


def test_threads_lose_no_count() -> None:
    statistics = Statistics()

    def count() -> None:
        for _ in range(2000):
            statistics.answered(1, 1, 1, 1)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statistics.snapshot().success_count == statistics.snapshot().rows == 16_000


def test_latencies_of_one_run_fall_into_the_buckets_that_each_would_by_itself() -> None:
    bounds = [round(bound * 1000) for bound in BOUNDS_US]
    latencies = sorted([0, 1, bounds[0], bounds[0] + 1, bounds[3], bounds[3], bounds[4] - 1, 10**12], reverse=True)
    for some in (latencies, latencies[:1], latencies[-2:], [bounds[2]] * 3):
        expected: dict[int, int] = {}
        for ns in some:
            bucket = bisect_left(bounds, ns)
            expected[bucket] = expected.get(bucket, 0) + 1
        assert dict(latency_buckets(some)) == expected
