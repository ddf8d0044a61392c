"""Errors across a connection: what the agent raised is raised again at the client, as the same class."""

from __future__ import annotations

from edge_agent.contract.errors import (
    BudgetExceeded,
    Busy,
    CallerError,
    DeadlineExceeded,
    DeviceError,
    Forbidden,
    MalformedRequest,
    ModelFailed,
    ModelUnavailable,
    OutOfMemory,
    QuotaExceeded,
    ShoalError,
    SignatureMismatch,
    StorageFull,
    StorageNotWritable,
    Unauthenticated,
    UnknownModel,
    UnknownRegion,
    UnknownRequest,
    Unsupported,
)
from edge_agent.contract.frame_messages import Failure
from edge_agent.contract.framing import FrameTooLarge

RETRY_AFTER_S = 1.0
KINDS: dict[str, type[ShoalError]] = {
    kind.__name__: kind
    for kind in (
        BudgetExceeded,
        Busy,
        CallerError,
        DeadlineExceeded,
        DeviceError,
        Forbidden,
        FrameTooLarge,
        MalformedRequest,
        ModelFailed,
        ModelUnavailable,
        OutOfMemory,
        QuotaExceeded,
        SignatureMismatch,
        StorageFull,
        StorageNotWritable,
        Unauthenticated,
        UnknownModel,
        UnknownRegion,
        UnknownRequest,
        Unsupported,
    )
}


def retry_after_s(error: ShoalError) -> float:
    """Seconds after which it may help to ask again; 0 where it does not."""
    if isinstance(error, QuotaExceeded):
        return error.retry_after_s
    return RETRY_AFTER_S if error.http_status == 503 and error.waiting_helps else 0.0


def failure_of(number: int, error: ShoalError) -> Failure:
    """The message that tells ``error`` to the client whose request had this ``id``."""
    failure = Failure(id=number, status=error.http_status, kind=type(error).__name__, error=str(error))
    if wait_s := retry_after_s(error):  # set to a 0 of its own it would be written, as no default is
        failure.retry_after_s = wait_s
    if isinstance(error, SignatureMismatch):
        failure.tensor, failure.rule, failure.row = error.tensor, error.rule, error.row
    return failure


def error_of(failure: Failure) -> ShoalError:
    """The error that the agent raised; of a kind that is not known here, its nearest by the status."""
    nearest = CallerError if 400 <= failure.status < 500 else DeviceError
    kind = KINDS.get(failure.kind, nearest)
    # Past the constructors: they compose the text, which is here already.
    error = kind.__new__(kind, failure.error)
    error.waiting_helps = failure.retry_after_s > 0
    if isinstance(error, SignatureMismatch):
        prefix = f": {failure.rule}: "
        detail = failure.error.partition(prefix)[2] or failure.error
        error.tensor, error.rule, error.row, error.detail = failure.tensor, failure.rule, failure.row, detail
    elif isinstance(error, QuotaExceeded):
        error.retry_after_s = failure.retry_after_s
    elif isinstance(error, ModelUnavailable):
        error.asleep = False
    return error
