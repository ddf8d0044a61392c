"""A network for a table (about 7,000 weights): categories, dates and numbers, any of which may be missing.

Text arrives as numbers already: a category as its index (0 is missing or unknown), a date as seconds since 1970, a
number written as text as a number. What it takes to make features of them stands here, and so is a part of the exported
graph: no device, and no batch job, can do it otherwise.
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
_MISSING = torch.iinfo(torch.int64).min  # of a date, as numpy's NaT
_DAY_S = 86_400
_NUMBERS = 7
_CLOCK = 4


class Scaled(nn.Module):
    """Numbers brought to mean 0 and deviation 1; missing ones (NaN) become 0, and a flag beside them says so.

    Mean and deviation are followed in training, over the values that are there.

    Args:
        columns: How many numbers a row has.
    """

    mean: Tensor
    variance: Tensor
    begun: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("variance", torch.ones(columns))
        self.register_buffer("begun", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        """float32[N, 2 * columns] of float32[N, columns]."""
        if self.training:
            self._follow(values.detach())
        missing = torch.isnan(values)
        scaled = (values - self.mean) / torch.sqrt(self.variance + 1e-6)
        kept = torch.where(missing, torch.zeros_like(scaled), scaled.clamp(-6.0, 6.0))
        return torch.cat([kept, missing.to(values.dtype)], dim=-1)

    def _follow(self, values: Tensor) -> None:
        mean = torch.nanmean(values, dim=0)
        variance = torch.nanmean((values - mean).square(), dim=0)
        # The first batch is taken whole, later ones by a tenth; a column that a batch lacks stays as it is.
        share = 1.0 - 0.9 * float(self.begun)
        self.mean.copy_(torch.where(torch.isnan(mean), self.mean, self.mean.lerp(mean, share)))
        self.variance.copy_(torch.where(torch.isnan(variance), self.variance, self.variance.lerp(variance, share)))
        self.begun.fill_(1.0)


class Model(pl.LightningModule):
    """The recipe's network and how it learns.

    Args:
        options: The ``[training.options]`` table of ``model.toml``.
        classes: Number of classes.
        categories: How many indices each categorical input has, that of what is missing or unknown among them.
        learning_rate, epochs: Of this run; the first model and a fine-tune differ.
    """

    def __init__(
        self,
        *,
        options: Mapping[str, Any],
        classes: int,
        categories: Mapping[str, int],
        learning_rate: float,
        epochs: int,
    ) -> None:
        super().__init__()
        self.learning_rate, self.epochs = learning_rate, epochs
        self.weight_decay = float(options["weight_decay"])
        self.forget = float(options["forget_share"])
        width = int(options["width"])
        self.material = nn.Embedding(categories["material"], 4)
        self.machine = nn.Embedding(categories["machine"], 3)
        self.scaled = Scaled(_NUMBERS)
        self.body = nn.Sequential(
            nn.Linear(4 + 3 + _CLOCK + 2 * _NUMBERS, width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        )

    def forward(  # noqa: PLR0917 - a table has as many columns as it has
        self,
        material: Tensor,
        machine: Tensor,
        moulded_at: Tensor,
        serviced_on: Tensor,
        melt_temperature: Tensor,
        mould_temperature: Tensor,
        hold_pressure: Tensor,
        injection_time: Tensor,
        moisture: Tensor,
        weight: Tensor,
    ) -> Tensor:
        """Probabilities float32[N, 4]; every input is [N], in the order of ``model.toml``."""
        numbers = [melt_temperature, mould_temperature, hold_pressure, injection_time, moisture, weight]
        return torch.softmax(self.logits(material, machine, moulded_at, serviced_on, torch.stack(numbers, 1)), dim=-1)

    def logits(
        self, material: Tensor, machine: Tensor, moulded_at: Tensor, serviced_on: Tensor, numbers: Tensor
    ) -> Tensor:
        """Unnormalised log-probabilities, float32[N, classes]; ``numbers``: float32[N, 6]."""
        known = serviced_on > _MISSING
        days = (moulded_at - torch.where(known, serviced_on, moulded_at)).to(numbers.dtype) / _DAY_S
        worn = torch.where(known, days, torch.full_like(days, math.nan))
        features = [
            self.material(material),
            self.machine(machine),
            _clock(moulded_at),
            self.scaled(torch.cat([numbers, worn[:, None]], dim=-1)),
        ]
        return self.body(torch.cat(features, dim=-1))  # type: ignore[no-any-return]

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Weighted cross-entropy; some materials and numbers are forgotten, so that none is relied on alone."""
        inputs, target, weight = batch
        losses = functional.cross_entropy(self._of(inputs, forget=self.forget), target, reduction="none")
        return (losses * weight).sum() / weight.sum()

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Logs ``val_loss``, which early stopping watches."""
        inputs, target, weight = batch
        losses = functional.cross_entropy(self._of(inputs), target, reduction="none")
        self.log("val_loss", (losses * weight).sum() / weight.sum(), batch_size=len(target))

    def configure_optimizers(self) -> Any:
        """AdamW whose learning rate falls along a cosine over the run."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=self.epochs, eta_min=self.learning_rate / 20
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _of(self, inputs: dict[str, Tensor], *, forget: float = 0.0) -> Tensor:
        names = ("melt_temperature", "mould_temperature", "hold_pressure", "injection_time", "moisture", "weight")
        numbers = torch.stack([inputs[name] for name in names], dim=1)
        material = inputs["material"]
        if forget:
            gone = torch.rand(numbers.shape, device=numbers.device) < forget
            numbers = torch.where(gone, torch.full_like(numbers, math.nan), numbers)
            unread = torch.rand(material.shape, device=material.device) < forget
            material = torch.where(unread, torch.zeros_like(material), material)
        return self.logits(material, inputs["machine"], inputs["moulded_at"], inputs["serviced_on"], numbers)


def _clock(moment: Tensor) -> Tensor:
    """Hour of the day and of the week as points on circles, float32[N, 4]; in UTC, an hour or two off the shifts'."""
    turns = []
    for length in (_DAY_S, 7 * _DAY_S):
        # In whole numbers first: a float of 32 bits does not hold today's seconds since 1970.
        share = torch.remainder(moment, length).to(torch.float32) / length
        turns += [torch.sin(2 * math.pi * share), torch.cos(2 * math.pi * share)]
    return torch.stack(turns, dim=-1)
