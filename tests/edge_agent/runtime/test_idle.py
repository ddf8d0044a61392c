"""The thread that gives back the memory of idle models."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edge_agent.contract.errors import UnknownModel
from edge_agent.runtime.idle import IdleUnloader
from edge_agent.runtime.slots import LoadedModel, Slots, load
from tests.fakes.packages import make_package


@pytest.mark.parametrize("failure", [UnknownModel("replaced this very moment"), OSError("the disk is gone")])
def test_one_model_that_cannot_be_unloaded_does_not_keep_the_others_in_memory(
    tmp_path: Path, failure: Exception
) -> None:
    slots = Slots()
    for name in ("first", "second"):
        slots.install(load(make_package(tmp_path / name, name=name)))
    twice = threading.Event()
    asked: list[str] = []

    def unload(loaded: LoadedModel, idle_since: float) -> bool:
        asked.append(loaded.name)
        if loaded.name == "first":
            if asked.count("first") == 2:
                twice.set()
            raise failure
        return slots.unload(loaded.name, reason="idle", idle_since=idle_since) is not None

    idle = IdleUnloader(slots, 0.05, unload)
    idle.start()
    assert twice.wait(30), "the thread goes on"
    idle.close()
    assert [loaded.name for loaded in slots.models()] == ["first"]
    slots.close()
