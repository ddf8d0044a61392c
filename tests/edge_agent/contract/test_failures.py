"""Errors come out of a frame as the class that went in."""

from __future__ import annotations

import pytest

from edge_agent.contract import frames
from edge_agent.contract.errors import (
    Busy,
    CallerError,
    DeadlineExceeded,
    DeviceError,
    MalformedRequest,
    ModelFailed,
    ModelUnavailable,
    QuotaExceeded,
    ShoalError,
    SignatureMismatch,
    UnknownModel,
)
from edge_agent.contract.failures import error_of, failure_of
from edge_agent.contract.frame_messages import Failure


def there_and_back(error: ShoalError) -> ShoalError:
    answer = frames.decode_answer(frames.encode(failure_of(3, error)))
    assert isinstance(answer, Failure)
    assert answer.id == 3
    return error_of(answer)


@pytest.mark.parametrize(
    "error",
    [
        UnknownModel("no model 'x'"),
        Busy("full"),
        DeadlineExceeded("late"),
        ModelFailed("broken"),
        ModelUnavailable("asleep", asleep=True),
        DeviceError("internal"),
    ],
)
def test_an_error_keeps_its_class_text_and_status(error: ShoalError) -> None:
    found = there_and_back(error)
    assert type(found) is type(error)
    assert (str(found), found.http_status) == (str(error), error.http_status)


def test_a_mismatch_keeps_tensor_rule_row_and_detail() -> None:
    error = SignatureMismatch("image", rule="range", detail="value 2: is above", row=3)
    found = there_and_back(error)
    assert isinstance(found, SignatureMismatch)
    assert (found.tensor, found.rule, found.row, found.detail) == ("image", "range", 3, "value 2: is above")
    assert str(found) == str(error)


def test_a_quota_keeps_when_to_ask_again() -> None:
    found = there_and_back(QuotaExceeded("slower", retry_after_s=0.75))
    assert isinstance(found, QuotaExceeded)
    assert found.retry_after_s == 0.75


def _for_a_person() -> ShoalError:
    error = ModelUnavailable("unloaded")
    error.waiting_helps = False
    return error


@pytest.mark.parametrize(
    ("error", "says"), [(Busy("full"), True), (MalformedRequest("what?"), False), (_for_a_person(), False)]
)
def test_when_to_ask_again_is_said_only_where_that_helps(error: ShoalError, says: bool) -> None:
    assert (b"retry_after_s" in frames.encode(failure_of(3, error))) == says


@pytest.mark.parametrize(("status", "kind"), [(418, CallerError), (599, DeviceError)])
def test_an_error_of_a_later_version_is_the_nearest_that_is_known(status: int, kind: type[ShoalError]) -> None:
    found = error_of(Failure(id=1, status=status, kind="Teapot", error="short and stout"))
    assert type(found) is kind
