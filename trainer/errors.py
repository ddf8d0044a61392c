"""What can go wrong while a model is made."""

from __future__ import annotations

from edge_agent.contract.errors import ShoalError


class TrainerError(ShoalError):
    """Something about making a model is wrong; its text says what and what to do."""


class RecipeError(TrainerError):
    """The recipe's folder breaks a rule."""

    exit_code = 2


class DatasetError(TrainerError):
    """The lake lacks what a run needs, or a row is not what the signature says."""


class NotFinite(TrainerError):
    """A loss became NaN or infinite: nothing learnt from there on would mean anything."""


class RecipeHung(TrainerError):
    """A single batch took longer than ``step_timeout_s``."""


class WorkersLost(TrainerError):
    """Training's processes died, and more often than they may be started again."""


class VersionGone(DatasetError):
    """A version of the lake was vacuumed: what was trained on it cannot be trained again."""


class ExportFailed(TrainerError):
    """The network cannot be brought into ONNX."""

    exit_code = 3


class ParityFailed(TrainerError):
    """The exported model does not answer as the trained one does, on the runtime that devices use."""

    exit_code = 3


class MeasurementFailed(TrainerError):
    """What a model takes could not be measured."""

    exit_code = 3


class QuantisationFailed(TrainerError):
    """The model cannot be brought into 8 bits; it is released in full precision."""


class UpdateNotQuantisable(TrainerError):
    """The weights are no difference from the parent package's that could be rounded; they are released as trained."""


class NotReproduced(TrainerError):
    """Training again did not give the same weights; its text says what differs."""

    exit_code = 8


class TokenRefused(TrainerError):
    """The fleet server does not take the token; asking again does not help."""

    exit_code = 4
