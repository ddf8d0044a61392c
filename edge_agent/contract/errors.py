"""The error tree: one branch per blame.

::

    ShoalError
    |- CallerError            the application's request is wrong
    |  |- MalformedRequest        bytes that are no request
    |  |- SignatureMismatch       a tensor that breaks the model's signature
    |  |- UnknownModel            no such model or version here
    |  |- UnknownRequest          feedback for a request nobody remembers
    |  |- UnknownRegion           shared memory that is not registered
    |  |- Unauthenticated         nobody knows this application
    |  |- Forbidden               it may not do this
    |  `- QuotaExceeded           it asks more often than it may
    |- PackageError           the model package is wrong
    |  |- ManifestError           the manifest breaks its own rules
    |  |- ModelLoadFailed         the runtime refuses the model
    |  `- SelfTestFailed          golden samples do not come out as expected
    |- TrustError             somebody may be lying
    |  |- DigestMismatch          bytes differ from the signed digest
    |  `- MetadataRefused         unsigned, expired, rolled back, or the two repositories disagree
    |- NetworkError           the other side cannot be reached or does not answer as agreed
    |  |- MessageError            bytes that are no message of ours
    |  |  `- UnknownSchemaVersion     a major version newer than this code
    |  |- DeltaUnusable           a delta that does not make the file wanted; the file itself is fetched
    |  |- WrongBytes              a download that is not what was signed; it is thrown away
    |  `- ServerRefused           the fleet server answered with an error
    `- DeviceError            this machine cannot do what it is asked
       |- ConfigurationError      a setting is missing or wrong
       |- AddressInUse            the port is taken
       |- Busy                    as much to do as there is room for
       |- DeadlineExceeded        the answer would have come too late
       |- ModelUnavailable        known here, but not loaded now
       |- BudgetExceeded          no memory left in the budget for models
       |- OutOfMemory             no memory left in the machine
       |- Unsupported             a part of the protocol, or an extra, that is not here
       |- ModelFailed             the model failed on a right request
       |- AcceleratorUnavailable  no usable GPU or library for it: another runtime serves
       |  `- GpuMemoryExhausted      the GPU has no memory left for it
       |- EngineBuildFailed       TensorRT could not build, refit or read an engine
       |  `- EngineBuildCancelled    somebody broke the build off
       |- StorageFull             no room left on the disk
       `- StorageNotWritable      no permission to write
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar


class ShoalError(Exception):
    """Anything that Shoal itself found wrong; its text names what, where and what to do."""

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    # What an HTTP answer says beside the text; set on an instance where there is something.
    http_headers: tuple[tuple[bytes, bytes], ...] = ()
    # Of a 503: whether to ask again later may help; set to False on an instance where a person must act first.
    waiting_helps: bool = True

    def __reduce__(self) -> tuple[Any, ...]:
        # By text and attributes: errors cross process boundaries, and constructors with keywords do not unpickle.
        return _restore, (type(self), self.args, self.__dict__)


class CallerError(ShoalError):
    """The application's request is wrong."""

    http_status = 400


class MalformedRequest(CallerError):
    """The bytes are not a request of the protocol."""


class SignatureMismatch(CallerError):
    """A tensor that breaks the model's signature.

    Args:
        tensor: Name of the input.
        rule: ``name``, ``datatype``, ``shape``, or a :class:`edge_agent.contract.constraint.Rule` by its value.
        detail: What was found and what was expected.
        row: Index on axis 0 of the first offending row, where one row is to blame.
    """

    def __init__(self, tensor: str, *, rule: str, detail: str, row: int | None = None) -> None:
        where = f"input '{tensor}'" + (f", row {row}" if row is not None else "")
        super().__init__(f"{where}: {rule}: {detail}")
        self.tensor, self.rule, self.detail, self.row = tensor, rule, detail, row


class UnknownModel(CallerError):
    """No such model, or no such version of it, is served here."""

    http_status = 404


class UnknownRequest(CallerError):
    """Feedback names a request that this device does not remember."""

    http_status = 404


class UnknownRegion(CallerError):
    """A shared memory region that is not registered."""

    http_status = 404


class Unauthenticated(CallerError):
    """The application gives no token, or one that nobody here knows."""

    http_status = 401


class Forbidden(CallerError):
    """The application is known, but may not do this."""

    http_status = 403


class QuotaExceeded(CallerError):
    """The application asks more often than it may.

    Args:
        retry_after_s: Seconds until it may ask again.
    """

    http_status = 429

    def __init__(self, text: str, *, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class PackageError(ShoalError):
    """The model package is wrong; another package is the only cure."""

    exit_code = 3


class ManifestError(PackageError):
    """The manifest breaks its own rules."""


class ModelLoadFailed(PackageError):
    """The runtime refuses the model."""


class SelfTestFailed(PackageError):
    """The model does not answer its golden samples as it did when it was packaged."""


class TrustError(ShoalError):
    """Somebody may be lying; nothing of it is used."""

    exit_code = 4


class DigestMismatch(TrustError):
    """A file's SHA-256 differs from the signed one; the same bytes are not tried again.

    Args:
        cure: What to do, where that is known; ends the text.
    """

    def __init__(self, path: str, *, expected: str, actual: str, cure: str = "") -> None:
        super().__init__(f"{path}: expected sha256 {expected[:12]}, got {actual[:12]}{cure and '; '}{cure}")
        self.path, self.expected, self.actual = path, expected, actual


class MetadataRefused(TrustError):
    """Signed metadata that is unsigned, expired, rolled back, or not agreed on by both repositories."""


class NetworkError(ShoalError):
    """The other side cannot be reached, or does not answer as agreed. Trying again later may help."""

    http_status = 503
    exit_code = 5


class MessageError(NetworkError):
    """The bytes are not a message of ours."""

    http_status = 400


class UnknownSchemaVersion(MessageError):
    """A message of a major version that this code does not know."""


class DeltaUnusable(NetworkError):
    """A delta that is damaged, or does not make the file that is wanted of the one that is here."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"delta: {detail}")


class WrongBytes(NetworkError):
    """What came is not what was signed: the fault of whoever sent it or of the line, never of what was wanted."""


class ServerRefused(NetworkError):
    """The fleet server answered with an error."""

    def __init__(self, url: str, *, status: int, detail: str) -> None:
        super().__init__(f"{url}: {status}: {detail}")
        self.url, self.status, self.detail = url, status, detail


class DeviceError(ShoalError):
    """This machine cannot do what it is asked."""

    exit_code = 6


class ConfigurationError(DeviceError):
    """A setting is missing or wrong."""

    exit_code = 2


class AddressInUse(DeviceError):
    """The address to listen on is taken."""


class Busy(DeviceError):
    """This device has as much to do as it has room for; asking again in a moment helps."""

    http_status = 503


class DeadlineExceeded(DeviceError):
    """The answer would have come later than the application waits for it; the model may not have run."""

    http_status = 504


class ModelUnavailable(DeviceError):
    """A model that is known here, but not loaded now.

    Args:
        asleep: Unloaded because nobody asked for it: the next request wakes it.
    """

    http_status = 503

    def __init__(self, text: str, *, asleep: bool = False) -> None:
        super().__init__(text)
        self.asleep = asleep


class BudgetExceeded(DeviceError):
    """Loading it would take more memory than models may have on this device."""

    http_status = 503


class OutOfMemory(DeviceError):
    """The machine, or this process, has no memory left to load or test a model; the model is not to blame."""

    http_status = 503


class Unsupported(DeviceError):
    """A part of the protocol that this device does not offer."""

    http_status = 501


class ModelFailed(DeviceError):
    """The model failed, or hung, on a request that was right."""

    http_status = 500


class AcceleratorUnavailable(DeviceError):
    """There is no usable GPU, driver or library of its runtime here; the model runs on another runtime."""

    http_status = 503


class GpuMemoryExhausted(AcceleratorUnavailable):
    """The GPU has no memory left for what was asked."""


class EngineBuildFailed(DeviceError):
    """TensorRT could not build, refit or read an engine; the model goes on where it runs.

    Args:
        is_final: Whether the same build would fail again: a model that TensorRT cannot run, not a lack of memory.
    """

    def __init__(self, text: str, *, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_final = is_final


class EngineBuildCancelled(EngineBuildFailed):
    """The build was broken off: the model was unloaded or replaced, or the agent stops."""


class StorageFull(DeviceError):
    """No room is left on the disk."""

    http_status = 503


class StorageNotWritable(DeviceError):
    """No permission to write there."""


def _restore(kind: type[ShoalError], args: tuple[Any, ...], attributes: dict[str, Any]) -> ShoalError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


def storage_error(error: OSError, path: str) -> DeviceError | None:
    """The error of ours that an ``OSError`` on ``path`` stands for, or None where it is something else."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{path}: no space left on the device; free some, or point the state folder at another disk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageNotWritable(f"{path}: not writable by this user; change its owner or mode, or choose another")
    return None
