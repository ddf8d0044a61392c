"""The operations on a folder that ``interposer.c`` has written down."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a program on its folder.

    Args:
        kind: ``create``, ``mkdir``, ``symlink``, ``link``, ``rename``, ``unlink``, ``rmdir``, ``write``, ``truncate``,
            ``sync`` or ``map``.
        inode: Of the file or folder that it is about; 0 where a name is removed.
        path: Name made, moved or removed, relative to the folder; ``to``: its new name.
        text: What a symbolic link says.
        at: Offset of a write, length of a truncation, permissions of a new file.
    """

    kind: str
    inode: int = 0
    path: str = ""
    to: str = ""
    text: str = ""
    at: int = 0
    data: bytes = b""


_NAMED = {"D": "mkdir", "L": "link"}
_REMOVED = {"U": "unlink", "X": "rmdir"}


def read_record(file: Path, folder: Path) -> list[Operation]:
    """All operations in a record, in their order; a last one that is cut short is left out.

    Args:
        folder: The folder that they were on.
    """
    data, position, found = file.read_bytes(), 0, []

    def take(length: int) -> bytes:
        nonlocal position
        if position + length > len(data):
            raise EOFError
        position += length
        return data[position - length : position]

    def path(length: int) -> str:
        return os.path.relpath(os.fsdecode(take(length)), folder)

    while (end := data.find(b"\n", position)) >= 0:
        words = data[position:end].decode().split()
        position = end + 1
        try:
            found.append(_operation(words[0], words[1:], take, path))
        except EOFError:
            break
    return found


def _operation(kind: str, words: list[str], take: Callable[[int], bytes], path: Callable[[int], str]) -> Operation:
    numbers = [int(word, 8 if kind == "C" and index == 1 else 10) for index, word in enumerate(words)]
    match kind:
        case "C":
            return Operation("create", numbers[0], path(numbers[2]), at=numbers[1])
        case "D" | "L":
            return Operation(_NAMED[kind], numbers[0], path(numbers[1]))
        case "S":
            name = path(numbers[1])
            return Operation("symlink", numbers[0], name, text=os.fsdecode(take(numbers[2])))
        case "R":
            name = path(numbers[1])
            return Operation("rename", numbers[0], name, to=path(numbers[2]))
        case "U" | "X":
            return Operation(_REMOVED[kind], path=path(numbers[0]))
        case "W":
            return Operation("write", numbers[0], at=numbers[1], data=take(numbers[2]))
        case "T":
            return Operation("truncate", numbers[0], at=numbers[1])
        case "F":
            return Operation("sync", numbers[0])
        case "M":
            return Operation("map", path=path(numbers[0]))
    raise ValueError(f"a record of kind {kind!r}: interposer.c and record.py disagree")
