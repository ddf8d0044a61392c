"""A network for a table: it makes itself of the inputs that model.toml names, whatever they are.

A category gets an embedding, a number is brought to mean 0 and deviation 1, a date becomes hour, weekday and days; what
is missing becomes 0, with a flag beside it. Name your columns in ``features`` where you know more about them than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype

# Inputs by name, class indices int64[B], what each row counts float32[B].
Batch = tuple[dict[str, Tensor], Tensor, Tensor]
_MISSING = torch.iinfo(torch.int64).min  # of a date, as numpy's NaT
_DAY_S = 86_400


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
    """The recipe's network.

    Args:
        options: The ``[training.options]`` table of ``model.toml``.
        classes: Number of classes.
        signature, categories: The inputs, and how many indices each categorical one has (0 is missing or unknown).
        learning_rate, epochs: Of this run; the first model and a fine-tune differ.
    """

    def __init__(
        self,
        *,
        options: Mapping[str, Any],
        classes: int,
        signature: Signature,
        categories: Mapping[str, int],
        learning_rate: float,
        epochs: int,
    ) -> None:
        super().__init__()
        self.learning_rate, self.epochs = learning_rate, epochs
        self.names = [spec.name for spec in signature.inputs]
        texts = {spec.name for spec in signature.inputs if spec.datatype is Datatype.BYTES}
        self.dates = [spec.name for spec in signature.inputs if spec.constraint.date is not None]
        self.numbers = [name for name in self.names if name not in texts or name not in {*categories, *self.dates}]
        sizes = {name: min(8, 1 + math.ceil(math.sqrt(count))) for name, count in categories.items()}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(categories[name], sizes[name]) for name in categories})
        wide = sum(
            math.prod(axis or 1 for axis in spec.shape[1:]) for spec in signature.inputs if spec.name in self.numbers
        )
        self.scaled = Scaled(wide + len(self.dates))
        width = int(options["width"])
        self.body = nn.Sequential(
            nn.Linear(sum(sizes.values()) + 4 * len(self.dates) + 2 * (wide + len(self.dates)), width),
            nn.ReLU(),
            nn.Dropout(float(options["dropout"])),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        )

    def forward(self, *columns: Tensor) -> Tensor:
        """Probabilities float32[N, classes] of the inputs, in the order of ``model.toml``."""
        return torch.softmax(self.logits(dict(zip(self.names, columns, strict=True))), dim=-1)

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Unnormalised log-probabilities, float32[N, classes]."""
        return self.body(self.features(inputs))  # type: ignore[no-any-return]

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the network sees of a row, float32[N, F]."""
        found = [embed(inputs[name]).flatten(1) for name, embed in self.embeddings.items()]
        numbers = [inputs[name].to(torch.float32).reshape(inputs[name].shape[0], -1) for name in self.numbers]
        for name in self.dates:
            moment = inputs[name].reshape(-1)
            found.append(_clock(moment))
            days = torch.div(moment, _DAY_S, rounding_mode="floor").to(torch.float32)
            numbers.append(torch.where(moment > _MISSING, days, torch.full_like(days, math.nan))[:, None])
        if numbers:
            found.append(self.scaled(torch.cat(numbers, dim=-1)))
        return torch.cat(found, dim=-1)

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Weighted cross-entropy."""
        return self._loss(batch)

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Logs ``val_loss``: the epoch with the lowest is kept."""
        self.log("val_loss", self._loss(batch), batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        """AdamW whose learning rate falls along a cosine over the run."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.epochs)]

    def _loss(self, batch: Batch) -> Tensor:
        inputs, target, weight = batch
        losses = functional.cross_entropy(self.logits(inputs), target, reduction="none")
        return (losses * weight).sum() / weight.sum()


def _clock(moment: Tensor) -> Tensor:
    """Hour of the day and of the week as points on circles, float32[N, 4]; in UTC. A missing date is the centre."""
    turns = []
    known = (moment > _MISSING).to(torch.float32)
    for length in (_DAY_S, 7 * _DAY_S):
        # In whole numbers first: a float of 32 bits does not hold today's seconds since 1970.
        share = torch.remainder(moment, length).to(torch.float32) / length
        turns += [known * torch.sin(2 * math.pi * share), known * torch.cos(2 * math.pi * share)]
    return torch.stack(turns, dim=-1)
