"""The stand-in for TensorRT has only what TensorRT has, with its arguments, and all that our source uses."""

from __future__ import annotations

import enum
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.fakes.tensorrt_module as stand_in
from tests.edge_agent.runtime.tensorrt.api_surface import RUNTIMES_ALONE
from tests.edge_agent.runtime.tensorrt.test_api_surface import RECORDINGS, required_uses

_ARGUMENT = re.compile(r"(\w+):")


def recorded_arguments(signature: str) -> list[str] | None:
    """Names of a recorded signature's arguments; None where pybind11 does not say."""
    if "*args" in signature or "(" not in signature:
        return None
    inner = re.sub(r"\[[^\]]*\]|<[^>]*>", "", signature.partition("(")[2].rpartition(")")[0])
    return _ARGUMENT.findall(inner)


def differences(version: str) -> Iterator[str]:
    recording = RECORDINGS[version]
    for name in stand_in.__all__:
        kind: Any = getattr(stand_in, name)
        entry = recording.get(name)
        if entry is None:
            yield f"{name}: not in TensorRT"
        elif not isinstance(kind, type):
            continue  # a function, which pybind11 does not describe
        elif issubclass(kind, enum.Enum):
            known = entry["enum"]
            yield from (f"{name}.{each.name} = {each.value}" for each in kind if known.get(each.name) != each.value)
        else:
            yield from (f"{name}.{text}" for text in members_that_differ(kind, entry["class"]))


def members_that_differ(kind: type, recorded: dict[str, str]) -> Iterator[str]:
    for member, value in vars(kind).items():
        if member.startswith("_"):
            continue
        if member not in recorded:
            yield f"{member}: not in TensorRT"
            continue
        arguments = recorded_arguments(recorded[member])
        if not inspect.isfunction(value) or arguments is None:
            continue
        ours = list(inspect.signature(value).parameters)[1:]
        # What pybind11 was not told is arg0 there.
        theirs = [own if each.startswith("arg") else each for own, each in zip(ours, arguments[1:], strict=False)]
        if ours != theirs:
            yield f"{member}{tuple(ours)}: TensorRT has {arguments[1:]}"


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106"])
def test_it_has_no_name_and_no_argument_that_tensorrt_lacks_in(version: str, repository: Path) -> None:
    # In a process of its own: which names there are is decided when it is imported.
    environment = {**os.environ, "SHOAL_FAKE_TENSORRT_VERSION": version}
    code = f"import {__name__} as here; print(*here.differences({version!r}), sep='\\n')"
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=repository, env=environment, capture_output=True, text=True
    )
    assert (ended.stdout.strip(), ended.returncode) == ("", 0), ended.stderr


def test_it_has_whatever_our_source_uses() -> None:
    missing = {use.name for use in required_uses() if not has(use.name)}
    assert missing == set()


def has(name: str) -> bool:
    owner, _, member = name.partition(".")
    kind = getattr(stand_in, owner, None)
    if kind is None or not member or hasattr(kind, member):
        return kind is not None
    # An attribute that its constructor sets.
    return f"self.{member}" in inspect.getsource(kind.__init__)


@pytest.mark.parametrize("version", sorted(set(RECORDINGS) - set(RUNTIMES_ALONE)))
def test_the_attributes_that_its_constructors_set_are_tensorrts(version: str) -> None:
    for name in ("IBuilderConfig", "Builder", "ITensor", "IExecutionContext", "Runtime", "ISerializationConfig"):
        source = inspect.getsource(getattr(stand_in, name).__init__)
        for attribute in set(re.findall(r"self\.([a-z]\w*)\b[^(]*=", source)):
            assert attribute in RECORDINGS[version][name]["class"], f"{name}.{attribute}"
