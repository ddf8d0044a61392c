from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from edge_agent.runtime.tensorrt.engine_cache import PLAN_FILE, EngineCache
from edge_agent.runtime.tensorrt.job import EngineFacts

KEY, OTHER, FAMILY = "a" * 64, "b" * 64, "f" * 64
FACTS = EngineFacts(precision="fp16", refittable=True, was_cast=True, kept_fp32=("softmax",), seconds=12.5)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def new_plan(tmp_path: Path, data: bytes = b"an engine") -> Path:
    plan = tmp_path / "new.plan"
    plan.write_bytes(data)
    return plan


def test_what_was_put_is_found_with_all_that_is_known_of_it(cache: EngineCache, tmp_path: Path) -> None:
    plan = new_plan(tmp_path)

    put = cache.put(KEY, plan, FACTS, family=FAMILY)
    found = cache.find(KEY)

    assert put == found
    assert found is not None
    assert found.plan.read_bytes() == b"an engine"
    assert found.facts == FACTS
    assert not plan.exists(), "the plan was moved"
    assert cache.find(OTHER) is None


def test_a_damaged_engine_is_removed_and_never_given(
    cache: EngineCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = cache.put(KEY, new_plan(tmp_path), FACTS)
    assert kept is not None
    kept.plan.write_bytes(b"an engine!")

    with caplog.at_level(logging.WARNING):
        assert cache.find(KEY) is None

    assert "engine aaaaaaaaaaaa removed: its bytes are not those that were written" in caplog.text
    assert not kept.plan.parent.exists()


def test_the_newest_refittable_engine_of_a_family_is_found(cache: EngineCache, tmp_path: Path) -> None:
    for age, (key, facts) in enumerate(
        {
            KEY: FACTS,
            OTHER: FACTS,
            "c" * 64: EngineFacts(refittable=False),
        }.items()
    ):
        assert cache.put(key, new_plan(tmp_path, key.encode()), facts, family=FAMILY) is not None
        os.utime(tmp_path / "engines" / key, (1000 + age, 1000 + age))
    assert cache.put("d" * 64, new_plan(tmp_path), FACTS, family="e" * 64) is not None

    found = cache.find_refittable(FAMILY)

    assert found is not None
    assert found.key == OTHER
    assert cache.find_refittable("0" * 64) is None
    assert cache.find_refittable("") is None


def test_a_damaged_relative_is_passed_over(cache: EngineCache, tmp_path: Path) -> None:
    for age, key in enumerate((KEY, OTHER)):
        kept = cache.put(key, new_plan(tmp_path), FACTS, family=FAMILY)
        assert kept is not None
        os.utime(kept.plan.parent, (1000 + age, 1000 + age))
    (tmp_path / "engines" / OTHER / PLAN_FILE).write_bytes(b"")

    found = cache.find_refittable(FAMILY)

    assert found is not None
    assert found.key == KEY


def test_an_engine_in_the_place_of_another_replaces_it_whole(cache: EngineCache, tmp_path: Path) -> None:
    cache.put(KEY, new_plan(tmp_path, b"old"), FACTS)
    cache.put(KEY, new_plan(tmp_path, b"new"), EngineFacts())

    found = cache.find(KEY)

    assert found is not None
    assert (found.plan.read_bytes(), found.facts) == (b"new", EngineFacts())


def test_what_nobody_needs_is_removed_and_what_a_crash_has_left_too(cache: EngineCache, tmp_path: Path) -> None:
    for key in (KEY, OTHER):
        cache.put(key, new_plan(tmp_path), FACTS)
    (tmp_path / "engines" / ".building-x").mkdir()

    cache.collect({KEY})

    assert [path.name for path in (tmp_path / "engines").iterdir()] == [KEY]


def test_a_folder_that_is_not_there_yet_holds_nothing(cache: EngineCache) -> None:
    assert cache.find(KEY) is None
    assert cache.find_refittable(FAMILY) is None
    cache.collect(set())


def test_where_nothing_can_be_written_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    plan = new_plan(tmp_path)

    assert EngineCache(tmp_path / "file" / "engines").put(KEY, plan, FACTS) is None

    assert "an engine could not be kept" in caplog.text
    assert plan.exists()


def test_a_plan_that_is_not_there_is_not_kept(
    cache: EngineCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache.put(KEY, tmp_path / "none.plan", FACTS) is None

    assert "an engine could not be kept" in caplog.text
    assert list((tmp_path / "engines").iterdir()) == []
