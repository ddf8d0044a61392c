"""Who may learn from a row, and who is judged by it. Pure: the same rows fall on the same sides on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_HOLDOUT_SALT = "holdout"
_VALIDATION_SALT = "validation"
_JUDGED_SALT = "judged"
VALIDATION_SHARE = 0.12
# Where more of the rows than this repeat another one's inputs, values are few, and a repeat is no copy.
_DISCRETE = 0.5


@dataclass(frozen=True)
class Sides:
    """Where N rows fall; what is on none of these is trained on.

    Args:
        holdout: bool[N]: judges models.
        validation: bool[N]: stops training early.
        idle: bool[N]: neither: rows of replay slices with the rest of their groups, copies of held-out rows, and
            held-out rows beyond those that are judged.
        copies: How many rows are idle because their very inputs are held out.
    """

    holdout: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    idle: NDArray[np.bool_]
    copies: int = 0


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How rows are shared out; see ``[dataset]`` in model.toml."""

    by: Literal["group", "device", "time"] = "group"
    holdout_share: float = 0.25
    judged_rows: int = 20_000
    drop_copies: bool = True

    def as_json(self) -> dict[str, Any]:
        """What a dataset's digest is made of."""
        return {
            "by": self.by,
            "holdout": self.holdout_share,
            "validation": VALIDATION_SHARE,
            "judged_rows": self.judged_rows,
            "drop_copies": self.drop_copies,
        }


def split(
    rule: SplitRule,
    *,
    groups: NDArray[Any],
    devices: NDArray[Any],
    at_ms: NDArray[np.int64],
    imported: NDArray[np.bool_],
    replayed: NDArray[np.bool_],
    inputs: list[bytes],
) -> Sides:
    """Share rows out; N each.

    Args:
        groups, devices: object[N] of ``str``. Rows of one group are never on both sides.
        at_ms: When the device was asked.
        imported: Rows that no device sent: they have no time or device of their own, so their group decides.
        replayed: Rows of replay slices: never trained on, nor anything else of their group.
        inputs: Digest of each row's inputs.
    """
    names, group = np.unique(groups.astype(str), return_inverse=True)
    held = _held(rule, names=names, group=group, devices=devices, at_ms=at_ms, imported=imported)
    stops = np.array([hash_share(name, _VALIDATION_SALT) < VALIDATION_SHARE for name in names], dtype=bool) & ~held
    replays = np.zeros(len(names), dtype=bool)
    np.logical_or.at(replays, group, replayed)
    holdout, validation = held[group], stops[group] & ~replays[group]
    idle = replays[group] & ~holdout
    copies = _copies(inputs, holdout | replayed, ~(holdout | idle)) if rule.drop_copies else np.zeros_like(idle)
    idle, validation = idle | copies, validation & ~copies
    spare = _beyond(rule.judged_rows, names, group, holdout)
    return Sides(holdout & ~spare, validation, idle | spare, int(copies.sum()))


def hash_share(text: str, salt: str) -> float:
    """A number in 0..1 that depends on the text alone: the same group falls on the same side on every machine."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:8], "big") / 2**64


def _held(
    rule: SplitRule,
    *,
    names: NDArray[Any],
    group: NDArray[np.int64],
    devices: NDArray[Any],
    at_ms: NDArray[np.int64],
    imported: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which groups are held out, bool[number of groups]."""
    by_name = np.array([hash_share(name, _HOLDOUT_SALT) < rule.holdout_share for name in names], dtype=bool)
    field = np.zeros(len(names), dtype=bool)
    np.logical_or.at(field, group, ~imported)
    if rule.by == "group" or not field.any():
        return by_name
    if rule.by == "device":
        # A group that several devices showed goes with any of them that is held out.
        shares = {name: hash_share(name, _HOLDOUT_SALT) for name in sorted(set(devices[~imported].astype(str)))}
        out = np.isin(devices.astype(str), _some(shares, rule.holdout_share)) & ~imported
        by_device = np.zeros(len(names), dtype=bool)
        np.logical_or.at(by_device, group, out)
        return np.where(field, by_device, by_name)
    newest = np.full(len(names), np.iinfo(np.int64).min)
    np.maximum.at(newest, group[~imported], at_ms[~imported])
    cut = np.quantile(at_ms[~imported], 1 - rule.holdout_share)
    return np.where(field, newest > cut, by_name)


def _some(shares: dict[str, float], share: float) -> list[str]:
    """The names below the share; of few names at least one, and not all."""
    ordered = sorted(shares, key=lambda name: (shares[name], name))
    below = sum(value < share for value in shares.values())
    return ordered[: min(max(below, 1), max(len(ordered) - 1, 1))]


def _copies(inputs: list[bytes], judges: NDArray[np.bool_], learns: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows that would be learnt from and whose very inputs judge, bool[N]; none where most rows repeat others."""
    if len(set(inputs)) < _DISCRETE * len(inputs):
        return np.zeros(len(inputs), dtype=bool)
    judged = {inputs[at] for at in np.flatnonzero(judges)}
    return np.fromiter((bool(learn) and own in judged for own, learn in zip(inputs, learns, strict=True)), bool)


def _beyond(most: int, names: NDArray[Any], group: NDArray[np.int64], holdout: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Held-out rows that are too many: those of the groups whose names hash highest, bool[N]."""
    spare = np.zeros(len(holdout), dtype=bool)
    if int(holdout.sum()) <= most:
        return spare
    shares = np.array([hash_share(name, _JUDGED_SALT) for name in names])
    held = np.flatnonzero(holdout)
    ordered = held[np.lexsort((held, shares[group[held]]))]
    spare[ordered[most:]] = True
    return spare
