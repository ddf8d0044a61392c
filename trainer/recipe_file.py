"""The tables of a recipe's ``model.toml``, checked as they are read."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, Literal

import msgspec

from edge_agent.contract.constraint import Encoding, ImageFormat, Policy, Rule, Sensitivity
from edge_agent.contract.errors import ManifestError
from edge_agent.contract.manifest import Batching, Objectives, Probation, Requirements, Resources, Shadow
from edge_agent.contract.profile import Projection
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from trainer.front_end import check_text
from trainer.recipe_tensors import Table, TensorTable

_CHOICES = {
    r"\.projection`": tuple(projection.value for projection in Projection),
    r"\.datatype`": tuple(datatype.value for datatype in Datatype),
    r"\.slices": ("device", "class"),
    r"\.task\.kind`": ("classification",),
    r"\.gates\.int8`": ("auto", "off"),
    r"\.release\.update`": ("quantised", "exact"),
    r"\.class_weights`": ("none", "sqrt", "balanced"),
    r"\.precision`": ("auto", "32", "bf16-mixed", "16-mixed"),
    r"\.accelerator`": ("auto", "cpu", "gpu"),
    r"\.engine`": ("local", "ray", "launch"),
    r"`key` in `.*\.policies`": tuple(rule.value for rule in Rule),
    r"\.policies\[\.\.\.\]`": tuple(policy.value for policy in Policy),
    r"\.encoding`": tuple(encoding.value for encoding in Encoding),
    r"\.formats\[": tuple(form.value for form in ImageFormat),
    r"\.sensitivity`": tuple(sensitivity.value for sensitivity in Sensitivity),
}


def with_choices(message: str) -> str:
    """What msgspec found wrong with ``model.toml``, and what is allowed where it was one of a few words."""
    for where, kind in _CHOICES.items():
        if "nvalid enum value" in message and re.search(where, message):
            return f"{message}; allowed are: {', '.join(kind)}"
    return message


class Dataset(Table, frozen=True, kw_only=True):
    """``[dataset]``: which labelled rows are held out, and which of them count as the world of today.

    Args:
        holdout_share: Share of the groups that is never trained on.
        split: What decides on which side a row falls: the hash of its group or of its device, or its time (the newest
            are held out). Imported rows go by their group. Rows of one group are on one side, whatever the rule.
        duplicates: ``drop``: a row whose very inputs are held out too is not trained on, unless most rows are repeats.
        memory_mib: Inputs that need more than this lie on disk while a model is made.
        judged_rows: Held-out rows that a model is judged on at most, drawn by the hash of their group; fewer where
            memory_mib does not hold them.
        current_days: Field rows older than this, counted from the newest, are not of today.
        current_rows: Held-out rows of today that a comparison needs.
    """

    holdout_share: float = 0.25
    split: Literal["group", "device", "time"] = "group"
    duplicates: Literal["drop", "keep"] = "drop"
    memory_mib: float = 1024.0
    judged_rows: int = 20_000
    current_days: float = 30.0
    current_rows: int = 30

    def __post_init__(self) -> None:
        if not 0.05 <= self.holdout_share <= 0.5:
            raise ValueError(f"holdout_share must lie in 0.05..0.5, got {self.holdout_share}")
        if self.memory_mib <= 0 or self.judged_rows < 1:
            raise ValueError(f"memory_mib and judged_rows must be above 0: {self.memory_mib}, {self.judged_rows}")


class Replay(Table, frozen=True, kw_only=True):
    """``[[replay]]``: labelled rows that are never trained on and that no later model may regress on.

    Rows must meet every condition that is given.

    Args:
        name: What the slice is called.
        why: For a person: what happened then.
        requests: Of rows, ``DEVICE/REQUEST``.
        since, until: When the device was asked, as text: ``"2025-03-01"`` or ``"2025-03-01T12:00:00Z"``; ``until`` is
            the first moment that is out.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    why: str = ""
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    since: str = ""
    until: str = ""

    def __post_init__(self) -> None:
        chosen = (self.devices, self.groups, self.labels, self.packages, self.requests, self.since, self.until)
        if not any(chosen):
            raise ValueError(f"replay '{self.name}' names no rows; give devices, groups, labels, since ...")
        for name in ("since", "until"):
            moment_ms(getattr(self, name))


class Loggers(Table, frozen=True, kw_only=True):
    """``[training.loggers]``: where a run's metrics go besides, read by what a team has already.

    Args:
        tensorboard: A folder, relative to where the run is started.
        mlflow: URI of a tracking server or store: ``http://...``, ``sqlite:///...``.
        experiment: What MLflow calls the runs together; left out, the model's name.
    """

    tensorboard: str = ""
    mlflow: str = ""
    experiment: str = ""


def moment_ms(text: str) -> int | None:
    """A day or a moment, UTC unless it says otherwise, in milliseconds since the epoch; None where there is none.

    Raises:
        ValueError: It is neither.
    """
    if not text:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a day, 2025-03-01, nor a moment, 2025-03-01T12:00:00Z") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() * 1000)


class Training(Table, frozen=True, kw_only=True):
    """``[training]``.

    Args:
        epochs, learning_rate: Of the first model.
        finetune_epochs, finetune_learning_rate: Of every later one, which starts from the champion's weights.
        patience: Epochs without a better validation loss after which training stops.
        base_weight: Weight of an imported row beside the field's rows, in a fine-tune.
        current_weight: Weight of a row of today's world beside older field rows, in a fine-tune.
        field_rows: Labelled rows of today's world without which there is nothing to learn from.
        threads: Threads that each process may use.
        class_weights: How far rare classes are raised: not at all, half-way, or until all count alike.
        precision: ``auto``: bfloat16 beside float32 where a GPU has it, else float32.
        processes: How many train together; ``batch_size`` rows make a step at any number of them.
        device_rows: Rows that one process takes at once; a step of more is made of several (0: all of its share).
        engine: ``local`` processes; ``ray``: an existing cluster; ``launch``: whatever command the operator gives.
        checkpoint_s: Seconds between checkpoints within an epoch; an epoch that is not very short ends with one.
        step_timeout_s: Seconds after which a single batch counts as hung; 0: never.
        restarts: How often processes that died are started again.
        options: What the recipe's own ``Model`` is given besides.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 64
    finetune_epochs: int
    finetune_learning_rate: float
    patience: int = 6
    base_weight: float = 0.5
    current_weight: float = 1.5
    field_rows: int = 40
    threads: int = 1
    class_weights: Literal["none", "sqrt", "balanced"] = "sqrt"
    precision: Literal["auto", "32", "bf16-mixed", "16-mixed"] = "auto"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    processes: int = 1
    device_rows: int = 0
    engine: Literal["local", "ray", "launch"] = "local"
    checkpoint_s: float = 60.0
    step_timeout_s: float = 600.0
    restarts: int = 3
    loggers: Loggers = Loggers()
    options: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        positive = ("epochs", "finetune_epochs", "learning_rate", "finetune_learning_rate", "batch_size", "threads")
        for name in (*positive, "processes", "checkpoint_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.processes > self.batch_size:
            raise ValueError(f"batch_size is {self.batch_size}: fewer rows than the {self.processes} processes")
        free = ("patience", "base_weight", "current_weight", "field_rows", "device_rows", "restarts", "step_timeout_s")
        for name in free:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be below 0, got {getattr(self, name)}")


class Gates(Table, frozen=True, kw_only=True):
    """``[gates]``: what a challenger must show before it is released. Accuracies and differences lie in 0..1.

    Args:
        min_accuracy: Of the first model on held-out rows.
        min_improvement: Over the champion on held-out rows of today's world.
        confidence: Of the interval of the difference, two-sided.
        max_base_regression: How much may be lost on the imported rows.
        max_slice_regression: How much may be lost on a slice before evidence of a loss refuses the challenger.
        slice_rows: Rows that a slice needs before it is judged.
        max_replay_regression: How much may be lost on a replay slice; there chance is no excuse.
        int8: ``auto`` adds an int8 form where it is faster and within its budget; ``off`` never does.
        int8_budget: How much the int8 form may lose against full precision on held-out rows.
        int8_speedup: How many times faster it must be on a single row.
        max_p99_ms: Of the inference of a single row, on the trainer's machine; None sets no limit, here and below.
        max_memory_mib: What the loaded model may take.
        max_size_mib: Of the files that a device downloads.
    """

    min_accuracy: float = 0.5
    min_improvement: float = 0.01
    confidence: float = 0.9
    max_base_regression: float = 0.03
    max_slice_regression: float = 0.05
    slice_rows: int = 15
    max_replay_regression: float = 0.0
    int8: Literal["auto", "off"] = "auto"
    int8_budget: float = 0.01
    int8_speedup: float = 1.2
    max_p99_ms: float | None = None
    max_memory_mib: float | None = None
    max_size_mib: float | None = None

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must lie in 0.5..1, got {self.confidence}")
        shares = ("min_accuracy", "min_improvement", "max_base_regression", "max_slice_regression")
        for name in (*shares, "max_replay_regression", "int8_budget"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if self.int8_speedup < 1:
            raise ValueError(f"int8_speedup must be at least 1, got {self.int8_speedup}")
        for name in ("max_p99_ms", "max_memory_mib", "max_size_mib"):
            limit = getattr(self, name)
            if limit is not None and limit <= 0:
                raise ValueError(f"{name} must be above 0, got {limit}")


class Release(Table, frozen=True, kw_only=True):
    """``[release]``: how a new version's weights travel to devices that have the one it was trained from.

    Args:
        update: ``quantised``: what changed is rounded as coarsely as the limits below allow, so that it takes a few
            bits per weight; ``exact``: weights are released as they were trained.
        update_budget: How much the rounded weights may lose against the exact ones on held-out rows (two rows where
            these are few), unless it is shown not to be chance.
        update_distance: How far their answers may be from the exact ones' on average: of probabilities the total
            variation (0..1), of other numbers the difference in standard deviations.
    """

    update: Literal["quantised", "exact"] = "quantised"
    update_budget: float = 0.005
    update_distance: float = 0.01

    def __post_init__(self) -> None:
        for name in ("update_budget", "update_distance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")


class WatchedFeature(Table, frozen=True, kw_only=True):
    """``[[monitoring.features]]``: a number per row that devices count.

    Args:
        tensor: Name of an input or output.
        index: For ``element``: which one of the flattened row.
    """

    tensor: str
    projection: Projection
    name: str = ""
    index: int = 0

    @property
    def full_name(self) -> str:
        """What the profile calls it: its name, else ``TENSOR.PROJECTION``."""
        return self.name or f"{self.tensor}.{self.projection.value}"


class Monitoring(Table, frozen=True, kw_only=True):
    """``[monitoring]``."""

    features: tuple[WatchedFeature, ...]


class Task(Table, frozen=True, kw_only=True):
    """``[task]``."""

    kind: Literal["classification"]
    output: str


class BatchingTable(Batching, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``batching``."""


class RecipeFile(Table, frozen=True, kw_only=True):
    """All of ``model.toml``.

    Args:
        name: Name of the model; that of the folder too.
        title: What it does, in a few words.
        slices: ``device`` and ``class``: by which the evaluation is broken down.
        batching: How devices put requests together; left out, each runs by itself.
        max_run_s: Seconds after which a device breaks an inference off.
    """

    name: str
    title: str
    inputs: tuple[TensorTable, ...]
    outputs: tuple[TensorTable, ...]
    task: Task
    training: Training
    monitoring: Monitoring
    slices: tuple[Literal["device", "class"], ...] = ("device", "class")
    dataset: Dataset = Dataset()
    replay: tuple[Replay, ...] = ()
    gates: Gates = Gates()
    release: Release = Release()
    sampling: SamplingPolicy = SamplingPolicy()
    resources: Resources = Resources()
    objectives: Objectives = Objectives()
    shadow: Shadow = Shadow()
    probation: Probation = Probation()
    requires: Requirements = Requirements()
    batching: BatchingTable | None = None
    max_run_s: Annotated[float, msgspec.Meta(gt=0.0, le=86_400.0)] = 30.0

    def __post_init__(self) -> None:
        try:
            signature = self.signature()
        except ManifestError as error:
            raise ValueError(str(error)) from error
        output = next((spec for spec in signature.outputs if spec.name == self.task.output), None)
        if output is None or not output.labels:
            raise ValueError(f"task.output '{self.task.output}' must be an output with labels")
        for spec in signature.inputs:
            check_text(spec)
        tensors = {spec.name: spec.datatype for spec in (*signature.inputs, *signature.outputs)}
        for feature in self.monitoring.features:
            if feature.tensor not in tensors:
                raise ValueError(f"monitoring: '{feature.tensor}' is no input or output; there are: {sorted(tensors)}")
            if tensors[feature.tensor] is Datatype.BYTES:
                raise ValueError(f"monitoring: '{feature.tensor}' is text, of which {feature.projection.value} is none")
        names = [feature.full_name for feature in self.monitoring.features]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"monitoring: two features are called {', '.join(twice)}; give each a name")

    def signature(self) -> Signature:
        """Inputs and outputs as the contract writes them."""
        return Signature(
            inputs=tuple(table.spec() for table in self.inputs), outputs=tuple(table.spec() for table in self.outputs)
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the task's output."""
        output = next(table for table in self.outputs if table.name == self.task.output)
        return output.labels or ()
