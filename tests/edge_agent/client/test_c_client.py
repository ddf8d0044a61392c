"""The C client, compiled with every warning an error and with sanitizers, against a real device."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract.messages import LabelBatch
from edge_agent.contract.topics import Stream
from tests.edge_agent.contract.golden_frames import ANSWERS, written
from tests.fakes.frames_device import FramesDevice
from tests.fakes.packages import answer, model_weights, reference_images

SOURCES = Path("edge_agent/client/c")
HERE = Path(__file__).parent
IMAGES = reference_images(4)
EXPECTED = answer(*model_weights(), IMAGES)
STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-O1", "-g"]
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("no C compiler (cc, gcc, clang) is installed: the C client is not tested")
    return found


def compiled(repository: Path, folder: Path, program: Path, name: str) -> Path:
    """The program with the C client, with sanitizers where the compiler has them."""
    cc, sources = compiler(), repository / SOURCES
    parts = [str(program), *(str(sources / part) for part in ("shoal.c", "shoal_frames.c", "shoal_msgpack.c"))]
    binary = folder / name
    for extra in (SANITIZED, []):
        command = [cc, *STRICT, *extra, f"-I{sources}", "-o", str(binary), *parts]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode == 0:
            return binary
    pytest.fail(done.stderr)


@pytest.fixture(scope="module")
def driver(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(repository, tmp_path_factory.mktemp("c"), HERE / "driver.c", "driver")


def run(driver: Path, path: str, what: str, *, expect: int = 0) -> list[str]:
    """The lines that the driver prints."""
    done = subprocess.run([driver, path, what], input=IMAGES.tobytes(), capture_output=True, check=False, timeout=100)
    assert done.returncode == expect, (done.stdout, done.stderr)
    assert b"ERROR" not in done.stderr, done.stderr.decode()
    return done.stdout.decode().splitlines()


def numbers(lines: list[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array([[float(word) for word in line.split()] for line in lines])


def test_an_answer_is_that_of_the_model(shared: FramesDevice, driver: Path) -> None:
    head, *rows = run(driver, shared.path, "say")
    assert head == f"answer digits 1 {shared.slots.get('digits').digest} from-c 1 probabilities 2"
    np.testing.assert_allclose(numbers(rows), EXPECTED, rtol=1e-5)


def test_many_requests_are_pipelined(shared: FramesDevice, driver: Path) -> None:
    assert run(driver, shared.path, "many") == ["many 500"]


def test_a_large_tensor_goes_through(shared: FramesDevice, driver: Path) -> None:
    _, *rows = run(driver, shared.path, "large")
    np.testing.assert_allclose(numbers(rows), EXPECTED, rtol=1e-5)


def test_failures_come_with_status_kind_and_text_and_the_connection_goes_on(shared: FramesDevice, driver: Path) -> None:
    wrong, unknown, head, _ = run(driver, shared.path, "wrong")
    assert wrong.startswith("failure 1 400 SignatureMismatch 0.0 input 'image', row 1: range: value 7.0 at [1, 5]")
    assert unknown.startswith("failure 2 404 UnknownModel 0.0 ")
    assert head.startswith("answer digits 1 ")
    assert head.endswith(" 0 probabilities 2")  # a probe: no label is wanted


def test_feedback_arrives(device: FramesDevice, driver: Path) -> None:
    *_, refused = run(driver, device.path, "feedback")
    assert refused.startswith("failure 3 404 UnknownRequest")
    labels = [label for batch in device.sent(Stream.LABELS, LabelBatch) for label in batch.labels]
    assert [(label.request_id, label.label) for label in labels] == [("from-c", "7")]


def test_where_nobody_listens_it_says_what_to_look_at(driver: Path, tmp_path: Path) -> None:
    (line,) = run(driver, str(tmp_path / "nobody.sock"), "large", expect=1)
    assert line.startswith("failure 0 0 NetworkError")
    assert "does the agent run" in line


def test_the_example_of_the_documentation_works(shared: FramesDevice, repository: Path, tmp_path: Path) -> None:
    example = compiled(repository, tmp_path, repository / SOURCES / "example.c", "example")

    def said(*axes: str) -> subprocess.CompletedProcess[str]:
        command = [str(example), shared.path, "digits", "image", *axes]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    done = said("64")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("digits 1, request ")
    done = said("1", "8", "8")  # of another model; the axes arrive as they were given
    assert (done.returncode, "expected [-1, 64], got [1, 1, 8, 8]" in done.stderr) == (1, True), done.stderr
    assert said("0").returncode == said("4096", "4097").returncode == said().returncode == 2


def test_answers_that_are_broken_in_any_place_do_no_harm(driver: Path, tmp_path: Path) -> None:
    """Under the sanitizers: a wrong read would end the driver."""
    path = str(tmp_path / "broken.sock")
    chance = random.Random(5)
    frames = [written(*ANSWERS[name]) for name in ("frame-inferred", "frame-error", "frame-pong")]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=answer_brokenly, args=(listener, frames, chance))
        thread.start()
        (line,) = run(driver, path, "fuzz")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    answers, refusals, broken = (int(word) for word in line.split())
    assert answers + refusals + broken == 2000
    assert min(answers, refusals, broken) > 100


def answer_brokenly(listener: socket.socket, frames: list[bytes], chance: random.Random) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                while connection.recv(100_000):
                    frame = bytearray(chance.choice(frames))
                    for _ in range(chance.randint(0, 4)):
                        frame[chance.randrange(4, len(frame))] = chance.randrange(256)
                    if chance.random() < 0.2:  # cut short, its length too
                        frame = frame[: chance.randrange(4, len(frame))]
                        frame[:4] = (len(frame) - 4).to_bytes(4, "little")
                    connection.sendall(frame)
            except OSError:
                continue
