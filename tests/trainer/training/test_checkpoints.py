from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from edge_agent.contract.errors import StorageFull
from trainer.training.checkpoints import FINISHED, Checkpoints


def test_the_newest_checkpoint_is_read_and_one_before_it_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "kept")
    for step in (1, 2, 30):
        checkpoints.write(f"step-{step:010}", {"weights": torch.tensor([float(step)])})
    newest = checkpoints.newest(pytest.fail)
    assert newest is not None
    assert checkpoints.load_checkpoint(newest)["weights"].item() == 30
    assert sorted(path.name[:15] for path in newest.parent.iterdir()) == ["step-0000000002", "step-0000000030"]


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_serves(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write("step-0000000001", {"weights": torch.ones(1000)})
    newest = checkpoints.write("step-0000000002", {"weights": torch.zeros(1000)})
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    told: list[str] = []
    found = Checkpoints(tmp_path).newest(told.append)
    assert found is not None
    assert found.name.startswith("step-0000000001.")
    assert told == ["checkpoint step-0000000002 is damaged (its bytes are not those that were written)"]
    assert not newest.exists()


def test_where_no_checkpoint_is_whole_there_is_none(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).write("step-0000000001", {"weights": torch.ones(3)})
    path.write_bytes(b"")
    assert Checkpoints(tmp_path).newest(lambda _message: None) is None


def test_what_cannot_be_loaded_safely_is_no_checkpoint(tmp_path: Path) -> None:
    Checkpoints(tmp_path).write("step-0000000001", {"weights": Fraction(1, 3)})
    told: list[str] = []
    assert Checkpoints(tmp_path).newest(told.append) is None
    assert "cannot be read (UnpicklingError" in told[0]


def test_a_full_disk_is_said_and_the_checkpoints_before_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write("step-0000000001", {"weights": torch.ones(3)})
    # The kernel's own full disk.
    (tmp_path / ".step-0000000002.new").symlink_to("/dev/full")
    with pytest.raises(StorageFull, match="step-0000000002: no space left on the device; free some"):
        checkpoints.write("step-0000000002", {"weights": torch.ones(1_000_000)})
    assert [path.name[:15] for path in tmp_path.iterdir()] == ["step-0000000001"]


def test_a_finished_training_is_found_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.finished() is None
    checkpoints.write("step-0000000001", {"weights": torch.ones(3)})
    checkpoints.write(FINISHED, {"epochs": 3})
    assert Checkpoints(tmp_path).finished() == {"epochs": 3}
