"""The ids of many requests, in order, in little memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence


class Ids:
    """Ids by request; those that came together stay what they came as, which may be less than a string for each."""

    __slots__ = ("_count", "_parts")

    def __init__(self) -> None:
        self._parts: list[str | Sequence[str]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            if isinstance(part, str):
                yield part
            else:
                yield from part

    def append(self, request_id: str) -> None:
        """Add one."""
        self._parts.append(request_id)
        self._count += 1

    def extend(self, request_ids: Sequence[str], count: int) -> None:
        """Add several that came together and do not change: made by the agent, so that they are nobody else's."""
        self._parts.append(request_ids if count > 1 else request_ids[0])
        self._count += count

    def latest(self, indices: Collection[int]) -> Iterator[tuple[int, str]]:
        """The ids of these requests by index, the last one first; not those that a later request has as well."""
        wanted = sorted(indices)
        later: set[str] = set()
        first = self._count
        for part in reversed(self._parts):
            if not wanted:
                return
            if isinstance(part, str):
                first -= 1
                if wanted[-1] == first:
                    wanted.pop()
                    if part not in later:
                        yield first, part
                later.add(part)
                continue
            first -= len(part)
            while wanted and wanted[-1] >= first:
                index = wanted.pop()
                yield index, part[index - first]
