"""Shared memory: what an application puts there is read, and nothing that it does to it harms the agent."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.utils.shared_memory as shm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tritonclient.http._utils import _get_inference_request

from edge_agent.contract.errors import Busy, MalformedRequest, SignatureMismatch, StorageFull, UnknownRegion
from edge_agent.contract.tensors import Datatype, pack_bytes
from edge_agent.serving.codec import decode_request, encode_response
from edge_agent.serving.request import InferenceAnswer, InferenceRequest, WantedOutput
from edge_agent.serving.shared_memory import Regions
from tests.edge_agent.serving.bodies import one_input, signature


@pytest.fixture
def regions(tmp_path: Path) -> Iterator[Regions]:
    """Over a folder of the test's own: objects there are files, as those of shm_open are."""
    regions = Regions(folder=tmp_path, max_regions=3, max_bytes=10_000, max_tensor_bytes=5_000)
    yield regions
    regions.close()


@pytest.fixture
def real() -> Iterator[tuple[Regions, Any, str]]:
    """A region of 1000 bytes that tritonclient has made, and its key."""
    key = f"/shoal-test-{secrets.token_hex(6)}"
    handle = shm.create_shared_memory_region("r", key, 1000)
    regions = Regions()
    regions.register("r", key, 0, 1000)
    yield regions, handle, key
    regions.close()
    shm.destroy_shared_memory_region(handle)


def _object(folder: Path, size: int, name: str = "x") -> Path:
    path = folder / name
    path.write_bytes(bytes(range(256)) * (size // 256 + 1))
    os.truncate(path, size)
    return path


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("datatype", [Datatype.FP32, Datatype.BYTES, Datatype.BOOL])
def test_tensors_go_through_shared_memory_as_tritonclient_does_it(
    real: tuple[Regions, Any, str], datatype: Datatype
) -> None:
    regions, handle, _ = real
    array: NDArray[Any] = np.array([[1, 0], [0, 1], [1, 1]]).astype(datatype.numpy)
    if datatype is Datatype.BYTES:
        array = np.array([[b"a", b""], [b"cd", b"\xff"], [b"", b"e"]], dtype=object)
    raw = pack_bytes(array) if datatype is Datatype.BYTES else array.tobytes()
    shm.set_shared_memory_region(handle, [np.frombuffer(raw, np.uint8)], offset=8)
    sent = tritonclient.http.InferInput("x", [3, 2], datatype.value)
    sent.set_shared_memory("r", len(raw), offset=8)
    wanted = tritonclient.http.InferRequestedOutput("y")
    wanted.set_shared_memory("r", 200, offset=500)
    body, length = _get_inference_request([sent], "", [wanted], 0, False, False, 0, None, None)
    request = decode_request(body, length, signature(datatype), regions=regions)
    np.testing.assert_array_equal(request.inputs["x"], array)
    assert request.outputs == (WantedOutput("y", region="r", offset=500, size=200),)
    outputs = {"y": request.inputs["x"]}
    parts, length = encode_response(
        request, InferenceAnswer("m", "1", "0", "i", outputs, False, ()), signature(datatype), regions
    )
    assert length is None
    (output,) = json.loads(b"".join(parts))["outputs"]
    place = {"shared_memory_region": "r", "shared_memory_byte_size": len(raw), "shared_memory_offset": 500}
    assert output == {"name": "y", "datatype": datatype.value, "shape": [3, 2], "parameters": place}
    kind = np.object_ if datatype is Datatype.BYTES else array.dtype
    np.testing.assert_array_equal(shm.get_contents_as_numpy(handle, kind, [3, 2], offset=500), array)


def test_what_was_read_is_a_copy_of_its_own(real: tuple[Regions, Any, str]) -> None:
    regions, handle, _ = real
    shm.set_shared_memory_region(handle, [np.full(10, 7, np.uint8)])
    found = regions.read("r", 0, 10)
    shm.set_shared_memory_region(handle, [np.zeros(10, np.uint8)])
    assert bytes(found) == b"\7" * 10
    assert np.frombuffer(regions.read("r", 1, 800), np.float64).flags.aligned


def test_copies_are_counted_until_nobody_uses_them_and_there_are_only_so_many(tmp_path: Path) -> None:
    _object(tmp_path, 200_000)
    regions = Regions(folder=tmp_path, max_tensor_bytes=100_000)
    regions.register("r", "x", 0, 200_000)
    held = [np.frombuffer(regions.read("r", 0, 80_000), np.float32)[5:] for _ in range(5)]  # 400,000 bytes: the limit
    small = regions.read("r", 0, 60_000)
    with pytest.raises(Busy, match=r"hold 400000 bytes of shared memory, with this one more than the limit of 400000"):
        regions.read("r", 0, 80_000)
    held.pop()
    assert len(regions.read("r", 0, 80_000)) == 80_000
    assert len(small) == 60_000
    regions.unregister()
    del held
    regions.register("r", "x", 0, 200_000)
    os.truncate(tmp_path / "x", 1000)
    for _ in range(10):  # what failed is not counted on
        with pytest.raises(MalformedRequest, match="truncated"):
            regions.read("r", 0, 100_000)
    regions.close()


def test_status_tells_what_was_registered_and_unregister_forgets_it(regions: Regions, tmp_path: Path) -> None:
    _object(tmp_path, 100)
    files = _open_files()
    regions.register("b", "/x", 10, 50)
    regions.register("a", "x", 0, 100)
    assert regions.status() == [
        {"name": "a", "key": "x", "offset": 0, "byte_size": 100},
        {"name": "b", "key": "/x", "offset": 10, "byte_size": 50},
    ]
    assert regions.status("b") == regions.status()[1:]
    assert bytes(regions.read("b", 1, 2)) == bytes([11, 12])
    regions.unregister("b")
    regions.unregister("b")
    with pytest.raises(UnknownRegion, match="'b' is not registered"):
        regions.status("b")
    with pytest.raises(UnknownRegion, match="'b' is not registered"):
        regions.read("b", 0, 1)
    regions.unregister()
    assert regions.status() == []
    assert _open_files() == files


@pytest.mark.parametrize(
    ("registration", "text"),
    [
        (("r", "/x", 0, 101), "reach to byte 101, '/x' has 100"),
        (("r", "/x", 101, 1), "reach to byte 102"),
        (("r", "/x", 2**62, 2**62), "reach to byte"),
        (("r", "/x", 0, 0), "byte_size of at least 1"),
        (("r", "/x", -1, 1), "offset of at least 0"),
        (("", "/x", 0, 1), "needs a name"),
        (("n" * 129, "/x", 0, 1), "needs a name"),
        (("r", "/gone", 0, 1), "there is no shared memory object '/gone'"),
        (("r", "", 0, 1), "none of shm_open"),
        (("r", "/", 0, 1), "none of shm_open"),
        (("r", "/..", 0, 1), "none of shm_open"),
        (("r", "/.", 0, 1), "none of shm_open"),
        (("r", "/../x", 0, 1), "none of shm_open"),
        (("r", "/folder/x", 0, 1), "none of shm_open"),
        (("r", "/x\0", 0, 1), "none of shm_open"),
        (("r", "/" + "y" * 256, 0, 1), "none of shm_open"),
        (("r", "/folder", 0, 1), "Is a directory"),
        (("r", "/link", 0, 1), "symbolic links"),
        (("r", "/pipe", 0, 1), "is no shared memory object"),
    ],
)
def test_what_cannot_be_a_region_is_refused_by_name(
    regions: Regions, tmp_path: Path, registration: tuple[str, str, int, int], text: str
) -> None:
    _object(tmp_path, 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "x")
    os.mkfifo(tmp_path / "pipe")
    files = _open_files()
    with pytest.raises(MalformedRequest, match="shared memory region") as caught:
        regions.register(*registration)
    assert text in str(caught.value)
    assert regions.status() == []
    assert _open_files() == files


def test_names_and_limits_are_kept(regions: Regions, tmp_path: Path) -> None:
    _object(tmp_path, 6000)
    regions.register("a", "/x", 0, 6000)
    with pytest.raises(MalformedRequest, match="'a' is registered already; unregister it first"):
        regions.register("a", "/x", 0, 100)
    with pytest.raises(MalformedRequest, match="together would have 12000 bytes, the limit is 10000"):
        regions.register("b", "/x", 0, 6000)
    regions.register("b", "/x", 0, 100)
    regions.register("c", "/x", 0, 100)
    with pytest.raises(MalformedRequest, match="3 regions are registered, the limit"):
        regions.register("d", "/x", 0, 100)
    with pytest.raises(MalformedRequest, match="5001 bytes of one tensor, the limit is 5000"):
        regions.read("a", 0, 5001)
    assert [each["name"] for each in regions.status()] == ["a", "b", "c"]


@given(offset=st.integers(0, 300), size=st.integers(0, 300), at=st.integers(0, 100), length=st.integers(1, 100))
def test_no_byte_outside_a_region_is_read_or_written(
    tmp_path_factory: pytest.TempPathFactory, offset: int, size: int, at: int, length: int
) -> None:
    folder = tmp_path_factory.mktemp("shm")
    path = _object(folder, 200)
    before = path.read_bytes()
    regions = Regions(folder=folder)
    regions.register("r", "/x", at, length)
    try:
        if offset + size <= length:
            assert bytes(regions.read("r", offset, size)) == before[at + offset : at + offset + size]
            regions.write("r", offset, [b"\0" * size])
            assert path.read_bytes() == before[: at + offset] + bytes(size) + before[at + offset + size :]
        else:
            for use in (regions.check, regions.read):
                with pytest.raises(MalformedRequest, match=f"reach to byte {offset + size}, the region has {length}"):
                    use("r", offset, size)
            with pytest.raises(MalformedRequest, match="reach to byte"):
                regions.write("r", offset, [b"\0" * size])
            assert path.read_bytes() == before
    finally:
        regions.close()


def test_a_region_that_its_owner_truncates_is_an_error_and_does_not_grow_again(
    regions: Regions, tmp_path: Path
) -> None:
    path = _object(tmp_path, 5000)
    regions.register("r", "/x", 0, 5000)
    os.truncate(path, 10)
    with pytest.raises(MalformedRequest, match="its owner has truncated it"):
        regions.read("r", 0, 5000)
    with pytest.raises(MalformedRequest, match="its owner has truncated it"):
        regions.write("r", 0, [bytes(5000)])
    assert path.stat().st_size == 10
    assert bytes(regions.read("r", 0, 10)) == bytes(range(10))


def test_a_region_without_memory_left_for_it_is_storage_that_is_full(
    regions: Regions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    _object(tmp_path, 100)
    regions.register("r", "/x", 0, 100)
    region = regions._regions["r"]
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, region.fd)
    os.close(full)
    monkeypatch.setattr(os, "fstat", lambda _: (tmp_path / "x").stat())
    with pytest.raises(StorageFull, match="shared memory region 'r'"):
        regions.write("r", 0, [b"a"])


def test_truncating_growing_and_unregistering_during_use_does_no_harm(tmp_path: Path) -> None:
    path = _object(tmp_path, 400_000)
    regions = Regions(folder=tmp_path)
    regions.register("r", "/x", 0, 400_000)
    over = threading.Event()
    seen: set[type[BaseException]] = set()

    def use(write: bool) -> None:
        while not over.is_set():
            try:
                if write:
                    regions.write("r", 0, [bytes(400_000)])
                else:
                    assert len(regions.read("r", 0, 400_000)) == 400_000
            except (MalformedRequest, UnknownRegion) as error:
                seen.add(type(error))

    threads = [threading.Thread(target=use, args=(write,)) for write in (True, False, False)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        os.truncate(path, 0)
        os.truncate(path, 400_000)
        regions.unregister("r")
        with contextlib.suppress(MalformedRequest):
            regions.register("r", "/x", 0, 400_000)
    over.set()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    files = _open_files()
    regions.close()
    assert _open_files() == files - 1
    assert seen <= {MalformedRequest, UnknownRegion}


@pytest.mark.parametrize(
    ("told", "error", "text"),
    [
        ({"shared_memory_region": "s", "shared_memory_byte_size": 8}, UnknownRegion, "'s' is not registered"),
        ({"shared_memory_region": "r"}, MalformedRequest, "input 'x': shared_memory_region needs a shared_memory_byte"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 7}, SignatureMismatch, "needs 8 bytes, got 7"),
        (
            {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 93},
            MalformedRequest,
            "offset 93 and 8 bytes reach to byte 101, the region has 100",
        ),
        (
            {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": -1},
            MalformedRequest,
            "Expected `int` >= 0 - at `$.inputs[0].parameters.shared_memory_offset`",
        ),
        (
            {"shared_memory_region": "r", "shared_memory_byte_size": 8, "binary_data_size": 8},
            MalformedRequest,
            "has both binary_data_size and shared_memory_region",
        ),
    ],
)
def test_an_input_that_is_not_there_is_refused(
    regions: Regions, tmp_path: Path, told: dict[str, Any], error: type[Exception], text: str
) -> None:
    _object(tmp_path, 100)
    regions.register("r", "/x", 0, 100)
    with pytest.raises(error) as caught:
        decode_request(one_input(data=..., parameters=told), None, signature(), regions=regions)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("told", "error", "text"),
    [
        (
            {"shared_memory_byte_size": 7},
            MalformedRequest,
            "output 'y': takes 8 bytes, the request gives it 7 in shared memory",
        ),
        ({}, MalformedRequest, "output 'y': shared_memory_region needs a shared_memory_byte_size"),
        ({"shared_memory_byte_size": 101}, MalformedRequest, "reach to byte 101, the region has 100"),
        ({"shared_memory_byte_size": 8, "shared_memory_region": "s"}, UnknownRegion, "'s' is not registered"),
        ({"shared_memory_byte_size": 8, "binary_data": True}, MalformedRequest, "has both binary_data and shared"),
        ({"shared_memory_byte_size": 8, "classification": 1}, MalformedRequest, "cannot go into shared memory"),
    ],
)
def test_an_output_that_does_not_fit_is_refused_before_the_model_runs(
    regions: Regions, tmp_path: Path, told: dict[str, Any], error: type[Exception], text: str
) -> None:
    _object(tmp_path, 100)
    regions.register("r", "/x", 0, 100)
    wanted = [{"name": "y", "parameters": {"shared_memory_region": "r", **told}}]
    body = json.loads(one_input()) | {"outputs": wanted}
    with pytest.raises(error) as caught:
        decode_request(json.dumps(body).encode(), None, signature(), regions=regions)
    assert text in str(caught.value)


def test_an_output_of_unknown_size_is_refused_before_anything_is_written(regions: Regions, tmp_path: Path) -> None:
    path = _object(tmp_path, 100)
    regions.register("r", "/x", 0, 100)
    asked = InferenceRequest("i", {}, (WantedOutput("y", region="r", size=10),))
    answer = InferenceAnswer("m", "1", "0", "i", {"y": np.array([b"seven b"], dtype=object)}, False, ())
    before = path.read_bytes()
    with pytest.raises(MalformedRequest, match="output 'y': takes 11 bytes, the request gives it 10 in shared memory"):
        encode_response(asked, answer, signature(Datatype.BYTES, (None, None)), regions)
    assert path.read_bytes() == before
    regions.unregister("r")
    with pytest.raises(UnknownRegion, match="'r' is not registered"):
        encode_response(asked, answer._replace(outputs={"y": np.zeros(2, np.float32)}), signature(), regions)
