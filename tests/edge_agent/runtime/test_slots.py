"""Slots: a swap is one moment, and a model lives as long as its last request."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edge_agent.contract.errors import ModelLoadFailed, UnknownModel
from edge_agent.runtime.slots import LoadedModel, Slots, load
from tests.fakes.packages import INPUT, make_package, reference_images


def _loaded(folder: Path, version: str) -> LoadedModel:
    return load(make_package(folder / version, version=version, seed=int(version)))


def _closed(loaded: LoadedModel) -> bool:
    return loaded.backend._session is None  # type: ignore[attr-defined]


def test_an_unknown_model_and_version_say_what_there_is(tmp_path: Path) -> None:
    slots = Slots()
    with pytest.raises(UnknownModel, match="served are: none yet"):
        slots.get("digits")
    slots.install(_loaded(tmp_path, "1"))
    with pytest.raises(UnknownModel, match="it is at version '1'"):
        slots.lease("digits", "2")
    assert slots.get("digits", "1") is slots.models()[0]


def test_a_replaced_model_is_closed_when_its_last_lease_ends(tmp_path: Path) -> None:
    slots, old, new = Slots(), _loaded(tmp_path, "1"), _loaded(tmp_path, "2")
    assert slots.install(old) is None
    with slots.lease("digits") as first, slots.lease("digits") as second:
        assert slots.install(new) is old
        assert slots.get("digits") is new
        assert first is second is old
        assert not _closed(old)
        first.backend.infer({INPUT: reference_images(1)})
    assert _closed(old)
    assert not _closed(new)


def test_an_idle_model_is_closed_at_once_and_cannot_come_back(tmp_path: Path) -> None:
    slots, old = Slots(), _loaded(tmp_path, "1")
    slots.install(old)
    slots.install(_loaded(tmp_path, "2"))
    assert _closed(old)
    with pytest.raises(ModelLoadFailed, match="load its package again"):
        slots.install(old)
    assert slots.get("digits").version == "2"


def test_installing_the_serving_model_again_changes_nothing(tmp_path: Path) -> None:
    slots, loaded = Slots(), _loaded(tmp_path, "1")
    slots.install(loaded)
    assert slots.install(loaded) is None
    assert not _closed(loaded)


def test_closing_removes_every_model(tmp_path: Path) -> None:
    slots, loaded = Slots(), _loaded(tmp_path, "1")
    slots.install(loaded)
    slots.close()
    assert slots.models() == []
    assert _closed(loaded)


def test_no_request_fails_while_models_are_swapped_from_another_thread(tmp_path: Path) -> None:
    slots = Slots()
    packages = [make_package(tmp_path / str(seed), version=str(seed), seed=seed) for seed in (1, 2)]
    slots.install(load(packages[0]))
    failures: list[Exception] = []
    seen: set[str] = set()
    done = threading.Event()

    def ask() -> None:
        image = {INPUT: reference_images(1)}
        while not done.is_set():
            try:
                with slots.lease("digits") as loaded:
                    loaded.backend.infer(image)
                    seen.add(loaded.version)
            except Exception as error:  # noqa: BLE001 - any failure at all is what this looks for
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    replaced = [slots.install(load(packages[swap % 2])) for swap in range(1, 30)]
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert seen == {"1", "2"}
    assert all(old is not None and _closed(old) for old in replaced)
