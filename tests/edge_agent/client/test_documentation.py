"""docs/frames.md: its bytes are those that travel, its examples run, and it leaves nothing out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge_agent.contract import failures, frame_messages
from edge_agent.contract.tensors import Datatype
from tests.docs.digits_package import make_digits_package
from tests.edge_agent.contract.golden_frames import golden_frames
from tests.fakes.frames_device import FramesDevice, serving_frames

MESSAGES = [
    kind
    for kind in vars(frame_messages).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == frame_messages.__name__
]
LINE = re.compile(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} )*[0-9a-f]{2}) {2,}.{1,16}$", re.MULTILINE)


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "frames.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def device_of_the_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FramesDevice]:
    """Serves the model that the examples ask: what the recipe of that name takes and gives."""
    folder = tmp_path_factory.mktemp("page")
    make_digits_package(folder / "digits")
    with serving_frames(folder) as device:
        yield device


def test_the_dumps_are_the_golden_frames(page: str) -> None:
    dumps: list[bytearray] = []
    for at, line in LINE.findall(page):
        if at == "0000":
            dumps.append(bytearray())
        assert int(at, 16) == len(dumps[-1])
        dumps[-1] += bytes.fromhex(line)
    golden = golden_frames()
    assert dumps == [golden["frame-infer.bin"], golden["frame-inferred.bin"]]


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: str(kind.__name__))
def test_every_member_is_on_the_page(kind: type[msgspec.Struct], page: str) -> None:
    words = set(re.findall(r"`([a-z0-9_]+)`", page))
    assert set(kind.__struct_fields__) <= words
    assert kind.__struct_config__.tag is None or str(kind.__struct_config__.tag) in words


def test_every_datatype_and_every_kind_of_error_is_on_the_page(page: str) -> None:
    words = set(re.findall(r"`([A-Za-z0-9]+)`", page))
    assert {datatype.value for datatype in Datatype} <= words
    general = {"CallerError", "StorageNotWritable"}
    assert set(failures.KINDS) - general <= words
    rows = re.findall(r"^\| \d{3}[, 0-9]* \| (.+?) \|", page, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert "Busy" in named
    assert named <= set(failures.KINDS), "a client raises what the page says"


@pytest.mark.parametrize("index", range(3))
def test_the_python_examples_run(
    page: str, index: int, device_of_the_page: FramesDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[index]
    make_digits_package(tmp_path / "packages" / "digits")
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("/run/shoal/frames.sock", device_of_the_page.path), "docs/frames.md", "exec"), {})  # noqa: S102
