"""Slots: a swap is one moment, and a model lives as long as its last request."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from edge_agent.contract.errors import ModelLoadFailed, ModelUnavailable, UnknownModel
from edge_agent.contract.failures import retry_after_s
from edge_agent.contract.messages import ReportedRuntime
from edge_agent.runtime.loaded import OtherRuntime
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.slots import LoadedModel, ModelState, Slots, load
from tests.fakes.packages import INPUT, make_package, reference_images


def _loaded(folder: Path, version: str) -> LoadedModel:
    return load(make_package(folder / version, version=version, seed=int(version)))


def _closed(loaded: LoadedModel) -> bool:
    return loaded.backend._session is None  # type: ignore[attr-defined]


def test_an_unknown_model_and_version_say_what_there_is(tmp_path: Path) -> None:
    slots = Slots()
    with pytest.raises(UnknownModel, match=r"served are: none yet\Z"):
        slots.get("digits")
    with pytest.raises(UnknownModel, match=r"served are: none yet: install one\Z"):
        Slots(when_empty="install one").get("digits")
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


def test_versions_serve_side_by_side_and_the_highest_is_the_default(tmp_path: Path) -> None:
    slots = Slots()
    for version in ("9", "10", "2"):
        assert slots.install(_loaded(tmp_path, version), default=False) is None
    assert slots.versions("digits") == ["2", "9", "10"]
    assert slots.default_version("digits") == slots.get("digits").version == "10"
    with slots.lease("digits", "9") as loaded:
        assert loaded.version == "9"
    assert [loaded.version for loaded in slots.models()] == ["2", "9", "10"]
    slots.remove("digits")
    assert slots.default_version("digits") == "9"
    slots.remove("digits", "2")
    assert [(entry.version, entry.default) for entry in slots.index()] == [("9", True)]


def test_what_is_installed_as_default_stays_it_and_replaces_only_what_was_installed_so(tmp_path: Path) -> None:
    slots, beside, first, second = Slots(), *(_loaded(tmp_path, version) for version in ("7", "1", "2"))
    slots.install(beside, default=False)
    assert slots.install(first) is None
    assert slots.default_version("digits") == "1"
    assert slots.install(second) is first
    assert slots.versions("digits") == ["2", "7"]
    assert slots.default_version("digits") == "2"
    assert (_closed(first), _closed(beside)) == (True, False)


def test_the_same_version_loaded_again_takes_its_place_and_goes_on_with_its_counts(tmp_path: Path) -> None:
    slots, old = Slots(), _loaded(tmp_path, "1")
    slots.install(old, default=False)
    old.statistics.answered(1, 1, 1, 1)
    old.statistics.failed(1000)
    again = load(old.package)
    assert slots.install(again, default=False) is old
    assert _closed(old)
    assert (again.requests, again.failed, again.statistics.snapshot().fail_count) == (2, 1, 1)
    other = load(make_package(tmp_path / "other", version="1", seed=9))
    slots.install(other, default=False)
    assert other.requests == 0, "another package is another model"


def test_an_unloaded_model_says_why_and_gives_its_memory_back_when_its_last_lease_ends(tmp_path: Path) -> None:
    slots, loaded = Slots(), _loaded(tmp_path, "1")
    slots.install(loaded)
    closed: list[str] = []
    loaded.when_closed(lambda: closed.append("closed"))
    with slots.lease("digits"):
        assert slots.unload("digits", reason="unloaded on request") is loaded
        assert [entry.state for entry in slots.index()] == [ModelState.UNLOADING]
        assert closed == []
    assert closed == ["closed"]
    (entry,) = slots.index()
    assert (entry.state, entry.reason, entry.default) == (ModelState.UNLOADED, "unloaded on request", True)
    with pytest.raises(ModelUnavailable, match="version '1' is unloaded: unloaded on request; load it") as caught:
        slots.lease("digits")
    assert not caught.value.asleep
    assert retry_after_s(caught.value) == 0.0, "a person must load it"
    assert str(caught.value).endswith("; load it"), "there is no other version to ask for"
    assert slots.unload("digits", reason="again") is None
    assert slots.versions("digits") == []
    last = slots.last_served("digits")
    assert last is loaded


def test_only_an_idle_model_goes_to_sleep_and_it_stays_the_default(tmp_path: Path) -> None:
    slots, loaded = Slots(), _loaded(tmp_path, "2")
    slots.install(_loaded(tmp_path, "1"), default=False)
    slots.install(loaded, default=False)
    before = loaded.last_used - 1
    assert slots.unload("digits", "2", reason="idle", idle_since=before) is None, "used since then"
    with slots.lease("digits"):
        assert slots.unload("digits", "2", reason="idle", idle_since=loaded.last_used + 1) is None, "used now"
    assert slots.unload("digits", "2", reason="idle", idle_since=loaded.last_used) is loaded
    with pytest.raises(ModelUnavailable, match="idle; the next request loads it") as caught:
        slots.get("digits")
    assert caught.value.asleep
    assert slots.versions("digits") == ["1", "2"]
    slots.unload("digits", "2", reason="by hand")
    assert slots.get("digits").version == "1", "what a person unloads is not woken"
    with pytest.raises(ModelUnavailable, match=r"by hand; load it, or ask for a version that answers: '1'\Z"):
        slots.get("digits", "2")
    slots.mark("digits", "2", "2" * 64, ModelState.LOADING)
    with pytest.raises(ModelUnavailable, match=r"is loading: not loaded; ask again in a moment\Z") as caught:
        slots.get("digits", "2")
    assert retry_after_s(caught.value) > 0


def test_a_mark_tells_of_a_version_that_serves_only_why_it_was_not_replaced(tmp_path: Path) -> None:
    slots, loaded = Slots(), _loaded(tmp_path, "1")
    slots.install(loaded, default=False)
    slots.mark("digits", "1", "0" * 64, ModelState.UNAVAILABLE, "broken")
    slots.mark("digits", "2", "2" * 64, ModelState.UNAVAILABLE, "refused")
    assert [(entry.version, entry.digest, entry.state, entry.reason, entry.default) for entry in slots.index()] == [
        ("1", loaded.digest, ModelState.READY, "broken", True),
        ("2", "2" * 64, ModelState.UNAVAILABLE, "refused", False),
    ]
    assert slots.get("digits") is loaded
    with pytest.raises(ModelUnavailable, match="version '2' is unavailable: refused"):
        slots.get("digits", "2")
    slots.forget("digits", "1")
    slots.forget("digits", "2")
    assert [entry.version for entry in slots.index()] == ["1"]


def test_a_reload_that_was_overtaken_by_an_installation_does_not_replace_it(tmp_path: Path) -> None:
    slots, old = Slots(), _loaded(tmp_path, "1")
    slots.install(old)
    again, new = load(old.package), _loaded(tmp_path, "2")
    slots.install(new)
    assert not slots.replace(old, again, default=True)
    assert slots.get("digits") is new
    slots.unload("digits", reason="idle", idle_since=new.last_used)
    newer, newest = load(new.package), load(make_package(tmp_path / "3", version="3", seed=3))
    slots.install(newest)
    assert not slots.replace(None, newer, default=True)
    assert slots.get("digits") is newest


def test_leases_and_swaps_from_many_threads_close_each_model_once_and_never_under_a_lease(tmp_path: Path) -> None:
    """Without inferences, so that as many leases and swaps as possible meet."""
    slots, package = Slots(), make_package(tmp_path / "1")
    broken: list[str] = []
    swaps, done = 2000, threading.Event()

    class Counted:
        signature, platform = package.manifest.signature, "counted"
        closed = 0

        def infer(self, inputs: object) -> dict[str, object]:
            raise AssertionError(inputs)

        def cancel(self) -> None: ...

        def close(self) -> None:
            self.closed += 1

    def ask() -> None:
        while not done.is_set():
            with slots.lease("digits") as loaded:
                if loaded.backend.closed:  # type: ignore[attr-defined]
                    broken.append("closed under a lease")

    models = [LoadedModel(package=package, backend=Counted()) for _ in range(swaps)]  # type: ignore[arg-type]
    slots.install(models[0])
    threads = [threading.Thread(target=ask) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for model in models[1:]:
            slots.install(model)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    slots.close()
    assert broken == []
    assert {model.backend.closed for model in models} == {1}  # type: ignore[attr-defined]


def test_the_same_package_on_another_runtime_takes_the_place_of_the_first_and_counts_go_on(tmp_path: Path) -> None:
    slots, old, new = Slots(), _loaded(tmp_path, "1"), _loaded(tmp_path, "2")
    package = old.package
    slots.install(old)
    slots.install(new, default=False)
    old.statistics.answered(1, 1, 1, 1)
    engine = OtherRuntime(lambda: OnnxBackend(package), ReportedRuntime(name="tensorrt", reason="1 ms against 9 ms"))
    other = load(package, runtime=engine)
    assert slots.exchange(old, other)
    assert (slots.get("digits"), slots.get("digits", "1")) == (other, other), "the default stays the default"
    assert (other.requests, _closed(old)) == (1, True)
    assert slots.index()[0].reason == "1 ms against 9 ms"
    other.runtime = ReportedRuntime(name="tensorrt", building="building an engine (tactics)", building_percent=41.7)
    assert slots.index()[0].reason == "building an engine (tactics): 42 %"
    late = load(package)
    assert not slots.exchange(old, late), "what it was to replace has gone"
    slots.unload("digits", "1", reason="by hand")
    assert not slots.exchange(other, late)
    late.close()
    slots.close()
