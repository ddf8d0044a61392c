"""The commands as a person types them, where they must say what is missing."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.trainer.conftest import run_file
from tests.trainer.fleet_server_double import FleetServerDouble
from trainer.cli import trainer
from trainer.publish.cli import keys_commands


def said(result: Result) -> str:
    return " ".join((result.output + result.stderr).split())


@contextlib.contextmanager
def undisturbed_signals() -> Iterator[None]:
    """The command's signal handlers go with it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    assert CliRunner().invoke(keys_commands, ["init", str(folder), "--model", "digits"]).exit_code == 0
    return folder


@pytest.mark.parametrize(("token", "state"), [(None, "is not set"), ("", "is set, but empty")])
def test_work_without_a_token_names_the_variable(tmp_path: Path, token: str | None, state: str) -> None:
    runner = CliRunner(env={"SHOAL_TOKEN": token, "SHOAL_SERVER": "http://127.0.0.1:9"})
    result = runner.invoke(trainer, ["work", "--keys", str(tmp_path)])
    assert result.exit_code == 2
    assert f"no token: set SHOAL_TOKEN in the environment, or give --token; SHOAL_TOKEN {state}" in said(result)


def test_a_bad_token_from_the_environment_ends_work_with_one_line(keys: Path, tmp_path: Path, recipes: Path) -> None:
    with FleetServerDouble(run_file(tmp_path)) as server, undisturbed_signals():
        runner = CliRunner(env={"SHOAL_TOKEN": "wrong", "SHOAL_SERVER": server.url})
        result = runner.invoke(
            trainer, ["work", "--keys", str(keys), "--recipes", str(recipes), "--work", str(tmp_path)]
        )
    assert result.exit_code == 4
    assert result.stderr.count("\n") == 1
    assert "the token was refused (401: no token)" in said(result)


def test_train_refuses_a_bad_version_before_anything_is_read(tmp_path: Path) -> None:
    words = ["train", "digits", "--lake", str(tmp_path), "--out", str(tmp_path / "o"), "--version", "no good"]
    result = CliRunner().invoke(trainer, words)
    assert result.exit_code == 3
    assert said(result).startswith("shoal: version 'no good': use 1 to 63")


def test_a_lake_below_a_file_is_said_in_a_sentence_and_with_debug_in_full(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["import", "digits", "--lake", str(tmp_path / "file" / "lake")]
    result = CliRunner().invoke(trainer, arguments)
    assert result.exit_code == 1
    assert said(result).startswith("shoal: ")
    assert "Traceback" not in said(result)
    assert "Traceback" in said(CliRunner().invoke(trainer, [*arguments, "--debug"]))
