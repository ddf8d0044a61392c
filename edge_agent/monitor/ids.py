"""The ids of many requests, in order, in little memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence


class Ids:
    """Ids by request; those that came together stay what they came as, which may be less than a string for each.

    Attributes:
        count: How many there are; on the serving path, where it is less work than ``len``.
    """

    __slots__ = ("_parts", "count")

    def __init__(self) -> None:
        self._parts: list[str | Sequence[str]] = []
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            if isinstance(part, str):
                yield part
            else:
                yield from part

    def append(self, request_id: str) -> None:
        """Add one."""
        self._parts.append(request_id)
        self.count += 1

    def extend(self, request_ids: Sequence[str]) -> None:
        """Add several that came together: they do not change, and no other request has one of them."""
        count = len(request_ids)
        if count == 1:
            self._parts.append(request_ids[0])
        else:
            self._parts.append(request_ids)
        self.count += count

    def latest(self, indices: Collection[int]) -> Iterator[tuple[int, str]]:
        """The ids of the requests with these indices, but for those that a later request has as well."""
        first = 0
        for at, part in enumerate(self._parts):
            if isinstance(part, str):
                if first in indices and part not in self._parts[at + 1 :]:
                    yield first, part
                first += 1
                continue
            after = first + len(part)
            for index in indices:
                if first <= index < after:
                    yield index, part[index - first]
            first = after
