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

import json
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
from trainer.data.streaming import MemoryRows, RowSource
from trainer.errors import TrainerError
from trainer.recipe import Recipe
from trainer.training.loop import Job
from trainer.training.plan import Plan

JOB_FILE, START_FILE, PROGRESS_FILE, ERROR_FILE = "job.json", "start.npz", "progress.jsonl", "error.json"
CHECKPOINTS_FOLDER = "checkpoints"
_RECIPE_FOLDER, _TRAINING, _VALIDATION = "recipe", "training", "validation"
_TARGETS, _WEIGHTS, _INPUTS = "targets.npy", "weights.npy", "inputs.json"


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


def write_job(folder: Path, job: Job) -> None:
    """Write a job; what an interrupted one of the same plan left is written anew, but for its checkpoints.

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
        _write_rows(folder / _TRAINING, job.training)
        _write_rows(folder / _VALIDATION, job.validation)
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
        training, validation = _read_rows(folder / _TRAINING), _read_rows(folder / _VALIDATION)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise TrainerError(f"{folder}: is no whole training job: {error}") from error
    recipe = Recipe.load(folder / _RECIPE_FOLDER / plan.model)
    if recipe.digest != plan.recipe:
        raise TrainerError(f"{recipe.folder}: differs from the recipe that the job was made of; start the run again")
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


def _write_rows(folder: Path, rows: RowSource) -> None:
    folder.mkdir()
    inputs, targets, weights = next(rows.batches(size=len(rows), seed=None))
    names = sorted(inputs)
    (folder / _INPUTS).write_text(json.dumps(names))
    for at, name in enumerate(names):
        np.save(folder / f"input-{at}.npy", inputs[name], allow_pickle=False)
    np.save(folder / _TARGETS, targets, allow_pickle=False)
    np.save(folder / _WEIGHTS, weights, allow_pickle=False)


def _read_rows(folder: Path) -> RowSource:
    def read(name: str) -> NDArray[Any]:
        return np.asarray(np.load(folder / name, mmap_mode="r", allow_pickle=False))

    names = json.loads((folder / _INPUTS).read_text())
    inputs = {name: read(f"input-{at}.npy") for at, name in enumerate(names)}
    return MemoryRows(inputs, read(_TARGETS), read(_WEIGHTS))
