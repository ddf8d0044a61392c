"""What providers of GPU memory must do, each in a process over the driver without a GPU (or over a real one).

python -m tests.edge_agent.runtime.gpu.scenarios PROVIDER SCENARIO...
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import pytest

from edge_agent.contract.errors import AcceleratorUnavailable, GpuMemoryExhausted
from edge_agent.runtime.gpu.device_memory import DeviceMemory, Event
from edge_agent.runtime.gpu.driver import CudaDriver, probe
from edge_agent.runtime.gpu.owner import GpuOwner, Pending
from edge_agent.runtime.gpu.providers import open_memory
from tests.fakes.cuda_driver import counts

_SIZE = 4096

# By name: what to do with the GPU's memory, or with the provider's name, and how the driver is set meanwhile.
SCENARIOS: dict[str, tuple[Callable[..., None], dict[str, object]]] = {}

Scenario = TypeVar("Scenario", bound=Callable[..., None])


def scenario(**settings: object) -> Callable[[Scenario], Scenario]:
    """Settings as in ``stub.h``, which the driver reads anew at each call."""

    def add(function: Scenario) -> Scenario:
        SCENARIOS[function.__name__] = function, settings
        return function

    return add


@contextlib.contextmanager
def driver_set(**settings: object) -> Iterator[None]:
    named = {f"SHOAL_STUB_CUDA_{name.upper()}": str(value) for name, value in settings.items()}
    os.environ.update(named)
    try:
        yield
    finally:
        for name in named:
            del os.environ[name]


@scenario()
def what_is_uploaded_comes_back(memory: DeviceMemory) -> None:
    there, stream = memory.allocate(_SIZE), memory.new_stream()
    sent = np.random.default_rng(0).integers(0, 256, _SIZE, np.uint8)
    there.host[:] = sent
    stream.upload(there, _SIZE)
    stream.wait()
    if not memory.gpu.integrated:
        there.host[: _SIZE // 2] = 0
    stream.download(there, _SIZE // 4)
    stream.wait()
    assert (there.host[: _SIZE // 4] == sent[: _SIZE // 4]).all()
    if not memory.gpu.integrated:
        assert not there.host[_SIZE // 4 : _SIZE // 2].any(), "only what was asked for is copied"
    assert there.device_address
    assert stream.handle
    there.close()
    stream.close()


@scenario(integrated=1, sm=87)
def an_integrated_gpu_shares_one_memory(memory: DeviceMemory) -> None:
    before = counts()
    there, stream = memory.allocate(_SIZE), memory.new_stream()
    assert there.device_address == there.host.ctypes.data
    stream.upload(there, _SIZE)
    stream.download(there, _SIZE)
    assert counts()["work"] == before["work"], "nothing is copied"
    assert counts()["device memory"] == before["device memory"]
    there.close()
    stream.close()


@scenario()
def everything_is_given_back(memory: DeviceMemory) -> None:
    buffers = [memory.allocate(100), memory.allocate_device(1000), memory.allocate(0)]
    assert [len(buffer.host) for buffer in buffers] == [100, 0, 0]
    stream = memory.new_stream()
    event = stream.record()
    for _ in range(2):  # the second time is no harm
        for buffer in buffers:
            buffer.close()
        stream.close()
    memory.close()
    memory.close()
    live = counts()
    assert not {kind: n for kind, n in live.items() if n and kind not in {"allocations", "work"}}, live
    with pytest.raises(RuntimeError, match="let go of"):
        event.wait()


@scenario(total_mib=4)
def too_much_is_refused_and_half_of_it_given_back(memory: DeviceMemory) -> None:
    before = counts()
    with pytest.raises(GpuMemoryExhausted, match=r"Stub GPU: 5\.0 MiB were asked for; of 4 MiB .*4\.0 MiB are left"):
        memory.allocate(5 << 20)
    with pytest.raises(GpuMemoryExhausted):
        memory.allocate_device(5 << 20)
    assert {**counts(), "allocations": 0} == {**before, "allocations": 0}
    small = memory.allocate(1 << 20)
    assert memory.free_bytes() == 3 << 20
    small.close()
    assert memory.free_bytes() == 4 << 20


@scenario(fail="cuMemHostAlloc=2")
def host_memory_is_refused(memory: DeviceMemory) -> None:
    with pytest.raises(GpuMemoryExhausted):
        memory.allocate(_SIZE)
    assert counts()["device memory"] == counts()["host memory"] == 0


@scenario(work_us=300_000)
def an_event_is_waited_for_by_any_thread(memory: DeviceMemory) -> None:
    there, stream = memory.allocate(_SIZE), memory.new_stream()
    first = stream.record(timed=True)
    stream.upload(there, _SIZE)
    event = stream.record(timed=True)
    assert first.is_done()
    assert not event.is_done()
    counted: list[int] = [0]
    stop = threading.Event()
    problems: list[str] = []

    def count() -> None:
        while not stop.wait(0.001):
            counted[0] += 1

    def wait() -> None:
        event.wait()
        if not event.is_done():
            problems.append("it was not done")
        driver = CudaDriver()
        if _has_context(driver):
            problems.append("the thread has a context now")

    threads = [threading.Thread(target=count), threading.Thread(target=wait)]
    for thread in threads:
        thread.start()
    threads[1].join()
    stop.set()
    threads[0].join()
    assert problems == []
    assert counted[0] > 10, "other threads run while one waits"
    assert 250_000 < event.elapsed_us(first) < 10_000_000
    plain = stream.record()
    with pytest.raises(ValueError, match="timed=True"):
        plain.elapsed_us(first)
    there.close()
    stream.close()


@scenario()
def a_request_allocates_nothing(memory: DeviceMemory) -> None:
    there, stream = memory.allocate(_SIZE), memory.new_stream()
    for request in range(50):
        stream.upload(there, _SIZE)
        event = stream.record(timed=request % 2 == 0)
        event.wait()
        stream.download(there, _SIZE)
        stream.wait()
        if request == 1:
            warm = counts()
    last = counts()
    del event
    assert last["allocations"] == warm["allocations"]
    assert last["events"] == warm["events"] <= 4
    there.close()
    stream.close()


@scenario(fail_after=1)
def work_that_fails_tells_who_waits(memory: DeviceMemory) -> None:
    there, stream = memory.allocate(_SIZE), memory.new_stream()
    stream.upload(there, _SIZE)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        stream.record().wait()
    with pytest.raises(RuntimeError, match=r"ILLEGAL_ADDRESS|illegal memory access"):
        stream.upload(there, _SIZE)
    with pytest.raises(AcceleratorUnavailable, match="Stub GPU"):
        memory.allocate(1)
    there.close()
    stream.close()


@scenario(integrated=1)
def on_an_integrated_gpu_everything_is_given_back(memory: DeviceMemory) -> None:
    everything_is_given_back(memory)


@scenario()
def captured_work_runs_again(memory: DeviceMemory) -> None:
    there, stream = memory.allocate(_SIZE), memory.new_stream()
    there.host[:] = 1
    stream.upload(there, _SIZE)
    stream.wait()
    graph = memory.capture(stream, lambda: stream.download(there, _SIZE))
    assert graph is not None
    there.host[:] = 2
    stream.wait()
    assert (there.host == 2).all(), "capturing runs nothing"
    for _ in range(2):
        there.host[:] = 3
        graph.launch(stream)
        stream.wait()
        assert (there.host == 1).all()
    graph.close()
    graph.close()
    assert counts()["graphs"] == 0
    there.close()
    stream.close()


@scenario()
def what_cannot_be_captured_is_none(memory: DeviceMemory) -> None:
    there, stream = memory.allocate(_SIZE), memory.new_stream()

    def allocates() -> None:
        with pytest.raises(AcceleratorUnavailable):
            memory.allocate_device(10)

    def raises() -> None:
        raise LookupError("of the caller")

    assert memory.capture(stream, allocates) is None
    with pytest.raises(LookupError):
        memory.capture(stream, raises)
    assert counts()["graphs"] == 0
    stream.upload(there, _SIZE)
    stream.wait()
    there.close()
    stream.close()


@scenario()
def without_graphs_capture_gives_none(memory: DeviceMemory) -> None:
    stream = memory.new_stream()
    for call in ("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"):
        with driver_set(fail=f"{call}=801"):
            assert memory.capture(stream, lambda: None) is None
    stream.close()


@scenario(work_us=50_000)
def many_are_in_flight_at_once(provider: str) -> None:
    owner = GpuOwner(lambda: open_memory(provider, probe()))
    answers: list[int] = []
    began = time.monotonic()

    def ask(number: int) -> None:
        there, stream = owner.call(lambda memory: (memory.allocate(_SIZE), memory.new_stream()))

        def start(memory: DeviceMemory) -> Pending[int]:
            there.host[:] = number
            stream.upload(there, _SIZE)
            stream.download(there, _SIZE)
            event: Event = stream.record()
            return Pending(event, lambda: int(there.host[0]))

        answers.extend(owner.submit(start) for _ in range(4))
        owner.call(lambda _: there.close())
        owner.call(lambda _: stream.close())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted([number for number in range(8) for _ in range(4)])
    assert time.monotonic() - began < 8 * 4 * 0.1, "they did not wait for each other"
    owner.close()
    assert counts()["contexts"] == counts()["events"] == counts()["streams"] == 0


@scenario()
def a_second_owner_allocates_while_the_first_enqueues(provider: str) -> None:
    first, second = (GpuOwner(lambda: open_memory(provider, probe())) for _ in range(2))
    there, stream = second.call(lambda memory: (memory.allocate(_SIZE), memory.new_stream()))

    def start(_: DeviceMemory) -> Pending[int]:
        there.host[:] = 9
        stream.upload(there, _SIZE)
        stream.download(there, _SIZE)
        return Pending(stream.record(timed=True), lambda: int(there.host[-1]))

    assert [first.submit(start) for _ in range(5)] == [9] * 5
    assert counts()["events"] == 1, "they are used again on whichever thread"
    # By the one that has made them: pycuda frees on no other thread.
    second.call(lambda _: there.close())
    second.call(lambda _: stream.close())
    first.close()
    second.close()
    live = counts()
    assert not {kind: n for kind, n in live.items() if n and kind not in {"allocations", "work"}}, live


@scenario()
def the_gpu_is_opened_again_after_it_was_closed(provider: str) -> None:
    for _ in range(2):
        owner = GpuOwner(lambda: open_memory(provider, probe()))
        assert owner.call(lambda memory: memory.free_bytes()) > 0
        owner.close()
        memory = open_memory(provider, probe())  # and on this very thread
        what_is_uploaded_comes_back(memory)
        memory.close()
        assert counts()["contexts"] == 0
    assert not _has_context(CudaDriver())


@scenario()
def an_owner_that_nobody_closed_ends_with_the_process(provider: str) -> None:
    owner = GpuOwner(lambda: open_memory(provider, probe()))
    owner.call(lambda memory: memory.free_bytes())


@scenario(fail="cuDevicePrimaryCtxRetain=2")
def a_driver_that_refuses_is_a_reason(provider: str) -> None:
    owner = GpuOwner(lambda: open_memory(provider, probe()))
    for _ in range(2):
        with pytest.raises(AcceleratorUnavailable, match=r"Stub GPU cannot be opened: .*(out of memory|OUT_OF_MEMORY)"):
            owner.call(lambda memory: memory.free_bytes())
    owner.close()


def _has_context(driver: CudaDriver) -> bool:
    context = ctypes.c_void_p()
    driver.call("cuCtxGetCurrent", ctypes.pointer(context))
    return context.value is not None


def main() -> None:
    provider, *names = sys.argv[1:]
    for name in names:
        function, settings = SCENARIOS[name]
        problem = None
        try:
            with driver_set(**settings):
                _play(function, provider)
        except BaseException:  # noqa: BLE001 - a failed assertion, of which the test tells
            problem = traceback.format_exc()
        print(json.dumps([name, problem]), flush=True)  # noqa: T201 - the answer


def _play(function: Callable[..., None], provider: str) -> None:
    if "provider" in inspect.signature(function).parameters:
        function(provider=provider)
        return
    memory = open_memory(provider, probe())
    try:
        function(memory=memory)
    finally:
        memory.close()


if __name__ == "__main__":
    main()
