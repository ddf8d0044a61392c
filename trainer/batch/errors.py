"""What can go wrong with a batch.

::

    TrainerError
    |- InputUnreadable        the input is not there, not what the job says, or does not answer
    |- OutputRefused          the table of answers is not this job's, or cannot be written
    |- TooManyRejected        more rows break the contract than the job allows: it is another input
    |- EngineFailed           a worker of the engine ended
    `- BatchOvertaken         another run of the job has committed meanwhile; running it again helps
"""

from __future__ import annotations

from trainer.errors import TrainerError


class InputUnreadable(TrainerError):
    """The input is not there, is not what the job says, or does not answer.

    Args:
        retry: Whether it may be there another time.
    """

    exit_code = 3

    def __init__(self, text: str, *, retry: bool = False) -> None:
        super().__init__(text)
        self.retry = retry


class OutputRefused(TrainerError):
    """The table of answers belongs to another job, has other columns, or cannot be written.

    Args:
        retry: Whether it may be written another time.
    """

    exit_code = 3

    def __init__(self, text: str, *, retry: bool = False) -> None:
        super().__init__(text)
        self.retry = retry


class TooManyRejected(TrainerError):
    """More rows break the contract than the job allows; nothing was committed."""

    exit_code = 3


class EngineFailed(TrainerError):
    """A worker of the engine ended before its part was answered."""

    exit_code = 6


class BatchOvertaken(TrainerError):
    """Another run of the job has committed meanwhile; run again, it answers what is left."""

    exit_code = 5
