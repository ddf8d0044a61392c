"""Deltas between released files: made on demand, kept within a limit, refused where nothing would be saved."""

from __future__ import annotations

import concurrent.futures
import io
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import BinaryIO

import httpx
import numpy as np
import pytest

from edge_agent.contract.delta.apply import apply_delta
from edge_agent.contract.manifest import CARD_FILE
from edge_agent.contract.repository import delta_path
from edge_agent.runtime.package import Package
from fleet_server.updates.deltas import Deltas
from fleet_server.updates.image_verification import shown_targets
from tests.fakes.packages import make_package
from tests.fakes.update_server import SECRETS, UpdateServer, update_server
from tests.fakes.weight_packages import make_weighty, sha256, weights

OLD, NEW = weights().tobytes(), weights(updates=1).tobytes()
NOISE, OTHER_NOISE = (np.random.default_rng(seed).bytes(400_000) for seed in (1, 2))
DEVICE = {"Authorization": f"Bearer {SECRETS['camera-1']}"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="module")
def released(built: Path) -> Iterator[UpdateServer]:
    """Shows two versions whose weights are alike, and two that are noise."""
    with update_server(built / "server", models=("digits", "faces")) as running:
        publish(running, built, OLD, NEW, NOISE, OTHER_NOISE)
        yield running


def publish(server: UpdateServer, folder: Path, *contents: bytes, described: bool = True) -> list[Package]:
    """Release versions of one model with these files of weights."""
    made = []
    for number, content in enumerate(contents, 1):
        package = make_weighty(folder / f"built/{number}", version=str(number), content=content, described=described)
        server.publisher.publish(package)
        made.append(package)
    return made


def get(server: UpdateServer, old: bytes, new: bytes, **headers: str) -> httpx.Response:
    """Ask as a device does, until the delta has been made."""
    until = time.monotonic() + 30
    while True:
        url = server.url + delta_path(sha256(old), sha256(new))
        answer = httpx.get(url, headers=DEVICE | headers, timeout=30)
        if answer.status_code != 503 or time.monotonic() > until:
            return answer
        time.sleep(0.1)


def applied(delta: bytes, old: bytes, new: bytes) -> bytes:
    out = io.BytesIO()
    apply_delta(
        io.BytesIO(delta), io.BytesIO(old), out, base_sha256=sha256(old), sha256=sha256(new), size_bytes=len(new)
    )
    return out.getvalue()


def test_a_device_gets_what_makes_the_new_weights_of_the_old_ones(released: UpdateServer) -> None:
    answer = get(released, OLD, NEW)
    assert answer.status_code == 200, answer.text
    assert applied(answer.content, OLD, NEW) == NEW
    assert len(answer.content) < 0.65 * len(NEW)


def test_it_comes_in_parts_too_and_there_is_one_back_again(released: UpdateServer) -> None:
    whole = get(released, NEW, OLD).content
    rest = get(released, NEW, OLD, Range="bytes=1000-")
    assert (rest.status_code, rest.content) == (206, whole[1000:])
    assert applied(whole, NEW, OLD) == OLD


def test_nobody_but_a_device_gets_one(released: UpdateServer) -> None:
    assert httpx.get(released.url + delta_path(sha256(OLD), sha256(NEW))).status_code == 401


@pytest.mark.parametrize("base", ["0" * 64, "..%2F..%2Fkeys", sha256(NEW), "A" * 64])
def test_what_is_no_released_file_of_that_name_makes_no_delta(released: UpdateServer, base: str) -> None:
    assert httpx.get(f"{released.url}/updates/deltas/{base}/{sha256(NEW)}", headers=DEVICE).status_code == 404


def test_files_of_different_names_or_models_make_no_delta(released: UpdateServer, tmp_path: Path) -> None:
    newer = weights(updates=2).tobytes()
    released.publisher.publish(make_package(tmp_path / "face", name="faces", extra_files={"weights.bin": newer}))
    released.publisher.publish(make_package(tmp_path / "other", version="9", extra_files={"other.bin": newer}))
    assert get(released, OLD, newer).status_code == 404


def test_where_less_than_a_tenth_would_be_saved_there_is_none_and_that_is_remembered(released: UpdateServer) -> None:
    assert get(released, NOISE, OTHER_NOISE).status_code == 404
    assert released.deltas.find(sha256(NOISE), sha256(OTHER_NOISE)) is None, "decided, not begun again"


def test_large_files_without_a_layout_make_none(released: UpdateServer, tmp_path: Path) -> None:
    for version, content in (("20", OLD * 8), ("21", NEW * 8)):
        package = make_weighty(tmp_path / version, version=version, content=content, described=False)
        released.publisher.publish(package)
    assert get(released, OLD * 8, NEW * 8).status_code == 404


def test_small_files_without_a_layout_do_where_they_are_alike(released: UpdateServer, tmp_path: Path) -> None:
    old = b"".join(b"line %d of the card\n" % number for number in range(500))
    new = old.replace(b"line 77 ", b"line seventy-seven ")
    for version, card in (("11", old), ("12", new)):
        released.publisher.publish(make_package(tmp_path / version, version=version, extra_files={CARD_FILE: card}))
    answer = get(released, old, new)
    assert applied(answer.content, old, new) == new
    assert len(answer.content) < 600


def test_a_version_released_later_is_found(released: UpdateServer, tmp_path: Path) -> None:
    assert get(released, OLD, NEW).status_code == 200
    newest = weights(updates=3).tobytes()
    released.publisher.publish(make_weighty(tmp_path / "built/30", version="30", content=newest))
    assert applied(get(released, NEW, newest).content, NEW, newest) == newest


def test_many_devices_that_ask_at_once_wait_for_one_making(released: UpdateServer) -> None:
    with concurrent.futures.ThreadPoolExecutor(12) as devices:
        answers = list(devices.map(lambda _: get(released, OLD, NEW), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1


@pytest.mark.parametrize("which", ["base", "target"])
def test_of_a_damaged_file_no_delta_is_made_and_it_is_served_to_nobody(
    tmp_path: Path, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    with update_server(tmp_path / "server") as server:
        packages = publish(server, tmp_path, OLD, NEW)
        server.deltas.close()
        server.deltas = Deltas(
            tmp_path / "deltas", server.images.blobs, lambda: shown_targets(server.images.metadata)
        )  # fmt: skip
        damaged = sha256(OLD if which == "base" else NEW)
        with (tmp_path / "server/repository/blobs" / damaged).open("r+b") as file:
            file.seek(100_000)
            file.write(b"8 bytes!")
        assert made(server.deltas, OLD, NEW) is None
        assert list((tmp_path / "deltas").rglob("*-*")) == []
        assert f"released file {damaged[:12]} is damaged on this disk" in caplog.text
        assert httpx.get(f"{server.url}/updates/targets/{damaged}", headers=DEVICE).status_code == 404
        server.publisher.publish(packages[which == "target"])
        delta = made(server.deltas, OLD, NEW)
        assert delta is not None
        assert applied(delta.read_bytes(), OLD, NEW) == NEW
        server.deltas.close()


@pytest.fixture
def small(released: UpdateServer, tmp_path: Path) -> Iterator[Deltas]:
    """A store that has room for about one delta."""
    store = Deltas(
        tmp_path / "deltas", released.images.blobs, lambda: shown_targets(released.images.metadata),
        limit_bytes=300_000, max_waiting=1,
    )  # fmt: skip
    yield store
    store.close()


def made(store: Deltas, old: bytes, new: bytes) -> Path | None:
    found = store.find(sha256(old), sha256(new))
    if isinstance(found, Future):
        found.result(30)
        found = store.find(sha256(old), sha256(new))
    assert not isinstance(found, Future)
    return found


def test_what_was_asked_for_least_lately_is_forgotten_first(small: Deltas) -> None:
    there = made(small, OLD, NEW)
    back = made(small, NEW, OLD)
    assert there is not None
    assert back is not None
    assert (there.exists(), back.exists()) == (False, True)
    assert made(small, OLD, NEW) is not None, "made again when it is asked for again"


def test_what_is_not_worth_it_is_forgotten_too_where_there_is_more_of_it_than_may_be_kept(
    released: UpdateServer, tmp_path: Path
) -> None:
    store = Deltas(
        tmp_path / "few", released.images.blobs, lambda: shown_targets(released.images.metadata), most_kept=2
    )
    try:
        kept = tmp_path / "few/v1"
        for old, new in ((NOISE, OTHER_NOISE), (OTHER_NOISE, NOISE), (OLD, NOISE)):
            assert made(store, old, new) is None
        assert {path.name[:64] for path in kept.iterdir()} == {sha256(OTHER_NOISE), sha256(OLD)}
        assert made(store, OTHER_NOISE, NOISE) is None, "asked for again: it is the one that stays"
        assert made(store, OLD, NEW) is not None
        assert {path.name[:64] for path in kept.iterdir()} == {sha256(OTHER_NOISE), sha256(OLD)}
        assert {path.stat().st_size > 0 for path in kept.glob(f"{sha256(OLD)}-*")} == {True}
    finally:
        store.close()


def test_what_breaks_off_for_a_reason_that_nobody_foresaw_leaves_no_half_of_a_delta(
    small: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_off(_base: object, _target: object, out: BinaryIO, **_options: object) -> None:
        out.write(b"half")
        raise IndexError("nobody thought of this")

    with monkeypatch.context() as patch:
        patch.setattr("fleet_server.updates.deltas.make_delta", breaks_off)
        found = small.find(sha256(OLD), sha256(NEW))
        assert isinstance(found, Future)
        found.result(30)
    whole = made(small, OLD, NEW)
    assert whole is not None
    assert whole.read_bytes() != b"half"


def test_too_many_that_wait_are_not_made_now(small: Deltas) -> None:
    first = small.find(sha256(OLD), sha256(NEW))
    assert isinstance(first, Future)
    assert small.find(sha256(OLD), sha256(NEW)) is first
    second = small.find(sha256(NEW), sha256(OLD))
    assert second is None or first.done()
    first.result(30)


def test_closing_ends_the_work_and_leaves_nothing_half_made(released: UpdateServer, tmp_path: Path) -> None:
    store = Deltas(tmp_path / "stopped", released.images.blobs, lambda: shown_targets(released.images.metadata))
    store.find(sha256(OLD), sha256(NEW))
    store.close()
    assert all(path.stat().st_size for path in (tmp_path / "stopped").rglob("*") if path.is_file())
    (tmp_path / "stopped/v1/.making-x").write_bytes(b"half")
    Deltas(tmp_path / "stopped", released.images.blobs, dict).close()
    assert not (tmp_path / "stopped/v1/.making-x").exists()


def test_all_files_of_a_package_can_be_made_ahead(released: UpdateServer, built: Path) -> None:
    first, second = (Package.open(built / f"built/{number}", verify=False).manifest for number in (1, 2))
    released.deltas.make_ahead(first, second)
    until = time.monotonic() + 30
    while not isinstance(released.deltas.find(sha256(OLD), sha256(NEW)), Path) and time.monotonic() < until:
        time.sleep(0.05)
    assert isinstance(released.deltas.find(sha256(OLD), sha256(NEW)), Path)
