"""The model package: a folder whose ``manifest.json`` names every file by its SHA-256.

The manifest's own SHA-256 is the *package digest*: the one name under which device, server and trainer speak of a
released model. TUF signs the manifest as a target; the manifest vouches for the files.
"""

from __future__ import annotations

import enum
import hashlib
import posixpath
import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

from edge_agent.contract.errors import ManifestError
from edge_agent.contract.names import check_digest, check_name, check_version
from edge_agent.contract.quantities import Amount, Count, Name, Share
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.signature import Signature

MANIFEST_FILE = "manifest.json"
REFERENCE_FILE = "reference.profile"
GOLDEN_FILE = "golden.npz"
EVALUATION_FILE = "evaluation.json"
CARD_FILE = "card.md"
PARITY_FILE = "parity.json"
TENSORS_FILE = "tensors.json"
FULL_PRECISION = "fp32"
INT8 = "int8"
FORMAT_MAJOR = 1


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the package."""

    sha256: str
    size_bytes: Count


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One form of the model.

    Args:
        model: The ONNX file.
        data: Files of external weights beside it.
    """

    model: str
    data: tuple[str, ...] = ()


class Lineage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the weights are a function of.

    Args:
        dataset: Digest of the dataset version.
        code_sha256: Digest of the recipe's files; of a pipeline, of its steps' package digests, one a line.
        seed: Seed of the training run.
        run: Identifier of the training run.
        trained_at: RFC 3339 time, UTC.
        inputs: Digest of all that the weights follow from: where it is the same, so are they, on the same machine.
        content: Digest of the rows themselves, which another version of the lake may hold unchanged.
        samples_version, labels_version, replay_version: Of the lake's tables.
        labels_until_ms: Labels given later were not known; None where all of that version were.
        champion: Digest of the package that was to be beaten, whether or not training started from its weights.
        processes: How many trained together, on which the last bits of the weights depend.
        trainer_sha256: Digest of the code that trains, beside the recipe's.
    """

    dataset: str
    code_sha256: str
    lock_sha256: str
    seed: int
    run: str
    trained_at: str
    inputs: str | None = None
    content: str | None = None
    samples_version: int | None = None
    labels_version: int | None = None
    replay_version: int | None = None
    labels_until_ms: int | None = None
    champion: str | None = None
    processes: int | None = None
    trainer_sha256: str | None = None


class Classification(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="classification"):
    """The task of telling classes apart.

    Args:
        output: Name of the output with the probabilities, float32[N, classes].
        labels: Class names, in the order of that output's last axis.
    """

    output: str
    labels: tuple[str, ...]


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What the model needs; checked before the download."""

    memory_bytes: Count = 0
    disk_bytes: Count = 0


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """What a device must be for the model to run there; checked before the download. What is left out is not asked.

    Args:
        architectures: ``x86_64``, ``aarch64``: one of them.
        accelerators: Kinds of accelerator, one of them; a device without any is ``cpu``.
        runtimes: By runtime (``onnxruntime``, ``tensorrt``) the lowest version that can run it.
    """

    architectures: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()
    runtimes: dict[str, str] = {}


class Objectives(msgspec.Struct, frozen=True, kw_only=True):
    """The service level that the model's makers promise (SLO). Devices report latencies to hold against it.

    Args:
        p99_ms: Inference time that 99 % of the requests stay under; None sets no limit.
    """

    p99_ms: Amount | None = None


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """How a candidate answers live traffic beside the model that serves, before it takes its place.

    Its answers go to nobody. Limits that are None are not asked.

    Args:
        seconds: Longest that it shadows; 0 leaves the step out. With too few rows by then it goes on to probation.
        rows: Rows after which it is judged, if they come earlier.
        min_agreement: Least share of rows on which both name the same class.
        max_latency_ratio: Most that its median inference may take, in times of the other's on the same rows.
        max_memory_ratio: Most memory that it may take, in times of the other's.
    """

    seconds: Amount = 0.0
    rows: Annotated[int, msgspec.Meta(ge=1)] = 200
    min_agreement: Share | None = None
    max_latency_ratio: Annotated[float, msgspec.Meta(gt=0.0)] | None = None
    max_memory_ratio: Annotated[float, msgspec.Meta(gt=0.0)] | None = None


class Probation(msgspec.Struct, frozen=True, kw_only=True):
    """How a device watches a new version before it commits to it. Limits that are None are not asked.

    Args:
        seconds: How long it is watched after the swap, the agent's restarts left out.
        max_error_rate: Share of failed inferences above which the device rolls back by itself.
        min_requests: Requests before which no rate, latency or shift is judged.
        max_latency_ratio: Most that its median inference may take, in times of what the one before it took here.
        max_prediction_shift: Most that the shares of the predicted classes may differ from those of the one before it
            on this device: total variation distance, 0..1; judged only where it is significant.
    """

    seconds: Amount = 10.0
    max_error_rate: Share = 0.01
    min_requests: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_latency_ratio: Annotated[float, msgspec.Meta(gt=0.0)] | None = None
    max_prediction_shift: Share | None = None


class Overflow(str, enum.Enum):
    """What becomes of requests beyond what a queue holds."""

    REJECT = "reject"
    DROP_OLDEST = "drop-oldest"


class Batching(msgspec.Struct, frozen=True, kw_only=True):
    """How the device puts requests together into batches of this model.

    Args:
        max_rows: Rows of the largest batch; a longer request runs alone.
        preferred_rows: Sizes at which a batch goes at once, ascending; others wait ``max_delay_us`` for company.
        max_delay_us: Longest that a request waits for others, in microseconds; 0 takes only what waits already.
        max_queue: Requests that may wait, of one row or of several: below ``max_rows`` it bounds batches of requests
            of one row.
        overflow: Whether a request beyond them is refused, or takes the place of the oldest of the least urgent.
        timeout_us: Longest that a request may wait where it says nothing itself; 0 sets no limit.
    """

    max_rows: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16
    preferred_rows: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] = ()
    max_delay_us: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    max_queue: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 64
    overflow: Overflow = Overflow.REJECT
    timeout_us: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        rows = self.preferred_rows
        if list(rows) != sorted(set(rows)) or (rows and rows[-1] > self.max_rows):
            raise ManifestError(
                f"batching: preferred_rows must ascend and stay within max_rows {self.max_rows}, got {list(rows)}"
            )


class PipelineStep(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a pipeline.

    Tensors travel by name through one pool, which begins with the pipeline's own inputs and must end with its outputs.

    Args:
        model: Another model of this device, by name.
        version: One version of it; None takes whichever serves.
        inputs: For each input of that model the name of the tensor in the pool; left out, the input's own name.
        outputs: For each output the name under which it enters the pool; left out, the output's own name.
    """

    model: Name
    version: str | None = None
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What ``manifest.json`` says.

    Args:
        format: ``major.minor`` of this structure; unknown members are ignored, an unknown major is refused.
        name: Model name.
        version: Version, unique within the model.
        parent: Package digest of the version this one was trained from; None for the first.
        slices: Names of the slices the evaluation reports.
        variants: By name; ``fp32`` is always there, but for a pipeline, which has none. A device may serve another in
            its place where the package holds that variant's own golden samples (:func:`golden_file`).
        batching: None runs each request by itself.
        pipeline: Models that are run one after the other in place of one of its own.
        max_run_s: Seconds after which an inference counts as hung, and is broken off.
        files: Every other file of the package, by path relative to the manifest.
    """

    name: str
    version: str
    lineage: Lineage
    signature: Signature
    task: Classification
    variants: dict[str, Variant]
    files: dict[str, FileEntry]
    format: str = "1.0"
    parent: str | None = None
    slices: tuple[str, ...] = ()
    sampling: SamplingPolicy = SamplingPolicy()
    resources: Resources = Resources()
    requires: Requirements = Requirements()
    objectives: Objectives = Objectives()
    shadow: Shadow = Shadow()
    probation: Probation = Probation()
    batching: Batching | None = None
    pipeline: tuple[PipelineStep, ...] = ()
    max_run_s: Annotated[float, msgspec.Meta(gt=0.0, le=86_400.0)] = 30.0

    def __post_init__(self) -> None:
        check_name(self.name, "model")
        check_version(self.version)
        if self.parent is not None:
            check_digest(self.parent, "parent")
        _check_files(self.files)
        if self.pipeline and (self.variants or any(step.model == self.name for step in self.pipeline)):
            raise ManifestError("pipeline: a pipeline has no variants of its own, and does not run itself")
        if not self.pipeline and "fp32" not in self.variants:
            raise ManifestError(f"variants: 'fp32' is missing, got {sorted(self.variants)}")
        for name, variant in self.variants.items():
            check_name(name, "variant")
            for path in (variant.model, *variant.data):
                if path not in self.files:
                    raise ManifestError(f"variant '{name}' names {path!r}, which is not among the files")
        _check_task(self.task, self.signature)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files beside the manifest."""
        return sum(entry.size_bytes for entry in self.files.values())


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in the bytes of ``manifest.json``.

    Raises:
        ManifestError: It is no manifest, breaks a rule, or is of a major format that this code does not know.
    """
    try:
        _check_format(msgspec.json.decode(data, type=_Format).format)
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ManifestError) as error:
        raise ManifestError(f"{MANIFEST_FILE}: {error}") from error


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``: equal manifests give the same bytes, so that the digest is a name.

    Raises:
        ManifestError: It could not be read back.
    """
    # Through the decoder once: an integer where the type says float would be written as one, and equal 1 and 1.0
    # would have two digests.
    plain = decode_manifest(msgspec.json.encode(manifest))
    return msgspec.json.format(msgspec.json.encode(plain, order="deterministic"), indent=1) + b"\n"


def golden_file(variant: str) -> str:
    """Path within a package of what a variant answered when it was made.

    Beside ``fp32`` a variant need not have one; one that has was found good enough to serve in its place.
    """
    return GOLDEN_FILE if variant == FULL_PRECISION else f"{variant}/{GOLDEN_FILE}"


def digest_of(data: bytes) -> str:
    """SHA-256 in lowercase hexadecimal; of a manifest's bytes it is the package digest."""
    return hashlib.sha256(data).hexdigest()


_SEGMENT = re.compile("[A-Za-z0-9._+=@-]{1,255}")


class _Format(msgspec.Struct):
    format: str


def _check_format(found: str) -> None:
    if found.partition(".")[0] != str(FORMAT_MAJOR):
        raise ManifestError(
            f"format {found!r:.40} is not known here; this code reads {FORMAT_MAJOR}.x: update the agent"
        )


def _check_files(files: Mapping[str, FileEntry]) -> None:
    for path, entry in files.items():
        _check_path(path)
        check_digest(entry.sha256, path)
        if entry.size_bytes < 0:
            raise ManifestError(f"{path}: size_bytes {entry.size_bytes} is negative")
        folder = posixpath.dirname(path)
        while folder:
            if folder in files or folder == MANIFEST_FILE:
                raise ManifestError(f"file {path!r}: {folder!r} is a file, and cannot be a folder too")
            folder = posixpath.dirname(folder)


def _check_path(path: str) -> None:
    segments = path.split("/")
    safe = all(_SEGMENT.fullmatch(segment) and segment not in {".", ".."} for segment in segments)
    if not safe or path == MANIFEST_FILE or len(path) > 512:
        raise ManifestError(
            f"file {path!r:.80}: use a relative path inside the package, of a-z, A-Z, 0-9 and '._+=@-' between '/', "
            f"without '..', other than {MANIFEST_FILE}"
        )


def _check_task(task: Classification, signature: Signature) -> None:
    output = next((spec for spec in signature.outputs if spec.name == task.output), None)
    if output is None:
        raise ManifestError(f"task: output {task.output!r} is not in the signature")
    if output.datatype.numpy.kind != "f" or len(output.shape) != 2:
        raise ManifestError(
            f"task: output {task.output!r} is {output.datatype.value} with {len(output.shape)} axes; "
            "probabilities are floats of shape [N, classes]"
        )
    if not task.labels or len(set(task.labels)) != len(task.labels):
        raise ManifestError(f"task: needs at least one label and none twice, got {list(task.labels)}")
    if output.shape[-1] not in (None, len(task.labels)):
        raise ManifestError(f"task: {len(task.labels)} labels for a last axis of {output.shape[-1]}")
    if output.labels not in (None, task.labels):
        raise ManifestError(f"task: its labels differ from those of output {task.output!r} in the signature")
