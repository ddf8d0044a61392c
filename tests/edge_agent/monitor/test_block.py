"""Rows noted down in columns: every shape of a small row, one at a time and several together."""

from __future__ import annotations

import numpy as np

from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.monitor.block import NO_DRAWS, Block, Held, Noted


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
    inputs = {
        "spend": np.arange(5, dtype=np.float32),
        "readings": np.arange(15, dtype=np.float32).reshape(5, 3),
    }
    outputs = {"probabilities": np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2)}
    for at in range(3):
        one = slice(at, at + 1)
        block.add(
            Noted(f"r{at}", 1, 10.0, 0.0, NO_DRAWS),
            {name: array[one] for name, array in inputs.items()},
            {name: array[one] for name, array in outputs.items()},
        )
    assert block.takes
    last, answers = ({name: array[3:] for name, array in side.items()} for side in (inputs, outputs))
    block.take([Held(["r3", "r4"], 2, 0.0, last, answers, {0: 2})])
    [(given, found)] = block.batches()
    assert [*block.ids] == ["r0", "r1", "r2", "r3", "r4"]
    assert all(np.array_equal(given[name], array) for name, array in inputs.items())
    assert np.array_equal(found["probabilities"], outputs["probabilities"])
