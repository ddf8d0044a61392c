"""Metrics to where a team looks at them already; a logger that fails is a note, and never the end of a training."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from pytorch_lightning.loggers import Logger

from trainer.errors import RecipeError
from trainer.training.plan import Plan

log = logging.getLogger(__name__)

# mlflow's own settings: unset, it asks a server that is away again for minutes.
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Tolerated(Logger):
    """A logger that is left alone from its first failure on.

    Args:
        make: Makes the logger; called when there is something to log.
    """

    def __init__(self, kind: str, make: Callable[[], Logger]) -> None:
        super().__init__()
        self._kind, self._make = kind, make
        self._logger: Logger | None = None
        self.failure = ""

    @property
    def name(self) -> str:
        """Which logger it is."""
        return self._kind

    @property
    def version(self) -> str:
        """Of no meaning here."""
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers by name."""
        self._try(lambda logger: logger.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log settings by name."""
        self._try(lambda logger: logger.log_hyperparams(params, *args, **kwargs))

    def save(self) -> None:
        """Write out what is buffered."""
        self._try(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
        """The training ended."""
        if self._logger is not None:
            self._try(lambda logger: logger.finalize(status))

    def _try(self, action: Callable[[Logger], None]) -> None:
        if self.failure:
            return
        try:
            if self._logger is None:
                self._logger = self._make()
            action(self._logger)
        except Exception as error:  # noqa: BLE001 - a server, a disk, a library: training goes on without them
            self.failure = (
                f"{self._kind} is left alone: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            )
            log.warning("%s", self.failure)


def open_loggers(plan: Plan) -> list[Logger]:
    """The loggers that a plan asks for.

    Raises:
        RecipeError: One is asked for that is not installed.
    """
    found: list[Logger] = []
    if plan.loggers.tensorboard:
        found.append(Tolerated("TensorBoard", lambda: _tensorboard(plan)))
        _installed("tensorboard", "tensorboard")
    if plan.loggers.mlflow:
        found.append(Tolerated("MLflow", lambda: _mlflow(plan)))
        _installed("mlflow", "mlflow")
    for logger in found:
        logger.log_hyperparams(_settings(plan))
    return found


def _settings(plan: Plan) -> dict[str, Any]:
    names = ("model", "recipe", "key", "seed", "warm", "epochs", "learning_rate", "batch_size", "precision")
    return {name: getattr(plan, name) for name in names}


def _tensorboard(plan: Plan) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(plan.loggers.tensorboard, name=plan.model, version=plan.run)


def _mlflow(plan: Plan) -> Logger:
    for name, value in _MLFLOW_PATIENCE.items():
        os.environ.setdefault(name, value)
    from pytorch_lightning.loggers import MLFlowLogger

    return MLFlowLogger(
        experiment_name=plan.loggers.experiment or plan.model, run_name=plan.run, tracking_uri=plan.loggers.mlflow
    )


def _installed(module: str, setting: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise RecipeError(
            f"[training.loggers] {setting} is set, but {module} is not installed: pip install 'shoal[loggers]'"
        )
