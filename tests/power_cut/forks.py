"""A program of the tests: everything that an agent imports is imported once, then each agent is a fork of this.

It has no threads, so that forking is safe. Orders come as lines of JSON on stdin, answers go as lines to stdout:
``{"start": {...}}`` -> ``{"pid": 7}``; ``{"wait": 7}`` -> ``{"status": -9}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import tuf.ngclient  # noqa: F401 - here and below: imported once, before the forks
import urllib3  # noqa: F401
import uvloop  # noqa: F401

import edge_agent.agent
import edge_agent.update.resolver
from edge_agent.cli import main as shoal_agent
from tests.power_cut.power import OFF


def _arm(order: dict[str, Any]) -> None:
    if order["fate"] == OFF:
        return
    record = os.open(order["record"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if order["record"] else -1
    arm = ctypes.CDLL(None).power_cut_arm
    arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int]
    arm(os.fsencode(order["state"]), order["fate"], order["at"], record)


def _agent(order: dict[str, Any]) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _arm(order)
    shoal_agent.main(["run", "--config", order["config"]], standalone_mode=True)


def _start(order: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        _agent(order)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:  # noqa: BLE001 - said below; the fork must not go on as a second server of orders
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(70)
    raise AssertionError("unreachable")


def main() -> None:
    assert Path(edge_agent.agent.__file__).exists()
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            answer = {"pid": _start(order["start"])}
        else:
            _, status = os.waitpid(order["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
