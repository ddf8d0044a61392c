"""What one connection may take: bytes, and seconds in each phase of a request."""

from __future__ import annotations

import dataclasses
import enum
import math

# An application that sends everything before it reads sees a refusal only once its body has been taken in: so much
# of it is, for so long.
LINGERING_BYTES = 64 * 1024 * 1024
_LINGERING_S = 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What a connection may take.

    Args:
        max_header_bytes: Largest head of a request.
        head_timeout_s: Seconds in which a head must arrive, once its first byte has.
        body_timeout_s: Seconds in which a body must arrive, or an answer be read.
        idle_timeout_s: Seconds after which a silent connection is closed.
    """

    max_header_bytes: int = 16 * 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 120.0


class Phase(enum.Enum):
    """Where a connection stands."""

    IDLE = enum.auto()  # between two requests
    HEAD = enum.auto()  # a part of a head is here
    BODY = enum.auto()  # a body of known length is arriving
    CHUNKS = enum.auto()  # a body in chunks is arriving
    DISCARD = enum.auto()  # the rest of a refused body is arriving
    WORKING = enum.auto()  # the answer is being made
    BLOCKED = enum.auto()  # the application does not read its answer
    LINGER = enum.auto()  # refused; closed once the application has read why, or sent all it wanted
    CLOSING = enum.auto()  # closed once the answer has been read
    CLOSED = enum.auto()


def phase_limits(limits: HttpLimits) -> dict[Phase, float]:
    """Seconds that each phase may take."""
    return {
        Phase.IDLE: limits.idle_timeout_s,
        Phase.HEAD: limits.head_timeout_s,
        Phase.BODY: limits.body_timeout_s,
        Phase.CHUNKS: limits.body_timeout_s,
        Phase.DISCARD: limits.body_timeout_s,
        Phase.WORKING: math.inf,  # deadlines of inferences are the routes' business
        Phase.BLOCKED: limits.body_timeout_s,
        Phase.LINGER: min(_LINGERING_S, limits.body_timeout_s),
        Phase.CLOSING: limits.body_timeout_s,
        Phase.CLOSED: math.inf,
    }
