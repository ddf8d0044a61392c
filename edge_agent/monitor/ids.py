"""The identifiers of requests that were answered one after the other, as whoever made them hands them over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Ids:
    """Identifiers in order; those of one run stay together, as they may be less than their texts. Not thread-safe."""

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

    def extend(self, request_ids: Sequence[str]) -> None:
        """Add those of one run, which nobody changes any more."""
        count = len(request_ids)
        self._parts.append(request_ids[0] if count == 1 else request_ids)
        self._count += count
