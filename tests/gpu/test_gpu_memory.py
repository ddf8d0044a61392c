"""The providers of GPU memory on a real GPU; over a driver without one: tests/edge_agent/runtime/gpu."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from edge_agent.contract.errors import GpuMemoryExhausted
from edge_agent.runtime.gpu.device_memory import Buffer, DeviceMemory, Stream
from edge_agent.runtime.gpu.driver import probe
from edge_agent.runtime.gpu.owner import GpuOwner, Pending
from edge_agent.runtime.gpu.providers import open_memory
from edge_agent.runtime.gpu.survey import survey

_SIZE = 16 << 20
_MODULES = {"pycuda": "pycuda", "cuda-python": "cuda"}


@pytest.fixture(params=list(_MODULES))
def provider(request: pytest.FixtureRequest) -> str:
    if importlib.util.find_spec(_MODULES[request.param]) is None:
        pytest.skip(f"not installed: {request.param} (`make gpu-parts` installs it)")
    return str(request.param)


@pytest.fixture
def owner(provider: str) -> Iterator[GpuOwner]:
    gpu = probe()
    owner = GpuOwner(lambda: open_memory(provider, gpu))
    yield owner
    owner.close()


def _open(owner: GpuOwner, size_bytes: int = _SIZE) -> tuple[Buffer, Stream]:
    return owner.call(lambda memory: (memory.allocate(size_bytes), memory.new_stream()))


def _close(owner: GpuOwner, buffer: Buffer, stream: Stream) -> None:
    owner.call(lambda _: buffer.close())
    owner.call(lambda _: stream.close())


def test_the_survey_finds_the_gpu_and_a_provider_of_its_memory() -> None:
    found = survey(timeout_s=120)
    assert found.gpu == probe(), found.reasons
    assert found.memory is not None, found.reasons


def test_what_is_uploaded_comes_back_while_others_wait_for_theirs(owner: GpuOwner) -> None:
    problems: list[str] = []

    def ask(seed: int) -> None:
        buffer, stream = _open(owner)
        sent = np.random.default_rng(seed).integers(0, 256, _SIZE, np.uint8)

        def upload(_: DeviceMemory) -> Pending[None]:
            stream.upload(buffer, _SIZE)
            return Pending(stream.record(), lambda: None)

        def download(memory: DeviceMemory) -> Pending[bool]:
            if not memory.gpu.integrated:
                buffer.host[:] = 0
            stream.download(buffer, _SIZE)
            return Pending(stream.record(), lambda: bool((buffer.host == sent).all()))

        for _ in range(5):
            buffer.host[:] = sent
            owner.submit(upload)
            if not owner.submit(download):
                problems.append(f"{seed}: it came back changed")
        _close(owner, buffer, stream)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_the_gpus_clock_tells_how_long_work_took(owner: GpuOwner) -> None:
    buffer, stream = _open(owner)
    first = owner.call(lambda _: stream.record(timed=True))
    owner.call(lambda _: stream.upload(buffer, _SIZE))
    last = owner.call(lambda _: stream.record(timed=True))
    last.wait()
    assert first.is_done()
    assert last.is_done()
    # 16 MiB take 100 us over the fastest link there is; nothing where the memory is shared.
    least = 0 if owner.call(lambda memory: memory.gpu.integrated) else 20
    assert least <= last.elapsed_us(first) < 10_000_000
    _close(owner, buffer, stream)


def test_more_than_there_is_is_refused_and_nothing_of_it_kept(owner: GpuOwner) -> None:
    gpu = probe()
    if gpu.integrated:
        pytest.skip("an integrated GPU's memory is the machine's: asking for all of it harms other programs")
    with pytest.raises(GpuMemoryExhausted, match="MiB are left"):
        owner.call(lambda memory: memory.allocate_device(gpu.memory_bytes * 2))
    buffer, stream = _open(owner)
    _close(owner, buffer, stream)


def test_captured_copies_run_again_where_the_provider_has_graphs(owner: GpuOwner, provider: str) -> None:
    buffer, stream = _open(owner)
    shared = owner.call(lambda memory: memory.gpu.integrated)
    if provider == "pycuda" or shared:
        _close(owner, buffer, stream)
        pytest.skip("no graphs with pycuda, no copies to capture where memory is shared")
    buffer.host[:] = 1
    owner.call(lambda _: stream.upload(buffer, _SIZE))
    graph = owner.call(lambda memory: memory.capture(stream, lambda: stream.download(buffer, _SIZE)))
    assert graph is not None
    launched = graph

    def launch(_: DeviceMemory) -> Pending[int]:
        launched.launch(stream)
        return Pending(stream.record(), lambda: int(buffer.host.sum()))

    for _ in range(3):
        buffer.host[:] = 2
        assert owner.submit(launch) == _SIZE
    owner.call(lambda _: launched.close())
    _close(owner, buffer, stream)
