"""Rows noted down in columns: every shape of a small row, one at a time and several together."""

from __future__ import annotations

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
    block.begin(LOT, 5, counting=True, ends_at=1.0)
    inputs = {
        "spend": np.arange(5, dtype=np.float32),
        "readings": np.arange(15, dtype=np.float32).reshape(5, 3),
    }
    outputs = {"probabilities": np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2)}
    for begin, end in ((0, 1), (1, 2), (2, 3), (3, 5)):
        some, answers = ({name: array[begin:end] for name, array in side.items()} for side in (inputs, outputs))
        block.take([f"r{row}" for row in range(begin, end)], end - begin, 0.0, some, answers)
    [(given, found)] = block.batches()
    assert [*block.ids] == ["r0", "r1", "r2", "r3", "r4"]
    assert all(np.array_equal(given[name], array) for name, array in inputs.items())
    assert np.array_equal(found["probabilities"], outputs["probabilities"])


@pytest.mark.parametrize("wrong", [np.ones((2, 1)), np.ones((1, 2)), np.ones((2, 2, 1)), np.ones((1, 4))])
def test_an_answer_that_is_not_as_declared_is_noted_in_no_part(wrong: NDArray[np.floating]) -> None:
    """Neither repeated nor cut until it fits."""
    block = Block(signature(), ("spend",), ("probabilities",), "probabilities")
    block.begin(LOT, 2, counting=True, ends_at=1.0)
    spend = {"spend": np.arange(2, dtype=np.float32)}
    right = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    with pytest.raises(ValueError, match=r"tensor 'probabilities' is \(.*\), not \(2, 2\) as declared"):
        block.take(["a", "b"], 2, 0.0, spend, {"probabilities": wrong})
    block.take(["c", "d"], 2, 0.0, spend, {"probabilities": right})
    [(given, found)] = block.batches()
    assert [*block.ids] == ["c", "d"]
    assert np.array_equal(given["spend"], spend["spend"])
    assert np.array_equal(found["probabilities"], right)
