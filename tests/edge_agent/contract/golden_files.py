"""The bytes that cross machines, one file each under ``golden/``: what was sent once must be readable for good.

``python -m tests.edge_agent.contract.golden_files`` from the repository's root writes them again; review the
difference as an incompatible change: a file that changes means that fielded devices send something else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from edge_agent.contract import lake, latency
from edge_agent.contract.constraint import (
    AxisLimit,
    Constraint,
    DateFormat,
    Encoding,
    ImageFormat,
    ImageLimits,
    NumberFormat,
    Policy,
    Rule,
    Sensitivity,
)
from edge_agent.contract.enrolment import BrokerAddress, Enrolment, EnrolmentRequest, EnrolmentRoots
from edge_agent.contract.envelope import Envelope, Message, encode
from edge_agent.contract.manifest import (
    Classification,
    FileEntry,
    Lineage,
    Manifest,
    Objectives,
    Resources,
    Variant,
    encode_manifest,
)
from edge_agent.contract.messages import (
    Ack,
    Desired,
    DesiredModel,
    DeviceMetrics,
    Event,
    EventKind,
    GpuMetrics,
    Hardware,
    Label,
    LabelBatch,
    MetricsReport,
    ModelMetrics,
    ProfileReport,
    Reported,
    ReportedModel,
    ReportedRuntime,
    Sample,
    SampleBatch,
    SampleReason,
    Status,
    UpdateStep,
)
from edge_agent.contract.profile import Feature, FeatureCounts, Projection, ReferenceProfile, encode_profile
from edge_agent.contract.repository import AssignedHardware, Assignment
from edge_agent.contract.runs import RunFile, RunProgress, RunResult, RunState
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype, Tensor
from edge_agent.contract.topics import Stream
from tests.edge_agent.contract.golden_frames import golden_frames

FOLDER = Path(__file__).parent / "golden"

AT_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
PACKAGE = "5f" * 32
HARDWARE = Hardware(
    architecture="aarch64",
    system="Linux 6.8",
    accelerator="orin-nano",
    runtimes={"onnxruntime": "1.23.2", "tensorrt": "10.3.0"},
    memory_bytes=8_000_000_000,
    cpus=6,
)
BODIES: dict[Stream, Message] = {
    Stream.EVENTS: Event(
        kind=EventKind.UPDATE_FAILED,
        at_ms=AT_MS,
        model="digits",
        package=PACKAGE,
        reason="self-test: 3 of 64 golden samples differ",
        detail={"step": "self-tested", "worst": 0.25, "samples": [3, 17, 40], "shadow": None},
    ),
    Stream.LABELS: LabelBatch(
        model="digits",
        labels=(
            Label(
                request_id="r-1",
                package=PACKAGE,
                label="7",
                prediction="1",
                confidence=0.625,
                inclusion_probability=0.5,
                at_ms=AT_MS,
                labelled_at_ms=AT_MS + 60_000,
            ),
            Label(
                request_id="r-2",
                package=PACKAGE,
                label="größer",
                prediction="1",
                confidence=0.5,
                inclusion_probability=0.0,
                at_ms=AT_MS,
                labelled_at_ms=AT_MS + 61_000,
                source="ada",
            ),
        ),
    ),
    Stream.METRICS: MetricsReport(
        from_ms=AT_MS,
        until_ms=AT_MS + 10_000,
        models=(
            ModelMetrics(
                model="digits",
                version="2",
                package=PACKAGE,
                requests=300,
                rows=70_000,
                refused=2,
                failed=1,
                latency_counts=(0,) * 9 + (250, 49, 1) + (0,) * (latency.BUCKETS - 12),
            ),
        ),
        machine=DeviceMetrics(
            cpu_percent=12.5,
            resident_bytes=61_000_000,
            disk_free_bytes=2**40,
            outbox_messages=4,
            gpus=(GpuMetrics(name="Orin", busy_percent=43.0, clock_mhz=306.0, throttled=("over-current",)),),
            power_w=7.25,
            energy_j=72.5,
            power_mode="15W",
        ),
    ),
    Stream.PROFILES: ProfileReport(
        model="digits",
        package=PACKAGE,
        from_ms=AT_MS,
        until_ms=AT_MS + 10_000,
        rows=20,
        counts={
            "confidence": FeatureCounts(bins=(10, 10), total=14.5, squares=11.25),
            "image.std": FeatureCounts(
                bins=(0, 9, 3), under=1, over=2, nan=3, inf=1, missing=1, total=6.0, squares=4.0
            ),
        },
    ),
    Stream.SAMPLES: SampleBatch(
        model="digits",
        samples=(
            Sample(
                request_id="r-1",
                package=PACKAGE,
                at_ms=AT_MS,
                reason=SampleReason.MARGIN,
                inclusion_probability=0.125,
                prediction="1",
                confidence=0.625,
                margin=0.25,
                inputs={
                    "image": Tensor.of(np.arange(6, dtype=np.float32).reshape(1, 2, 3)),
                    "note": Tensor.of(np.array([[b"\x00raw", "größer".encode(), b""]], dtype=object)),
                },
                outputs={"probabilities": Tensor.of(np.array([[0.375, 0.625]], dtype=np.float16))},
                group="camera-3",
                label_wanted=True,
            ),
        ),
    ),
}
TWINS: dict[str, Message] = {
    "ack": Ack(epoch="0f3c9a", watermarks={"metrics": 70_000, "samples": 3}),
    "desired": Desired(
        revision=12,
        models={"digits": DesiredModel(version="3", package=PACKAGE, release=4, rollout="rollout-7")},
        sampling={"digits": SamplingPolicy(samples_per_minute=30.0, labels_per_minute=2.0)},
        report_interval_s=5.0,
    ),
    "reported": Reported(
        agent_version="0.1.0",
        started_at_ms=AT_MS,
        desired_revision=11,
        hardware=HARDWARE,
        models={
            "digits": ReportedModel(
                version="2",
                package=PACKAGE,
                step=UpdateStep.PROBATION,
                target="6e" * 32,
                release=4,
                rollout="rollout-7",
                requests=128,
                failed=0,
                runtime=ReportedRuntime(
                    name="tensorrt",
                    precision="fp16",
                    reason="0.9 ms, onnxruntime-cpu 6.1 ms",
                    building="refitting",
                    building_percent=12.5,
                ),
                waits_until_ms=AT_MS + 3_600_000,
                retries=True,
            )
        },
        api="http://127.0.0.1:8080",
    ),
    "status-offline": Status(online=False, at_ms=AT_MS),
    "status-online": Status(online=True, at_ms=AT_MS),
}
ENVELOPES: dict[Stream, Envelope] = {
    stream: Envelope(
        fleet="harbour",
        device="crane-3",
        epoch="0f3c9a",
        stream=stream,
        sequence=41 + number,
        previous=40,
        sent_at_ms=AT_MS + 1,
        body=msgspec.Raw(encode(body)),
    )
    for number, (stream, body) in enumerate(BODIES.items())
}
# As a later agent may send it: fields we do not know at the top, within a known structure, and called like our own.
FROM_THE_FUTURE: dict[str, Any] = {
    "schema": "1.9",
    "online": True,
    "at_ms": AT_MS,
    "battery": {"percent": 71, "charging": False},
    "neighbours": ["crane-2", "crane-4"],
    "unknown": {"online": False, "trap": 1},
}
INCOMPATIBLE: dict[str, Any] = {"schema": "2.0", "state": "online", "at_ms": AT_MS}

MANIFEST = Manifest(
    name="digits",
    version="3",
    parent="6e" * 32,
    lineage=Lineage(
        dataset="d1" * 32,
        code_sha256="c0" * 32,
        lock_sha256="10" * 32,
        seed=7,
        run="run-9",
        trained_at="2026-01-01T00:00:00Z",
    ),
    signature=Signature(
        inputs=(
            TensorSpec(
                name="image",
                datatype=Datatype.FP32,
                shape=(None, 1, 8, 8),
                constraint=Constraint(minimum=0, maximum=1, nullable=True, fill=0.5, sensitivity=Sensitivity.MASKED),
            ),
            TensorSpec(
                name="shift",
                datatype=Datatype.BYTES,
                shape=(None, 1),
                constraint=Constraint(allowed=("day", "night"), unit="1"),
            ),
        ),
        outputs=(TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(None, 2), labels=("ja", "nö")),),
    ),
    task=Classification(output="probabilities", labels=("ja", "nö")),
    variants={
        "fp32": Variant(model="model.onnx", data=("model.onnx.data",)),
        "int8": Variant(model="int8/model.onnx"),
    },
    files={
        "model.onnx": FileEntry(sha256="a1" * 32, size_bytes=4_096),
        "model.onnx.data": FileEntry(sha256="a2" * 32, size_bytes=1_048_576),
        "int8/model.onnx": FileEntry(sha256="a3" * 32, size_bytes=262_144),
    },
    slices=("night",),
    resources=Resources(memory_bytes=64_000_000, disk_bytes=2_000_000),
    objectives=Objectives(p99_ms=20.0),
)
# As a trainer writes them that says what training again needs.
FULL_LINEAGE = msgspec.structs.replace(
    MANIFEST,
    lineage=msgspec.structs.replace(
        MANIFEST.lineage,
        inputs="1e" * 32,
        content="c1" * 32,
        samples_version=12,
        labels_version=9,
        replay_version=3,
        labels_until_ms=AT_MS,
        champion=PACKAGE,
        processes=2,
        trainer_sha256="7a" * 32,
    ),
)
PROFILE = ReferenceProfile(
    features=(
        Feature(name="confidence", tensor="probabilities", side="output", projection=Projection.CONFIDENCE,
                edges=(0.5, 0.75, 1.0)),
        Feature(name="image.3", tensor="image", side="input", projection=Projection.ELEMENT, index=3,
                edges=(0.0, 0.25, 0.5, 1.0)),
    ),
    counts={
        "confidence": FeatureCounts(bins=(60, 40), total=75.0, squares=58.5),
        "image.3": FeatureCounts(bins=(90, 8, 2), total=12.5, squares=4.25),
    },
    calibration=((0.5, 0.25), (1.0, 0.875)),
    accuracy=0.75,
    margin_threshold=0.125,
    devices={"crane-3": {"image.3": FeatureCounts(bins=(40, 20, 0), over=1, total=8.5, squares=3.25)}},
)  # fmt: skip
ENROLMENT = Enrolment(
    fleet="harbour",
    device="crane-3",
    secret="not-a-secret",
    server="https://fleet.example:8443",
    broker=BrokerAddress(host="fleet.example", port=8883),
    image_root='{"signed": {"_type": "root"}}',
    director_root='{"signed": {"_type": "root"}}',
)
RUN_FILE = RunFile(
    run="run-9",
    model="digits",
    trigger="harm",
    reason="accuracy of crane-3 fell from 0.97 to 0.81",
    logical_time="2026-01-01T00:00:00Z",
    lake="/var/lib/shoal/lake",
    seed=7,
    fence=3,
    samples_version=12,
    champion=PACKAGE,
    champion_version="2",
)
# Every member of every constraint, as manifests have them.
CONSTRAINTS = Signature(
    inputs=(
        TensorSpec(
            name="weight",
            datatype=Datatype.BYTES,
            shape=(None, None),
            constraint=Constraint(
                minimum=0,
                maximum=2000,
                fill="-1",
                unit="kg",
                encoding=Encoding.LATIN_1,
                min_length=1,
                max_length=20,
                axes=(AxisLimit(axis=1, minimum=2, maximum=16),),
                number=NumberFormat(decimal=",", grouping="."),
                policies={Rule.RANGE: Policy.CLIP, Rule.NUMBER: Policy.FILL, Rule.UNIT: Policy.FLAG},
            ),
        ),
        TensorSpec(
            name="measured",
            datatype=Datatype.BYTES,
            shape=(None,),
            constraint=Constraint(date=DateFormat(format="%d.%m.%Y %H:%M", zone="Europe/Berlin"), nullable=True),
        ),
        TensorSpec(
            name="photo",
            datatype=Datatype.BYTES,
            shape=(None,),
            constraint=Constraint(
                image=ImageLimits(
                    formats=(ImageFormat.PNG, ImageFormat.JPEG),
                    min_width=16,
                    max_width=4096,
                    min_height=16,
                    max_height=4096,
                    max_pixels=8_000_000,
                ),
                policies={Rule.IMAGE: Policy.FLAG},
            ),
        ),
    ),
    outputs=(TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(None, 2)),),
)
# What travels as JSON, over HTTP or inside TUF metadata.
JSON: dict[str, msgspec.Struct] = {
    "constraints.json": CONSTRAINTS,
    "assignment.json": Assignment(
        device="crane-3",
        release=4,
        rollout="rollout-7",
        hardware=AssignedHardware(architecture="aarch64", accelerator="Orin", runtimes={"onnxruntime": "1.23.2"}),
    ),
    "enrolment-request.json": EnrolmentRequest(claim="one-time", device="crane-3", hardware=HARDWARE),
    "enrolment.json": ENROLMENT,
    "enrolment-roots.json": EnrolmentRoots(image_root=ENROLMENT.image_root, director_root=ENROLMENT.director_root),
    "run-file.json": RUN_FILE,
    "run-progress.json": RunProgress(fence=3, stage="fit", fraction=0.25, message="epoch 3 of 12"),
    "run-result.json": RunResult(
        fence=3,
        state=RunState.RELEASED,
        reasons=("accuracy 0.97 against 0.81",),
        package=PACKAGE,
        version="3",
        evaluation={"accuracy": 0.97, "slices": {"night": 0.91}},
    ),
}


S = TypeVar("S", bound=msgspec.Struct)


def remade(struct: S, **changes: Any) -> S:
    """The structure with some fields changed, made anew: older msgspec's ``replace`` skips ``__post_init__``."""
    return type(struct)(**{**msgspec.structs.asdict(struct), **changes})


def messages() -> dict[str, Message]:
    """Every message by the name of its golden file, without the ending."""
    bodies = {f"body-{stream.value}": body for stream, body in BODIES.items()}
    envelopes: dict[str, Message] = {f"envelope-{stream.value}": found for stream, found in ENVELOPES.items()}
    return {**bodies, **envelopes, **TWINS}


def golden_files() -> dict[str, bytes]:
    """Every golden file by name."""
    packed = {f"{name}.msgpack": encode(message) for name, message in messages().items()}
    packed["future-1.9-status.msgpack"] = msgspec.msgpack.encode(FROM_THE_FUTURE)
    packed["future-2.0-status.msgpack"] = msgspec.msgpack.encode(INCOMPATIBLE)
    written = {name: msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n" for name, value in JSON.items()}
    columns = {lake.SAMPLES: lake.SAMPLE_COLUMNS, lake.LABELS: lake.LABEL_COLUMNS}
    written["lake-columns.json"] = msgspec.json.format(msgspec.json.encode(columns), indent=1) + b"\n"
    written["manifest.json"] = encode_manifest(MANIFEST)
    written["manifest-full-lineage.json"] = encode_manifest(FULL_LINEAGE)
    written["reference.profile"] = encode_profile(PROFILE)
    return {**packed, **written, **golden_frames()}


def main() -> None:
    """Write them all, and remove those that are no longer made."""
    FOLDER.mkdir(exist_ok=True)
    made = golden_files()
    for path in FOLDER.iterdir():
        if path.name not in made:
            path.unlink()
    for name, data in made.items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
