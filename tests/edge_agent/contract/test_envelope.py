from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.envelope import SCHEMA, Envelope, decode, encode
from edge_agent.contract.errors import MessageError, NetworkError, UnknownSchemaVersion
from edge_agent.contract.messages import Ack, Event, MetricsReport, ProfileReport, SampleBatch, Status
from edge_agent.contract.topics import Stream
from tests.edge_agent.contract.golden_files import BODIES, ENVELOPES, messages, remade
from tests.edge_agent.contract.strategies import envelopes, events, fast, sample_batches, unknown_fields

STATUS: dict[str, Any] = {"schema": "1.0", "online": True, "at_ms": 5}


def packed(**changes: Any) -> bytes:
    data: bytes = msgpack.packb({**STATUS, **changes})
    return data


@fast
@given(envelopes())
def test_an_envelope_comes_back_as_it_was(envelope: Envelope) -> None:
    assert decode(encode(envelope), Envelope) == envelope


@fast
@given(events())
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    assert decode(encode(event), Event) == event


@fast
@given(sample_batches())
def test_a_batch_of_samples_comes_back_as_it_was(batch: SampleBatch) -> None:
    assert decode(encode(batch), SampleBatch) == batch


@fast
@given(unknown_fields())
def test_any_unknown_field_survives_however_it_is_called(unknown: dict[str, Any]) -> None:
    data: bytes = msgpack.packb({**unknown, **STATUS})
    status = decode(data, Status)
    assert status.unknown == unknown
    assert msgpack.unpackb(encode(status), strict_map_key=False) == {**unknown, **STATUS}
    assert decode(encode(status), Status) == status


@fast
@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused_and_nothing_else_happens(data: bytes) -> None:
    for kind in (Envelope, Event, Status, SampleBatch):
        with pytest.raises(MessageError, match=f"^{kind.__name__}: "):
            decode(data, kind)


@fast
@given(st.sampled_from(sorted(messages())), st.data())
def test_a_message_with_one_byte_changed_decodes_or_is_refused(name: str, data: st.DataObject) -> None:
    message = messages()[name]
    raw = bytearray(encode(message))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(raw), type(message))
    except MessageError:
        return
    again = encode(decoded)
    assert encode(decode(again, type(message))) == again  # by bytes: a changed float may be NaN


@fast
@given(st.sampled_from(sorted(messages())), st.data())
def test_a_truncated_message_is_refused(name: str, data: st.DataObject) -> None:
    message = messages()[name]
    raw = encode(message)
    with pytest.raises(MessageError):
        decode(raw[: data.draw(st.integers(0, len(raw) - 1))], type(message))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated"),
        (b"\x01", "Expected `object`, got `int`"),
        (b"\x93\x01\x02\x03", "Expected `object`, got `array`"),
        (packed() + b"\x00", "trailing"),
        (msgpack.packb({1: 2}), "Expected `str`, got `int`"),
        (b"\x81\xa1\xff\x00", "utf-8"),
        (packed(at_ms="now"), "Expected `int`, got `str` - at `$.at_ms`"),
        (packed(at_ms=1.0), "Expected `int`, got `float`"),
        (packed(at_ms=-1), ">= 0"),
        (packed(at_ms=2**63), "<="),
        (packed(at_ms=None), "Expected `int`, got `"),
        (msgpack.packb({"schema": "1.0", "online": True}), "missing required field `at_ms`"),
        (packed(schema=1), "Expected `str`, got `int`"),
        (packed(schema="1"), "not MAJOR.MINOR"),
        (packed(schema="1.x"), "not MAJOR.MINOR"),
        (packed(schema="1.0\n"), "not MAJOR.MINOR"),
        (b"\x81\xa1x\x81\x81\x01\x02\x03", "hashable"),  # unknown field whose map key is a map
        (b"\x81\xa1x" + b"\x91" * 100_000 + b"\x00", "recursion"),
        (b"\x81\xa1x\xdd\xff\xff\xff\xff", "truncated"),  # announces 4 billion elements
        (b"\xdf\xff\xff\xff\xff", "truncated"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(data: bytes, says: str) -> None:
    with pytest.raises(MessageError, match=r"^Status: ") as refused:
        decode(data, Status)
    assert says in str(refused.value)
    assert isinstance(refused.value, NetworkError)
    assert refused.value.http_status == 400


@pytest.mark.parametrize("schema", ["2.0", "0.9", "11.0", "10", "", "one", "1_0.0"])
def test_any_other_major_version_is_unknown_even_if_the_rest_would_fit(schema: str) -> None:
    with pytest.raises(UnknownSchemaVersion, match="update it"):
        decode(packed(schema=schema), Status)


def test_a_message_without_a_schema_counts_as_this_code_s_own() -> None:
    assert decode(msgpack.packb({"online": True, "at_ms": 5}), Status).schema == SCHEMA


def test_a_field_called_unknown_on_the_wire_neither_becomes_our_container_nor_overrides_anything() -> None:
    status = decode(packed(unknown={"online": False}, other=1), Status)
    assert status == Status(online=True, at_ms=5, unknown={"unknown": {"online": False}, "other": 1})
    assert decode(packed(unknown=3), Status).unknown == {"unknown": 3}
    assert msgpack.unpackb(encode(status)) == {**STATUS, "unknown": {"online": False}, "other": 1}


def test_a_known_field_goes_before_an_unknown_one_of_its_name() -> None:
    assert decode(encode(Status(online=True, at_ms=5, unknown={"online": False})), Status).online is True


def test_unknown_fields_inside_known_structures_are_ignored() -> None:
    body = msgpack.unpackb(encode(BODIES[Stream.METRICS]))
    body["models"][0]["energy_j"] = 3.5
    body["machine"]["fan_rpm"] = 900
    assert decode(msgpack.packb(body), MetricsReport) == BODIES[Stream.METRICS]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sequence": 0, "previous": 0}, "sequence 0 does not come after previous 0"),
        ({"sequence": 4, "previous": 4}, "does not come after"),
        ({"sequence": 4, "previous": 9}, "does not come after"),
        ({"previous": -1}, ">= 0"),
        ({"sequence": 2**63}, "<="),
        ({"sent_at_ms": 10**18}, "<="),  # no calendar date
        ({"device": "crane/3"}, "matching regex"),
        ({"device": "crane-3\n"}, "matching regex"),
        ({"fleet": "+"}, "matching regex"),
        ({"epoch": ""}, "length >= 1"),
        ({"stream": "gossip"}, "Invalid enum value 'gossip'"),
    ],
)
def test_an_envelope_that_no_receiver_could_store_is_refused(changes: dict[str, Any], says: str) -> None:
    fields = {**msgpack.unpackb(encode(ENVELOPES[Stream.METRICS])), **changes}
    with pytest.raises(MessageError, match=r"^Envelope: ") as refused:
        decode(msgpack.packb(fields), Envelope)
    assert says in str(refused.value)


def test_an_envelope_that_runs_backwards_or_is_empty_cannot_even_be_made() -> None:
    with pytest.raises(MessageError, match="sequence 3 does not come after previous 7"):
        remade(ENVELOPES[Stream.METRICS], sequence=3, previous=7)
    with pytest.raises(MessageError, match="body is empty"):
        remade(ENVELOPES[Stream.METRICS], body=msgspec.Raw(b""))


@pytest.mark.parametrize(
    ("stream", "path", "value", "says"),
    [
        (Stream.METRICS, ("models", 0, "requests"), -1, "at `$.models[0].requests`"),
        (Stream.METRICS, ("models", 0, "model"), "../digits", "matching regex"),
        (Stream.METRICS, ("models", 0, "latency_counts"), [1, 2], "length >= 41"),
        (Stream.PROFILES, ("counts", "confidence", "bins"), [5, -5], "at `$.counts[...].bins[1]`"),
        (Stream.SAMPLES, ("samples", 0, "inclusion_probability"), 0.0, "> 0"),
        (Stream.SAMPLES, ("samples", 0, "inclusion_probability"), float("nan"), "> 0"),
        (Stream.SAMPLES, ("samples", 0, "inclusion_probability"), 1.5, "<= 1"),
        (Stream.SAMPLES, ("samples", 0, "inputs", "image", "datatype"), "FP8", "Invalid enum value 'FP8'"),
        (Stream.LABELS, ("labels", 0, "inclusion_probability"), -0.5, ">= 0"),
        (Stream.EVENTS, ("kind",), "party", "Invalid enum value 'party'"),
    ],
)
def test_a_body_with_an_impossible_value_is_refused(
    stream: Stream, path: tuple[Any, ...], value: Any, says: str
) -> None:
    body = msgpack.unpackb(encode(BODIES[stream]))
    inner = body
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(MessageError) as refused:
        decode(msgpack.packb(body), type(BODIES[stream]))
    assert says in str(refused.value)


def test_a_watermark_of_a_stream_that_we_do_not_know_is_kept() -> None:
    ack = decode(msgpack.packb({"schema": "1.2", "epoch": "e", "watermarks": {"smells": 4}}), Ack)
    assert ack.watermarks == {"smells": 4}


def test_a_profile_of_a_billion_rows_stays_exact() -> None:
    report = BODIES[Stream.PROFILES]
    assert isinstance(report, ProfileReport)
    counts = remade(report.counts["confidence"], bins=(2**53 + 1, 2**62))
    report = remade(report, counts={"confidence": counts})
    assert decode(encode(report), ProfileReport) == report
