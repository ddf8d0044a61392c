"""Identifiers for requests that bring none: unique across restarts, cheap to make and to keep."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import overload


class RequestIds:
    """Makes identifiers; any thread."""

    def __init__(self) -> None:
        self._start = secrets.token_hex(5)
        self._next = itertools.count(1)
        # Beginnings of their own: a counter that gives one at a time needs no lock.
        self._start_of_runs, self._next_of_runs = secrets.token_hex(5), 1
        self._lock = threading.Lock()

    def new(self) -> str:
        """A new identifier."""
        return f"{self._start}-{next(self._next)}"

    def several(self, count: int) -> Sequence[str]:
        """New identifiers."""
        with self._lock:
            first = self._next_of_runs
            self._next_of_runs = first + count
        return _Numbered(self._start_of_runs, first, count)


class _Numbered(Sequence[str]):
    """Identifiers that differ in a number alone.

    As text each would be 70 bytes that the monitor keeps for thousands of requests, long out of the processor's cache
    when they are thrown away; they are made when somebody reads them.
    """

    __slots__ = ("_count", "_first", "_start")

    def __init__(self, start: str, first: int, count: int) -> None:
        self._start, self._first, self._count = start, first, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        start, first = self._start, self._first
        return iter([f"{start}-{number}" for number in range(first, first + self._count)])

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return list(self)[index]
        return f"{self._start}-{range(self._first, self._first + self._count)[index]}"
