"""Rows noted down in columns: every shape of a small row, one at a time and several together."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.monitor.block import Block
from edge_agent.monitor.sampler import Lot

LOT = Lot(room=100, p_uniform=0.0, chance=0.0, threshold=0.5, uniform=lambda: 0.5)


def signature() -> Signature:
    """A number a row, as the column of a table; a vector a row; probabilities."""
    return Signature(
        inputs=(
            TensorSpec(name="spend", datatype=Datatype.FP32, shape=(None,)),
            TensorSpec(name="readings", datatype=Datatype.FP32, shape=(None, 3)),
        ),
        outputs=(TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(None, 2)),),
    )


def test_a_row_whose_tensors_have_no_other_axis_is_noted_like_any_other() -> None:
    block = Block(signature(), ("spend", "readings"), ("probabilities",), "probabilities")
    block.begin(LOT, 5, counting=True, copying=True, ends_at=1.0)
    inputs = {
        "spend": np.arange(5, dtype=np.float32),
        "readings": np.arange(15, dtype=np.float32).reshape(5, 3),
    }
    outputs = {"probabilities": np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2)}
    for begin, end in ((0, 1), (1, 2), (2, 3), (3, 5)):
        some, answers = ({name: array[begin:end] for name, array in side.items()} for side in (inputs, outputs))
        block.take([f"r{row}" for row in range(begin, end)], end - begin, 0.0, some, answers)
    [(given, found)] = block.batches()
    assert [each for each, _ in block.ids.timed()] == ["r0", "r1", "r2", "r3", "r4"]
    assert all(np.array_equal(given[name], array) for name, array in inputs.items())
    assert np.array_equal(found["probabilities"], outputs["probabilities"])


@pytest.mark.parametrize("wrong", [np.ones((2, 1)), np.ones((1, 2)), np.ones((2, 2, 1)), np.ones((1, 4))])
def test_an_answer_that_is_not_as_declared_is_noted_in_no_part(wrong: NDArray[np.floating]) -> None:
    """Neither repeated nor cut until it fits."""
    block = Block(signature(), ("spend",), ("probabilities",), "probabilities")
    block.begin(LOT, 2, counting=True, copying=True, ends_at=1.0)
    spend = {"spend": np.arange(2, dtype=np.float32)}
    right = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    with pytest.raises(ValueError, match=r"tensor 'probabilities' is \(.*\), not \(2, 2\) as declared"):
        block.take(["a", "b"], 2, 0.0, spend, {"probabilities": wrong})
    block.take(["c", "d"], 2, 0.0, spend, {"probabilities": right})
    [(given, found)] = block.batches()
    assert [each for each, _ in block.ids.timed()] == ["c", "d"]
    assert np.array_equal(given["spend"], spend["spend"])
    assert np.array_equal(found["probabilities"], right)


def test_requests_pass_while_none_of_them_is_to_be_looked_at_and_there_is_room_and_time() -> None:
    block = Block(signature(), ("spend",), ("probabilities",), "probabilities")
    lot = Lot(room=9, p_uniform=0.0, chance=0.5, threshold=0.5, uniform=lambda: 0.5)
    block.begin(lot, 1, counting=False, copying=True, ends_at=1.0)
    answers = np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2)
    lot.gap = 5

    def passes(*rows: int, at_s: float = 0.5, of: NDArray[np.generic] = answers) -> bool:
        some = {"probabilities": of[list(rows)]}
        return block.note_passing([f"r{row}" for row in rows], at_s, some, {3: len(rows)})

    assert passes(0, 1, 2)
    assert not passes(0, 1, 2), "one of them is to be looked at"
    assert not passes(3, at_s=1.0), "the block is over"
    assert not passes(3, of=answers.astype(np.str_)), "no numbers"
    assert not passes(3, of=answers[:, :1]), "not what was declared"
    assert not block.note_passing(["r3"], 0.5, {}, {3: 1}), "no answer"
    assert passes(3)
    assert (lot.gap, block.room, block.latency[3], block.count) == (1, 5, 4, 4)
    assert [*block.ids.timed()] == [("r0", 0.5), ("r1", 0.5), ("r2", 0.5), ("r3", 0.5)]
    assert np.array_equal(np.concatenate(block.probabilities()), answers)
    lot.gap = 100
    assert not passes(0, 1, 2, 3, 0, 1), "no room"


def test_what_is_held_does_not_last_where_rows_were_to_be_copied() -> None:
    """The copy of the first request failed; the next one has several rows."""
    block = Block(signature(), ("spend",), ("probabilities",), "probabilities")
    block.begin(LOT, 1, counting=False, copying=True, ends_at=1.0)
    lasting = [block.lasts]
    answers = np.ones((2, 2), np.float32)
    block.hold("r", (2,), 0.0, None, {"probabilities": answers})
    assert [*lasting, block.lasts] == [True, False]
    assert np.array_equal(np.concatenate(block.probabilities()), answers)


def test_of_what_is_held_only_what_is_counted_takes_memory() -> None:
    block = Block(signature(), ("readings",), ("probabilities",), "probabilities")
    block.begin(LOT, 1, counting=True, copying=False, ends_at=1.0)
    readings, probabilities = np.zeros((1, 3), np.float32), np.full((1, 2), 0.5, np.float32)
    mask, spend = np.zeros((1, 1 << 20), np.uint8), np.zeros(1, np.float32)
    freed: list[str] = []
    weakref.finalize(mask, freed.append, "mask")
    weakref.finalize(spend, freed.append, "spend")
    block.hold("r", [1], 0.0, {"readings": readings, "spend": spend}, {"probabilities": probabilities, "mask": mask})
    del mask, spend
    assert sorted(freed) == ["mask", "spend"]
    assert block.bytes == readings.nbytes + probabilities.nbytes
    [(given, found)] = block.batches()
    assert (list(given), list(found)) == (["readings"], ["probabilities"])
    assert block.probabilities()[0] is probabilities
