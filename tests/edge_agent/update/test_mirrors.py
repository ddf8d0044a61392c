"""Several sources, none of them trusted, and a limit on what they may take of the network."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.contract.errors import NetworkError
from edge_agent.contract.repository import blob_path
from edge_agent.update.bandwidth import Bandwidth
from edge_agent.update.download import Download
from edge_agent.update.server_files import ServerFiles
from edge_agent.update.sources import Sources
from tests.fakes.mirror import Mirror, mirror_of

FILE = bytes(range(256)) * 2000
SHA = hashlib.sha256(FILE).hexdigest()
PATH = blob_path(SHA)


def download(folder: Path, sources: Sources) -> bytes:
    one = Download(files=sources, sha256=SHA, size_bytes=len(FILE), part=folder / "part", between_chunks=lambda: None)
    one.to(folder / "place")
    return (folder / "place").read_bytes()


def sources(server: Mirror, *mirrors: str, monotonic: Callable[[], float] = time.monotonic) -> Sources:
    return Sources(ServerFiles(server.url, "secret"), mirrors, monotonic=monotonic)


def test_a_mirror_is_asked_before_the_server_and_gets_no_secret(tmp_path: Path) -> None:
    with mirror_of({PATH: FILE}) as server, mirror_of({PATH: FILE}) as mirror:
        found = sources(server, mirror.url)
        assert download(tmp_path, found) == FILE
        assert server.requests == []
        assert [headers.get("authorization") for _, headers in mirror.requests] == [None]
        assert found.server.bytes_down == len(FILE), "it counts as traffic of this device"


def test_mirrors_that_are_away_or_lack_the_file_are_passed_over(tmp_path: Path) -> None:
    with mirror_of({PATH: FILE}) as server, mirror_of({}) as empty:
        assert download(tmp_path, sources(server, "http://127.0.0.1:9", empty.url)) == FILE
        assert [headers.get("authorization") for _, headers in server.requests] == ["Bearer secret"]


def test_what_one_mirror_began_the_next_one_completes(tmp_path: Path) -> None:
    with mirror_of({PATH: FILE}) as server, mirror_of({PATH: FILE}) as first, mirror_of({PATH: FILE}) as second:
        first.cut_after[PATH] = 200_000
        assert download(tmp_path, sources(server, first.url, second.url)) == FILE
        assert second.asked(PATH)[0].startswith("bytes=")
        assert server.requests == []


@pytest.mark.parametrize("lie", [FILE[::-1], FILE[:-1], FILE + b"x", b""], ids=["other", "short", "long", "empty"])
def test_a_mirror_that_lies_is_asked_no_more_in_this_update_for_a_while(tmp_path: Path, lie: bytes) -> None:
    with mirror_of({PATH: FILE}) as server, mirror_of({PATH: lie}) as mirror:
        clock = Time()
        found = sources(server, mirror.url, monotonic=clock.monotonic)
        found.begin("update-1", len(FILE))
        for at_s, asked in ((0, 1), (29, 1), (30, 2), (89, 2), (90, 3)):
            clock.now = at_s
            assert download(tmp_path, found) == FILE
            assert len(mirror.asked(PATH)) == asked
        mirror.files[PATH] = FILE
        asked_server = len(server.asked(PATH))
        found.begin("update-2", len(FILE))
        assert download(tmp_path, found) == FILE
        assert len(server.asked(PATH)) == asked_server, "what it gave for one update says nothing of another"


def test_lies_that_a_mirror_left_half_way_are_not_held_against_the_next(tmp_path: Path) -> None:
    with mirror_of({PATH: FILE}) as server, mirror_of({PATH: FILE[::-1]}) as liar:
        liar.cut_after[PATH] = 100_000
        assert download(tmp_path, sources(server, liar.url)) == FILE
        assert server.asked(PATH)[-1] == ""


def test_where_all_give_wrong_bytes_all_rest_and_the_error_says_for_how_long(tmp_path: Path) -> None:
    with mirror_of({PATH: FILE[::-1]}) as server, mirror_of({PATH: b""}) as mirror:
        found = sources(server, mirror.url)
        for _ in range(3):
            with pytest.raises(NetworkError, match=f"{server.url}.*not what was signed.*asked again after 30 s"):
                download(tmp_path, found)
        assert (len(server.asked(PATH)), len(mirror.asked(PATH))) == (1, 1)


def test_where_nobody_answers_what_came_is_kept(tmp_path: Path) -> None:
    with mirror_of({PATH: FILE}) as mirror, mirror_of({}) as server:
        mirror.cut_after[PATH] = 100_000
        with pytest.raises(NetworkError, match="404"):
            download(tmp_path, sources(server, mirror.url))
        assert (tmp_path / "part").stat().st_size == 100_000


class Time:
    """A clock that moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_downloads_take_no_more_of_the_network_than_they_may() -> None:
    time = Time()
    limit = Bandwidth(100, monotonic=time.monotonic, sleep=time.sleep)
    for _ in range(160):
        limit.take(64 << 10, lambda: None)
    assert 100 <= time.now <= 103, "10 MiB at 100 KiB a second, less what may come at once"


def test_a_pause_gives_room_for_a_moment_and_no_more() -> None:
    time = Time()
    limit = Bandwidth(100, monotonic=time.monotonic, sleep=time.sleep)
    time.now = 3600
    limit.take(200 << 10, lambda: None)
    assert time.now == 3600
    limit.take(100 << 10, lambda: None)
    assert time.now == pytest.approx(3601, abs=0.01)


def test_without_a_limit_nobody_waits_and_a_wait_can_be_broken_off() -> None:
    time = Time()
    Bandwidth(0, monotonic=time.monotonic, sleep=time.sleep).take(1 << 40, lambda: None)
    assert time.now == 0

    def stop() -> None:
        raise NetworkError("the agent stops")

    with pytest.raises(NetworkError):
        Bandwidth(1, monotonic=time.monotonic, sleep=time.sleep).take(1 << 30, stop)
    assert time.now < 1
