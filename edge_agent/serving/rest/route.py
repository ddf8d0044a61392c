"""What a path of the API stands for: who may ask, how long its body may be, and what answers."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from edge_agent.contract.errors import CallerError
from edge_agent.serving.access import App
from edge_agent.serving.http.message import HttpRequest, HttpResponse

# Longest body of requests that carry no tensors.
SMALL_BYTES = 64 * 1024


class Needs(enum.Enum):
    """What an application needs for a route."""

    NOTHING = enum.auto()  # whoever reaches the address: liveness, and pages that say nothing of this device
    APP = enum.auto()  # to be known
    MODEL = enum.auto()  # to be permitted the model in the path
    CONTROL = enum.auto()  # to be permitted to load and unload, and the model in the path if there is one


class Target(NamedTuple):
    """A path, resolved.

    Args:
        model: In the path; empty where there is none.
        version: In the path; None where the path leaves it open.
        region: Of shared memory, in the path; None where there is none.
    """

    route: Route
    model: str = ""
    version: str | None = None
    region: str | None = None


Answer = Callable[[HttpRequest, Target, App], "HttpResponse | Awaitable[HttpResponse]"]


@dataclasses.dataclass(frozen=True, eq=False)
class Route:
    """One kind of path.

    Args:
        method: The one it takes; GET takes HEAD too.
        limit_bytes: Longest body.
    """

    method: str
    needs: Needs
    answer: Answer
    limit_bytes: int = SMALL_BYTES
    is_open: bool = dataclasses.field(init=False)
    is_control: bool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        # Plain booleans: every request asks, and an enum's member costs a look-up each time.
        object.__setattr__(self, "is_open", self.needs is Needs.NOTHING)
        object.__setattr__(self, "is_control", self.needs is Needs.CONTROL)

    @property
    def allow(self) -> str:
        """The methods it takes, as the header ``Allow`` has it."""
        return "GET, HEAD" if self.method == "GET" else self.method


class NoSuchPath(CallerError):
    """The path is none of the API's."""

    http_status = 404


class MethodNotAllowed(CallerError):
    """The path takes another method."""

    http_status = 405

    def __init__(self, path: str, method: str, allow: str) -> None:
        super().__init__(f"{path}: takes {allow.partition(',')[0]}, not {method:.20}")
        self.http_headers = ((b"allow", allow.encode()),)
