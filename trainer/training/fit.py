"""Training with Lightning: from scratch, or from the champion's weights on a mixture of base and field rows."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback, EarlyStopping

from trainer.data.dataset import Dataset
from trainer.data.rows import Rows
from trainer.errors import RecipeError, TrainerError
from trainer.recipe import Recipe
from trainer.training.rehearsal import blame

Progress = Callable[[float, str], None]
_EVALUATION_ROWS = 512


@dataclass(frozen=True)
class Fitted:
    """A trained network.

    Args:
        network: In evaluation mode, with the weights of its best epoch.
        epochs: Epochs run.
        validation_loss: Of the best epoch.
        warm: Whether it started from the champion's weights.
    """

    network: pl.LightningModule
    epochs: int
    validation_loss: float
    warm: bool


class Batches:
    """Rows as batches ``(inputs by name, targets int64[B], weights float32[B])``; shuffled anew on each pass.

    Args:
        seed: Of the shuffle; None keeps the order.
    """

    def __init__(self, rows: Rows, weights: NDArray[np.float64], *, size: int, seed: int | None) -> None:
        self._inputs = {name: torch.from_numpy(np.array(array)) for name, array in rows.inputs.items()}
        self._targets = torch.from_numpy(rows.targets.copy())
        self._weights = torch.from_numpy(weights.astype(np.float32))
        self._size = size
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self._targets) / self._size)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
        rows = len(self._targets)
        order = torch.arange(rows) if self._generator is None else torch.randperm(rows, generator=self._generator)
        for at in torch.split(order, self._size):
            yield {name: tensor[at] for name, tensor in self._inputs.items()}, self._targets[at], self._weights[at]


def fit(
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int,
    start: Mapping[str, NDArray[Any]] | None = None,
    progress: Progress = lambda _fraction, _message: None,
) -> Fitted:
    """Train the recipe's network; the same arguments give the same weights on the same machine.

    Args:
        start: Weights by name to begin with; None trains from scratch.
        progress: Told the share of the epochs done and the loss in words.
    Raises:
        TrainerError: The weights do not fit the network, or training does not converge to finite numbers.
    """
    settings = recipe.file.training
    warm = start is not None
    epochs = settings.finetune_epochs if warm else settings.epochs
    rate = settings.finetune_learning_rate if warm else settings.learning_rate
    _quiet()
    torch.set_num_threads(settings.threads)
    pl.seed_everything(seed, verbose=False)
    network = recipe.network(learning_rate=rate, epochs=epochs)
    if start is not None:
        load_weights(network, start)
    weights = row_weights(recipe, dataset, warm=warm)
    stopping = dataset.validation if dataset.validation.any() else dataset.train
    learnt, watched = _seen_by_network(recipe, dataset, dataset.train), _seen_by_network(recipe, dataset, stopping)
    training = Batches(learnt, weights[dataset.train], size=settings.batch_size, seed=seed)
    validation = Batches(watched, weights[stopping], size=_EVALUATION_ROWS, seed=None)
    best = _BestWeights(progress, epochs)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,  # a run takes seconds; its best weights are kept in memory
        enable_progress_bar=False,
        enable_model_summary=False,
        deterministic=True,
        num_sanity_val_steps=0,
        callbacks=[best, EarlyStopping("val_loss", patience=settings.patience, check_finite=True)],
    )
    with warnings.catch_warnings():
        # Batches come from memory: Lightning's advice on worker processes does not apply.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Lightning 2.6 makes and copies a LeafSpec for each loader; torch from 2.10 on calls that deprecated.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        try:
            trainer.fit(network, train_dataloaders=training, val_dataloaders=validation)
        except TrainerError:
            raise
        except Exception as error:
            # Whatever the recipe's author wrote may fail in whatever way.
            raise RecipeError(blame(recipe, "failed in training", error)) from error
    if best.weights is None:
        raise TrainerError(
            f"'{recipe.name}': no finite val_loss in {trainer.current_epoch} epochs; lower the learning rate in "
            "model.toml, and see that validation_step logs val_loss"
        )
    network.load_state_dict(best.weights)
    return Fitted(network=network.eval(), epochs=trainer.current_epoch, validation_loss=best.loss, warm=warm)


def _seen_by_network(recipe: Recipe, dataset: Dataset, mask: NDArray[np.bool_]) -> Rows:
    """Some of the rows with text as the numbers that ``forward`` takes."""
    rows = dataset.rows.take(mask)
    return replace(rows, inputs=recipe.front_end.encode(rows.inputs))


def load_weights(network: pl.LightningModule, weights: Mapping[str, NDArray[Any]]) -> None:
    """Copy weights by name into the network.

    Raises:
        TrainerError: A name or shape differs: the recipe's network was changed since those weights were made.
    """
    try:
        network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
    except RuntimeError as error:
        raise TrainerError(f"the champion's weights do not fit the recipe's network: {error}") from error


def row_weights(recipe: Recipe, dataset: Dataset, *, warm: bool) -> NDArray[np.float64]:
    """What each row counts, float64[N] of mean 1: classes evened out; in a fine-tune today's more, base rows less."""
    targets = dataset.rows.targets
    counts = np.bincount(targets[dataset.train], minlength=len(recipe.file.labels))
    # Half-way (square root) between the classes as they come and all classes alike, so that a rare one does not shout.
    balance = np.sqrt(counts.mean() / np.maximum(counts, 1))
    weights = np.clip(balance, 0.5, 2.0)[targets]
    if warm:
        weights = weights * np.where(dataset.field, 1.0, recipe.file.training.base_weight)
        weights = weights * np.where(dataset.current, recipe.file.training.current_weight, 1.0)
    return np.asarray(weights / weights.mean())


class _BestWeights(Callback):
    """Keeps the weights of the epoch with the lowest validation loss, and tells how far training is."""

    def __init__(self, progress: Progress, epochs: int) -> None:
        self.loss = float("inf")
        self.weights: dict[str, torch.Tensor] | None = None
        self._progress, self._epochs = progress, epochs

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare this epoch with the best one."""
        if "val_loss" not in trainer.callback_metrics:
            raise RecipeError(
                "model.py: validation_step logs no val_loss, by which the best epoch is chosen; write "
                'self.log("val_loss", loss)'
            )
        loss = float(trainer.callback_metrics["val_loss"])
        if loss < self.loss:
            self.loss = loss
            self.weights = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}
        done = trainer.current_epoch + 1
        self._progress(done / self._epochs, f"epoch {done} of {self._epochs}: validation loss {loss:.4f}")


def _quiet() -> None:
    """Lightning speaks of accelerators and seeds at each start; a run's log is for what differs."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
