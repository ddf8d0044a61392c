"""What can go wrong between a finished package and a server that shows it."""

from __future__ import annotations

from trainer.errors import TrainerError


class SigningKeyError(TrainerError):
    """A key is missing, cannot be read, or may not sign what it should."""

    exit_code = 2


class KeyOfAnotherChange(SigningKeyError):
    """The publisher's key that is here is not the one that a change names: nothing of the change is in force."""


class PublishRefused(TrainerError):
    """The package cannot be published under its name and version."""

    exit_code = 3


class SignaturesMissing(TrainerError):
    """All that could be published is; a change of keys or a release still waits for signatures."""

    exit_code = 9
