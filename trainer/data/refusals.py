"""Rows that no model can be learnt from: what is missing or wrong, and what to do about it."""

from __future__ import annotations

import numpy as np

from edge_agent.contract.lake import IMPORTED
from trainer.data.decoding import DecodedInputs
from trainer.data.joining import Joined
from trainer.data.loading import Loaded
from trainer.data.rows import Rows
from trainer.data.split import Sides
from trainer.errors import DatasetError
from trainer.recipe import Recipe


def refuse_unlabelled(recipe: Recipe, lake: str, found: Joined, until_ms: int | None) -> None:
    """Say what is missing where no row has a label."""
    if (found.rows.targets >= 0).any():
        return
    have = f"{lake}: '{recipe.name}' has {len(found.rows)} samples and {found.labels} labels"
    if found.labels:
        raise DatasetError(f"{have}, but no pair: labels go by the device and request id of their sample")
    known = "" if until_ms is None else f" known by {until_ms} ms"
    raise DatasetError(
        f"{have}{known}, so there is nothing to learn from yet; send labels through the devices' feedback or the "
        f"server's labelling page, or import rows: shoal trainer import {recipe.name} --lake ..."
    )


def refuse_one_sided(recipe: Recipe, rows: Rows, sides: Sides) -> None:
    """Refuse rows that no classifier can be learnt from, or judged by."""
    learnt = ~(sides.holdout | sides.validation | sides.idle)
    if sides.holdout.all() or not sides.holdout.any() or not learnt.any():
        raise DatasetError(
            f"'{recipe.name}': {len(rows)} labelled rows of {len(set(rows.groups))} groups cannot be split in two; "
            "more groups are needed"
        )
    for which, mask in (("", np.ones_like(learnt)), ("that are trained on ", learnt)):
        classes = np.unique(rows.targets[mask])
        if len(classes) == 1 and len(recipe.file.labels) > 1:
            raise DatasetError(
                f"'{recipe.name}': all {int(mask.sum())} labelled rows {which}are of the class "
                f"'{recipe.file.labels[int(classes[0])]}': there is nothing to tell apart; label some rows of "
                "another class, or import some"
            )


def refuse_bad(recipe: Recipe, lake: str, rows: Rows, decoded: DecodedInputs | Loaded) -> None:
    """Rows of devices that do not fit are set aside: an older model may have had another signature. Others are refused.

    So are imported rows of another shape set aside: each is right by itself, and nothing takes it out again.

    Raises:
        DatasetError: An imported row breaks the signature, or most of the rows do not fit.
    """
    bad, broken = np.flatnonzero(~decoded.fits), np.flatnonzero(decoded.broken)
    complaint, total = decoded.complaint, len(decoded.fits)
    if not len(bad):
        return
    if (rows.devices[broken] == IMPORTED).any():
        raise DatasetError(
            f"{lake}: imported rows of '{recipe.name}' break the signature ({len(broken)} rows; the first: "
            f"{complaint}); mend the recipe, then `shoal trainer import {recipe.name} --lake ... --replace`"
        )
    if 2 * len(bad) > total:
        what = "break the signature in model.toml" if len(broken) else "are of another shape than the oldest"
        raise DatasetError(
            f"{lake}: {len(bad)} of {total} samples of '{recipe.name}' {what}; the "
            f"first is request {rows.requests[bad[0]]} of device {rows.devices[bad[0]]}: {complaint}"
        )
