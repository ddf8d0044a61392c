"""docs/messages.md tells another client everything it must know."""

from __future__ import annotations

import enum
import re
from pathlib import Path

import msgpack
import msgspec
import pytest

from edge_agent.contract import messages, sampling, tensors, topics
from edge_agent.contract.envelope import MAX_PAYLOAD_BYTES, SCHEMA, Envelope, encode
from edge_agent.contract.latency import BOUNDS_US, BUCKETS
from edge_agent.contract.profile import FeatureCounts
from tests.edge_agent.contract.golden_files import ENVELOPES, FOLDER

STRUCTS: list[type[msgspec.Struct]] = [
    Envelope,
    FeatureCounts,
    sampling.SamplingPolicy,
    tensors.Tensor,
    *(kind for kind in vars(messages).values() if isinstance(kind, type) and kind.__module__ == messages.__name__
      and issubclass(kind, msgspec.Struct)),
]  # fmt: skip
ENUMS: list[type[enum.Enum]] = [messages.EventKind, messages.SampleReason, messages.UpdateStep, topics.Stream]


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "messages.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: str(kind.__name__))
def test_every_field_is_on_the_page(kind: type[msgspec.Struct], page: str) -> None:
    words = set(re.findall(r"`([a-z0-9_]+)`", page))
    assert set(kind.__struct_fields__) - {"unknown"} <= words


@pytest.mark.parametrize("kind", ENUMS, ids=lambda kind: kind.__name__)
def test_every_word_of_every_enumeration_is_on_the_page(kind: type[enum.Enum], page: str) -> None:
    assert {str(member.value) for member in kind} <= set(re.findall(r"`([a-z-]+)`", page))


def test_the_numbers_on_the_page_are_those_of_the_code(page: str) -> None:
    assert f'now `"{SCHEMA}"`' in page
    assert f"{MAX_PAYLOAD_BYTES:,} bytes" in page
    assert f"{BUCKETS} counts of requests" in page
    assert tuple(round(16 * 2 ** (i / 2), 1) for i in range(40)) == BOUNDS_US


def test_the_golden_files_that_the_page_names_are_there(page: str) -> None:
    named = set(re.findall(r"`([a-z-]+\.(?:json|profile))`", page))
    assert len(named) >= 8
    assert named <= {path.name for path in FOLDER.iterdir()}


def test_the_program_on_the_page_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(program, {"msgpack": msgpack, "payload": encode(ENVELOPES[topics.Stream.METRICS])})  # noqa: S102  # the page's
    assert capsys.readouterr().out == "crane-3 digits 300\n"
