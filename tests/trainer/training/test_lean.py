"""What the trainer spares itself of Lightning, no author notices: each of their hooks still counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import pytorch_lightning as pl

from tests.trainer.training.conftest import MODEL, Blobs, weights
from trainer.data.dataset import Dataset
from trainer.training import loop
from trainer.training.fit import fit


def test_the_weights_are_those_that_lightning_alone_comes_to(
    blobs: Blobs, blobs_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = weights(fit(blobs(), blobs_dataset, seed=1))

    def plain(_network: pl.LightningModule) -> None:
        """Leave the network as its author wrote it."""

    monkeypatch.setattr(loop, "lighten", plain)
    monkeypatch.setattr(loop, "NoProfiler", lambda: None)
    monkeypatch.setattr(loop, "moves_batches", lambda _network: True)
    assert weights(fit(blobs(), blobs_dataset, seed=1)) == ours


def test_an_author_may_take_the_batch_alone_and_need_not_its_number(blobs: Blobs, blobs_dataset: Dataset) -> None:
    alone = MODEL.replace(
        "def training_step(self, batch, index):", "def training_step(self, batch):\n        index = 0"
    )
    assert weights(fit(blobs(model=alone), blobs_dataset, seed=1)) == weights(fit(blobs(), blobs_dataset, seed=1))


@pytest.mark.parametrize(
    "hook", ["on_before_batch_transfer(self, batch, index)", "on_after_batch_transfer(self, batch, index)"]
)
def test_an_author_may_change_batches_on_their_way_to_the_device(
    blobs: Blobs, blobs_dataset: Dataset, hook: str
) -> None:
    moved = (
        f"    def {hook}:\n        inputs, *rest = batch\n        return ({{'point': inputs['point'] * 2}}, *rest)\n\n"
    )
    model = MODEL.replace("    def validation_step", moved + "    def validation_step")
    assert weights(fit(blobs(model=model), blobs_dataset, seed=1)) != weights(fit(blobs(), blobs_dataset, seed=1))


def test_hooks_are_called_and_what_they_note_on_the_network_is_there(
    blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path
) -> None:
    noted = tmp_path / "noted.json"
    hooks = f"""
    def on_train_batch_start(self, batch, index):
        self.calls = getattr(self, "calls", 0) + 1
        if index == 0:
            self.kept = nn.ReLU()
            self.register_buffer("seen", torch.zeros(1), persistent=False)

    def on_train_end(self):
        import json
        names = [sorted(dict(self.named_children())), sorted(dict(self.named_buffers()))]
        Path("{noted}").write_text(json.dumps([self.calls, type(self).__name__, *names]))

    def configure_optimizers(self):"""
    model = MODEL.replace("\n    def configure_optimizers(self):", hooks)
    recipe = blobs(model=model.replace('self.log("val_loss"', "self.log('more', 1.0)\n        self.log(\"val_loss\""))
    told: list[Mapping[str, float]] = []
    fit(recipe, blobs_dataset, seed=1, progress=lambda _share, _words, metrics: told.append(metrics))
    assert told[-1]["more"] == 1.0
    steps = blobs_dataset.source(blobs_dataset.train, blobs_dataset.rows.targets * 0 + 1.0).steps(32)
    assert json.loads(noted.read_text()) == [4 * steps, "Model", ["kept", "layers"], ["seen"]]
