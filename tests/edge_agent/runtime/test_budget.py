"""Budgets: what does not fit is refused before it is loaded, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.contract.errors import BudgetExceeded
from edge_agent.contract.failures import retry_after_s
from edge_agent.contract.manifest import Resources
from edge_agent.runtime.budget import MemoryBudget, ThreadBudget, estimate_bytes, thread_budget
from edge_agent.runtime.loaded import load
from tests.fakes.large_package import MIB, make_large_package
from tests.fakes.packages import make_package


def test_the_estimate_is_what_the_manifest_says_else_a_multiple_of_the_weights(tmp_path: Path) -> None:
    said = make_large_package(tmp_path / "said", weights_mib=1, resources=Resources(memory_bytes=7 * MIB))
    assert estimate_bytes(said) == 7 * MIB
    silent = make_large_package(tmp_path / "silent", weights_mib=2)
    assert 3 * MIB < estimate_bytes(silent) < 5 * MIB


def test_the_estimate_is_not_far_from_what_is_measured(tmp_path: Path) -> None:
    load(make_package(tmp_path / "first"))  # the runtime's own memory is taken with the first model
    package = make_large_package(tmp_path / "package", weights_mib=10)
    loaded = load(package)
    assert 10 * MIB <= loaded.memory_bytes <= 1.5 * estimate_bytes(package)
    loaded.close()


def test_a_model_that_does_not_fit_is_told_who_takes_the_memory(tmp_path: Path) -> None:
    budget = MemoryBudget(20 * MIB)
    first = load(make_large_package(tmp_path / "1", name="first", weights_mib=8))
    budget.hold(first)
    second = make_large_package(tmp_path / "2", name="second", version="7", weights_mib=8)
    with pytest.raises(BudgetExceeded) as caught:
        budget.check(second)
    text = str(caught.value)
    assert "model 'second' version '7' needs about 13.0 MiB" in text
    assert "models may take 20.0 MiB (runtime.memory_mib)" in text
    assert "first 1 (" in text
    assert text.endswith("unload another model, or raise runtime.memory_mib")
    first.close()
    assert budget.used_bytes == 0
    budget.check(second)


def test_a_model_that_never_fits_is_told_the_limit_that_it_needs_and_not_to_wait(tmp_path: Path) -> None:
    budget = MemoryBudget(10 * MIB)
    with pytest.raises(BudgetExceeded, match=r"by none; raise runtime\.memory_mib to 14 at least\Z") as caught:
        budget.check(make_large_package(tmp_path / "1", weights_mib=8))
    assert retry_after_s(caught.value) == 0.0


def test_a_new_version_that_fits_only_without_the_old_one_says_so(tmp_path: Path) -> None:
    budget = MemoryBudget(20 * MIB)
    old = load(make_large_package(tmp_path / "1", weights_mib=8))
    budget.hold(old)
    with pytest.raises(BudgetExceeded, match="it would fit without version '1', which must stay until the new one has"):
        budget.check(make_large_package(tmp_path / "2", version="2", weights_mib=8), replaces=old)
    old.close()


def test_a_model_that_takes_more_than_it_said_is_refused_after_loading(tmp_path: Path) -> None:
    package = make_large_package(tmp_path / "1", weights_mib=8, resources=Resources(memory_bytes=2 * MIB))
    budget = MemoryBudget(5 * MIB)
    budget.check(package)
    loaded = load(package)
    with pytest.raises(BudgetExceeded, match=r"was loaded and found to take \d"):
        budget.hold(loaded)
    assert budget.used_bytes == 0


def test_what_else_grows_meanwhile_is_not_put_down_to_the_model(tmp_path: Path) -> None:
    budget = MemoryBudget(100 * MIB)
    loaded = load(make_package(tmp_path / "package"))
    loaded.memory_bytes = 90 * MIB
    budget.hold(loaded)
    assert loaded.memory_bytes < 8 * MIB


def test_no_limit_refuses_nothing(tmp_path: Path) -> None:
    MemoryBudget().check(make_large_package(tmp_path / "p", weights_mib=1, resources=Resources(memory_bytes=1 << 50)))


def test_threads_follow_the_processors_and_one_model_takes_no_more_than_all_may(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert thread_budget(0, 1, available=4) == ThreadBudget(4, 1)
    assert thread_budget(0, 2, available=4).at_once == 2
    assert not caplog.records
    assert thread_budget(0, 8, available=4) == ThreadBudget(4, 4)
    assert "runtime.threads_per_model is 8" in caplog.text
    assert thread_budget(6, 1, available=4) == ThreadBudget(6, 1)
    assert "this process has 4 processors" in caplog.text
    assert thread_budget(3, 2, available=4).at_once == 1
