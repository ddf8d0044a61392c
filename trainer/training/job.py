"""A training as a folder: what each of its processes reads, and where they leave what they know.

::

    job.json           the plan; written last, so that who finds it finds all
    recipe/NAME/       the recipe's files
    training/, validation/   rows, one array per file, mapped and so shared by all processes of a machine
    start.npz          weights to begin with
    checkpoints/
    progress.jsonl     lines of rank 0
    error.json         why no start helps
"""

from __future__ import annotations

import pickle
import shutil
import traceback
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import errors as contract_errors
from edge_agent.contract.errors import ShoalError, storage_error
from edge_agent.durable import write_durably
from trainer import errors as trainer_errors
from trainer.data.streaming import MemoryRows, RowSource, StoredRows
from trainer.errors import TrainerError
from trainer.front_end import FrontEnd
from trainer.recipe import Recipe
from trainer.training.batches import EncodedRows
from trainer.training.loop import Job
from trainer.training.plan import Plan

JOB_FILE, START_FILE, PROGRESS_FILE, ERROR_FILE = "job.json", "start.npz", "progress.jsonl", "error.json"
CHECKPOINTS_FOLDER = "checkpoints"
_RECIPE_FOLDER, _TRAINING, _VALIDATION = "recipe", "training", "validation"
# No names of tensors, which have no dots.
_TARGETS, _WEIGHTS, _STORED = ".targets.npy", ".weights.npy", "stored.pickle"
# At a time: memory stays bounded whatever the number of rows.
_WRITTEN_ROWS = 4096


class ProgressLine(msgspec.Struct):
    """A line of ``progress.jsonl``."""

    fraction: float
    message: str
    metrics: dict[str, float] = {}


class Failure(msgspec.Struct):
    """``error.json``: an error that another start would meet again."""

    kind: str
    message: str
    traceback: str = ""


def write_job(folder: Path, job: Job, *, carried: bool = False) -> None:
    """Write a job; what an interrupted one of the same plan left is written anew, but for its checkpoints.

    Args:
        carried: Whether the folder must hold all rows itself, because it travels to machines that share no disk.
    Raises:
        StorageFull, StorageNotWritable: As the disk says.
    """
    try:
        for name in (JOB_FILE, ERROR_FILE, PROGRESS_FILE, START_FILE):
            (folder / name).unlink(missing_ok=True)
        for name in (_RECIPE_FOLDER, _TRAINING, _VALIDATION):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / CHECKPOINTS_FOLDER).mkdir(parents=True, exist_ok=True)
        shutil.copytree(
            job.recipe.folder, folder / _RECIPE_FOLDER / job.recipe.name, ignore=shutil.ignore_patterns("__pycache__")
        )
        _write_rows(folder / _TRAINING, job.training, carried=carried)
        _write_rows(folder / _VALIDATION, job.validation, carried=carried)
        if job.start is not None:
            with (folder / START_FILE).open("wb") as file:
                np.savez(file, allow_pickle=False, **job.start)
        write_durably(folder / JOB_FILE, msgspec.json.encode(job.plan))
    except OSError as error:
        raise storage_error(error, str(folder)) or error from error


def read_job(folder: Path) -> Job:
    """The job in a folder.

    Raises:
        TrainerError: The folder holds none, or not what was written there.
    """
    try:
        plan = msgspec.json.decode((folder / JOB_FILE).read_bytes(), type=Plan)
        start = None
        if plan.warm:
            with np.load(folder / START_FILE, allow_pickle=False) as found:
                start = {name: found[name] for name in found.files}
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise TrainerError(f"{folder}: is no whole training job: {error}") from error
    recipe = Recipe.load(folder / _RECIPE_FOLDER / plan.model)
    if recipe.digest != plan.recipe:
        raise TrainerError(f"{recipe.folder}: differs from the recipe that the job was made of; start the run again")
    training, validation = (_read_rows(folder / name, recipe.front_end) for name in (_TRAINING, _VALIDATION))
    return Job(plan=plan, recipe=recipe, training=training, validation=validation, start=start)


def say(folder: Path, line: ProgressLine) -> None:
    """Append a line of progress."""
    with (folder / PROGRESS_FILE).open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")


def failure_of(error: ShoalError) -> Failure:
    """The error as a file keeps it."""
    return Failure(kind=type(error).__name__, message=str(error), traceback="".join(traceback.format_exception(error)))


def leave_failure(folder: Path, failure: Failure) -> None:
    """Say why no start helps; the first process that says so is believed."""
    path = folder / ERROR_FILE
    if not path.exists():
        write_durably(path, msgspec.json.encode(failure))


def raise_failure(folder: Path) -> None:
    """Raise what a process left as its error, if one has.

    Raises:
        ShoalError: Of the kind that it was there.
    """
    path = folder / ERROR_FILE
    if not path.exists():
        return
    failure = msgspec.json.decode(path.read_bytes(), type=Failure)
    kind = getattr(trainer_errors, failure.kind, None) or getattr(contract_errors, failure.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, ShoalError)):
        kind = TrainerError
    error = kind(failure.message)
    error.add_note(failure.traceback)
    raise error


def _write_rows(folder: Path, rows: RowSource, *, carried: bool) -> None:
    folder.mkdir()
    source = rows.rows if isinstance(rows, EncodedRows) else rows
    if isinstance(source, StoredRows) and not carried:
        # The rows lie on disk already: it is enough to know which.
        (folder / _STORED).write_bytes(pickle.dumps(source))
        return
    opened: dict[str, NDArray[Any]] = {}
    at = 0
    for inputs, targets, weights in rows.batches(size=_WRITTEN_ROWS, seed=None):
        columns = {f"{name}.npy": array for name, array in inputs.items()}
        for name, array in (columns | {_TARGETS: targets, _WEIGHTS: weights}).items():
            if name not in opened:
                shape = (len(rows), *array.shape[1:])
                opened[name] = np.lib.format.open_memmap(folder / name, mode="w+", dtype=array.dtype, shape=shape)
            opened[name][at : at + len(array)] = array
        at += len(targets)


def _read_rows(folder: Path, front_end: FrontEnd) -> RowSource:
    if (folder / _STORED).exists():
        # Ours, written a moment ago into a folder of this run.
        stored: RowSource = pickle.loads((folder / _STORED).read_bytes())  # noqa: S301
        return EncodedRows(stored, front_end) if front_end.text else stored

    arrays = {path.name: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
    targets, weights = arrays.pop(_TARGETS), arrays.pop(_WEIGHTS)
    return MemoryRows({name.removesuffix(".npy"): array for name, array in arrays.items()}, targets, weights)
