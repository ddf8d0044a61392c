"""Golden bytes: what we write today is what we wrote then, and another msgpack library agrees on what it says."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest

from edge_agent.contract.envelope import Envelope, Message, decode, encode
from edge_agent.contract.errors import UnknownSchemaVersion
from edge_agent.contract.manifest import Manifest, decode_manifest, digest_of, encode_manifest
from edge_agent.contract.messages import MetricsReport, Reported, Status
from edge_agent.contract.profile import ReferenceProfile, decode_profile
from edge_agent.contract.topics import Stream
from tests.edge_agent.contract import golden_files
from tests.edge_agent.contract.golden_files import AT_MS, BODIES, ENVELOPES, FOLDER, JSON, MANIFEST, PROFILE, messages

each_message = pytest.mark.parametrize("name", sorted(messages()))


def read(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def plain(message: Message) -> dict[str, Any]:
    """The message as another msgpack library sees it: str, int, float, bytes, dict, list."""
    fields = {field: getattr(message, field) for field in message.__struct_fields__ if field != "unknown"}
    if isinstance(message, Envelope):
        fields["body"] = msgpack.unpackb(bytes(message.body))
    return {name: as_lists(msgspec.to_builtins(value, builtin_types=(bytes,))) for name, value in fields.items()}


def as_lists(value: Any) -> Any:
    """Tuples, which msgpack does not know, as lists."""
    if isinstance(value, dict):
        return {key: as_lists(inner) for key, inner in value.items()}
    return [as_lists(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def test_the_golden_files_are_exactly_those_that_are_made() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(golden_files.golden_files())


@pytest.mark.parametrize("name", sorted(golden_files.golden_files()))
def test_each_golden_file_comes_out_byte_for_byte(name: str) -> None:
    assert golden_files.golden_files()[name] == read(name)


@each_message
def test_each_golden_message_decodes_to_the_message_it_was_made_from(name: str) -> None:
    message = messages()[name]
    assert decode(read(f"{name}.msgpack"), type(message)) == message


@each_message
def test_another_library_reads_the_same_values(name: str) -> None:
    assert msgpack.unpackb(read(f"{name}.msgpack")) == plain(messages()[name])


@each_message
def test_what_another_library_writes_decodes_to_the_same_message(name: str) -> None:
    message = messages()[name]
    packed: bytes = msgpack.packb(plain(message))
    assert decode(packed, type(message)) == message


@pytest.mark.parametrize("stream", Stream)
def test_the_body_in_a_golden_envelope_decodes_by_its_stream(stream: Stream) -> None:
    envelope = decode(read(f"envelope-{stream.value}.msgpack"), Envelope)
    assert envelope == ENVELOPES[stream]
    assert bytes(envelope.body) == read(f"body-{stream.value}.msgpack")
    assert decode(bytes(envelope.body), type(BODIES[stream])) == BODIES[stream]


def test_messages_of_agents_that_tell_of_no_gpu_and_no_runtime_are_still_read() -> None:
    earlier = FOLDER.parent / "golden_earlier"
    report = decode((earlier / "body-metrics.msgpack").read_bytes(), MetricsReport)
    reported = decode((earlier / "reported.msgpack").read_bytes(), Reported)
    assert (report.machine.cpu_percent, report.machine.gpus, report.machine.power_w) == (12.5, (), None)
    assert (reported.models["digits"].requests, reported.models["digits"].runtime) == (128, None)


def test_a_message_of_a_newer_minor_version_is_read_and_written_on_with_all_its_fields() -> None:
    data = read("future-1.9-status.msgpack")
    status = decode(data, Status)
    assert (status.online, status.at_ms, status.schema) == (True, AT_MS, "1.9")
    assert sorted(status.unknown) == ["battery", "neighbours", "unknown"]
    assert msgpack.unpackb(encode(status)) == msgpack.unpackb(data) == golden_files.FROM_THE_FUTURE


def test_a_message_of_another_major_version_is_refused() -> None:
    with pytest.raises(UnknownSchemaVersion, match=r"Status: schema '2\.0' is not known here; this code reads 1\.0"):
        decode(read("future-2.0-status.msgpack"), Status)


@pytest.mark.parametrize("name", sorted(JSON))
def test_each_json_document_reads_back(name: str) -> None:
    assert msgspec.json.decode(read(name), type=type(JSON[name])) == JSON[name]


def test_the_manifest_reads_back_and_keeps_its_digest() -> None:
    data = read("manifest.json")
    manifest: Manifest = decode_manifest(data)
    assert manifest == MANIFEST
    assert encode_manifest(manifest) == data
    assert digest_of(data) == digest_of(encode_manifest(MANIFEST))


def test_a_manifest_says_of_its_lineage_what_is_known_and_nothing_else() -> None:
    data = read("manifest-full-lineage.json")
    manifest: Manifest = decode_manifest(data)
    assert manifest == golden_files.FULL_LINEAGE
    assert manifest.lineage.labels_until_ms == AT_MS
    assert b"labels_until_ms" not in read("manifest.json"), "what was written before keeps its digest"


def test_the_reference_profile_reads_back_and_another_library_reads_it_too() -> None:
    data = read("reference.profile")
    profile: ReferenceProfile = decode_profile(data)
    assert profile == PROFILE
    assert msgpack.unpackb(data) == as_lists(msgspec.to_builtins(PROFILE))
