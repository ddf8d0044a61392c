"""What is in a dataset, for a person to look at: counts, missing values, ranges, a few examples."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset_version import Dataset
from trainer.data.split import hash_share
from trainer.recipe import Recipe

# Values are described on at most so many rows, drawn by the hash of their keys.
_DESCRIBED_ROWS = 20_000
_SHOWN_VALUES = 8
_SHOWN_WORDS = 10


def statistics(recipe: Recipe, dataset: Dataset, *, examples: int = 0) -> dict[str, Any]:
    """Of the labelled rows: how many by class, device, package and side, and what the inputs hold; plain for JSON.

    Args:
        examples: How many rows to show, of each class in turn.
    """
    rows, labels = dataset.rows, recipe.file.labels
    sides = {
        "train": dataset.train,
        "validation": dataset.validation,
        "holdout": dataset.holdout,
        "idle": dataset.idle,
        "current": dataset.current,
        **{f"replay {name}": mask for name, mask in dataset.replay.items()},
    }
    described = _drawn(rows.keys, _DESCRIBED_ROWS)
    sent = rows.take(described).sent
    found: dict[str, Any] = {
        "model": recipe.name,
        **dataset.summary(),
        "complaint": dataset.complaint,
        "labels_until": None if dataset.labels_until_ms is None else _moment(dataset.labels_until_ms),
        "since": _moment(int(rows.at_ms.min())),
        "until": _moment(int(rows.at_ms.max())),
        "groups": len(set(rows.groups)),
        "classes": {
            label: {"rows": int((rows.targets == at).sum())}
            | {side: int((mask & (rows.targets == at)).sum()) for side, mask in sides.items()}
            for at, label in enumerate(labels)
        },
        "devices": dict(Counter(map(str, rows.devices)).most_common()),
        "packages": dict(Counter(package[:12] or "imported" for package in map(str, rows.packages)).most_common()),
        "described_rows": len(described),
        "inputs": {name: describe(array) for name, array in sent.items()},
    }
    if examples:
        found["examples"] = _examples(recipe, dataset, examples)
    return found


def describe(array: NDArray[Any]) -> dict[str, Any]:
    """What an input holds: of numbers missing values, range and moments; of text missing values and the commonest."""
    found: dict[str, Any] = {"dtype": "text" if array.dtype == object else str(array.dtype), "shape": list(array.shape)}
    flat = array.reshape(-1)
    if array.dtype == object:
        words = Counter(bytes(value).decode("utf-8", "replace") for value in flat)
        common = {word[:60]: count for word, count in words.most_common(_SHOWN_WORDS) if word}
        return found | {"missing": words.get("", 0), "distinct": len(words.keys() - {""}), "common": common}
    numbers = flat.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    found["missing"] = int(np.isnan(numbers).sum())
    found["infinite"] = int(np.isinf(numbers).sum())
    if len(finite):
        low, middle, high = np.quantile(finite, [0.01, 0.5, 0.99])
        found |= {
            "minimum": float(finite.min()), "p1": float(low), "median": float(middle), "p99": float(high),
            "maximum": float(finite.max()), "mean": float(finite.mean()), "std": float(finite.std()),
        }  # fmt: skip
    return found


def as_text(found: dict[str, Any]) -> str:
    """The same for a terminal."""
    of_which = f"{found['imported']} imported, {found['field']} from the field"
    versions = f"samples version {found['samples_version']}, labels version {found['labels_version']}"
    until = f", labels until {found['labels_until']}" if found["labels_until"] else ""
    lines = [
        f"{found['model']}: {found['rows']} labelled rows ({of_which}), {found['groups']} groups",
        f"seen from {found['since']} to {found['until']}",
        f"dataset {found['digest'][:12]}, content {found['content'][:12]}: {versions}{until}",
    ]
    notes = {
        "labels_without_sample": "labels without their sample",
        "set_aside": f"samples set aside, the first: {found['complaint']}",
        "copies": "rows not trained on, because their very inputs are held out",
    }
    lines += [f"{found[key]} {words}" for key, words in notes.items() if found[key]]
    sides = [name for name in next(iter(found["classes"].values())) if name != "rows"]
    lines += [
        "",
        *_table(["class", "rows", *sides], [[name, *map(str, row.values())] for name, row in found["classes"].items()]),
    ]
    devices = [[name, str(rows)] for name, rows in found["devices"].items()]
    lines += ["", *_table(["device", "rows"], devices[:20])]
    if len(devices) > 20:
        lines.append(f"and {len(devices) - 20} more devices")
    lines.append("")
    for name, values in found["inputs"].items():
        told = {key: value for key, value in values.items() if key not in {"dtype", "shape", "common"}}
        words = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in told.items()
        )
        lines.append(f"input {name}, {values['dtype']} {values['shape'][1:]}: {words}")
        if values.get("common"):
            lines.append("  " + ", ".join(f"{word!r} {count}" for word, count in values["common"].items()))
    for row in found.get("examples", []):
        inputs = "; ".join(f"{name} {shown}" for name, shown in row["inputs"].items())
        lines.append(f"{row['label']:>12}  {row['side']:<10} {row['key']}  {row['at']}  {inputs}")
    return "\n".join(lines)


def _examples(recipe: Recipe, dataset: Dataset, count: int) -> list[dict[str, Any]]:
    """Rows of each class in turn, drawn by the hash of their keys."""
    rows = dataset.rows
    shares = np.array([hash_share(key, "example") for key in rows.keys])
    rank = np.empty(len(rows), dtype=np.int64)
    for target in np.unique(rows.targets):
        same = np.flatnonzero(rows.targets == target)
        rank[same[np.argsort(shares[same])]] = np.arange(len(same))
    chosen = np.lexsort((rows.targets, rank))[:count]
    taken, side = rows.take(chosen), _side(dataset)[chosen]
    return [
        {
            "key": taken.keys[at],
            "label": recipe.file.labels[taken.targets[at]],
            "group": str(taken.groups[at]),
            "at": _moment(int(taken.at_ms[at])),
            "prediction": str(taken.predictions[at]),
            "side": str(side[at]),
            "inputs": {name: shown(array[at]) for name, array in taken.sent.items()},
        }
        for at in range(len(taken))
    ]


def _side(dataset: Dataset) -> NDArray[Any]:
    named = [("holdout", dataset.holdout), ("validation", dataset.validation), ("idle", dataset.idle)]
    return np.select([mask for _, mask in named], [name for name, _ in named], default="train")


def shown(value: Any) -> str:
    """An input of one row in a few words; of a column of scalars it is a bare number or word."""
    # A cell of an object array is the bare word: numpy would make a string array of it.
    flat = value.reshape(-1) if isinstance(value, np.ndarray) else np.array([value], dtype=object)
    words = [_word(one) for one in flat[:_SHOWN_VALUES]]
    more = f" ... ({flat.size} values)" if flat.size > _SHOWN_VALUES else ""
    return " ".join(words) + more


def _word(value: Any) -> str:
    if isinstance(value, (str, bytes)):
        word = value if isinstance(value, str) else value.decode("utf-8", "replace")
        return repr(word[:40]) if word else "missing"
    return f"{value:g}"


def _drawn(keys: list[str], most: int) -> NDArray[np.int64]:
    if len(keys) <= most:
        return np.arange(len(keys))
    shares = np.array([hash_share(key, "described") for key in keys])
    return np.sort(np.argsort(shares, kind="stable")[:most])


def _moment(at_ms: int) -> str:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
