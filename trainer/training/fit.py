"""Training: from scratch, or from the champion's weights on a mixture of base and field rows.

What a run asks for stands here; how one process trains in :mod:`.loop`, where processes run in :mod:`.engines`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray

from edge_agent.contract.errors import Busy, storage_error
from trainer.data.streaming import MemoryRows, RowSource, StoredRows
from trainer.recipe import Recipe
from trainer.training.batches import EncodedRows
from trainer.training.checkpoints import Checkpoints
from trainer.training.job import CHECKPOINTS_FOLDER, write_job
from trainer.training.loop import Job, Learned, Place, learn
from trainer.training.plan import Compute, Plan, Progress
from trainer.training.watch import StallWatch

if TYPE_CHECKING:
    from trainer.data.dataset import Dataset

_KEY_LENGTH = 16
_LOCK_FILE = "lock"
# How far a rare class is raised, and a frequent one lowered, at most.
_CLIPS = {"sqrt": (0.5, 2.0), "balanced": (0.1, 10.0)}


@dataclass(frozen=True)
class Fitted:
    """A trained network.

    Args:
        network: In evaluation mode, with the weights of its best epoch and the recipe's transform before it.
        epochs: Epochs run.
        validation_loss: Of the best epoch.
        warm: Whether it started from the champion's weights.
    """

    network: pl.LightningModule
    epochs: int
    validation_loss: float
    warm: bool


def fit(
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int,
    start: Mapping[str, NDArray[Any]] | None = None,
    progress: Progress = lambda _fraction, _message, _metrics: None,
    checkpoints: Path | None = None,
    compute: Compute | None = None,
    run: str = "",
) -> Fitted:
    """Train the recipe's network; the same arguments give the same weights on the same machine.

    Args:
        start: Weights by name to begin with; None trains from scratch.
        progress: Told the share of the epochs done, the loss in words, and the newest metrics by name.
        checkpoints: A folder that outlives this process: a training that was interrupted goes on from what lies there,
            and comes to the weights that it would have come to without. None: only while this process lives.
        compute: Where the processes run; None: as the recipe says.
        run: What loggers call it.
    Raises:
        TrainerError: The weights do not fit the network, the recipe fails or hangs, or a loss is not finite.
        StorageFull: No room for a checkpoint.
        Busy: Another process trains the same in ``checkpoints``.
    """
    compute = compute or Compute.of(recipe)
    weights = row_weights(recipe, dataset, warm=start is not None)
    stopping = dataset.validation if dataset.validation.any() else dataset.train
    training, validation = (_source(recipe, dataset, mask, weights) for mask in (dataset.train, stopping))
    plan = Plan.make(
        recipe, content=_content(dataset, weights), seed=seed, start=start, loggers=compute.loggers, run=run
    )
    job = Job(plan=plan, recipe=recipe, training=training, validation=validation, start=start)
    alone = compute.engine == "local" and compute.processes == 1
    if checkpoints is None and alone:
        learned = _alone(job, None, progress)
    else:
        with _folder(checkpoints, plan.key, progress) as folder:
            kept = Checkpoints(folder / CHECKPOINTS_FOLDER)
            if kept.finished() is not None:
                progress(1.0, "trained already, by an earlier attempt at the same", {})
            elif alone:
                _alone(job, kept, progress)
            else:
                write_job(folder, job, carried=compute.engine == "ray")
                _together(folder, plan, compute, progress, restarts=recipe.file.training.restarts)
            learned = Learned.of(kept.finished())
    network = recipe.network(learning_rate=plan.learning_rate, epochs=plan.epochs)
    network.load_state_dict(learned.weights)
    network = recipe.released(network.eval())
    return Fitted(network=network, epochs=learned.epochs, validation_loss=learned.loss, warm=plan.warm)


def _alone(job: Job, checkpoints: Checkpoints | None, progress: Progress) -> Learned:
    watch = StallWatch(job.plan.step_timeout_s)
    return learn(job, place=Place(), checkpoints=checkpoints, progress=progress, watch=watch)


def _together(folder: Path, plan: Plan, compute: Compute, progress: Progress, *, restarts: int) -> None:
    if compute.engine == "ray":
        from trainer.training.engines.ray import run_on_ray

        run_on_ray(folder, plan, compute, progress, restarts=restarts)
        return
    from trainer.training.engines.processes import run_launched, run_local

    if compute.engine == "launch":
        run_launched(folder, compute, progress)
    else:
        run_local(folder, plan, compute, progress, restarts=restarts)


def row_weights(recipe: Recipe, dataset: Dataset, *, warm: bool) -> NDArray[np.float64]:
    """What each row counts, float64[N] of mean 1: classes evened out; in a fine-tune today's more, base rows less."""
    settings, targets = recipe.file.training, dataset.rows.targets
    counts = np.bincount(targets[dataset.train], minlength=len(recipe.file.labels))
    weights = np.ones(len(targets))
    if settings.class_weights != "none":
        balance = counts.mean() / np.maximum(counts, 1)
        if settings.class_weights == "sqrt":
            # Half-way between the classes as they come and all classes alike, so that a rare one does not shout.
            balance = np.sqrt(balance)
        weights = np.clip(balance, *_CLIPS[settings.class_weights])[targets]
    if warm:
        weights = weights * np.where(dataset.field, 1.0, settings.base_weight)
        weights = weights * np.where(dataset.current, settings.current_weight, 1.0)
    return np.asarray(weights / weights.mean())


def _source(recipe: Recipe, dataset: Dataset, mask: NDArray[np.bool_], weights: NDArray[np.float64]) -> RowSource:
    source = dataset.source(mask, weights)
    if not recipe.front_end.text:
        return source
    if isinstance(source, StoredRows):
        return EncodedRows(source, recipe.front_end)
    rows = dataset.rows.take(mask)
    return MemoryRows(recipe.front_end.encode(rows.inputs), rows.targets, weights[mask])


def _content(dataset: Dataset, weights: NDArray[np.float64]) -> str:
    """All that the rows add to what the weights will be."""
    digest = hashlib.sha256(f"{dataset.content} {dataset.signature}".encode())
    for array in (weights, dataset.train, dataset.validation):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@contextlib.contextmanager
def _folder(given: Path | None, key: str, progress: Progress) -> Iterator[Path]:
    """The folder of one training, which no other process uses meanwhile."""
    if given is None:
        with tempfile.TemporaryDirectory(prefix="shoal-training-") as name:
            yield Path(name)
        return
    folder = given / key[:_KEY_LENGTH]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, str(folder)) or error from error
    for other in sorted(given.iterdir()):
        if other != folder and re.fullmatch(f"[0-9a-f]{{{_KEY_LENGTH}}}", other.name) and _unused(other):
            progress(
                0.0, "rows, recipe or settings have changed since the last attempt: its checkpoints are of no use", {}
            )
            shutil.rmtree(other, ignore_errors=True)
    with (folder / _LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"{folder}: another process trains the same here; wait for it, or end it") from error
        yield folder


def _unused(folder: Path) -> bool:
    with contextlib.suppress(OSError), (folder / _LOCK_FILE).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return not (folder / _LOCK_FILE).exists()
