"""A past for the console to show.

Twenty minutes ago four cameras began well; nine minutes ago their world changed; then drift, harm, a refused and a
better model, and now its rollout is in its second wave. One camera is offline, one has never connected.
"""

from __future__ import annotations

import random
from typing import Any

import sqlalchemy as sa

from edge_agent.contract.latency import BUCKETS
from edge_agent.contract.messages import (
    DeviceMetrics,
    EventKind,
    GpuMetrics,
    MetricsReport,
    ModelMetrics,
    ReportedModel,
    ReportedRuntime,
    Status,
    UpdateStep,
)
from edge_agent.contract.runs import RunProgress, RunResult, RunState
from edge_agent.contract.topics import Stream
from fleet_server.labels.tables import labels
from fleet_server.models.records import ReleaseState
from fleet_server.monitoring.intake import on_metrics
from fleet_server.monitoring.tables import alerts, drift
from fleet_server.rollouts import state, store
from fleet_server.rollouts.rollout import Gate, Member, Progress, Rollout, State
from tests.fleet_server.console.harbour import MODEL, Harbour

CAMERAS = ("camera-1", "camera-2", "camera-3", "camera-4")
NEW = "camera-5"
BEGAN, CHANGED, RECOVERED = 20.0, 9.0, {"camera-1": 2.6, "camera-2": 0.9}  # minutes before the present
_DRIFTED = {"camera-1": 0.62, "camera-2": 0.7, "camera-3": 0.55, "camera-4": 0.9}
_FEATURES = (
    "image.std",
    "probabilities.confidence",
    "image.gradient",
    "probabilities.margin",
    "image.mean",
    "image.slant",
)


def write(harbour: Harbour) -> None:
    """Write it all down."""
    chance = random.Random(7)
    harbour.clock.before(BEGAN)
    first = harbour.release("1", seed=0, accuracy=0.951)
    for camera in (*CAMERAS, NEW):
        harbour.enrol(camera)
    for camera in CAMERAS:
        harbour.devices.on_status(camera, Status(online=True, at_ms=harbour.clock()))
        harbour.event(camera, EventKind.AGENT_STARTED)
        harbour.report(camera, ReportedModel(version="1", package=first, step=UpdateStep.COMMITTED, target=first))
    _rollout(harbour, first, "1", 19.5, dict.fromkeys(CAMERAS, Progress.COMMITTED))
    with harbour.db.write() as connection:
        harbour.models.set_state(connection, first, ReleaseState.ROLLED_OUT, "")
    harbour.clock.before(7)
    second = harbour.release("2", seed=1, accuracy=0.943)
    _answers(harbour, chance, first, second)
    _windows(harbour, chance, first, second)
    _alerts(harbour)
    _runs(harbour, second)
    progress = {"camera-1": Progress.COMMITTED, "camera-2": Progress.COMMITTED, "camera-3": Progress.ASSIGNED}
    _rollout(harbour, second, "2", 3.6, {**progress, "camera-4": Progress.WAITING})
    for camera, minutes in RECOVERED.items():
        harbour.clock.before(minutes)
        harbour.event(camera, EventKind.UPDATE_COMMITTED, package=second)
        harbour.report(camera, _reported("2", second, ENGINE if camera == "camera-1" else BUILDING))
    harbour.clock.before(0.2)
    harbour.event("camera-3", EventKind.UPDATE_STEP, package=second, step="self-tested")
    harbour.report("camera-3", ReportedModel(version="1", package=first, step=UpdateStep.SELF_TESTED, target=second))
    harbour.clock.before(4)
    harbour.devices.on_status("camera-4", Status(online=False, at_ms=harbour.clock()))
    harbour.clock.before(0)
    _metrics(harbour, chance, first, second)
    for camera in CAMERAS[:3]:
        harbour.devices.on_status(camera, Status(online=True, at_ms=harbour.clock()))


def _reported(version: str, package: str, runtime: ReportedRuntime) -> ReportedModel:
    return ReportedModel(
        version=version, package=package, step=UpdateStep.COMMITTED, target=package, requests=4_210, runtime=runtime
    )


def _package(camera: str, minutes: float, first: str, second: str) -> str:
    return second if minutes < RECOVERED.get(camera, 0) else first


def _accuracy(camera: str, minutes: float) -> float:
    if minutes > CHANGED:
        return 0.95
    return 0.94 if minutes < RECOVERED.get(camera, 0) else _DRIFTED[camera]


def _answers(harbour: Harbour, chance: random.Random, first: str, second: str) -> None:
    rows: list[dict[str, Any]] = []
    for camera in CAMERAS:
        minutes = BEGAN
        while minutes > (4 if camera == "camera-4" else 0):
            at = harbour.clock.before(minutes)
            correct = chance.random() < _accuracy(camera, minutes)
            rows.append(
                {
                    "device": camera,
                    "request_id": f"{camera}-{len(rows)}",
                    "model": MODEL,
                    "package": _package(camera, minutes, first, second),
                    "label": "3",
                    "prediction": "3" if correct else "8",
                    "correct": correct,
                    "confidence": 0.9,
                    "inclusion_probability": 0.1,
                    "at_ms": at,
                    "labelled_at_ms": at + 500,
                }
            )
            minutes -= chance.uniform(0.02, 0.1)
    with harbour.db.write() as connection:
        connection.execute(sa.insert(labels), rows)


def _windows(harbour: Harbour, chance: random.Random, first: str, second: str) -> None:
    rows = []
    for camera in CAMERAS:
        for step in range(40):
            minutes = BEGAN - step * 0.5 - 0.3
            if minutes < (4 if camera == "camera-4" else 0):
                break
            accuracy = _accuracy(camera, minutes)
            bad = accuracy < 0.9
            figures = []
            for index, feature in enumerate(_FEATURES):
                psi = (2.2 / (index + 1) if bad else 0.04) * chance.uniform(0.7, 1.3) + 0.03
                flagged = psi - 0.05 > 0.2
                figures.append(
                    {
                        "feature": feature,
                        "psi": psi,
                        "effect": max(0.0, psi - 0.05),
                        "p_value": 0.001 if flagged else 0.4,
                        "q_value": 0.002 if flagged else 0.6,
                        "flagged": flagged,
                    }
                )
            until = harbour.clock.before(minutes)
            rows.append(
                {
                    "device": camera,
                    "model": MODEL,
                    "package": _package(camera, minutes, first, second),
                    "from_ms": until - 30_000,
                    "until_ms": until,
                    "rows": chance.randint(200, 260),
                    "verdict": ("suspect" if minutes > CHANGED - 0.5 else "drifted") if bad else "none",
                    "flagged": [one["feature"] for one in figures if one["flagged"]],
                    "features": sorted(figures, key=lambda one: -float(str(one["effect"]))),
                    "estimated_accuracy": min(1.0, accuracy + chance.uniform(-0.02, 0.06)),
                    "since_ms": until,
                    "judged_at_ms": until + 1_000,
                }
            )
    with harbour.db.write() as connection:
        connection.execute(sa.insert(drift), rows)


def _alerts(harbour: Harbour) -> None:
    def row(minutes: float, kind: str, device: str, reason: str, closed: float | None = None) -> dict[str, Any]:
        return {
            "model": MODEL,
            "kind": kind,
            "device": device,
            "opened_at_ms": harbour.clock.before(minutes),
            "closed_at_ms": None if closed is None else harbour.clock.before(closed),
            "reason": reason,
            "closed_reason": "" if closed is None else "none of the last 2 windows is flagged",
        }

    rows = [
        row(8.2, "drift", "camera-1", "image.std (PSI 2.10), probabilities.confidence (PSI 1.07) and 3 more", 1.2),
        row(8.1, "drift", "camera-3", "image.std (PSI 2.41), probabilities.confidence (PSI 1.22) and 3 more"),
        row(8.0, "drift", "camera-2", "image.std (PSI 1.87), image.gradient (PSI 0.66) and 1 more", 0.3),
        row(
            8.0, "drift", "", "3 of 4 devices drifted (camera-1, camera-2, camera-3), by chance with probability 4e-06"
        ),
        row(6.6, "harm", "", "accuracy 66.2%, at most 71.9% with 95% confidence, is below 95.1% promised"),
    ]
    with harbour.db.write() as connection:
        connection.execute(sa.insert(alerts), rows)


def _runs(harbour: Harbour, second: str) -> None:
    harbour.clock.before(6.5)
    refused = harbour.runs.request(MODEL, "harm", "accuracy 66.2%, at most 71.9%, is below 95.1% promised")
    claimed = harbour.runs.claim("trainer-1:4711")
    assert claimed is not None
    assert claimed.run == refused
    harbour.clock.before(5.7)
    comparison = {"rows": 212, "challenger": 0.688, "champion": 0.675, "difference": 0.013}
    reasons = ("undecided: +1.3 points, interval -3.1 to +5.7", "only 212 held-out rows show today's world")
    result = RunResult(fence=claimed.fence, state=RunState.REFUSED, reasons=reasons, evaluation={"current": comparison})
    harbour.runs.finish(claimed.run, result)
    harbour.clock.before(5.6)
    harbour.runs.request(MODEL, "harm", "accuracy 64.9%, at most 69.0%, is below 95.1% promised")
    claimed = harbour.runs.claim("trainer-1:4711")
    assert claimed is not None
    harbour.clock.before(3.7)
    comparison = {"rows": 530, "challenger": 0.94, "champion": 0.661, "difference": 0.279}
    result = RunResult(
        fence=claimed.fence,
        state=RunState.RELEASED,
        reasons=("better: +27.9 points, interval +23.6 to +32.1, p 3e-29", "no slice is worse"),
        package=second,
        version="2",
        evaluation={"current": comparison},
    )
    harbour.runs.finish(claimed.run, result)
    harbour.clock.before(1)
    harbour.runs.request("gauges", "manual", "first model")
    claimed = harbour.runs.claim("trainer-1:4711", ["gauges"])
    assert claimed is not None
    harbour.clock.before(0.1)
    harbour.runs.progress(
        claimed.run, RunProgress(fence=claimed.fence, stage="fit", fraction=0.42, message="epoch 9 of 20")
    )


def _rollout(harbour: Harbour, package: str, version: str, minutes: float, progress: dict[str, Progress]) -> None:
    done = set(progress.values()) == {Progress.COMMITTED}
    waves = (1, 0.5, 1.0)
    start = harbour.clock.before(minutes)
    order = {Progress.WAITING: None}
    members = {
        camera: Member(
            device=camera,
            progress=one,
            wave=order.get(one, min(index, 2) if done else min(index, 1)),
            assigned_at_ms=start,
            reason="",
        )
        for index, (camera, one) in enumerate(progress.items())
    }
    begun = Rollout(id=f"r-{version}", model=MODEL, package=package, version=version, waves=waves, gate=Gate())
    with harbour.db.write() as connection:
        store.insert(connection, begun, start)
        running = state.move(begun, State.RUNNING)
        store.save(connection, begun, running, start)
        now = Rollout(
            **{name: getattr(begun, name) for name in ("id", "model", "package", "version", "waves", "gate")},
            state=State.RUNNING,
            wave=1,
            members=members,
            reason="",
            note="1 device has yet to commit: camera-3",
        )
        store.save(connection, running, now, start)
        if done:
            store.save(connection, now, state.move(now, State.DONE), start + 45_000)


def _metrics(harbour: Harbour, chance: random.Random, first: str, second: str) -> None:
    for camera in CAMERAS:
        for ago in range(6, 0, -1):
            until = harbour.clock.present_ms - ago * 5_000
            counts = [0] * BUCKETS
            for _ in range(120):
                counts[min(BUCKETS - 1, max(0, round(chance.gauss(9, 1.2))))] += 1
            package = second if camera in RECOVERED else first
            one = ModelMetrics(
                model=MODEL,
                version="2" if camera in RECOVERED else "1",
                package=package,
                requests=120,
                rows=120,
                refused=0,
                failed=0,
                latency_counts=tuple(counts),
            )
            report = MetricsReport(from_ms=until - 5_000, until_ms=until, models=(one,), machine=_board(camera))
            with harbour.db.write() as connection:
                on_metrics(connection, harbour.envelope(camera, Stream.METRICS), report)


def _board(camera: str) -> DeviceMetrics:
    """camera-1 is a Jetson at ease, camera-2 one that is too hot, camera-3 tells nothing, camera-4 is away."""
    if camera not in BOARDS:
        return DeviceMetrics(cpu_percent=34.0)
    power_w, celsius, reasons = BOARDS[camera]
    gpu = GpuMetrics(
        name="Orin (nvgpu)",
        busy_percent=62.0,
        memory_used_bytes=5 << 30,
        memory_total_bytes=8 << 30,
        temperature_c=celsius,
        clock_mhz=420.75 if reasons else 624.75,
        max_clock_mhz=624.75,
        throttled=reasons,
    )
    return DeviceMetrics(
        cpu_percent=34.0,
        memory_available_bytes=2 << 30,
        disk_free_bytes=41 << 30,
        temperature_c=celsius,
        gpus=(gpu,),
        power_w=power_w,
        energy_j=power_w * 5,
        power_mode="15W",
    )


BOARDS: dict[str, tuple[float, float, tuple[str, ...]]] = {
    "camera-1": (9.8, 54.5, ()),
    "camera-2": (14.6, 91.0, ("temperature",)),
    "camera-4": (11.0, 60.0, ()),
}
ENGINE = ReportedRuntime(
    name="tensorrt",
    precision="fp16",
    reason="tensorrt fp16: 0.9 ms for one row against 6.1 ms on onnxruntime-cpu; outputs within 0.002",
)
BUILDING = ReportedRuntime(
    name="onnxruntime-cpu",
    precision="fp32",
    reason="serves until the engine is ready",
    building="building a TensorRT engine (tactics)",
    building_percent=42.0,
)
