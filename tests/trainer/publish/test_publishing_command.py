"""``shoal keys publish``, as somebody types it: what it says, and how it ends, while signatures are missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.fakes.packages import make_package
from tests.fakes.update_server import TOKEN, UpdateServer, update_server
from trainer.publish.cli import keys_commands


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UpdateServer]:
    with update_server(tmp_path / "server") as running:
        yield running


def typed(*arguments: object, server: UpdateServer) -> Result:
    environment = {"SHOAL_SERVER": server.url, "SHOAL_TOKEN": TOKEN}
    return CliRunner().invoke(keys_commands, [str(one) for one in arguments], env=environment, input="y\n")


def test_while_a_change_of_keys_lacks_signatures_publish_says_whose_and_the_command(
    server: UpdateServer, tmp_path: Path
) -> None:
    keys = server.keys_folder
    people = ("--person", "anna", "--person", "ben", "--threshold", 2)
    assert typed("share", keys, *people, server=server).exit_code == 0
    shutil.move(keys / "offline", tmp_path / "persons")
    assert typed("rotate", keys, "timestamp", server=server).exit_code == 0

    published = typed("publish", keys, server=server)
    assert published.exit_code == 9
    assert "2 missing of: offline/anna/image-root, offline/ben/image-root" in published.output
    assert f"shoal keys sign {keys} --key FILE" in published.output
    assert "waits" in published.stderr

    for person in ("anna", "ben"):
        assert typed("sign", keys, "--key", tmp_path / "persons" / person, server=server).exit_code == 0
    published = typed("publish", keys, server=server)
    assert published.exit_code == 0, published.output
    assert "nothing waits" in published.output


def test_while_a_release_waits_for_its_approver_publish_says_who_and_the_command(
    server: UpdateServer, tmp_path: Path
) -> None:
    keys = server.keys_folder
    assert typed("add-model", keys, "faces", "--approver", "dora", server=server).exit_code == 0
    server.publisher.publish(make_package(tmp_path / "built/faces", name="faces"))
    published = typed("publish", keys, server=server)
    assert published.exit_code == 9
    assert "1 missing of: approvers/dora/approver" in published.output
    assert "shoal models approve faces 1 --key FILE" in published.output


def test_that_the_server_is_away_is_said_in_a_sentence(server: UpdateServer) -> None:
    environment = {"SHOAL_SERVER": "http://127.0.0.1:9", "SHOAL_TOKEN": TOKEN}
    away = CliRunner().invoke(keys_commands, ["publish", str(server.keys_folder)], env=environment)
    assert away.exit_code != 0
    assert "ConnectError" not in away.stderr
    assert "is the server running and reachable? Publish again then" in away.stderr
