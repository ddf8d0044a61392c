"""A small convolutional network for 8 x 8 digits (about 71,000 weights).

It takes the picture as the camera gives it, 0..16, and scales it itself, so that no device can scale it otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[dict[str, Tensor], Tensor, Tensor]
FULL = 16.0


class Model(pl.LightningModule):
    """The recipe's network and how it learns.

    Args:
        options: The ``[training.options]`` table of ``model.toml``.
        classes: Number of classes.
        learning_rate, epochs: Of this run; the first model and a fine-tune differ.
    """

    def __init__(self, *, options: Mapping[str, Any], classes: int, learning_rate: float, epochs: int) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.weight_decay = float(options["weight_decay"])
        self.shift_px = float(options["augment_shift_px"])
        self.tilt_deg = float(options["augment_tilt_deg"])
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 48, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(48 * 16, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities float32[N, 10] of images float32[N, 1, 8, 8] in 0..16."""
        return torch.softmax(self.logits(image), dim=-1)

    def logits(self, image: Tensor) -> Tensor:
        """Unnormalised log-probabilities, float32[N, 10]."""
        return self.classifier(self.features(image * (2.0 / FULL) - 1.0))  # type: ignore[no-any-return]

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Weighted cross-entropy of one batch, with each picture moved and tilted a little."""
        inputs, target, weight = batch
        image = self._moved(inputs["image"])
        losses = functional.cross_entropy(self.logits(image), target, reduction="none", label_smoothing=0.02)
        return (losses * weight).sum() / weight.sum()

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Logs ``val_loss``, which early stopping watches."""
        inputs, target, weight = batch
        losses = functional.cross_entropy(self.logits(inputs["image"]), target, reduction="none")
        self.log("val_loss", (losses * weight).sum() / weight.sum(), batch_size=len(target))

    def configure_optimizers(self) -> Any:
        """AdamW whose learning rate falls along a cosine over the run."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=self.epochs, eta_min=self.learning_rate / 20
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _moved(self, image: Tensor) -> Tensor:
        """Each picture shifted and tilted at random, as different hands and mountings would."""
        if not self.shift_px and not self.tilt_deg:
            return image
        rows, side = len(image), image.shape[-1]
        angle = (torch.rand(rows) * 2 - 1) * math.radians(self.tilt_deg)
        shift = (torch.rand(rows, 2) * 2 - 1) * (2 * self.shift_px / side)
        turn = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], dim=1)
        affine = torch.cat([turn.reshape(rows, 2, 2), shift[:, :, None]], dim=2)
        grid = functional.affine_grid(affine, list(image.shape), align_corners=False)
        return functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
