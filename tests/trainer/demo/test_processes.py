"""Processes that are stubborn, fail or never say what they should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from trainer.demo.processes import DemoFailed, Processes

STUBBORN = "trap '' TERM INT; echo ready; while :; do sleep 0.1; done"


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_all_are_ended_in_reverse_order_also_when_something_fails(tmp_path: Path) -> None:
    order = tmp_path / "order"
    script = "trap 'echo {name} >> {order}; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    started = []
    with pytest.raises(ZeroDivisionError), Processes(tmp_path / "logs") as processes:  # noqa: PT012 - as in a with-block
        for name in ("first", "second"):
            process = processes.start(name, sh(script.format(name=name, order=order)), pipes=True)
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            started.append(process)
        raise ZeroDivisionError
    assert order.read_text().split() == ["second", "first"]
    assert [process.returncode for process in started] == [0, 0]


def test_a_process_that_does_not_heed_is_killed(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "logs")
    process = processes.start("stubborn", sh(STUBBORN), pipes=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    processes.stop(patience_s=0.2)
    assert process.returncode == -signal.SIGKILL


def test_one_that_ends_by_itself_is_noticed_and_its_last_words_are_told(tmp_path: Path) -> None:
    with Processes(tmp_path / "logs") as processes:
        processes.start("server", sh("echo the port is taken >&2; exit 6")).wait(30)
        with pytest.raises(
            DemoFailed, match=r"server ended by itself with 6:\nthe port is taken\n\(log: .*server\.log"
        ):
            processes.check()
        with pytest.raises(DemoFailed, match="ended by itself"):
            processes.wait_for_file(tmp_path / "never.json")


def test_a_command_that_fails_tells_its_last_words_and_keeps_all_of_them(tmp_path: Path) -> None:
    with Processes(tmp_path / "logs") as processes:
        assert processes.run("fine", sh("echo result; echo noise >&2")) == "result\n"
        with pytest.raises(DemoFailed, match=r"(?s)broken ended with 3:.*why"):
            processes.run("broken", sh("echo why >&2; exit 3"))
        assert "why" in processes.log_of("broken").read_text()
        assert "noise" in processes.log_of("fine").read_text()


def test_a_file_is_waited_for_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    with Processes(tmp_path / "logs") as processes:
        processes.start("writer", sh(f"printf '{{' > {path}; sleep 0.5; printf '\"port\": 1}}' >> {path}; sleep 60"))
        assert processes.wait_for_file(path) == {"port": 1}
        with pytest.raises(DemoFailed, match=r"never\.json did not appear within 0\.1 s"):
            processes.wait_for_file(tmp_path / "never.json", timeout_s=0.1)


def test_settings_of_a_real_fleet_do_not_reach_the_demos_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_DATABASE", "postgresql://production")
    show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    with Processes(tmp_path / "logs") as processes:
        found = json.loads(processes.run("show", show, environment={"SHOAL_TOKEN": "own"}))
    assert "SHOAL_DATABASE" not in found
    assert found["SHOAL_TOKEN"] == "own"
    assert found["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_no_signal_disturbs_the_ending(tmp_path: Path, number: signal.Signals) -> None:
    """While the demo ends a stubborn process, it is told once more to end."""
    program = f"""
        import os, threading
        from pathlib import Path
        from trainer.demo.processes import Processes

        processes = Processes(Path({str(tmp_path / "logs")!r}))
        process = processes.start("stubborn", ["/bin/sh", "-c", {STUBBORN!r}], pipes=True)
        process.stdout.readline()
        print(process.pid, flush=True)
        threading.Timer(0.3, os.kill, (os.getpid(), {number.value})).start()
        processes.stop(patience_s=1.5)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    demo = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert demo.returncode == 0, demo.stderr
    assert not psutil.pid_exists(int(demo.stdout))
