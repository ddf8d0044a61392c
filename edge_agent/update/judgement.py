"""Whether a new version may stay: what was seen of it, held against the limits in its manifest. Pure.

Nothing is called bad for bad luck: a share that only chance may have put beyond its limit decides nothing before there
are as many requests, or rows, as the manifest calls enough. Until then only what can hardly be chance is bad.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, TypeAlias

import msgspec

from edge_agent.contract.latency import BUCKETS, quantile_us
from edge_agent.contract.manifest import Probation, Shadow
from edge_agent.contract.quantities import Count
from edge_agent.runtime.shadow_report import ShadowReport
from edge_agent.update.evidence import (
    FEWEST_REQUESTS,
    RARELY,
    SELDOM,
    highest_median,
    least_median,
    like_for_like,
    lowest_median,
    most_median,
    shift,
    tail,
)

__all__ = [
    "Bad",
    "Good",
    "Seen",
    "ShadowReport",
    "Undecided",
    "Verdict",
    "judge_probation",
    "judge_shadow",
]

# Memory is measured from outside, while others work: what differs less is noise.
_MEMORY_NOISE_BYTES = 4 << 20

LatencyCounts = Annotated[tuple[Count, ...], msgspec.Meta(min_length=BUCKETS, max_length=BUCKETS)]
_NO_LATENCY = (0,) * BUCKETS


class Seen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was seen of one version on this device; JSON by msgspec, so that it outlives a swap and a restart.

    Args:
        requests: Requests that it was run for, the failed ones included.
        failed: Those of them that it failed on though they were right.
        latency: Answered requests by time, in the buckets of :mod:`edge_agent.contract.latency`.
        runs: By rows of a run: how many there were, and nanoseconds they took in all; empty where nobody told.
        classes: Rows by predicted class.
    """

    requests: Count = 0
    failed: Count = 0
    latency: LatencyCounts = _NO_LATENCY
    runs: dict[int, tuple[Count, Count]] = {}
    classes: dict[str, Count] = {}

    @property
    def rows(self) -> int:
        """Rows whose class was counted."""
        return sum(self.classes.values())

    @property
    def median_us(self) -> float | None:
        """Median time of a request in microseconds, interpolated within its bucket; None where none was answered."""
        return quantile_us(self.latency, 0.5)


@dataclasses.dataclass(frozen=True)
class Undecided:
    """Go on watching; ``reason`` says what is waited for."""

    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Good:
    """It may go on to the next step; ``reason`` says on what grounds, weak ones included."""

    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Bad:
    """It must go; ``reason`` names the figures and the limit."""

    reason: str


Verdict: TypeAlias = Undecided | Good | Bad


def judge_probation(rule: Probation, now: Seen, before: Seen | None, *, elapsed_s: float) -> Verdict:
    """Whether a version on probation stays.

    Args:
        now: Since the swap.
        before: Of the version before it on this device; None where there was none, or nobody kept it: then neither
            latency nor shift is judged.
        elapsed_s: Since the swap, restarts left out.
    """
    reason = _errors(rule, now)
    if not reason and before is not None and now.requests >= rule.min_requests:
        reason = _latency(rule, now, before) or _shift(rule, now, before)
    if reason:
        return Bad(reason)
    requests = f"{now.requests} requests, {now.failed} of them failed"
    few = now.requests < rule.min_requests
    if elapsed_s >= rule.seconds:
        return Good(f"{requests}{f', {rule.min_requests} were to be judged by' if few else ''}")
    asked = f"{rule.min_requests} are asked for, " if few else ""
    return Undecided(f"{requests}; {asked}{_left(rule.seconds, elapsed_s)}")


def judge_shadow(rule: Shadow, report: ShadowReport, *, elapsed_s: float) -> Verdict:
    """Whether a candidate may take the champion's place.

    Args:
        elapsed_s: Since it began to shadow.
    """
    if report.failed or report.refused:
        return Bad(_faults(report))
    is_enough, is_over = report.rows >= rule.rows, elapsed_s >= rule.seconds
    level = SELDOM if is_enough else RARELY
    reason = _memory(rule, report) or _agreement(rule, report, level) or _slowness(rule, report, level)
    if reason:
        return Bad(reason)
    doubt = _doubt(rule, report)
    if is_enough and (is_over or not doubt):
        beyond = f", which {report.rows} rows do not prove to be beyond its limit" if doubt else ""
        return Good(f"{_summary(report)}{beyond}")
    if is_over:
        return Good(f"{_summary(report)}; {rule.rows} rows were to be judged by")
    return Undecided(f"{_summary(report)}; {rule.rows} rows are asked for, {_left(rule.seconds, elapsed_s)}")


def _left(seconds: float, elapsed_s: float) -> str:
    """In tenths of the whole: each time that it changes, it is reported to the fleet."""
    if seconds < 10:
        return "a few seconds are left"
    tenth_s = seconds / 10
    return f"{math.ceil((seconds - elapsed_s) / tenth_s) * tenth_s:.0f} s are left"


def _errors(rule: Probation, now: Seen) -> str:
    requests = max(now.requests, now.failed)
    if not requests or now.failed / requests <= rule.max_error_rate:
        return ""
    if requests < rule.min_requests and tail(now.failed, requests, rule.max_error_rate) >= RARELY:
        return ""
    return f"{now.failed} of {requests} requests failed on probation, {rule.max_error_rate:.1%} are allowed"


def _latency(rule: Probation, now: Seen, before: Seen) -> str:
    limit = rule.max_latency_ratio
    if limit is None or min(sum(now.latency), sum(before.latency)) < FEWEST_REQUESTS:
        return ""
    if bool(now.runs) != bool(before.runs):
        return ""  # of one it is not known how long its requests were
    # A bucket is half as wide again as its lower bound, so that medians of two side by side tell nothing by themselves;
    # and one long stall moves a mean as far as it likes. So both must say so, or the medians' buckets be far apart.
    least, most, alike = least_median(now.latency), most_median(before.latency), ""
    if now.runs:
        least, most = lowest_median(now.latency), highest_median(before.latency)
        ratio = like_for_like(now.runs, before.runs)
        if ratio is None or ratio <= limit:
            return ""
        alike = f", and a run of as many rows {ratio:.2f} times as long"
    if least <= limit * most:
        return ""
    return (
        f"its median request took {_us(now.median_us)} on probation, that of the version before it "
        f"{_us(before.median_us)}{alike}: {limit:g} times are allowed"
    )


def _shift(rule: Probation, now: Seen, before: Seen) -> str:
    limit = rule.max_prediction_shift
    if limit is None or min(now.rows, before.rows) < FEWEST_REQUESTS:
        return ""
    distance, surely = shift(now.classes, before.classes)
    if surely <= limit:
        return ""
    moved = max(
        now.classes.keys() | before.classes.keys(),
        key=lambda name: (abs(_share(now, name) - _share(before, name)), name),
    )
    return (
        f"its predictions have shifted by {distance:.2f} (total variation distance) from those of the version before "
        f"it, {limit:g} is allowed: {now.rows} rows against {before.rows}, '{moved}' {_share(now, moved):.1%} of them, "
        f"{_share(before, moved):.1%} before"
    )


def _share(seen: Seen, name: str) -> float:
    return seen.classes.get(name, 0) / max(1, seen.rows)


def _faults(report: ShadowReport) -> str:
    parts = []
    if report.failed:
        parts.append(f"it failed on {_requests(report.failed)} that version {report.champion} answered")
    if report.refused:
        parts.append(f"its signature refuses {_requests(report.refused)} that version {report.champion} answered")
    return f"{' and '.join(parts)}; the first: {report.why}"


def _requests(count: int) -> str:
    return f"{count} requests" if count != 1 else "1 request"


def _memory(rule: Shadow, report: ShadowReport) -> str:
    limit, champion, candidate = rule.max_memory_ratio, report.champion_bytes, report.candidate_bytes
    if limit is None or not champion or candidate <= limit * champion + _MEMORY_NOISE_BYTES:
        return ""
    return (
        f"it takes {candidate / 2**20:.1f} MiB of memory, {candidate / champion:.2f} times the {champion / 2**20:.1f} "
        f"MiB of version {report.champion}; {limit:g} times are allowed"
    )


def _agreement(rule: Shadow, report: ShadowReport, level: float) -> str:
    if rule.min_agreement is None:
        return ""
    if tail(report.rows - report.agreed, report.rows, 1.0 - rule.min_agreement) >= level:
        return ""
    return (
        f"it names the class that version {report.champion} does on {report.agreed} of {report.rows} rows "
        f"({report.agreement:.1%}), at least {rule.min_agreement:.1%} are asked for; probabilities differ by "
        f"{report.mean_difference:.3f} on average, {report.largest_difference:.3f} at most"
    )


def _slowness(rule: Shadow, report: ShadowReport, level: float) -> str:
    """Sign test: were the median ratio within the limit, no more than half of the runs would be beyond it."""
    if rule.max_latency_ratio is None or tail(report.slower, report.timed, 0.5) >= level:
        return ""
    return (
        f"its median run takes {_us(report.candidate_us)}, that of version {report.champion} on the same rows "
        f"{_us(report.champion_us)}: more than {rule.max_latency_ratio:g} times as long in {report.slower} of "
        f"{report.timed} runs"
    )


def _doubt(rule: Shadow, report: ShadowReport) -> bool:
    """Whether something is beyond its limit, though it may be chance."""
    return (rule.min_agreement is not None and report.agreement < rule.min_agreement) or (
        rule.max_latency_ratio is not None and report.slower * 2 > report.timed
    )


def _summary(report: ShadowReport) -> str:
    if not report.rows:
        return "no rows were compared"
    return (
        f"{report.agreed} of {report.rows} rows agree ({report.agreement:.1%}), median run {_us(report.candidate_us)} "
        f"beside {_us(report.champion_us)}"
    )


def _us(latency_us: float | None) -> str:
    if latency_us is None:
        return "no time"
    return f"{latency_us / 1000:.1f} ms" if latency_us >= 1000 else f"{latency_us:.0f} us"
