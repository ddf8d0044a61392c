"""A recipe's base rows, ``data.base_rows()``, checked against the recipe's own signature and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import SignatureMismatch
from trainer.data.rows import encode_row
from trainer.errors import RecipeError
from trainer.recipe import Recipe

_SHAPE = "def base_rows(): return groups, inputs, labels  # list[str], dict of arrays (axis 0 is the rows), list[str]"


@dataclass(frozen=True)
class BaseRows:
    """N checked rows.

    Args:
        requests: What each is called in the lake: by its group, numbered where a group has several rows.
        inputs: By name; axis 0 is N.
    """

    requests: list[str]
    groups: list[str]
    inputs: dict[str, NDArray[Any]]
    labels: list[str]

    def rows(self) -> Iterator[tuple[bytes, str, str]]:
        """Each row's inputs as the lake holds them, its label and its group."""
        for at, (label, group) in enumerate(zip(self.labels, self.groups, strict=True)):
            yield encode_row(self.inputs, at), label, group


def base_rows(recipe: Recipe) -> BaseRows:
    """Call the recipe's ``base_rows`` and check every row.

    Raises:
        RecipeError: There is no such function, it fails, or a row is not what ``model.toml`` says; it names the row.
    """
    path = recipe.folder / "data.py"
    if not path.is_file():
        raise RecipeError(f"{path}: not found; it gives the rows to begin with: {_SHAPE} (see docs/recipes.md)")
    function = getattr(recipe.module("data"), "base_rows", None)
    if not callable(function):
        raise RecipeError(f"{path}: has no function base_rows; write: {_SHAPE}")
    try:
        found = function()
    except Exception as error:
        # Whatever the recipe's author wrote may fail in whatever way.
        raise RecipeError(f"{path}: base_rows() failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, tuple) or len(found) != 3 or not isinstance(found[1], Mapping):
        raise RecipeError(f"{path}: base_rows() gave {type(found).__name__}, not three things; write: {_SHAPE}")
    groups, inputs, labels = list(found[0]), dict(found[1]), list(found[2])
    try:
        _check(recipe, groups, inputs, labels)
    except (SignatureMismatch, ValueError) as error:
        raise RecipeError(f"{path}: base_rows(): {error}; nothing was written") from error
    return BaseRows(_requests(recipe.name, groups), groups, inputs, labels)


def _check(recipe: Recipe, groups: list[Any], inputs: dict[str, Any], labels: list[Any]) -> None:
    lengths = {"groups": len(groups), "labels": len(labels)}
    for name, array in inputs.items():
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise ValueError(f"input '{name}' is {type(array).__name__}, not a numpy array of rows")
        lengths[f"input '{name}'"] = len(array)
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"the lengths differ: {told}; each must have one entry a row")
    if not groups:
        raise ValueError("gave no rows")
    classes = recipe.file.labels
    for at, (group, label) in enumerate(zip(groups, labels, strict=True)):
        if not (isinstance(group, str) and group):
            raise ValueError(f"row {at}: group {group!r} is no text; give str(...), the same for rows of one subject")
        if label not in classes:
            if not isinstance(label, str):
                raise ValueError(f"row {at}: label {label!r} is {type(label).__name__}, not text; give str(label)")
            raise ValueError(f"row {at}: label {label!r} is no class; model.toml has: {', '.join(classes)}")
    InputCheck(recipe.signature)(inputs)


def _requests(model: str, groups: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    requests = []
    for group in groups:
        seen[group] += 1
        requests.append(f"{model}-base-{group}" + (f"#{seen[group]}" if seen[group] > 1 else ""))
    return requests
