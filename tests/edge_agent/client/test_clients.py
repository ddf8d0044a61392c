"""The Python clients against a real device: both say and give the same."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

import edge_agent.client
from edge_agent.client import Answer, AsyncClient, Client, InSharedMemory
from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import (
    CallerError,
    DeadlineExceeded,
    MessageError,
    ModelFailed,
    NetworkError,
    SignatureMismatch,
    UnknownModel,
    UnknownRequest,
)
from edge_agent.contract.failures import KINDS
from edge_agent.contract.framing import FrameTooLarge
from edge_agent.contract.messages import LabelBatch
from edge_agent.contract.tensors import Datatype
from edge_agent.contract.topics import Stream
from tests.fakes.frames_device import FramesDevice, serving_frames
from tests.fakes.packages import answer, make_signature, model_weights, reference_images

IMAGES = reference_images(4)
EXPECTED = answer(*model_weights(), IMAGES)
BRIGHT = np.full((1, 64), 0.99, dtype=np.float32)


@pytest.fixture
def client(shared: FramesDevice) -> Iterator[Client]:
    with Client(shared.path) as client:
        yield client


@pytest.fixture
async def async_client(shared: FramesDevice) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(shared.path) as client:
        yield client


def close_enough(given: Answer, rows: slice = slice(None)) -> bool:
    return bool(np.allclose(given.outputs["probabilities"], EXPECTED[rows], rtol=1e-5))


def test_an_answer_names_model_version_package_and_request(shared: FramesDevice, client: Client) -> None:
    given = client.infer("digits", {"image": IMAGES}, id="job-1", group="ship-4", version="1", priority=1)
    assert (given.model, given.version, given.request_id) == ("digits", "1", "job-1")
    assert given.package == shared.slots.get("digits").digest
    assert given.label_wanted
    assert close_enough(given)


def test_answers_are_the_callers_own(client: Client) -> None:
    first = client.infer("digits", {"image": IMAGES})
    second = client.infer("digits", {"image": IMAGES[:1]})
    first.outputs["probabilities"][:] = 0.0
    assert close_enough(second, slice(1))


def test_a_probe_is_neither_counted_nor_sampled(device: FramesDevice) -> None:
    with Client(device.path) as client:
        assert not client.infer("digits", {"image": IMAGES}, monitor=False).label_wanted
    assert device.slots.get("digits").requests == 0


def test_one_except_catches_the_same_error_as_in_the_agent(client: Client) -> None:
    wrong = IMAGES.copy()
    wrong[1, 3] = 4.0
    with pytest.raises(SignatureMismatch, match=r"row 1: range: value 4\.0") as caught:
        client.infer("digits", {"image": wrong})
    assert (caught.value.tensor, caught.value.rule, caught.value.row) == ("image", "range", 1)
    with pytest.raises(UnknownModel):
        client.infer("nothing", {"image": IMAGES})
    with pytest.raises(ModelFailed):
        client.infer("digits", {"image": BRIGHT})
    with pytest.raises(CallerError):
        client.infer("digits", {"image": IMAGES}, outputs=["nothing"])
    with pytest.raises(MessageError, match="complex"):
        client.infer("digits", {"image": IMAGES.astype(np.complex64)})
    with pytest.raises(MessageError, match=r"a mapping from input name to array, got ndarray: metadata\('digits'\)"):
        client.infer("digits", IMAGES)  # type: ignore[arg-type]
    with pytest.raises(MessageError, match=r"input 'image': expected a numpy array, got list: make one .* np\.asarray"):
        client.infer("digits", {"image": IMAGES.tolist()})
    assert close_enough(client.infer("digits", {"image": IMAGES}))


def test_models_and_metadata_let_a_client_check_beforehand(client: Client) -> None:
    assert [(model.name, model.default) for model in client.models()] == [
        ("digits", True),
        ("echo", True),
        ("slow", True),
    ]
    told = client.metadata("digits")
    assert (told.version, told.platform, told.signature) == ("1", "onnx_onnxv1", make_signature())
    with pytest.raises(SignatureMismatch, match="range"):
        InputCheck(told.signature)({"image": IMAGES * 9})
    assert client.ping() == "1.2.3"


def test_feedback_names_request_and_row(device: FramesDevice) -> None:
    with Client(device.path) as client:
        given = client.infer("digits", {"image": IMAGES})
        client.feedback("digits", given.request_id, 3, row=2, source="operator")
        with pytest.raises(UnknownRequest):
            client.feedback("digits", "nobody", "7")
    labels = [label for batch in device.sent(Stream.LABELS, LabelBatch) for label in batch.labels]
    assert [(label.request_id, label.label, label.source) for label in labels] == [
        (f"{given.request_id}/2", "3", "operator")
    ]


def test_text_and_several_outputs_come_back_by_name(client: Client) -> None:
    words = np.array([["grün"], ["x"]], dtype=object)
    given = client.infer("echo", {"text": words})
    texts = [array for array in given.outputs.values() if array.dtype == object]
    assert [array.ravel().tolist() for array in texts] == [["grün".encode(), b"x"]]
    assert list(client.infer("echo", {"text": words}, outputs=["probabilities"]).outputs) == ["probabilities"]


def test_many_requests_at_once_are_answered_in_their_order(client: Client) -> None:
    many = [{"image": IMAGES[index % 4 :][:1]} for index in range(200)]
    many[7] = {"image": BRIGHT}
    given = client.infer_many("digits", many)
    assert len(given) == 200
    assert isinstance(given[7], ModelFailed)
    for index, each in enumerate(given):
        assert index == 7 or (isinstance(each, Answer) and close_enough(each, slice(index % 4, index % 4 + 1)))


def test_many_large_requests_at_once_do_not_block_each_other(device: FramesDevice) -> None:
    large = np.tile(IMAGES, (250, 1))  # 256 KB there, 40 KB back
    device.gated.gate.set()
    with Client(device.path) as client:
        for model in ("digits", "slow"):
            given = client.infer_many(model, [{"image": large}] * 60)
            assert all(isinstance(each, Answer) for each in given)


def test_shared_memory_takes_inputs_and_outputs(shared: FramesDevice, client: Client) -> None:
    memory = Path("/dev/shm") / f"shoal-test-{secrets.token_hex(6)}"  # noqa: S108 - where shm_open(3) keeps its objects
    memory.write_bytes(IMAGES.tobytes() + bytes(1024))
    try:
        shared.regions.register("pixels", memory.name, 0, 2048)
        given = client.infer(
            "digits",
            {"image": InSharedMemory("pixels", 0, 1024, Datatype.FP32, (4, 64))},
            outputs={"probabilities": InSharedMemory("pixels", 1024, 1024)},
        )
        assert given.outputs == {}
        place = given.shared["probabilities"]
        assert place == InSharedMemory("pixels", 1024, 160, Datatype.FP32, (4, 10))
        written = np.frombuffer(memory.read_bytes()[1024:1184], dtype=np.float32).reshape(4, 10)
        np.testing.assert_allclose(written, EXPECTED, rtol=1e-5)
    finally:
        shared.regions.unregister("pixels")
        memory.unlink()


def test_threads_share_a_client(client: Client) -> None:
    given: list[bool] = []

    def ask(row: int) -> None:
        rows = slice(row, row + 1)
        given.extend(close_enough(client.infer("digits", {"image": IMAGES[rows]}), rows) for _ in range(30))

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert given == [True] * 120


def test_a_client_connects_again_when_the_agent_has_restarted(tmp_path: Path) -> None:
    path = ""
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            with serving_frames(tmp_path) as device:
                if not path:
                    path = device.path
                    client = stack.enter_context(Client(path))
                given = client.infer("digits", {"image": IMAGES})
                assert close_enough(given)
                client.feedback("digits", given.request_id, 3, row=1)
        with pytest.raises(NetworkError, match="does the agent run"):
            client.ping()


def test_many_requests_too_go_to_the_agent_that_has_restarted(tmp_path: Path) -> None:
    path = ""
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            with serving_frames(tmp_path) as device:
                if not path:
                    path = device.path
                    client = stack.enter_context(Client(path))
                found = client.infer_many("digits", [{"image": IMAGES}] * 3)
                assert [isinstance(each, Answer) for each in found] == [True] * 3


def test_an_answer_that_is_late_is_not_taken_for_the_next_one(device: FramesDevice) -> None:
    with Client(device.path) as client:
        client.ping()
        with pytest.raises(DeadlineExceeded):
            client.infer("slow", {"image": IMAGES}, timeout_s=0.1)
        device.gated.gate.set()
        for row in range(4):
            given = client.infer("slow", {"image": IMAGES[row : row + 1]}, timeout_s=20)
            assert close_enough(given, slice(row, row + 1))


def test_an_agent_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    path = str(tmp_path / "mute.sock")
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        mute.listen()
        with Client(path, timeout_s=0.1) as client:
            with pytest.raises(DeadlineExceeded, match="no answer"):
                client.ping()
            with pytest.raises(DeadlineExceeded, match="did not take"):
                client.infer("digits", {"image": np.zeros((4000, 640), dtype=np.float32)})


def test_every_error_that_an_agent_answers_with_can_be_imported_beside_the_client() -> None:
    for name, kind in KINDS.items():
        assert name in edge_agent.client.__all__
        assert getattr(edge_agent.client, name) is kind


def test_a_request_beyond_the_agents_limit_says_so(shared: FramesDevice, client: Client) -> None:
    with pytest.raises(FrameTooLarge, match="the limit is 1000000"):
        client.infer("digits", {"image": np.zeros((20_000, 64), dtype=np.float32)})
    assert close_enough(client.infer("digits", {"image": IMAGES}))


def test_a_peer_that_speaks_something_else_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "strange.sock")
    with socket.socket(socket.AF_UNIX) as strange:
        strange.bind(path)
        strange.listen()

        def answer_strangely() -> None:
            for reply in (b"\x03\0\0\0\x80\x80\x80", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
                connection, _ = strange.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(reply)
                    connection.recv(1)

        thread = threading.Thread(target=answer_strangely)
        thread.start()
        for _ in range(2):
            with Client(path, timeout_s=10) as client, pytest.raises(MessageError):
                client.ping()
        thread.join()


async def test_the_asynchronous_client_says_and_gives_the_same(shared: FramesDevice, async_client: AsyncClient) -> None:
    given = await async_client.infer("digits", {"image": IMAGES}, id="job-2")
    assert given.request_id == "job-2"
    assert close_enough(given)
    assert (await async_client.metadata("digits")).signature == make_signature()
    assert [model.name for model in await async_client.models()] == ["digits", "echo", "slow"]
    assert await async_client.ping() == "1.2.3"
    await async_client.feedback("digits", "job-2", 3, row=1)
    with pytest.raises(UnknownRequest):
        await async_client.feedback("digits", "nobody", "7")
    with pytest.raises(SignatureMismatch):
        await async_client.infer("digits", {"image": IMAGES * 9})


async def test_many_coroutines_share_one_connection(shared: FramesDevice, async_client: AsyncClient) -> None:
    async def ask(index: int) -> bool:
        row = index % 4
        return close_enough(await async_client.infer("digits", {"image": IMAGES[row : row + 1]}), slice(row, row + 1))

    assert all(await asyncio.gather(*(ask(index) for index in range(300))))
    large = np.tile(IMAGES, (250, 1))
    given = await asyncio.gather(*(async_client.infer("digits", {"image": large}) for _ in range(40)))
    assert all(each.outputs["probabilities"].shape == (1000, 10) for each in given)


async def test_a_cancelled_or_late_request_leaves_the_others_alone(device: FramesDevice) -> None:
    async with AsyncClient(device.path) as client:
        slow = asyncio.ensure_future(client.infer("slow", {"image": IMAGES}))
        with pytest.raises(DeadlineExceeded):
            await client.infer("slow", {"image": IMAGES}, timeout_s=0.1)
        gone = asyncio.ensure_future(client.infer("slow", {"image": IMAGES[:1]}))
        await asyncio.sleep(0.05)
        gone.cancel()
        assert close_enough(await client.infer("digits", {"image": IMAGES}))
        device.gated.gate.set()
        assert close_enough(await slow)
        with pytest.raises(asyncio.CancelledError):
            await gone


async def test_the_asynchronous_client_connects_again_when_the_agent_has_restarted(tmp_path: Path) -> None:
    async with AsyncClient(str(tmp_path / "frames.sock")) as client:
        for _ in range(2):
            with serving_frames(tmp_path):
                assert close_enough(await client.infer("digits", {"image": IMAGES}))
        with pytest.raises(NetworkError, match="does the agent run"):
            await client.ping()


async def test_the_asynchronous_client_gives_an_agent_up_that_does_not_read(tmp_path: Path) -> None:
    path = str(tmp_path / "mute.sock")
    large = {"image": np.zeros((4000, 640), dtype=np.float32)}  # more than the kernel takes unread
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        mute.listen()
        async with AsyncClient(path, timeout_s=0.1) as client:
            for why in ("no answer", "did not take a request"):
                with pytest.raises(DeadlineExceeded, match=why):
                    await client.infer("digits", large)


async def test_the_asynchronous_client_tells_why_it_was_cut_off(shared: FramesDevice) -> None:
    async with AsyncClient(shared.path) as client:
        with pytest.raises((FrameTooLarge, NetworkError)):
            await client.infer("digits", {"image": np.zeros((20_000, 64), dtype=np.float32)})
        assert close_enough(await client.infer("digits", {"image": IMAGES}))


def test_the_client_needs_nothing_that_runs_models() -> None:
    code = (
        "import sys, edge_agent.client; "
        "heavy = {'onnxruntime', 'cryptography', 'tuf', 'paho', 'psutil', 'urllib3', 'uvloop', 'sqlite3'}; "
        "ours = [name for name in sys.modules if name.startswith('edge_agent.') "
        "and name.split('.')[1] not in ('client', 'contract')]; "
        "assert not heavy & set(sys.modules) and not ours, (heavy & set(sys.modules), ours)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
