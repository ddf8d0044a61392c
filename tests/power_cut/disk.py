"""What may be on a disk after a power cut: built from a record of operations, with un-synced ones lost or reordered.

The model is the strictest that POSIX allows: data is on disk once its file was synced, a name once its folder was, and
what was not may be there or not, whatever came before or after it. A rename is whole or not there. Real file systems
lose less. After ALICE (Pillai et al., All File Systems Are Not Created Equal, OSDI 2014) and CrashMonkey (Mohan et al.,
OSDI 2018).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from tests.power_cut.record import Operation

ROOT = 0
_FEW = 4  # writes to one file since its last sync that are lost one by one; more are lost together
_MAPPED = "-shm"  # SQLite's index of its log, which it makes anew after a crash


@dataclasses.dataclass
class Thing:
    """A file, folder or symbolic link, whatever it is called.

    Args:
        data: Of a file, before the first recorded operation; ``text``: of a link.
    """

    kind: str
    mode: int = 0o644
    data: bytes = b""
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Effect:
    """What one operation did to the disk.

    Args:
        number: Of the operation; ``thing``: whose sync makes it durable.
        names: Entries set (or, with None, removed) all at once: folder, name, what it names.
        data: Bytes written at ``offset``; with None, and no names, the file got that length.
    """

    number: int
    thing: int
    names: tuple[tuple[int, str, int | None], ...] = ()
    offset: int = 0
    data: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Crash:
    """One state of the disk after a power cut.

    Args:
        operation: The first one that never happened.
        why: What was lost, in words.
        effects: What is on the disk beside what was there before, in order.
    """

    operation: int
    why: str
    effects: tuple[Effect, ...]


class Disk:
    """A folder as it was, and what a recorded program did to it.

    Args:
        before: Folder with the state before the first operation; inodes are those of the recorded one.
        inodes: Inode by relative path, of the folder that the program worked on, before it began.
    """

    def __init__(self, before: Path, inodes: dict[str, int], operations: Iterable[Operation]) -> None:
        self._things: dict[int, Thing] = {}
        self._first: dict[int, dict[str, int]] = {}
        self._now: dict[int, dict[str, int]] = {}
        self._by_inode: dict[int, int] = {}
        self._ids = itertools.count()
        self.effects: list[Effect] = []
        self._syncs: dict[int, list[int]] = {}
        self._read(before, inodes)
        self.length = 0
        for number, operation in enumerate(operations):
            self._follow(number, operation)
            self.length = number + 1

    def crashes(self) -> Iterator[Crash]:
        """Every state that this model makes of a power cut, each once."""
        seen: set[str] = set()
        for cut in range(self.length + 1):
            for crash in self._at(cut):
                key = self._key(crash)
                if key not in seen:
                    seen.add(key)
                    yield crash

    def materialise(self, crash: Crash, folder: Path) -> None:
        """Write a state of the disk into a folder that does not exist yet."""
        names, contents = self._applied(crash)
        self._write(ROOT, names, contents, folder)

    # -- following the record

    def _new(self, thing: Thing, inode: int) -> int:
        found = next(self._ids)
        self._things[found] = thing
        self._by_inode[inode] = found  # an inode number is used again after its file is gone
        if thing.kind == "folder":
            self._now[found] = {}
        return found

    def _read(self, before: Path, inodes: dict[str, int]) -> None:
        root = self._new(Thing("folder"), inodes["."])
        assert root == ROOT
        for base, folders, files in os.walk(before):
            for name in (*folders, *files):
                path = Path(base, name)
                relative = os.path.relpath(path, before)
                parent, _ = self._place(relative)
                self._now[parent][name] = self._new(_thing(path), inodes[relative])
        self._first = {folder: dict(names) for folder, names in self._now.items()}

    def _place(self, path: str) -> tuple[int, str]:
        *folders, name = PurePosixPath(path).parts
        at = ROOT
        for folder in folders:
            at = self._now[at][folder]
        return at, name

    def _follow(self, number: int, operation: Operation) -> None:
        match operation.kind:
            case "create" | "mkdir" | "symlink":
                kind = {"create": "file", "mkdir": "folder", "symlink": "link"}[operation.kind]
                made = self._new(Thing(kind, mode=operation.at, text=operation.text), operation.inode)
                self._set(number, [(*self._place(operation.path), made)])
            case "link":
                self._set(number, [(*self._place(operation.path), self._by_inode[operation.inode])])
            case "rename":
                there = (*self._place(operation.to), self._by_inode[operation.inode])
                self._set(number, [(*self._place(operation.path), None), there])
            case "unlink" | "rmdir":
                self._set(number, [(*self._place(operation.path), None)])
            case "write":
                thing = self._by_inode[operation.inode]
                self.effects.append(Effect(number, thing, offset=operation.at, data=operation.data))
            case "truncate":
                self.effects.append(Effect(number, self._by_inode[operation.inode], offset=operation.at))
            case "sync":
                self._syncs.setdefault(self._by_inode[operation.inode], []).append(number)
            case "map":
                assert operation.path.endswith(_MAPPED), f"{operation.path} is written past the record"

    def _set(self, number: int, names: list[tuple[int, str, int | None]]) -> None:
        for folder, name, thing in names:
            if thing is None:
                self._now[folder].pop(name)
            else:
                self._now[folder][name] = thing
        self.effects.append(Effect(number, names[-1][0], names=tuple(names)))

    # -- what may be left

    def _at(self, cut: int) -> Iterator[Crash]:
        begun = [effect for effect in self.effects if effect.number < cut]
        open_ = [effect for effect in begun if not self._is_durable(effect, cut)]
        durable = {id(effect) for effect in begun} - {id(effect) for effect in open_}

        def crash(why: str, kept: Iterable[Effect]) -> Crash:
            chosen = durable | {id(effect) for effect in kept}
            return Crash(cut, why, tuple(effect for effect in begun if id(effect) in chosen))

        yield crash("all that was not synced", [])
        yield crash("all data that was not synced", [effect for effect in open_ if effect.names])
        yield crash("all names that were not synced", [effect for effect in open_ if not effect.names])
        for group in self._groups(open_):
            lost = {id(effect) for effect in group}
            said = self._said(group)
            yield crash(f"only {said}", [effect for effect in open_ if id(effect) not in lost])
            yield crash(f"all that was not synced but {said}", group)

    def _is_durable(self, effect: Effect, cut: int) -> bool:
        return any(effect.number < sync < cut for sync in self._syncs.get(effect.thing, ()))

    def _groups(self, open_: list[Effect]) -> list[list[Effect]]:
        data: dict[int, list[Effect]] = {}
        for effect in open_:
            if not effect.names:
                data.setdefault(effect.thing, []).append(effect)
        groups = [[effect] for effect in open_ if effect.names]
        for effects in data.values():
            groups += [[effect] for effect in effects] if len(effects) <= _FEW else [effects]
        return groups

    def _said(self, group: list[Effect]) -> str:
        first = group[0]
        if first.names:
            return ", ".join(f"{name} {'gone' if thing is None else 'there'}" for _, name, thing in first.names)
        known = [name for effect in self.effects for _, name, thing in effect.names if thing == first.thing]
        known += [name for names in self._first.values() for name, thing in names.items() if thing == first.thing]
        return f"{len(group)} writes to {known[0] if known else 'a file'}"

    # -- building it

    def _applied(self, crash: Crash) -> tuple[dict[int, dict[str, int]], dict[int, bytes]]:
        names = {folder: dict(entries) for folder, entries in self._first.items()}
        contents: dict[int, bytearray] = {}
        for effect in crash.effects:
            for folder, name, thing in effect.names:
                entries = names.setdefault(folder, {})
                if thing is None:
                    entries.pop(name, None)
                else:
                    entries[name] = thing
            if not effect.names:
                self._change(contents, effect)
        return names, {thing: bytes(data) for thing, data in contents.items()}

    def _change(self, contents: dict[int, bytearray], effect: Effect) -> None:
        data = contents.setdefault(effect.thing, bytearray(self._things[effect.thing].data))
        end = effect.offset + (0 if effect.data is None else len(effect.data))
        if len(data) < end:
            data.extend(bytes(end - len(data)))  # a hole reads as zeros
        if effect.data is None:
            del data[effect.offset :]
        else:
            data[effect.offset : end] = effect.data

    def _write(self, thing: int, names: dict[int, dict[str, int]], contents: dict[int, bytes], path: Path) -> None:
        what = self._things[thing]
        if what.kind == "link":
            path.symlink_to(what.text)
        elif what.kind == "file":
            path.write_bytes(contents.get(thing, what.data))
            path.chmod(what.mode)
        else:
            path.mkdir(mode=0o700)
            for name, inner in names.get(thing, {}).items():
                self._write(inner, names, contents, path / name)

    def _key(self, crash: Crash) -> str:
        names, contents = self._applied(crash)
        digest = hashlib.sha256()

        def add(thing: int, path: str) -> None:
            what = self._things[thing]
            digest.update(f"{path}\0{what.kind}\0{what.text}\0".encode())
            if what.kind == "file" and not path.endswith(_MAPPED):
                digest.update(hashlib.sha256(contents.get(thing, what.data)).digest())
            for name, inner in sorted(names.get(thing, {}).items()):
                add(inner, f"{path}/{name}")

        add(ROOT, "")
        return digest.hexdigest()


def _thing(path: Path) -> Thing:
    if path.is_symlink():
        return Thing("link", text=str(path.readlink()))
    mode = path.stat().st_mode & 0o7777
    return Thing("folder", mode) if path.is_dir() else Thing("file", mode, data=path.read_bytes())


def inodes_of(folder: Path) -> dict[str, int]:
    """The inode of each file and folder by its relative path; ``.`` is the folder itself."""
    found = {".": folder.stat().st_ino}
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(base, name)
            found[os.path.relpath(path, folder)] = path.lstat().st_ino
    return found
