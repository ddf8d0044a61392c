from __future__ import annotations

import contextlib
import threading

import pytest

from edge_agent.contract.errors import BudgetExceeded
from edge_agent.runtime.gpu.budget import GpuBudget

_MIB = 1 << 20


def test_what_fits_is_held_and_what_is_released_fits_again() -> None:
    budget = GpuBudget(100 * _MIB, lambda: 1000 * _MIB)
    first, second = budget.hold("digits 1", 60 * _MIB), budget.hold("digits 2", 40 * _MIB)
    assert budget.used_bytes == 100 * _MIB
    with pytest.raises(BudgetExceeded):
        budget.hold("faces 1", 1)
    first.release()
    first.release()
    assert budget.used_bytes == 40 * _MIB
    third = budget.hold("faces 1", 60 * _MIB)
    second.release()
    third.release()
    assert budget.used_bytes == 0


def test_a_refusal_names_who_holds_what_and_the_setting() -> None:
    budget = GpuBudget(100 * _MIB, lambda: 1000 * _MIB)
    budget.hold("digits 1", 30 * _MIB)
    budget.hold("faces 2", 50 * _MIB)
    with pytest.raises(BudgetExceeded) as refused:
        budget.hold("signs 1", 21 * _MIB)
    assert str(refused.value) == (
        "'signs 1' needs 21.0 MiB of GPU memory; engines may take 100.0 MiB (accelerator.gpu_memory_mib) and 80.0 MiB "
        "are taken: faces 2 (50.0 MiB), digits 1 (30.0 MiB); unload another model, or raise accelerator.gpu_memory_mib"
    )
    assert budget.used_bytes == 80 * _MIB


def test_an_engine_counts_for_what_it_was_found_to_take_unless_that_is_too_much() -> None:
    budget = GpuBudget(100 * _MIB, lambda: 1000 * _MIB)
    budget.hold("faces 1", 30 * _MIB)
    hold = budget.hold("digits 1", 10 * _MIB)
    hold.takes(70 * _MIB)
    assert budget.used_bytes == 100 * _MIB
    with pytest.raises(
        BudgetExceeded, match=r"'digits 1' was loaded and found to take 71\.0 MiB .* taken: faces 1 \(30"
    ):
        hold.takes(71 * _MIB)
    assert budget.used_bytes == 100 * _MIB, "it is there until it is closed"
    hold.release()
    assert budget.used_bytes == 30 * _MIB


def test_what_the_gpu_has_no_room_for_is_refused_without_a_limit_too() -> None:
    budget = GpuBudget(0, lambda: 10 * _MIB)
    with pytest.raises(BudgetExceeded, match=r"needs 11\.0 MiB of GPU memory, of which 10\.0 MiB are free.* by none"):
        budget.hold("digits 1", 11 * _MIB)
    budget.hold("digits 1", 10 * _MIB)


def test_one_model_may_hold_twice_while_it_is_replaced() -> None:
    budget = GpuBudget(0, lambda: 10 * _MIB)
    old, new = budget.hold("digits 1", _MIB), budget.hold("digits 1", 2 * _MIB)
    old.release()
    assert budget.used_bytes == 2 * _MIB
    new.release()


def test_models_that_ask_at_once_never_get_more_than_there_is() -> None:
    budget = GpuBudget(10 * _MIB, lambda: 1000 * _MIB)
    got = []
    start = threading.Barrier(8)

    def ask(number: int) -> None:
        start.wait()
        with contextlib.suppress(BudgetExceeded):
            got.append(budget.hold(f"model {number}", 3 * _MIB))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 3
