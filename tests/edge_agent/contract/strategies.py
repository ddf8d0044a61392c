"""What hypothesis draws: messages, tensors, counts, as devices may make them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.contract.envelope import Envelope, encode
from edge_agent.contract.messages import Event, EventKind, Sample, SampleBatch, SampleReason
from edge_agent.contract.profile import FeatureCounts
from edge_agent.contract.tensors import Datatype, Tensor
from edge_agent.contract.topics import Stream

# No deadline: a busy machine is not a failure.
fast = settings(deadline=None, max_examples=60)
names = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,8}[a-z0-9])?", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
times_ms = st.integers(0, 253_402_300_799_999)
finite = st.floats(allow_nan=False, allow_infinity=False)
shares = st.floats(0.0, 1.0, exclude_min=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | finite | texts | st.binary(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def unknown_fields() -> st.SearchStrategy[dict[str, Any]]:
    """Top-level fields that ``Status`` lacks; one called ``unknown`` now and then."""
    keys = st.one_of(st.just("unknown"), texts).filter(lambda key: key not in {"schema", "online", "at_ms"})
    return st.dictionaries(keys, values, max_size=4)


@st.composite
def events(draw: st.DrawFn) -> Event:
    return Event(
        kind=draw(st.sampled_from(EventKind)),
        at_ms=draw(times_ms),
        model=draw(texts),
        reason=draw(texts),
        detail=draw(st.dictionaries(texts, values, max_size=3)),
    )


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    previous = draw(st.integers(0, 2**63 - 2))
    return Envelope(
        fleet=draw(names),
        device=draw(names),
        epoch=draw(st.text(min_size=1, max_size=32, alphabet="0123456789abcdef")),
        stream=draw(st.sampled_from(Stream)),
        sequence=draw(st.integers(previous + 1, 2**63 - 1)),
        previous=previous,
        sent_at_ms=draw(times_ms),
        body=msgspec.Raw(encode(draw(events()))),
        unknown=draw(st.dictionaries(texts.map("x-{}".format), values, max_size=2)),
    )


@st.composite
def arrays(
    draw: st.DrawFn, datatype: Datatype | st.SearchStrategy[Datatype] | None = None, *, filled: bool = False
) -> NDArray[Any]:
    """An array of any datatype and shape, every bit pattern included, in either byte order.

    Args:
        filled: Whether it has at least one axis and one element.
    """
    kinds = st.sampled_from(Datatype) if datatype is None else datatype
    kind = kinds if isinstance(kinds, Datatype) else draw(kinds)
    shape = tuple(draw(st.lists(st.integers(int(filled), 4), min_size=int(filled), max_size=4)))
    count = int(np.prod(shape, dtype=np.int64))
    if kind is Datatype.BYTES:
        out = np.empty(count, dtype=object)
        out[:] = draw(st.lists(st.binary(max_size=6), min_size=count, max_size=count))
        return out.reshape(shape)
    raw = draw(st.binary(min_size=count * kind.numpy.itemsize, max_size=count * kind.numpy.itemsize))
    if kind is Datatype.BOOL:
        raw = bytes(byte & 1 for byte in raw)
    array = np.frombuffer(raw, dtype=kind.numpy).reshape(shape)
    return array.astype(array.dtype.newbyteorder(">")) if draw(st.booleans()) else array


@st.composite
def sample_batches(draw: st.DrawFn) -> SampleBatch:
    return SampleBatch(
        model=draw(names),
        samples=tuple(
            Sample(
                request_id=draw(texts),
                package="5f" * 32,
                at_ms=draw(times_ms),
                reason=draw(st.sampled_from(SampleReason)),
                inclusion_probability=draw(shares),
                prediction=draw(texts),
                confidence=draw(finite),
                margin=draw(finite),
                inputs={"x": Tensor.of(draw(arrays()))},
                outputs={},
                label_wanted=draw(st.booleans()),
            )
            for _ in range(draw(st.integers(0, 2)))
        ),
    )


@st.composite
def counts_in(draw: st.DrawFn, bins: int) -> FeatureCounts:
    """Counts whose moments are small integers, so that their sums are exact in any order."""
    number = st.integers(0, 2**40)
    return FeatureCounts(
        bins=tuple(draw(number) for _ in range(bins)),
        under=draw(number),
        over=draw(number),
        nan=draw(number),
        inf=draw(number),
        missing=draw(number),
        total=float(draw(number)),
        squares=float(draw(number)),
    )
