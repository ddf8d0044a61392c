from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.contract.latency import BUCKETS, bucket_of
from edge_agent.contract.manifest import Probation, Shadow
from edge_agent.update.judgement import (
    Bad,
    Good,
    Seen,
    ShadowReport,
    Undecided,
    Verdict,
    judge_probation,
    judge_shadow,
)

# Histograms are long to make up.
fast = settings(deadline=None, max_examples=30)
LABELS = tuple(str(digit) for digit in range(10))


def latencies(us: float, requests: int = 1000) -> tuple[int, ...]:
    counts = [0] * BUCKETS
    counts[bucket_of(us)] = requests
    return tuple(counts)


def seen(us: float, requests: int = 1000, rows: int = 1) -> Seen:
    runs = {rows: (requests, round(us * 1000) * requests)}
    return Seen(requests=requests, latency=latencies(us, requests), runs=runs)


def reason(verdict: Verdict) -> str:
    assert isinstance(verdict, Bad), verdict
    return verdict.reason


def equal(rows: int, **more: object) -> ShadowReport:
    told = ShadowReport(
        champion="1", candidate="2", rows=rows, agreed=rows, timed=rows, champion_us=100.0, candidate_us=100.0
    )
    return msgspec.structs.replace(told, **more)


# Probation


def test_a_manifest_that_says_nothing_calls_any_share_above_its_rate_bad() -> None:
    rule = Probation()
    assert reason(judge_probation(rule, Seen(requests=1, failed=1), None, elapsed_s=0.0)) == (
        "1 of 1 requests failed on probation, 1.0% are allowed"
    )
    assert isinstance(judge_probation(rule, Seen(requests=100, failed=1), None, elapsed_s=0.0), Undecided)
    assert isinstance(judge_probation(rule, Seen(), None, elapsed_s=9.9), Undecided)
    assert isinstance(judge_probation(rule, Seen(), None, elapsed_s=10.0), Good)


def test_a_failure_among_few_requests_waits_for_more_where_the_manifest_asks_for_them() -> None:
    rule = Probation(min_requests=50, max_error_rate=0.05)
    assert isinstance(judge_probation(rule, Seen(requests=1, failed=1), None, elapsed_s=1.0), Undecided)
    assert isinstance(judge_probation(rule, Seen(requests=49, failed=5), None, elapsed_s=1.0), Undecided)
    assert isinstance(judge_probation(rule, Seen(requests=50, failed=5), None, elapsed_s=1.0), Bad)


def test_what_fails_on_everything_is_not_kept_until_there_are_enough_requests() -> None:
    rule = Probation(min_requests=1000, max_error_rate=0.05)
    assert reason(judge_probation(rule, Seen(requests=3, failed=3), None, elapsed_s=1.0)).startswith("3 of 3 requests")


def test_too_few_requests_by_the_end_are_told() -> None:
    rule = Probation(min_requests=50, seconds=10.0)
    verdict = judge_probation(rule, Seen(requests=7), None, elapsed_s=11.0)
    assert verdict == Good("7 requests, 0 of them failed, 50 were to be judged by")


def test_a_version_that_takes_longer_than_the_one_before_it_is_bad() -> None:
    rule = Probation(max_latency_ratio=2.0)
    verdict = judge_probation(rule, seen(1000.0), seen(100.0), elapsed_s=1.0)
    assert "a run of as many rows 10.00 times as long: 2 times are allowed" in reason(verdict)
    assert isinstance(judge_probation(rule, seen(180.0), seen(100.0), elapsed_s=1.0), Undecided)
    assert isinstance(judge_probation(rule, seen(1000.0), None, elapsed_s=1.0), Undecided)


def test_two_latencies_on_both_sides_of_a_buckets_bound_are_no_reason() -> None:
    # 63 and 65 us lie in buckets whose middles are a factor of 1.4 apart.
    rule = Probation(max_latency_ratio=1.2)
    assert isinstance(judge_probation(rule, seen(65.0), seen(63.0), elapsed_s=1.0), Undecided)


def test_a_stall_that_moves_the_mean_alone_is_no_reason() -> None:
    rule = Probation(max_latency_ratio=2.0)
    now = Seen(requests=100, latency=latencies(100.0, 100), runs={1: (100, 100 * 100_000 + 2_000_000_000)})
    assert isinstance(judge_probation(rule, now, seen(100.0), elapsed_s=1.0), Undecided)


def test_larger_requests_than_before_are_no_fault_of_the_version() -> None:
    rule = Probation(max_latency_ratio=2.0)
    assert isinstance(judge_probation(rule, seen(3000.0, rows=64), seen(100.0), elapsed_s=1.0), Undecided)


def test_without_the_sizes_of_runs_only_medians_far_apart_are_a_reason() -> None:
    rule = Probation(max_latency_ratio=2.0)
    before = Seen(requests=100, latency=latencies(100.0, 100))
    near, far = (Seen(requests=100, latency=latencies(us, 100)) for us in (240.0, 900.0))
    assert isinstance(judge_probation(rule, near, before, elapsed_s=1.0), Undecided)
    assert "median request" in reason(judge_probation(rule, far, before, elapsed_s=1.0))


def test_predictions_that_have_surely_shifted_are_bad() -> None:
    rule = Probation(max_prediction_shift=0.2)
    before = Seen(requests=1000, classes=dict.fromkeys(LABELS, 100))
    verdict = judge_probation(rule, Seen(requests=500, classes={"7": 450, "1": 50}), before, elapsed_s=1.0)
    assert reason(verdict) == (
        "its predictions have shifted by 0.80 (total variation distance) from those of the version before it, 0.2 is "
        "allowed: 500 rows against 1000, '7' 90.0% of them, 10.0% before"
    )
    assert isinstance(judge_probation(rule, Seen(requests=29, classes={"7": 29}), before, elapsed_s=1.0), Undecided)


def test_neither_latency_nor_shift_is_judged_before_enough_requests() -> None:
    rule = Probation(min_requests=2000, max_latency_ratio=2.0, max_prediction_shift=0.1)
    before = msgspec.structs.replace(seen(100.0), classes={"1": 1000})
    now = msgspec.structs.replace(seen(1000.0), classes={"2": 1000})
    assert isinstance(judge_probation(rule, now, before, elapsed_s=1.0), Undecided)
    now = msgspec.structs.replace(now, requests=2000)
    assert isinstance(judge_probation(rule, now, before, elapsed_s=1.0), Bad)


requests = st.integers(0, 2000)
classes = st.dictionaries(st.sampled_from(LABELS), st.integers(0, 300), max_size=10)
histograms = st.lists(st.integers(0, 50), min_size=BUCKETS, max_size=BUCKETS).map(tuple)
probations = st.builds(
    Probation,
    max_error_rate=st.floats(0.0, 1.0),
    min_requests=st.integers(0, 100),
    max_latency_ratio=st.none() | st.floats(0.1, 10.0),
    max_prediction_shift=st.none() | st.floats(0.0, 1.0),
)
sights = st.builds(Seen, requests=requests, latency=histograms, classes=classes)


@fast
@given(probations, sights, sights, st.data())
def test_another_failure_never_makes_a_bad_version_better(
    rule: Probation, now: Seen, before: Seen, data: st.DataObject
) -> None:
    failed = data.draw(st.integers(0, now.requests))
    worse = data.draw(st.integers(failed, now.requests))
    first = msgspec.structs.replace(now, failed=failed)
    second = msgspec.structs.replace(now, failed=worse)
    if isinstance(judge_probation(rule, first, before, elapsed_s=1.0), Bad):
        assert isinstance(judge_probation(rule, second, before, elapsed_s=1.0), Bad)


@fast
@given(probations, sights, sights, st.integers(0, BUCKETS - 2), st.integers(1, 50))
def test_slower_requests_never_make_a_slow_version_better(
    rule: Probation, now: Seen, before: Seen, bucket: int, most: int
) -> None:
    moved = list(now.latency)
    count = min(most, moved[bucket])
    moved[bucket] -= count
    moved[-1] += count
    slower = msgspec.structs.replace(now, latency=tuple(moved))
    if isinstance(judge_probation(rule, now, before, elapsed_s=1.0), Bad):
        assert isinstance(judge_probation(rule, slower, before, elapsed_s=1.0), Bad)


@fast
@given(probations, sights)
def test_a_version_is_never_bad_beside_itself(rule: Probation, now: Seen) -> None:
    rule = msgspec.structs.replace(rule, max_latency_ratio=max(1.0, rule.max_latency_ratio or 1.0))
    assert not isinstance(judge_probation(rule, now, now, elapsed_s=1.0), Bad)


@fast
@given(probations, sights, sights)
def test_verdicts_on_a_probation_end_with_its_time(rule: Probation, now: Seen, before: Seen) -> None:
    early = judge_probation(rule, now, before, elapsed_s=0.0)
    late = judge_probation(rule, now, before, elapsed_s=rule.seconds)
    assert isinstance(early, (Bad, Undecided))
    assert isinstance(late, (Bad, Good))
    assert judge_probation(rule, now, before, elapsed_s=0.0) == early


@fast
@given(sights)
def test_what_was_seen_outlives_the_process(found: Seen) -> None:
    assert msgspec.json.decode(msgspec.json.encode(found), type=Seen) == found


# Shadow

RULE = Shadow(seconds=60.0, rows=200, min_agreement=0.95, max_latency_ratio=1.5, max_memory_ratio=2.0)


def test_a_candidate_that_agrees_is_good_once_there_are_enough_rows() -> None:
    assert isinstance(judge_shadow(RULE, equal(199), elapsed_s=1.0), Undecided)
    assert judge_shadow(RULE, equal(200), elapsed_s=1.0) == Good(
        "200 of 200 rows agree (100.0%), median run 100 us beside 100 us"
    )


def test_too_few_rows_go_on_to_probation_and_say_so() -> None:
    assert judge_shadow(RULE, equal(12), elapsed_s=60.0) == Good(
        "12 of 12 rows agree (100.0%), median run 100 us beside 100 us; 200 rows were to be judged by"
    )
    assert judge_shadow(RULE, ShadowReport(), elapsed_s=60.0) == Good(
        "no rows were compared; 200 rows were to be judged by"
    )


def test_a_candidate_with_other_answers_is_bad_and_the_reason_has_the_agreement() -> None:
    verdict = judge_shadow(RULE, equal(200, agreed=150, mean_difference=0.2, largest_difference=0.9), elapsed_s=1.0)
    assert reason(verdict) == (
        "it names the class that version 1 does on 150 of 200 rows (75.0%), at least 95.0% are asked for; "
        "probabilities differ by 0.200 on average, 0.900 at most"
    )


def test_a_handful_of_rows_decides_nothing() -> None:
    assert isinstance(judge_shadow(RULE, equal(2, agreed=0), elapsed_s=1.0), Undecided)
    assert isinstance(judge_shadow(RULE, equal(2, agreed=0), elapsed_s=60.0), Good)
    assert isinstance(judge_shadow(RULE, equal(10, agreed=0), elapsed_s=1.0), Bad)  # 1 in 10 ** 13 were it right


def test_an_agreement_that_may_be_chance_is_watched_to_the_end() -> None:
    report = equal(200, agreed=187)  # 93.5 %
    assert isinstance(judge_shadow(RULE, report, elapsed_s=1.0), Undecided)
    verdict = judge_shadow(RULE, report, elapsed_s=60.0)
    assert isinstance(verdict, Good)
    assert "do not prove" in verdict.reason


def test_a_slow_candidate_is_bad() -> None:
    report = equal(200, slower=200, candidate_us=230.0)
    assert reason(judge_shadow(RULE, report, elapsed_s=1.0)) == (
        "its median run takes 230 us, that of version 1 on the same rows 100 us: more than 1.5 times as long in 200 of "
        "200 runs"
    )
    assert isinstance(judge_shadow(RULE, equal(200, slower=90), elapsed_s=1.0), Good)


def test_a_candidate_that_takes_too_much_memory_is_bad_at_once() -> None:
    report = equal(0, champion_bytes=10 << 20, candidate_bytes=40 << 20)
    assert reason(judge_shadow(RULE, report, elapsed_s=0.0)) == (
        "it takes 40.0 MiB of memory, 4.00 times the 10.0 MiB of version 1; 2 times are allowed"
    )
    small = equal(0, champion_bytes=1 << 20, candidate_bytes=5 << 20)  # measured from outside: noise
    assert isinstance(judge_shadow(RULE, small, elapsed_s=0.0), Undecided)
    unknown = equal(0, candidate_bytes=500 << 20)
    assert isinstance(judge_shadow(RULE, unknown, elapsed_s=0.0), Undecided)


@pytest.mark.parametrize("rule", [RULE, Shadow(seconds=60.0)])
def test_a_failure_or_a_refusal_is_bad_whatever_the_limits(rule: Shadow) -> None:
    failed = judge_shadow(rule, equal(1000, failed=1, why="index out of bounds"), elapsed_s=1.0)
    assert reason(failed) == "it failed on 1 request that version 1 answered; the first: index out of bounds"
    refused = judge_shadow(rule, equal(1000, refused=3, why="input 'image'"), elapsed_s=1.0)
    assert reason(refused) == "its signature refuses 3 requests that version 1 answered; the first: input 'image'"


def test_limits_that_are_not_there_are_not_asked() -> None:
    report = equal(200, agreed=0, slower=200, champion_bytes=1, candidate_bytes=1 << 40)
    assert isinstance(judge_shadow(Shadow(seconds=60.0), report, elapsed_s=1.0), Good)


shadows = st.builds(
    Shadow,
    seconds=st.just(60.0),
    rows=st.integers(1, 500),
    min_agreement=st.none() | st.floats(0.0, 1.0),
    max_latency_ratio=st.none() | st.floats(0.1, 10.0),
)


@given(shadows, st.integers(0, 1000), st.data(), st.floats(0.0, 120.0))
def test_another_disagreement_never_makes_a_bad_candidate_better(
    rule: Shadow, rows: int, data: st.DataObject, elapsed_s: float
) -> None:
    agreed = data.draw(st.integers(0, rows))
    fewer = data.draw(st.integers(0, agreed))
    slower = data.draw(st.integers(0, rows))
    first, second = equal(rows, agreed=agreed, slower=slower), equal(rows, agreed=fewer, slower=slower)
    if isinstance(judge_shadow(rule, first, elapsed_s=elapsed_s), Bad):
        assert isinstance(judge_shadow(rule, second, elapsed_s=elapsed_s), Bad)
    if isinstance(judge_shadow(rule, second, elapsed_s=elapsed_s), Good) and agreed:
        assert not isinstance(judge_shadow(rule, first, elapsed_s=elapsed_s), Bad)


@given(shadows, st.integers(0, 1000), st.data(), st.floats(0.0, 120.0))
def test_a_share_within_its_limits_is_never_bad(rule: Shadow, rows: int, data: st.DataObject, elapsed_s: float) -> None:
    agreed = data.draw(st.integers(0, rows))
    if rule.min_agreement is not None and agreed < rows * rule.min_agreement:
        agreed = rows
    report = equal(rows, agreed=agreed, slower=data.draw(st.integers(0, rows // 2)))
    assert not isinstance(judge_shadow(rule, report, elapsed_s=elapsed_s), Bad)
