"""Identifiers for requests that bring none: unique across restarts, cheap to make and to remember."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from typing import Final, overload

# Runs rarely have more requests; the numbers of those that do are written anew each time.
_NUMBERS: Final = tuple(f"-{index}" for index in range(64))


class RequestIds:
    """Makes identifiers; from any thread."""

    def __init__(self) -> None:
        self._start = secrets.token_hex(5)
        self._next = itertools.count(1)

    def new(self) -> str:
        """A new identifier."""
        return f"{self._start}-{next(self._next)}"

    def of_run(self, count: int) -> RunIds:
        """New identifiers for so many requests that are answered in one run."""
        return RunIds(self.new(), count)


class RunIds(Sequence[str]):
    """Those of one run's requests, written down once: thousands of them are remembered.

    Strings of their own, kept for so long, each took a cache line that was not the processor's any more.
    """

    __slots__ = ("_count", "_run")

    def __init__(self, run: str, count: int) -> None:
        self._run, self._count = run, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [*self][index]
        return f"{self._run}-{range(self._count)[index]}"

    def __iter__(self) -> Iterator[str]:
        run, count = self._run, self._count
        if count > len(_NUMBERS):
            return iter([f"{run}-{index}" for index in range(count)])
        return iter([run + number for number in _NUMBERS[:count]])
