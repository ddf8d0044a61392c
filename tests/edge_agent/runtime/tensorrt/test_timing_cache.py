from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_agent.runtime.tensorrt.bindings import Bindings
from edge_agent.runtime.tensorrt.timing_cache import load_timings, save_timings
from tests.fakes.tensorrt_engines import fake_bindings


class Timings:
    """A build's settings, as far as timings go: what it began with, and what it has measured."""

    def __init__(self, measured: bytes = b"", *, is_of_another_gpu: bool = False) -> None:
        self.began_with: bytes | None = None
        self._measured, self._is_of_another_gpu = measured, is_of_another_gpu

    def create_timing_cache(self, data: bytes) -> SimpleNamespace:
        return SimpleNamespace(data=data, serialize=lambda: bytearray(data + self._measured))

    def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if self._is_of_another_gpu and cache.data:
            return False
        self._cache, self.began_with = cache, cache.data
        return True

    def get_timing_cache(self) -> SimpleNamespace:
        return self._cache


@pytest.fixture
def bindings() -> Bindings:
    return fake_bindings()


@pytest.fixture
def file(bindings: Bindings, tmp_path: Path) -> Path:
    """Timings of one build."""
    file = tmp_path / "timings"
    first = Timings(b"conv: 3 us")
    load_timings(bindings, first, file)
    assert first.began_with == b""
    save_timings(bindings, first, file)
    return file


def test_a_build_begins_with_what_an_earlier_one_measured(bindings: Bindings, file: Path) -> None:
    second = Timings()
    load_timings(bindings, second, file)

    assert second.began_with == b"conv: 3 us"


def test_damaged_timings_never_reach_tensorrt(bindings: Bindings, file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))

    second = Timings()
    load_timings(bindings, second, file)

    assert second.began_with == b""


def test_timings_that_tensorrt_refuses_are_measured_anew(bindings: Bindings, file: Path) -> None:
    other = Timings(is_of_another_gpu=True)
    load_timings(bindings, other, file)

    assert other.began_with == b""


def test_timings_that_cannot_be_kept_cost_the_build_nothing(
    bindings: Bindings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    build = Timings(b"conv: 3 us")
    load_timings(bindings, build, tmp_path / "file" / "timings")

    save_timings(bindings, build, tmp_path / "file" / "timings")

    assert "timings not kept" in capsys.readouterr().err


def test_rtx_keeps_no_timings(tmp_path: Path) -> None:
    rtx = Bindings(fake_bindings().trt, "tensorrt-rtx")
    build = Timings(b"conv: 3 us")

    load_timings(rtx, build, tmp_path / "timings")
    save_timings(rtx, build, tmp_path / "timings")

    assert build.began_with is None
    assert not (tmp_path / "timings").exists()
