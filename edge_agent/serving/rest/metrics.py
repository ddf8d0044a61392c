"""``/metrics``: what Prometheus scrapes, in its text format 0.0.4.

Written here rather than by a client library: that one takes 3.4 MB of memory for what is a page of code, and counts
once more what is counted already.
"""

from __future__ import annotations

import bisect
import os
import platform
from collections.abc import Iterable, Mapping
from typing import Protocol

from edge_agent.contract.latency import BOUNDS_US
from edge_agent.contract.messages import DeviceMetrics, GpuMetrics
from edge_agent.runtime.memory import resident_bytes
from edge_agent.runtime.slots import IndexEntry, LoadedModel, Slots
from edge_agent.runtime.statistics import StatisticsSnapshot
from edge_agent.serving.access import Access, App
from edge_agent.serving.admission import Admission
from edge_agent.serving.connections import Connections
from edge_agent.serving.http.message import HttpRequest, HttpResponse
from edge_agent.serving.rest.route import Target

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
# Octaves: every other of the buckets that latencies are counted in, 16 us to 8.4 s.
_SHOWN = range(0, len(BOUNDS_US), 2)
_BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
Labels = Mapping[str, str]


class BoardState(Protocol):
    """The board that this runs on."""

    @property
    def energy_j(self) -> float:
        """What it took since the agent started."""

    def latest(self) -> DeviceMetrics:
        """How it is now."""


class Exposition:
    """Text in the format of Prometheus, one family of samples after the other."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """Counters or gauges; nothing where there are no samples."""
        found = list(samples)
        if found:
            self._head(name, kind, text)
            self._lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in found]

    def histogram(
        self, name: str, text: str, samples: Iterable[tuple[Labels, Mapping[float, int], int, float]]
    ) -> None:
        """Histograms: labels, cumulative counts by upper bound, count of all, sum of all."""
        found = list(samples)
        if not found:
            return
        self._head(name, "histogram", text)
        for labels, buckets, count, total in found:
            for bound, below in buckets.items():
                self._lines.append(f"{name}_bucket{_labels({**labels, 'le': _number(bound)})} {below}")
            self._lines.append(f"{name}_bucket{_labels({**labels, 'le': '+Inf'})} {count}")
            self._lines.append(f"{name}_sum{_labels(labels)} {_number(total)}")
            self._lines.append(f"{name}_count{_labels(labels)} {count}")

    def encode(self) -> bytes:
        """The whole text."""
        return ("\n".join(self._lines) + "\n").encode()

    def _head(self, name: str, kind: str, text: str) -> None:
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


class Metrics:
    """Answers ``GET /metrics``.

    Args:
        refused: Error answers by status; the router counts them.
        connections: None where nobody counts them.
        board: None where it tells nothing.
    """

    def __init__(
        self,
        slots: Slots,
        access: Access,
        admission: Admission,
        refused: Mapping[int, int],
        connections: Connections | None,
        *,
        agent_version: str,
        board: BoardState | None = None,
    ) -> None:
        self._slots, self._access, self._admission, self._board = slots, access, admission, board
        self._refused, self._connections, self._version = refused, connections, agent_version

    def scrape(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002 - a route's
        """The counts of the models that ``app`` may ask, and of the agent as a whole."""
        page = Exposition()
        info = {"version": self._version, "python": platform.python_version()}
        page.family("shoal_agent_info", "gauge", "The agent's version.", [(info, 1)])
        self._write_agent(page)
        self._write_apps(page)
        _write_models(page, [loaded for loaded in self._slots.models() if app.permits(loaded.name)])
        _write_states(page, [entry for entry in self._slots.index() if app.permits(entry.name)])
        _write_process(page)
        if self._board is not None:
            _write_board(page, self._board)
        return HttpResponse(200, page.encode(), CONTENT_TYPE)

    def _write_agent(self, page: Exposition) -> None:
        page.family(
            "shoal_http_errors_total",
            "counter",
            "HTTP requests answered with an error, by status.",
            [({"status": str(status)}, count) for status, count in sorted(self._refused.items())],
        )
        if self._connections is not None:
            page.family("shoal_connections", "gauge", "Open connections.", [({}, len(self._connections))])
            page.family("shoal_connections_limit", "gauge", "Most connections.", [({}, self._connections.limit)])
        held = self._admission
        page.family("shoal_pending_requests", "gauge", "Requests that wait or run.", [({}, held.requests)])
        page.family("shoal_pending_bytes", "gauge", "Bytes of bodies, those on their way too.", [({}, held.bytes)])
        page.family("shoal_busy_total", "counter", "Requests refused for want of room.", [({}, held.refused)])

    def _write_apps(self, page: Exposition) -> None:
        apps = self._access.apps
        page.family(
            "shoal_app_requests_total",
            "counter",
            "Requests let in, by application.",
            [({"app": one.name}, one.requests) for one in apps],
        )
        refused = [({"app": one.name, "reason": "forbidden"}, one.forbidden) for one in apps]
        refused += [({"app": one.name, "reason": "quota"}, one.over_quota) for one in apps]
        page.family("shoal_app_refused_total", "counter", "Requests refused, by application and reason.", refused)
        strangers = "Requests of applications that nobody knows."
        page.family("shoal_unknown_apps_total", "counter", strangers, [({}, self._access.unknown)])


def _write_models(page: Exposition, models: list[LoadedModel]) -> None:
    counts = [(_of(loaded), loaded.statistics.snapshot()) for loaded in models]
    outcomes: list[tuple[Labels, float]] = []
    for labels, one in counts:
        outcomes.append(({**labels, "outcome": "success"}, one.success_count))
        outcomes.append(({**labels, "outcome": "failure"}, one.fail_count))
        outcomes.append(({**labels, "outcome": "refused"}, one.refused))
    page.family("shoal_model_requests_total", "counter", "Inference requests, by outcome.", outcomes)
    page.histogram(
        "shoal_model_latency_seconds",
        "Time of answered inference requests, waiting included.",
        [(labels, _latency(one), one.success_count, one.success_ns / 1e9) for labels, one in counts],
    )
    stages = {
        "queue": "queue_ns",
        "compute_input": "compute_input_ns",
        "compute_infer": "compute_infer_ns",
        "compute_output": "compute_output_ns",
    }
    page.family(
        "shoal_model_stage_seconds_total",
        "counter",
        "Of that time: waiting, checking the inputs, running the model, and the rest.",
        [
            ({**labels, "stage": stage}, getattr(one, ns) / 1e9)
            for labels, one in counts
            for stage, ns in stages.items()
        ],
    )
    page.family("shoal_model_rows_total", "counter", "Rows answered.", [(labels, one.rows) for labels, one in counts])
    page.histogram(
        "shoal_model_batch_rows",
        "Rows of each run of the model.",
        [(labels, *_batches(one)) for labels, one in counts],
    )
    page.family(
        "shoal_model_labels_total",
        "counter",
        "Labels taken, by whether the row goes home with them: of others models cannot learn.",
        [
            ({**labels, "sampled": sampled}, count)
            for labels, one in counts
            for sampled, count in (("true", one.labels), ("false", one.labels_alone))
        ],
    )
    _write_contract(page, counts)
    memory = [(_of(loaded), loaded.memory_bytes) for loaded in models]
    page.family("shoal_model_memory_bytes", "gauge", "Memory that loading the model took.", memory)
    page.family(
        "shoal_model_runtime",
        "gauge",
        "What each model runs on.",
        [
            ({**_of(loaded), "runtime": loaded.runtime.name, "precision": loaded.runtime.precision}, 1)
            for loaded in models
        ],
    )


def _write_contract(page: Exposition, counts: list[tuple[dict[str, str], StatisticsSnapshot]]) -> None:
    page.family(
        "shoal_model_contract_refused_total",
        "counter",
        "Requests refused because an input broke the signature, by rule.",
        [
            ({**labels, "rule": rule}, count)
            for labels, one in counts
            for rule, count in sorted(one.refused_by_rule.items())
        ],
    )
    page.family(
        "shoal_model_violations_total",
        "counter",
        "Rows that broke a constraint and were let through.",
        [
            ({**labels, "tensor": tensor, "rule": rule, "policy": policy}, rows)
            for labels, one in counts
            for (tensor, rule, policy), rows in sorted(one.violations.items())
        ],
    )


def _write_states(page: Exposition, entries: list[IndexEntry]) -> None:
    page.family(
        "shoal_model_state",
        "gauge",
        "Versions of models on this device, by state.",
        [({"model": one.name, "version": one.version, "state": one.state.value}, 1) for one in entries],
    )


def _write_process(page: Exposition) -> None:
    times = os.times()
    page.family("process_resident_memory_bytes", "gauge", "Resident memory in bytes.", [({}, resident_bytes())])
    page.family("process_cpu_seconds_total", "counter", "CPU time in seconds.", [({}, times.user + times.system)])


def _write_board(page: Exposition, board: BoardState) -> None:
    now = board.latest()
    mode = [({"mode": now.power_mode}, 1)] if now.power_mode else []
    page.family("shoal_board_power_mode", "gauge", "The board's power mode.", mode)
    if now.power_w is not None:
        page.family("shoal_board_power_watts", "gauge", "What the board takes.", [({}, now.power_w)])
    if energy_j := board.energy_j:
        page.family("shoal_board_energy_joules_total", "counter", "What the board took.", [({}, energy_j)])
    if now.temperature_c is not None:
        page.family("shoal_board_temperature_celsius", "gauge", "Of its hottest part.", [({}, now.temperature_c)])
    reasons = [({"reason": reason}, 1) for reason in now.throttled]
    page.family("shoal_board_throttled", "gauge", "Why the board runs slower than it could.", reasons)
    _write_gpus(page, now.gpus)


def _write_gpus(page: Exposition, gpus: tuple[GpuMetrics, ...]) -> None:
    fields = (
        ("shoal_gpu_busy_ratio", "Share of the time in which the GPU computed.", "busy_percent", 0.01),
        ("shoal_gpu_memory_used_bytes", "Of its own memory, or of what it shares.", "memory_used_bytes", 1),
        ("shoal_gpu_memory_bytes", "All of that memory.", "memory_total_bytes", 1),
        ("shoal_gpu_temperature_celsius", "The GPU's temperature.", "temperature_c", 1),
        ("shoal_gpu_power_watts", "What the GPU takes.", "power_w", 1),
        ("shoal_gpu_clock_hertz", "The GPU's clock now.", "clock_mhz", 1e6),
        ("shoal_gpu_clock_limit_hertz", "What the power mode allows.", "max_clock_mhz", 1e6),
    )
    named = [({"gpu": str(index), "name": gpu.name}, gpu) for index, gpu in enumerate(gpus)]
    for name, text, field, scale in fields:
        told = [(labels, value * scale) for labels, gpu in named if (value := getattr(gpu, field)) is not None]
        page.family(name, "gauge", text, told)
    reasons = [({**labels, "reason": reason}, 1) for labels, gpu in named for reason in gpu.throttled]
    page.family("shoal_gpu_throttled", "gauge", "Why the GPU runs slower than it could.", reasons)


def _of(loaded: LoadedModel) -> dict[str, str]:
    return {"model": loaded.name, "version": loaded.version}


def _latency(counts: StatisticsSnapshot) -> dict[float, int]:
    below = 0
    buckets: dict[float, int] = {}
    for index in range(len(BOUNDS_US)):
        below += counts.latency[index]
        if index in _SHOWN:
            buckets[BOUNDS_US[index] / 1e6] = below
    return buckets


def _batches(counts: StatisticsSnapshot) -> tuple[dict[float, int], int, float]:
    """Cumulative runs by rows, all runs, rows of all runs."""
    by_bound = [0] * (len(_BATCH_ROWS) + 1)
    rows_run = 0
    for rows, (runs, _) in counts.batches.items():
        by_bound[bisect.bisect_left(_BATCH_ROWS, rows)] += runs
        rows_run += rows * runs
    below = 0
    buckets: dict[float, int] = {}
    for bound, runs in zip(_BATCH_ROWS, by_bound, strict=False):
        below += runs
        buckets[float(bound)] = below
    return buckets, counts.execution_count, float(rows_run)


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
