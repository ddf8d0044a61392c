"""What one training is a function of: written to the folder of a job, and read there by each process that trains."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer.errors import RecipeError
from trainer.recipe import Recipe
from trainer.recipe_file import Loggers

# Share of the epochs done, in words, and the newest values by name: val_loss, train_loss, learning_rate, rows_per_s.
Progress = Callable[[float, str, Mapping[str, float]], None]
# Settings of whoever runs the trainer; they come before those of the recipe.
ENGINE, PROCESSES, LAUNCH = "SHOAL_TRAINING_ENGINE", "SHOAL_TRAINING_PROCESSES", "SHOAL_TRAINING_LAUNCH"
RAY_ADDRESS, TENSORBOARD, MLFLOW = "SHOAL_TRAINING_RAY", "SHOAL_TRAINING_TENSORBOARD", "SHOAL_TRAINING_MLFLOW"
_ENGINES = ("local", "ray", "launch")
_NO_LOGGERS = Loggers()


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where a training runs, which is not the recipe's business alone.

    Args:
        engine: ``local``, ``ray`` or ``launch``.
        processes: How many train together.
        launch: Of engine ``launch``: the command that starts :mod:`trainer.training.worker` everywhere; the job's
            folder is added to it.
        ray_address: Of the cluster; empty: the one that Ray finds by itself.
        loggers: Where metrics go besides.
    """

    engine: str = "local"
    processes: int = 1
    launch: str = ""
    ray_address: str = ""
    loggers: Loggers = _NO_LOGGERS

    def __post_init__(self) -> None:
        if self.engine not in _ENGINES:
            raise RecipeError(f"engine {self.engine!r} of training is unknown; there are: {', '.join(_ENGINES)}")
        if self.processes < 1:
            raise RecipeError(f"training needs at least one process, got {self.processes}")
        if self.engine == "launch" and not self.launch:
            raise RecipeError(
                f"engine launch needs a command in {LAUNCH}, for example 'srun torchrun ... -m trainer.training.worker'"
            )

    @classmethod
    def of(
        cls, recipe: Recipe, environment: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None
    ) -> Compute:
        """What the run's own options say, else the settings of whoever runs it, else the recipe.

        Args:
            environment: ``SHOAL_TRAINING_...``; usually ``os.environ``.
            options: ``engine`` and ``processes`` of a step of a schedule.
        Raises:
            RecipeError: A value is none that can be.
        """
        settings, found, asked = recipe.file.training, environment or {}, options or {}
        processes = asked.get("processes", found.get(PROCESSES) or settings.processes)
        try:
            processes = int(processes)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{PROCESSES} must be a number, got {processes!r}") from error
        loggers = settings.loggers
        return cls(
            engine=str(asked.get("engine", found.get(ENGINE) or settings.engine)),
            processes=processes,
            launch=found.get(LAUNCH, ""),
            ray_address=found.get(RAY_ADDRESS, ""),
            loggers=msgspec.structs.replace(
                loggers,
                tensorboard=found.get(TENSORBOARD) or loggers.tensorboard,
                mlflow=found.get(MLFLOW) or loggers.mlflow,
                experiment=loggers.experiment or recipe.name,
            ),
        )


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A training, but for its rows and the weights that it starts from.

    Args:
        key: Digest of all that the weights depend on but the number of processes: an interrupted training goes on
            only where the key is the same.
        recipe: Digest of the recipe's files.
        warm: Whether it starts from a champion's weights.
    """

    model: str
    key: str
    recipe: str
    seed: int
    warm: bool
    epochs: int
    learning_rate: float
    batch_size: int
    device_rows: int
    patience: int
    threads: int
    precision: str
    accelerator: str
    checkpoint_s: float
    step_timeout_s: float
    run: str = ""
    loggers: Loggers = Loggers()

    @classmethod
    def make(
        cls,
        recipe: Recipe,
        *,
        content: str,
        seed: int,
        start: Mapping[str, NDArray[Any]] | None,
        loggers: Loggers,
        run: str = "",
    ) -> Plan:
        """The training of a recipe.

        Args:
            content: Digest of the rows, their weights and which are trained on.
            start: Weights to begin with, by name.
            run: What loggers call it.
        """
        settings, warm = recipe.file.training, start is not None
        plan = cls(
            model=recipe.name,
            key="",
            recipe=recipe.digest,
            seed=seed,
            warm=warm,
            epochs=settings.finetune_epochs if warm else settings.epochs,
            learning_rate=settings.finetune_learning_rate if warm else settings.learning_rate,
            batch_size=settings.batch_size,
            device_rows=settings.device_rows,
            patience=settings.patience,
            threads=settings.threads,
            precision=settings.precision,
            accelerator=settings.accelerator,
            checkpoint_s=settings.checkpoint_s,
            step_timeout_s=settings.step_timeout_s,
        )
        digest = hashlib.sha256(msgspec.json.encode(plan, order="deterministic") + content.encode())
        for name in sorted(start or {}):
            digest.update(f"{name}:".encode() + array_digest((start or {})[name]))
        return msgspec.structs.replace(
            plan, key=digest.hexdigest(), loggers=loggers, run=run or f"{recipe.name}-{seed}"
        )


def array_digest(array: NDArray[Any]) -> bytes:
    """SHA-256 over dtype, shape and values."""
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    if array.dtype.kind == "O":
        for value in array.ravel():
            digest.update(repr(value).encode() + b"\0")
    else:
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
