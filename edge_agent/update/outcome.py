"""How an attempt at an update ends other than well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edge_agent.contract.errors import DeviceError, ShoalError


class NotYet(ShoalError):
    """Nothing failed: the update waits, and goes on from where it is.

    Args:
        seconds: After which another look is worth it; None where that is not known.
    """

    def __init__(self, text: str, *, seconds: float | None = None) -> None:
        super().__init__(text)
        self.seconds = seconds


class Unfit(DeviceError):
    """This device, as it is, cannot run the package: tried again after the agent's next start, or a newer release."""


class Spoilt(DeviceError):
    """A package is not what was verified any more: the fault of the disk, and what it has lost is fetched anew."""


class MemberFailed(Exception):
    """One of several models that come together is to blame.

    Args:
        model: Which; ``cause``: what is wrong with it.
    """

    def __init__(self, model: str, cause: BaseException) -> None:
        super().__init__(f"{model}: {cause}")
        self.model, self.cause = model, cause


@contextlib.contextmanager
def blaming(model: str) -> Iterator[None]:
    """What goes wrong within the block is the fault of ``model``: raised as MemberFailed."""
    try:
        yield
    except MemberFailed:
        raise
    except Exception as error:
        raise MemberFailed(model, error) from error
