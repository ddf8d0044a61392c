from __future__ import annotations

import copy
import errno
import pickle

import pytest

from edge_agent.contract import errors
from edge_agent.contract.errors import (
    DigestMismatch,
    ManifestError,
    ServerRefused,
    ShoalError,
    SignatureMismatch,
    StorageFull,
    StorageNotWritable,
    storage_error,
)

EACH = [
    SignatureMismatch("x", rule="range", detail="too big", row=3),
    DigestMismatch("model.onnx", expected="a1" * 32, actual="b2" * 32),
    ServerRefused("http://server/api", status=409, detail="no"),
    ManifestError("no name"),
]


@pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)
def test_an_error_crosses_a_process_boundary_with_text_and_attributes(error: ShoalError) -> None:
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301  # our own bytes
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert vars(back) == vars(error)


def test_every_error_has_one_blame_a_status_and_an_exit_code() -> None:
    # Other programs' branches of their own may be loaded already.
    branches = [branch for branch in ShoalError.__subclasses__() if branch.__module__ == errors.__name__]
    assert {branch.__name__ for branch in branches} == {
        "CallerError", "PackageError", "TrustError", "NetworkError", "DeviceError",
    }  # fmt: skip
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, ShoalError) and kind is not ShoalError:
            assert sum(issubclass(kind, branch) for branch in branches) == 1, name
            assert 400 <= kind.http_status < 600
            assert 0 < kind.exit_code < 128


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EACCES, StorageNotWritable),
        (errno.EROFS, StorageNotWritable),
    ],
)
def test_a_disk_s_refusal_becomes_our_error_with_the_path(number: int, kind: type[ShoalError]) -> None:
    error = storage_error(OSError(number, "refused"), "/state")
    assert type(error) is kind
    assert str(error).startswith("/state: ")


def test_another_operating_system_error_is_not_taken_for_a_full_disk() -> None:
    assert storage_error(OSError(errno.ENOENT, "gone"), "/state") is None
