"""The power mode of a Jetson board, as ``nvpmodel`` set it.

``/var/lib/nvpmodel/status`` holds ``pmode:0002``, and ``/etc/nvpmodel.conf`` the names, in lines such as
``< POWER_MODEL ID=2 NAME=15W >``. Where the first is not there, ``nvpmodel -q`` prints ``NV Power Mode: 15W``.
"""

from __future__ import annotations

import logging
import re
import subprocess

from edge_agent.monitor.board.system_files import SystemFiles

log = logging.getLogger(__name__)

_STATUS = "var/lib/nvpmodel/status"
_NAMES = "etc/nvpmodel.conf"
_PRESENT = re.compile(r"pmode:\s*(\d+)")
_MODEL = re.compile(r"^\s*<\s*POWER_MODEL\b([^>]*)>", re.MULTILINE)
_ID = re.compile(r"\bID=(\d+)")
_NAME = re.compile(r"\bNAME=([^\s>]+)")
_PRINTED = re.compile(r"NV Power Mode:\s*(\S+)")
_PATIENCE_S = 5.0


class PowerMode:
    """Tells the mode's name.

    Args:
        program: ``nvpmodel``, asked once where no file tells the mode; None asks nobody.
    """

    def __init__(self, files: SystemFiles, program: str | None = None) -> None:
        self._files, self._program = files, program
        self._printed: str | None = None
        self._named = ("", "")  # what the status file said last, and the name for it

    def read(self) -> str:
        """The name, such as ``15W`` or ``MAXN``; the mode's number where it has no name; empty where nobody tells."""
        status = self._files.text(_STATUS) or ""
        present = _PRESENT.search(status)
        if present is None:
            return self._ask()
        if status != self._named[0]:  # the table of names is long, and asked for once a second
            number = int(present[1])
            self._named = (status, mode_names(self._files.text(_NAMES) or "").get(number, str(number)))
        return self._named[1]

    def _ask(self) -> str:
        if self._printed is None:
            self._printed = ""
            if self._program is not None:
                self._printed = _run(self._program)
        return self._printed


def mode_names(table: str) -> dict[int, str]:
    """Names by number, of the text of ``nvpmodel.conf``."""
    names: dict[int, str] = {}
    for attributes in _MODEL.findall(table):
        number, name = _ID.search(attributes), _NAME.search(attributes)
        if number and name:
            names[int(number[1])] = name[1]
    return names


def printed_mode(text: str) -> str:
    """The name in what ``nvpmodel -q`` prints; empty where there is none."""
    found = _PRINTED.search(text)
    return found[1] if found else ""


def _run(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "-q"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s -q: %s; the power mode is unknown", program, error)
        return ""
    return printed_mode(done.stdout)
