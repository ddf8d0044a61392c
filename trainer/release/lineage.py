"""What weights are a function of: the recipe, the rows, the model to begin with, the seed, the libraries, the trainer.

Where all of these are the same, training again on the same machine gives the same weights: a night in which nothing has
changed need not train, and what was trained once can be proved later.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import msgspec

from edge_agent.contract.manifest import Lineage
from trainer.data.dataset import Dataset
from trainer.recipe import Recipe
from trainer.release.package import Known, lock_digest

_TRAINER = Path(__file__).resolve().parents[1]
# Of the trainer's code what decides about weights and verdicts.
_PARTS = ("data", "training", "gates", "release", "front_end.py", "transform.py", "work/challenger.py")
_RECIPE_PARTS = ("recipe.py", "recipe_file.py", "recipe_tensors.py")


def known(recipe: Recipe, dataset: Dataset, *, champion: str | None, seed: int, processes: int | None = None) -> Known:
    """What the lineage of a model says that is trained on this.

    Args:
        champion: Digest of the package that is to be beaten, whose weights training starts from where they fit.
        processes: How many train together; None: as the recipe says.
    """
    processes = processes or recipe.file.training.processes
    inputs = {
        "recipe": recipe.digest,
        "content": dataset.content,
        "champion": champion,
        "seed": seed,
        "processes": processes,
        "lock": lock_digest(),
        "trainer": trainer_digest(),
    }
    return Known(
        inputs=hashlib.sha256(msgspec.json.encode(inputs, order="deterministic")).hexdigest(),
        content=dataset.content,
        samples_version=dataset.samples_version,
        labels_version=dataset.labels_version,
        replay_version=dataset.replay_version,
        labels_until_ms=dataset.labels_until_ms,
        champion=champion,
        processes=processes,
        trainer_sha256=trainer_digest(),
    )


@functools.cache
def trainer_digest() -> str:
    """SHA-256 over the trainer's own code, as far as weights and verdicts follow from it."""
    digest = hashlib.sha256()
    for part in (*_PARTS, *_RECIPE_PARTS):
        place = _TRAINER / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(_TRAINER).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def differences(lineage: Lineage, found: Known, recipe: Recipe, *, dataset: str) -> list[str]:
    """What is not as it was when a package was made, in words, each with what to do; empty where all is the same.

    Args:
        found: What there is now.
        dataset: Digest of the dataset version that was read now.
    """
    lines = []
    if recipe.digest != lineage.code_sha256:
        lines.append(
            f"the recipe's code: {recipe.digest[:12]} now, {lineage.code_sha256[:12]} then; check out the recipe as it "
            "was and name its folder with --recipes"
        )
    if lock_digest() != lineage.lock_sha256:
        lines.append(
            f"the libraries: {lock_digest()[:12]} now, {lineage.lock_sha256[:12]} then; install those that were used "
            "(torch, pytorch-lightning, numpy, onnx, onnxscript, onnxruntime, scikit-learn)"
        )
    if lineage.trainer_sha256 is not None and found.trainer_sha256 != lineage.trainer_sha256:
        lines.append(
            f"the trainer's own code: {str(found.trainer_sha256)[:12]} now, {lineage.trainer_sha256[:12]} then; "
            "install Shoal as it was"
        )
    if lineage.content is not None and found.content != lineage.content:
        rows = f"the rows: {str(found.content)[:12]} now, {lineage.content[:12]} then"
        lines.append(f"{rows}, at the same versions of the lake; is it the same lake?")
    elif lineage.content is None and dataset != lineage.dataset:
        lines.append(f"the dataset version: {dataset[:12]} now, {lineage.dataset[:12]} then")
    return lines
