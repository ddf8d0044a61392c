"""Text as bytes: JSON knows UTF-8 alone, applications and their older databases know more."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.constraint import Encoding, Rule
from edge_agent.contract.errors import SignatureMismatch
from edge_agent.contract.signature import TensorSpec

# Bytes of these are UTF-8 as they are; None is not looked into.
READ_AS_UTF_8 = frozenset({None, Encoding.UTF_8, Encoding.ASCII})


def as_sent(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """UTF-8 text, which is all that JSON has, in the constraint's own encoding, as binary tensors bring it.

    Whatever carried a text, the same bytes are then checked, sampled, and checked again by the trainer.

    Args:
        array: Object array of ``bytes``.
    Returns:
        The array itself where the constraint has no encoding, or one that reads UTF-8.
    Raises:
        SignatureMismatch: A text cannot be written in the encoding.
    """
    encoding = spec.constraint.encoding
    if encoding is None or encoding in READ_AS_UTF_8:
        return array
    out = np.empty(array.size, dtype=object)
    index = 0
    try:
        for index, element in enumerate(array.ravel()):
            out[index] = element.decode().encode(encoding.value)
    except UnicodeError as error:
        at = tuple(int(axis) for axis in np.unravel_index(index, array.shape))
        where = ", ".join(str(axis) for axis in at)
        detail = f"element at [{where}] cannot be written in {encoding.value}: {reason_of(error)}"
        raise SignatureMismatch(spec.name, rule=Rule.ENCODING.value, detail=detail, row=at[0]) from error
    return out.reshape(array.shape)


def reason_of(error: UnicodeError) -> str:
    """Why a text cannot be read or written, and where in it."""
    if isinstance(error, UnicodeDecodeError):
        return f"{error.reason} at byte {error.start}"
    return f"{error.reason} at character {error.start}" if isinstance(error, UnicodeEncodeError) else str(error)
