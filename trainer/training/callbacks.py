"""What Lightning's loop does besides: keeps the best epoch, stops, saves, seeds, tells, and sees that all is finite."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from trainer.errors import NotFinite, RecipeError
from trainer.training.batches import Batch, TrainingBatches, mixed
from trainer.training.plan import Plan, Progress
from trainer.training.watch import StallWatch

# Between reports within an epoch.
_REPORT_S = 1.0
# Processes that save together must agree on when; asking each other costs about a millisecond.
_AGREE_STEPS = 10
# At an epoch's end it is saved where that takes no more than a twentieth of the time: of a small network an epoch takes
# a tenth of a second, and a checkpoint that survives a power cut a fifth of that.
_SAVING_EACH = 20
# No network that learns has weights like that.
_DIVERGED = 1e6


class BestEpoch(Callback):
    """Keeps the weights of the epoch with the lowest validation loss; ends training after ``patience`` without one."""

    def __init__(self, patience: int) -> None:
        self.loss = float("inf")
        self.epoch = -1
        self.weights: dict[str, torch.Tensor] = {}
        self._patience, self._waited = patience, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """A training that had come to its end before it was interrupted does not go on."""
        if self._waited >= self._patience and self.epoch >= 0:
            trainer.should_stop = True

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare this epoch with the best one."""
        if "val_loss" not in trainer.callback_metrics:
            raise RecipeError(
                "model.py: validation_step logs no val_loss, by which the best epoch is chosen; write "
                'self.log("val_loss", loss)'
            )
        loss = float(trainer.callback_metrics["val_loss"])
        if not math.isfinite(loss):
            raise NotFinite(
                f"val_loss is {loss} after epoch {trainer.current_epoch + 1}: no finite val_loss, no best epoch; lower "
                "the learning rate in model.toml, and look at what validation_step computes"
            )
        if loss < self.loss:
            self.loss, self.epoch, self._waited = loss, trainer.current_epoch, 0
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in pl_module.state_dict().items()}
            return
        self._waited += 1
        if self._waited >= self._patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"loss": self.loss, "epoch": self.epoch, "waited": self._waited, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.loss, self.epoch, self._waited = state_dict["loss"], state_dict["epoch"], state_dict["waited"]
        self.weights = state_dict["weights"]


class Course(Callback):
    """Each batch: seeded by its number, so that a resumed training draws what an uninterrupted one would; and finite.

    Args:
        batches: Told which epoch begins.
        rank: 0 tells how far training is.
    """

    def __init__(
        self, plan: Plan, batches: TrainingBatches, *, rank: int, progress: Progress, watch: StallWatch
    ) -> None:
        self._plan, self._batches, self._rank = plan, batches, rank
        self._progress, self._watch = progress, watch
        self._sum = torch.zeros(())
        self._count = 0
        self._rows = 0
        self._began = self._told = time.monotonic()
        # Each look at a GPU's number waits for the GPU.
        self._look_each = 1
        self._sigterm: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Remember who has SIGTERM: Lightning takes it to end training at leisure; who ends this process means it."""
        self._look_each = 1 if pl_module.device.type == "cpu" else 50
        if threading.current_thread() is threading.main_thread():
            self._sigterm = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has taken SIGTERM by now; and it tells nobody of an epoch that it goes on with in the middle."""
        if self._sigterm is not None:
            signal.signal(signal.SIGTERM, self._sigterm)
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count anew."""
        self._batches.epoch = trainer.current_epoch
        self._sum = torch.zeros((), device=pl_module.device)
        self._count = self._rows = 0
        self._began = time.monotonic()

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Dropout and the like draw from here."""
        self._batch, self._batch_idx = batch, batch_idx
        self._watch.beat(f"in epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}")
        seed_batch(mixed(self._plan.seed, trainer.current_epoch, batch_idx, self._rank))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """See that the loss is a number, before the weights cease to be."""
        if self._batch_idx % self._look_each == 0 and not math.isfinite(float(loss.detach())):
            raise NotFinite(self._not_finite(trainer, pl_module, self._batch, self._batch_idx))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Tell how far it is."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            self._sum += loss.detach().float()
            self._count += 1
        self._rows += len(batch[1])
        now = time.monotonic()
        if self._rank == 0 and now - self._told >= _REPORT_S:
            self._told = now
            epoch, total = trainer.current_epoch, len(self._batches)
            share = (epoch + (batch_idx + 1) / total) / self._plan.epochs
            self._progress(
                share, f"epoch {epoch + 1} of {self._plan.epochs}: batch {batch_idx + 1} of {total}", self._newest()
            )

    def on_validation_batch_start(self, trainer: pl.Trainer, *_rest: Any) -> None:
        """Validation may hang too."""
        self._watch.beat(f"in the validation of epoch {trainer.current_epoch + 1}")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Tell what this epoch came to."""
        if self._rank:
            return
        self._told = time.monotonic()
        own = self._newest()
        for optimizer in trainer.optimizers[:1]:
            own["learning_rate"] = float(optimizer.param_groups[0]["lr"])
        for logger in trainer.loggers:
            logger.log_metrics(own, step=trainer.global_step)  # the recipe's own are logged by Lightning
        done = trainer.current_epoch + 1
        told = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        metrics = own | told | {"epoch": float(done)}
        words = f"epoch {done} of {self._plan.epochs}: validation loss {metrics.get('val_loss', float('nan')):.4f}"
        self._progress(done / self._plan.epochs, words, metrics)

    def _newest(self) -> dict[str, float]:
        spent_s = time.monotonic() - self._began
        found = {"rows_per_s": self._rows / spent_s if spent_s > 0 else 0.0}
        if self._count:
            found["train_loss"] = float(self._sum) / self._count
        return found

    def _not_finite(self, trainer: pl.Trainer, network: pl.LightningModule, batch: Batch, batch_idx: int) -> str:
        where = f"the loss of batch {batch_idx + 1} of epoch {trainer.current_epoch + 1} is not finite"
        inputs, _targets, weights = batch
        for name, tensor in [*inputs.items(), ("the rows' weights", weights)]:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return (
                    f"{where}: '{name}' holds values that are not; see the data, or how model.toml fills missing ones"
                )
        for name, tensor in network.named_parameters():
            largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
            if not largest < _DIVERGED:
                rate = self._plan.learning_rate
                return (
                    f"{where}, and the weights '{name}' go up to {largest:.0e}: training diverged; lower the "
                    f"learning rate ({rate:g}) in [training] of model.toml"
                )
        return f"{where}, though inputs and weights are: see what training_step computes (a logarithm or root of 0?)"


class Saving(Callback):
    """Asks for a checkpoint after each epoch, but for very short ones, and each ``every_s`` seconds within one."""

    def __init__(self, save: Callable[[pl.Trainer], None], *, every_s: float, pieces: int) -> None:
        self._save, self._every_s, self._pieces = save, every_s, pieces
        self._last = time.monotonic()
        self._cost_s = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        """Only between steps: gradients that add up are in no checkpoint."""
        batch_idx = int(rest[-1])
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or (batch_idx + 1) % self._pieces:
            return
        if trainer.world_size > 1 and (batch_idx + 1) // self._pieces % _AGREE_STEPS:
            return
        self._save_where_due(trainer, self._every_s)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """An epoch with its validation is done."""
        self._save_where_due(trainer, min(self._every_s, _SAVING_EACH * self._cost_s))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: by what Lightning's counts of batches are to be understood."""
        return {"pieces": self._pieces}

    def on_load_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """A group that has shrunk or grown makes a step of other batches: its counts change."""
        then = checkpoint["callbacks"][self.state_key]["pieces"]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for span in ("total", "current"):
            ready = progress[span]["ready"]
            # Lightning has not counted the last batch as completed yet, and looks at that when it goes on.
            moved = ready * self._pieces // then - ready
            progress[span] = {name: count + moved for name, count in progress[span].items()}

    def _save_where_due(self, trainer: pl.Trainer, after_s: float) -> None:
        begin = time.monotonic()
        due = begin - self._last >= after_s
        if trainer.world_size > 1:  # all save, or none
            due = bool(trainer.strategy.broadcast(due))
        if due:
            self._save(trainer)
            self._last = time.monotonic()
            self._cost_s = self._last - begin


def seed_batch(seed: int) -> None:
    """Seed all that a recipe may draw from; torch's own function does more, and costs as much as a small step."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - what a recipe's own code may use
    random.seed(seed)
