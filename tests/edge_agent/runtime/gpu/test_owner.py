from __future__ import annotations

import gc
import logging
import threading
import time
import weakref

import pytest

from edge_agent.contract.errors import AcceleratorUnavailable, BudgetExceeded
from edge_agent.runtime.gpu import owner as owner_module
from edge_agent.runtime.gpu.device_memory import DeviceMemory
from edge_agent.runtime.gpu.owner import GpuOwner, Pending
from tests.fakes.host_memory import HostMemory


@pytest.fixture
def memory() -> HostMemory:
    return HostMemory()


def test_all_calls_run_on_one_thread_which_opened_the_gpu(memory: HostMemory) -> None:
    threads = set()

    def open_it() -> DeviceMemory:
        threads.add(threading.get_ident())
        return memory

    owner = GpuOwner(open_it)
    assert threads == set(), "nothing is opened before it is needed"
    asking = [
        threading.Thread(target=lambda: threads.add(owner.call(lambda _: threading.get_ident()))) for _ in range(5)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    owner.close()


def test_a_call_within_a_call_runs_at_once(memory: HostMemory) -> None:
    owner = GpuOwner(lambda: memory)
    assert owner.call(lambda _: owner.call(lambda inner: inner is memory))
    owner.close()


def test_what_a_call_raises_is_raised_to_its_caller_and_to_no_other(memory: HostMemory) -> None:
    owner = GpuOwner(lambda: memory)

    def fails(_: DeviceMemory) -> None:
        raise LookupError("mine")

    for _ in range(2):
        with pytest.raises(LookupError, match="mine"):
            owner.call(fails)
        assert owner.call(lambda given: given.free_bytes()) == 1 << 30
    owner.close()


def test_a_failed_call_keeps_nothing_alive(memory: HostMemory) -> None:
    class Held:
        pass

    owner = GpuOwner(lambda: memory)
    held = Held()
    seen = weakref.ref(held)

    def fails(_: DeviceMemory, kept: Held = held) -> None:
        raise LookupError(str(kept))

    gc.disable()
    try:
        with pytest.raises(LookupError):
            owner.call(fails)
        del held, fails
        owner.call(lambda _: None)
        assert seen() is None
    finally:
        gc.enable()
    owner.close()


def test_a_gpu_that_cannot_be_opened_is_told_to_every_caller_and_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def open_it() -> DeviceMemory:
        tried.append(1)
        raise AcceleratorUnavailable("no driver here")

    owner = GpuOwner(open_it)
    for _ in range(3):
        with pytest.raises(AcceleratorUnavailable, match="no driver here"):
            owner.call(lambda _: None)
    assert tried == [1]
    assert not caplog.records, "whoever asked says it"
    owner.close()
    owner.close()


def test_an_unforeseen_failure_to_open_is_told_as_unavailable_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def open_it() -> DeviceMemory:
        raise OSError("libcuda.so.1: file too short")

    owner = GpuOwner(open_it)
    with pytest.raises(AcceleratorUnavailable, match=r"OSError: libcuda\.so\.1: file too short"):
        owner.call(lambda _: None)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    owner.close()


def test_who_waits_for_the_gpu_does_not_hold_up_the_owner(memory: HostMemory) -> None:
    owner = GpuOwner(lambda: memory)
    stream = owner.call(lambda given: given.new_stream())
    other = owner.call(lambda given: given.new_stream())
    buffer = owner.call(lambda given: given.allocate(4))
    gate = threading.Event()
    stream.enqueue(gate.wait)  # type: ignore[attr-defined] # the fake's: work that takes until the gate opens
    finished_on = []

    def start(_: DeviceMemory) -> Pending[str]:
        return Pending(stream.record(), lambda: threading.current_thread().name)

    slow = threading.Thread(target=lambda: finished_on.append(owner.submit(start)), name="slow one")
    slow.start()

    def quick(_: DeviceMemory) -> Pending[str]:
        other.upload(buffer, 4)
        return Pending(other.record(), lambda: "quick")

    assert owner.submit(quick) == "quick"
    assert finished_on == []
    gate.set()
    slow.join()
    assert finished_on == ["slow one"]
    for closing in (stream.close, other.close, buffer.close):
        owner.call(lambda _, close=closing: close())  # type: ignore[misc] # a default is not inferred
    owner.close()


def test_work_that_fails_on_the_gpu_is_raised_and_never_finished(memory: HostMemory) -> None:
    owner = GpuOwner(lambda: memory)
    stream = owner.call(lambda given: given.new_stream())
    finished = []

    def broken() -> None:
        raise ValueError("an illegal memory access was encountered")

    def start(_: DeviceMemory) -> Pending[None]:
        stream.enqueue(broken)  # type: ignore[attr-defined] # the fake's
        return Pending(stream.record(), lambda: finished.append(1))

    with pytest.raises(RuntimeError, match="illegal memory access"):
        owner.submit(start)
    assert finished == []
    owner.call(lambda _: stream.close())
    owner.close()


def test_close_waits_for_earlier_calls_and_refuses_later_ones() -> None:
    closed = threading.Event()

    class Closing(HostMemory):
        def close(self) -> None:
            closed.set()

    owner = GpuOwner(Closing)
    started, gate, done = threading.Event(), threading.Event(), []

    def slow(_: DeviceMemory) -> None:
        started.set()
        gate.wait()
        done.append(1)

    calling = threading.Thread(target=lambda: owner.call(slow))
    calling.start()
    started.wait()
    closing = threading.Thread(target=owner.close)
    closing.start()
    assert not closed.is_set()
    gate.set()
    closing.join()
    calling.join()
    assert done == [1]
    assert closed.is_set()
    with pytest.raises(AcceleratorUnavailable, match="let go of"):
        owner.call(lambda _: None)
    owner.close()


def test_who_waits_for_a_call_that_hangs_is_let_go_when_the_owner_closes(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(owner_module, "CLOSE_TIMEOUT_S", 0.2)
    owner = GpuOwner(lambda: memory)
    started, gate, refused = threading.Event(), threading.Event(), []

    def hangs(_: DeviceMemory) -> None:
        started.set()
        gate.wait()

    def ask() -> None:
        with pytest.raises(AcceleratorUnavailable, match="hangs in a call") as error:
            owner.call(hangs)
        refused.append(str(error.value))

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    started.wait()
    hanging = next(thread for thread in threading.enumerate() if thread.name == "gpu-owner")
    while owner._tasks.qsize() < 2:
        time.sleep(0.001)
    owner.close()
    for caller in callers:
        caller.join()
    assert len(refused) == 3
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    gate.set()  # it comes back after all, and ends as it should
    hanging.join()


def test_a_gpu_that_cannot_be_let_go_of_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(HostMemory):
        def close(self) -> None:
            raise RuntimeError("an illegal memory access was encountered")

    owner = GpuOwner(Broken)
    owner.call(lambda _: None)
    owner.close()
    (record,) = caplog.records
    assert "illegal memory access" in str(record.exc_info)


def test_an_owner_that_was_never_asked_closes_without_a_thread() -> None:
    def open_it() -> DeviceMemory:
        raise AssertionError("nobody asked for it")

    before = threading.active_count()
    owner = GpuOwner(open_it)
    owner.close()
    assert threading.active_count() == before
    with pytest.raises(AcceleratorUnavailable):
        owner.call(lambda _: None)


def test_errors_of_shoal_pass_through_unchanged(memory: HostMemory) -> None:
    owner = GpuOwner(lambda: memory)

    def fails(_: DeviceMemory) -> None:
        raise BudgetExceeded("too much")

    with pytest.raises(BudgetExceeded):
        owner.call(fails)
    owner.close()
