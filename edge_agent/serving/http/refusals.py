"""What is wrong with a request before any route sees it, each with its status (RFC 9110, section 15)."""

from __future__ import annotations

from edge_agent.contract.errors import Busy, CallerError, DeviceError


class RequestTimeout(CallerError):
    """The request did not arrive in time."""

    http_status = 408


class BodyTooLarge(CallerError):
    """The body is longer than this device takes."""

    http_status = 413

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the body is larger than the limit of {limit_bytes} bytes: send fewer rows per request, or in binary "
            "(for inference: max_body_mib under [api] in the agent's settings)"
        )


class ExpectationFailed(CallerError):
    """It expects something else than ``100-continue``."""

    http_status = 417


class HeadTooLarge(CallerError):
    """Its request line and headers are longer, or more, than this device takes."""

    http_status = 431


class NotImplementedHere(DeviceError):
    """A part of HTTP that this device does not offer."""

    http_status = 501


class VersionNotSupported(CallerError):
    """Neither HTTP/1.1 nor HTTP/1.0."""

    http_status = 505


def too_many_connections(limit: int) -> Busy:
    """What the connection beyond the limit is told."""
    return Busy(
        f"{limit} connections are open, the limit (max_connections under [api] in the agent's settings), or the agent "
        "is stopping: close some, or ask again in a moment"
    )
