"""The ids of many requests and when each was answered, in order, in little memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence


class Ids:
    """Ids by request.

    Args:
        parts: Each the id of one request; or those of several that came together, which may be less than a string for
            each: made by the agent, so that they are nobody else's.
        at_s: When each part was answered, by any clock.
        count: How many requests there are.
    """

    __slots__ = ("_at_s", "_count", "_parts")

    def __init__(self, parts: Sequence[str | Sequence[str]], at_s: Sequence[float], count: int) -> None:
        self._parts, self._at_s, self._count = parts, at_s, count

    def __len__(self) -> int:
        return self._count

    def timed(self) -> Iterator[tuple[str, float]]:
        """Each id, and when its request was answered."""
        for part, at_s in zip(self._parts, self._at_s, strict=True):
            if isinstance(part, str):
                yield part, at_s
            else:
                for request_id in part:
                    yield request_id, at_s

    def latest(self, indices: Collection[int]) -> Iterator[tuple[int, str, float]]:
        """Of these requests by index: index, id, and when; the last one first, none whose id a later one has too."""
        wanted = sorted(indices)
        later: set[str] = set()
        first = self._count
        for part, at_s in zip(reversed(self._parts), reversed(self._at_s), strict=True):
            if not wanted:
                return
            if isinstance(part, str):
                first -= 1
                if wanted[-1] == first:
                    wanted.pop()
                    if part not in later:
                        yield first, part, at_s
                later.add(part)
                continue
            first -= len(part)
            while wanted and wanted[-1] >= first:
                index = wanted.pop()
                yield index, part[index - first], at_s
