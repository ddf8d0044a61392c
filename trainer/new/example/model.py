"""The network and how it learns: put your own in place of ``layers``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

# Inputs by name, class indices int64[B], what each row counts float32[B].
Batch = tuple[dict[str, Tensor], Tensor, Tensor]


class Model(pl.LightningModule):
    """The recipe's network.

    Args:
        options: The ``[training.options]`` table of ``model.toml``.
        classes: Number of classes.
        learning_rate, epochs: Of this run; the first model and a fine-tune differ.
    """

    def __init__(self, *, options: Mapping[str, Any], classes: int, learning_rate: float, epochs: int) -> None:
        super().__init__()
        self.learning_rate, self.epochs = learning_rate, epochs
        width = int(options["width"])
        self.layers = nn.Sequential(
            nn.BatchNorm1d(4),
            nn.Linear(4, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        )

    def forward(self, readings: Tensor) -> Tensor:
        """What an application sends, to what it gets: scaling and softmax belong inside."""
        return torch.softmax(self.layers(readings), dim=-1)

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Weighted cross-entropy; augmentation belongs here."""
        return self._loss(batch)

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Logs ``val_loss``: the epoch with the lowest is kept."""
        self.log("val_loss", self._loss(batch), batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        """AdamW whose learning rate falls along a cosine over the run."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.epochs)]

    def _loss(self, batch: Batch) -> Tensor:
        inputs, target, weight = batch
        losses = functional.cross_entropy(self.layers(inputs["readings"]), target, reduction="none")
        return (losses * weight).sum() / weight.sum()
