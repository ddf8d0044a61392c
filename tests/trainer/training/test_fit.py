"""Training in one process: the same weights again, also where it was interrupted; and what may go wrong."""

from __future__ import annotations

import fcntl
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.contract.errors import Busy, StorageFull
from tests.trainer.training.conftest import MODEL, Blobs, weights
from trainer.data.dataset import Dataset
from trainer.errors import NotFinite, RecipeError, RecipeHung
from trainer.recipe_file import Loggers
from trainer.training.checkpoints import Checkpoints
from trainer.training.fit import fit, row_weights
from trainer.training.loop import Job, Learned, Place, learn
from trainer.training.plan import Plan
from trainer.training.watch import StallWatch


class Crash(BaseException):
    """The end of the whole run, in the middle of a training."""


def _noting(into: list[str]) -> Any:
    return lambda _fraction, message, _metrics: into.append(message)


def _crash_at(words: str) -> Any:
    def progress(_fraction: float, message: str, _metrics: Mapping[str, float]) -> None:
        if message.startswith(words):
            raise Crash

    return progress


def test_the_same_seed_gives_the_same_weights_and_another_other_ones(blobs: Blobs, blobs_dataset: Dataset) -> None:
    first, again, other = (weights(fit(blobs(), blobs_dataset, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_progress_tells_share_words_and_metrics(blobs: Blobs, blobs_dataset: Dataset) -> None:
    told: list[tuple[float, str, Mapping[str, float]]] = []
    fitted = fit(blobs(), blobs_dataset, seed=1, progress=lambda *line: told.append(line))
    last = told[-1]
    assert last[0] == 1.0
    assert last[1].startswith("epoch 4 of 4: validation loss 0.")
    assert set(last[2]) >= {"val_loss", "train_loss", "learning_rate", "rows_per_s", "epoch"}
    assert fitted.epochs == 4
    assert fitted.validation_loss == min(line[2]["val_loss"] for line in told)


@pytest.mark.parametrize("checkpoint_s", [60.0, 1e-6], ids=["between epochs", "within an epoch"])
def test_a_training_that_was_interrupted_comes_to_the_same_weights(
    blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path, checkpoint_s: float
) -> None:
    recipe, kept = blobs(checkpoint_s=checkpoint_s), tmp_path / "kept"
    whole = weights(fit(recipe, blobs_dataset, seed=1))
    for epoch in (2, 3):
        with pytest.raises(Crash):
            fit(recipe, blobs_dataset, seed=1, checkpoints=kept, progress=_crash_at(f"epoch {epoch} of 4"))
    told: list[str] = []
    resumed = fit(recipe, blobs_dataset, seed=1, checkpoints=kept, progress=_noting(told))
    assert told[0].startswith("going on from checkpoint step-")
    assert told[1].startswith("epoch 3 of 4")
    assert weights(resumed) == whole
    told.clear()
    assert weights(fit(recipe, blobs_dataset, seed=1, checkpoints=kept, progress=_noting(told))) == whole
    assert told == ["trained already, by an earlier attempt at the same"]


def test_a_damaged_checkpoint_costs_a_step_and_none_that_is_whole_all_of_them(
    blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path
) -> None:
    recipe, kept = blobs(checkpoint_s=1e-6), tmp_path / "kept"
    whole = weights(fit(recipe, blobs_dataset, seed=1))
    for damaged, words in ((1, "trying the one before"), (2, "no checkpoint is whole: training from scratch")):
        with pytest.raises(Crash):
            fit(recipe, blobs_dataset, seed=1, checkpoints=kept, progress=_crash_at("epoch 4 of 4"))
        for path in sorted(kept.rglob("step-*"))[-damaged:]:
            path.write_bytes(path.read_bytes()[:-100])
        told: list[str] = []
        with pytest.raises(Crash):
            fit(recipe, blobs_dataset, seed=1, checkpoints=kept, progress=_crash_after(told, "epoch 4 of 4"))
        assert any(words in message for message in told)
    assert weights(fit(recipe, blobs_dataset, seed=1, checkpoints=kept)) == whole


def test_checkpoints_of_other_settings_are_of_no_use_and_go(
    blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path
) -> None:
    kept, told = tmp_path / "kept", list[str]()
    with pytest.raises(Crash):
        fit(blobs(), blobs_dataset, seed=1, checkpoints=kept, progress=_crash_at("epoch 2 of 4"))
    changed = blobs(learning_rate=2e-2)
    resumed = fit(changed, blobs_dataset, seed=1, checkpoints=kept, progress=_noting(told))
    assert told[0].startswith("rows, recipe or settings have changed since the last attempt")
    assert weights(resumed) == weights(fit(changed, blobs_dataset, seed=1))
    assert len(list(kept.iterdir())) == 1


def test_epochs_that_are_over_sooner_than_a_checkpoint_is_written_share_one(
    blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path
) -> None:
    recipe = blobs()
    rows = blobs_dataset.source(blobs_dataset.train, np.ones(len(blobs_dataset.rows)))
    plan = Plan.make(recipe, content="", seed=1, start=None, loggers=Loggers())
    job = Job(plan=plan, recipe=recipe, training=rows, validation=rows, start=None)
    for busy_s, written in ((0.0, 5), (3.0, 2)):  # the disk's; each epoch, or the first; and what it came to
        names: list[str] = []

        def saved(path: Path, names: list[str] = names, busy_s: float = busy_s) -> None:
            names.append(path.name)
            time.sleep(busy_s)

        kept = Checkpoints(tmp_path / str(written), saved=saved)
        learn(job, place=Place(), checkpoints=kept, progress=_noting([]), watch=StallWatch(0.0))
        assert len(names) == written or (not busy_s and 2 <= len(names) < written)


def test_two_runs_do_not_train_the_same_in_one_folder(blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path) -> None:
    recipe = blobs()
    with pytest.raises(Crash):
        fit(recipe, blobs_dataset, seed=1, checkpoints=tmp_path, progress=_crash_at("epoch 1 of 4"))
    [lock] = tmp_path.rglob("lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another process trains the same here"):
            fit(recipe, blobs_dataset, seed=1, checkpoints=tmp_path)


def test_a_full_disk_ends_the_training_and_says_so(blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path) -> None:
    recipe = blobs(checkpoint_s=1e-6)
    with pytest.raises(Crash):
        fit(recipe, blobs_dataset, seed=1, checkpoints=tmp_path, progress=_crash_at("epoch 3 of 4"))
    [folder] = tmp_path.rglob("checkpoints")
    steps = max(int(path.name[5:15]) for path in folder.iterdir())
    (folder / f".step-{steps + 1:010}.new").symlink_to("/dev/full")  # the kernel's own full disk
    with pytest.raises(StorageFull, match="no space left on the device"):
        fit(recipe, blobs_dataset, seed=1, checkpoints=tmp_path)


def test_a_loss_that_is_no_number_is_named_with_its_batch(blobs: Blobs, blobs_dataset: Dataset) -> None:
    with pytest.raises(NotFinite, match=r"the loss of batch 4 of epoch 3 is not finite, though inputs and weights are"):
        fit(blobs(fault="nan"), blobs_dataset, seed=1)
    with pytest.raises(NotFinite, match=r"and the weights .* go up to .*: training diverged; lower the learning rate"):
        fit(blobs(learning_rate=1e30), blobs_dataset, seed=1)
    poisoned = replace(blobs_dataset.rows, inputs={"point": np.full((len(blobs_dataset.rows), 2), np.nan, np.float32)})
    with pytest.raises(NotFinite, match="'point' holds values that are not; see the data"):
        fit(blobs(), replace(blobs_dataset, rows=poisoned), seed=1)


def test_a_val_loss_that_is_no_number_is_told(blobs: Blobs, blobs_dataset: Dataset) -> None:
    model = MODEL.replace('self.log("val_loss", ', 'self.log("val_loss", math.nan * ')
    with pytest.raises(NotFinite, match=r"val_loss is nan after epoch 1: no finite val_loss, no best epoch"):
        fit(blobs(model=model), blobs_dataset, seed=1)


def test_a_recipe_that_raises_is_blamed_by_its_file(blobs: Blobs, blobs_dataset: Dataset) -> None:
    with pytest.raises(RecipeError, match=r"model\.py: Model failed in training: ValueError: the recipe has a fault"):
        fit(blobs(fault="raise"), blobs_dataset, seed=1)


def test_a_recipe_that_hangs_is_broken_off(blobs: Blobs, blobs_dataset: Dataset) -> None:
    with pytest.raises(RecipeHung, match=r"nothing went on for 1\.5 s in epoch 3, batch 4: Model hangs"):
        fit(blobs(fault="hang", step_timeout_s=1.5), blobs_dataset, seed=1)


def test_whoever_ends_the_process_by_a_signal_ends_it(blobs: Blobs, blobs_dataset: Dataset) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:

        def progress(*_line: Any) -> None:
            assert signal.getsignal(signal.SIGTERM) is mine

        mine = signal.getsignal(signal.SIGTERM)
        fit(blobs(), blobs_dataset, seed=1, progress=progress)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_training_stops_early_and_keeps_the_best_epoch(blobs: Blobs, blobs_dataset: Dataset) -> None:
    model = MODEL.replace('self.log("val_loss", ', 'self.log("val_loss", abs(self.current_epoch - 1) + 0 * ')
    fitted = fit(blobs(model=model, epochs=30, patience=2), blobs_dataset, seed=1)
    assert (fitted.epochs, fitted.validation_loss) == (4, 0.0)
    best = fit(blobs(model=model, epochs=2), blobs_dataset, seed=1)
    assert weights(fitted) == weights(best)


def test_a_warm_start_begins_with_the_champions_weights(blobs: Blobs, blobs_dataset: Dataset) -> None:
    first = fit(blobs(epochs=12), blobs_dataset, seed=1)
    start = {name: tensor.numpy() for name, tensor in first.network.state_dict().items()}
    told: list[str] = []
    warm = fit(blobs(), blobs_dataset, seed=1, start=start, progress=_noting(told))
    cold = fit(blobs(epochs=3), blobs_dataset, seed=1)
    assert (warm.warm, warm.epochs, cold.warm) == (True, 3, False)
    assert warm.validation_loss < cold.validation_loss


def test_rare_classes_count_as_much_as_the_recipe_asks(blobs: Blobs, blobs_dataset: Dataset) -> None:
    rare = blobs_dataset.rows.targets == 2

    def raised(kind: str) -> float:
        found = row_weights(blobs(class_weights=kind), blobs_dataset, warm=False)
        assert np.isclose(found.mean(), 1.0)
        return float(found[rare].mean() / found[~rare].mean())

    counts = np.bincount(blobs_dataset.rows.targets[blobs_dataset.train])
    assert raised("none") == 1
    assert raised("none") < raised("sqrt") < raised("balanced")
    assert np.isclose(raised("balanced"), counts[:2].mean() / counts[2], rtol=0.15)


def test_a_step_of_many_rows_can_be_made_of_several_batches(blobs: Blobs, blobs_dataset: Dataset) -> None:
    plain = MODEL.replace("nn.Dropout(0.2)", "nn.Identity()")
    whole = fit(blobs(model=plain, class_weights="none"), blobs_dataset, seed=1)
    pieces = fit(blobs(model=plain, class_weights="none", device_rows=8), blobs_dataset, seed=1)
    for name, tensor in whole.network.state_dict().items():
        assert np.allclose(tensor, pieces.network.state_dict()[name], atol=1e-2), name


def test_a_training_goes_on_where_it_was_when_its_steps_become_other_pieces(
    blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path
) -> None:
    """As when a group has lost a process: the rows of a step are shared out among fewer."""
    recipe = blobs(model=MODEL.replace("nn.Dropout(0.2)", "nn.Identity()"), class_weights="none", checkpoint_s=1e-6)
    sources = [
        blobs_dataset.source(mask, np.ones(len(mask))) for mask in (blobs_dataset.train, blobs_dataset.validation)
    ]
    plan = Plan.make(recipe, content="", seed=1, start=None, loggers=Loggers())
    looked: list[int] = []

    def trained(device_rows: int, folder: Path | None, crash_at: int = 0) -> Learned:
        job = Job(
            plan=msgspec.structs.replace(plan, device_rows=device_rows),
            recipe=recipe,
            training=sources[0],
            validation=sources[1],
            start=None,
        )

        def saved(_path: Path) -> None:
            looked.append(1)
            if crash_at and len(looked) == crash_at:
                raise Crash

        kept = None if folder is None else Checkpoints(folder, saved=saved)
        return learn(job, place=Place(), checkpoints=kept, progress=_noting([]), watch=StallWatch(0.0))

    whole = trained(0, None)
    steps = sources[0].steps(32)
    for first, then in ((16, 8), (8, 16)):
        folder = tmp_path / f"{first}-{then}"
        looked.clear()
        with pytest.raises(Crash):
            trained(first, folder, crash_at=steps + 3)  # in the second epoch
        looked.clear()
        resumed = trained(then, folder)
        assert len(looked) == 3 * steps - 3 + 1  # no step twice, none left out; and what it came to
        for name, tensor in whole.weights.items():
            assert np.allclose(tensor, resumed.weights[name], atol=1e-2), name


def test_bfloat16_beside_float32_trains_too(blobs: Blobs, blobs_dataset: Dataset) -> None:
    exact, mixed = (fit(blobs(precision=kind), blobs_dataset, seed=1) for kind in ("auto", "bf16-mixed"))
    assert weights(exact) != weights(mixed)
    assert abs(exact.validation_loss - mixed.validation_loss) < 0.05


def test_the_recipes_own_augmentation_changes_what_is_trained_on_alone(blobs: Blobs, blobs_dataset: Dataset) -> None:
    augment = """

def augment(inputs, generator):
    return {"point": inputs["point"] + torch.randn(inputs["point"].shape, generator=generator)}
"""
    plain, noisy, again = (fit(blobs(model=model), blobs_dataset, seed=1) for model in (MODEL, *[MODEL + augment] * 2))
    assert weights(noisy) == weights(again) != weights(plain)
    with pytest.raises(RecipeError, match=r"model\.py: Model failed in training: ZeroDivisionError"):
        fit(blobs(model=MODEL + augment.replace("return", "1 / 0; return")), blobs_dataset, seed=1)


def _crash_after(told: list[str], words: str) -> Any:
    crash = _crash_at(words)

    def progress(fraction: float, message: str, metrics: Mapping[str, float]) -> None:
        told.append(message)
        crash(fraction, message, metrics)

    return progress
