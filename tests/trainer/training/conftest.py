"""A recipe that learns in a second, and does whatever may go wrong where a test asks it to."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.data.dataset import Dataset, read_dataset
from trainer.data.lake import import_base
from trainer.recipe import Recipe
from trainer.training.fit import Fitted

SETTINGS = """
name = "blobs"
title = "Points in a plane"

[[inputs]]
name = "point"
datatype = "FP32"
shape = [-1, 2]

[[outputs]]
name = "probabilities"
datatype = "FP32"
shape = [-1, 3]
labels = ["a", "b", "c"]

[task]
kind = "classification"
output = "probabilities"

[training]
epochs = 4
learning_rate = 1e-2
finetune_epochs = 3
finetune_learning_rate = 5e-3
batch_size = 32
patience = 10

[training.options]
fault = ""
fault_epoch = 2
fault_rank = 0
marker = ""

[[monitoring.features]]
tensor = "probabilities"
projection = "confidence"
"""

MODEL = """
import math
import os
import signal
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional


class Model(pl.LightningModule):
    def __init__(self, *, options, classes, learning_rate, epochs):
        super().__init__()
        self.rate, self.options = learning_rate, options
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, classes))

    def forward(self, point):
        return torch.softmax(self.layers(point), dim=-1)

    def training_step(self, batch, index):
        self.go_wrong(index)
        inputs, target, weight = batch
        losses = functional.cross_entropy(self.layers(inputs["point"]), target, reduction="none")
        loss = (losses * weight).mean()
        return loss * math.nan if self.now("nan", index) else loss

    def now(self, fault, index):
        options, rank = self.options, int(self.global_rank)
        here = self.current_epoch == options["fault_epoch"] and index == 3 and rank == options["fault_rank"]
        return options["fault"] == fault and here

    def go_wrong(self, index):
        if self.now("raise", index):
            raise ValueError("the recipe has a fault")
        if self.now("hang", index):
            time.sleep(1000)
        if self.now("die", index) and not Path(self.options["marker"]).exists():
            Path(self.options["marker"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def validation_step(self, batch, index):
        inputs, target, weight = batch
        self.log("val_loss", functional.cross_entropy(self.layers(inputs["point"]), target), batch_size=len(target))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]
"""

DATA = """
import numpy as np


def base_rows():
    rng = np.random.default_rng(3)
    # The third class is rare.
    labels = np.repeat([0, 1, 2], [160, 160, 40])
    centres = np.array([[0, 0], [2, 1], [0, 3]], dtype=np.float32)
    points = centres[labels] + rng.normal(size=(len(labels), 2)).astype(np.float32) * 0.7
    return [f"g{at}" for at in range(len(labels))], {"point": points}, [str("abc"[label]) for label in labels]
"""

Blobs = Callable[..., Recipe]


@pytest.fixture(scope="session")
def blobs_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blobs")
    lake = folder / "lake"
    import_base(_write(folder / "blobs", SETTINGS), str(lake), now=dt.datetime(2025, 3, 1, tzinfo=dt.UTC))
    return lake


@pytest.fixture(scope="session")
def blobs_dataset(blobs_lake: Path) -> Dataset:
    return read_dataset(Recipe.load(blobs_lake.parent / "blobs"), str(blobs_lake))


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """Makes the recipe with other settings, given as ``name=value`` of ``[training]`` or of its options."""
    return functools.partial(make_blobs, tmp_path)


def make_blobs(folder: Path, *, model: str = MODEL, **changes: Any) -> Recipe:
    text = SETTINGS
    for name, value in changes.items():
        written = f'"{value}"' if isinstance(value, str | Path) else str(value).lower()
        lines = text.splitlines()
        at = next((i for i, line in enumerate(lines) if line.startswith(f"{name} =")), None)
        if at is None:
            lines.insert(lines.index("[training]") + 1, f"{name} = {written}")
        else:
            lines[at] = f"{name} = {written}"
        text = "\n".join(lines)
    return _write(folder / "blobs", text, model)


def weights(fitted: Fitted) -> dict[str, list[float]]:
    """To compare, number by number."""
    return {name: tensor.flatten().tolist() for name, tensor in fitted.network.state_dict().items()}


def _write(folder: Path, settings: str, model: str = MODEL) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "model.toml").write_text(settings)
    (folder / "model.py").write_text(model)
    (folder / "data.py").write_text(DATA)
    return Recipe.load(folder)
