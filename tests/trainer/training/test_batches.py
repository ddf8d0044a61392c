from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.streaming import MemoryRows
from trainer.training.batches import Batch, Steps, TrainingBatches


def rows(count: int) -> MemoryRows:
    values = np.arange(count)
    return MemoryRows({"x": values.astype(np.float32)[:, None]}, values, np.ones(count))


def seen(batches: TrainingBatches, epoch: int = 0) -> list[list[int]]:
    batches.epoch = epoch
    return [targets.tolist() for _inputs, targets, _weights in batches]


@given(st.integers(8, 200), st.integers(8, 40), st.integers(1, 4), st.integers(0, 9))
def test_any_number_of_processes_takes_the_same_steps(count: int, size: int, world: int, device_rows: int) -> None:
    alone = seen(TrainingBatches(Steps(rows=rows(count), batch_size=size), seed=1))
    steps = Steps(rows=rows(count), batch_size=size, world=world, device_rows=device_rows)
    shares = [seen(TrainingBatches(steps, seed=1, rank=rank)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(alone) * steps.pieces}
    for step, whole in enumerate(alone):
        at = slice(step * steps.pieces, (step + 1) * steps.pieces)
        pieces = [piece for share in shares for piece in share[at]]
        assert sorted(target for piece in pieces for target in piece) == sorted(whole)
        assert all(pieces)
        if device_rows and device_rows * steps.pieces >= -(-len(whole) // world):
            assert max(len(piece) for piece in pieces) <= device_rows + 1


def test_each_epoch_is_shuffled_anew_and_each_seed_its_own_way() -> None:
    steps = Steps(rows=rows(50), batch_size=16)
    orders = {str(seen(TrainingBatches(steps, seed=seed), epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4


def test_an_epoch_goes_on_in_the_middle_with_the_batches_that_were_left() -> None:
    steps = Steps(rows=rows(50), batch_size=16, device_rows=5)
    whole = seen(TrainingBatches(steps, seed=1), epoch=3)
    broken_off = TrainingBatches(steps, seed=1)
    broken_off.epoch = 3
    given = iter(broken_off)
    first = [next(given)[1].tolist() for _ in range(5)]
    resumed = TrainingBatches(steps, seed=1)
    resumed.load_state_dict(broken_off.state_dict())
    assert first + seen(resumed, epoch=3) == whole
    assert seen(resumed, epoch=3) == whole  # but for the first pass


def test_an_epoch_goes_on_with_the_rows_that_were_left_in_a_group_that_has_shrunk() -> None:
    alone, two = (Steps(rows=rows(200), batch_size=32, world=world, device_rows=8) for world in (1, 2))
    assert (alone.pieces, two.pieces) == (4, 2)
    broken_off = TrainingBatches(two, seed=1)
    given = iter(broken_off)
    for _ in range(3 * two.pieces):
        next(given)
    resumed = TrainingBatches(alone, seed=1)
    resumed.load_state_dict(broken_off.state_dict())
    whole = seen(TrainingBatches(Steps(rows=rows(200), batch_size=32), seed=1))
    assert [row for batch in seen(resumed) for row in batch] == [row for batch in whole[3:] for row in batch]


def test_augmentation_draws_the_same_for_the_same_batch_and_other_for_others() -> None:
    drawn: list[float] = []

    def augment(inputs: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
        noise = torch.rand(1, generator=generator)
        drawn.append(noise.item())
        return {"x": inputs["x"] + noise}

    steps = Steps(rows=rows(40), batch_size=20)
    for rank in (0, 0, 1):
        batches: list[Batch] = list(TrainingBatches(steps, seed=1, rank=rank, augment=augment))
        assert len(batches) == 2
    assert drawn[:2] == drawn[2:4]
    assert len(set(drawn)) == 4


def test_batches_of_no_rows_are_refused() -> None:
    from trainer.errors import DatasetError

    with pytest.raises(DatasetError, match="cannot be shared out among 4 processes"):
        seen(TrainingBatches(Steps(rows=rows(3), batch_size=8, world=4), seed=1))
