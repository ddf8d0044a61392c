"""Which models swap together: a pipeline and those of its steps that change at the same time. Pure.

A pipeline names its steps by model, and by version where it is pinned to one. Whatever of it changes in the same wish
of the server comes as one; a pinned pipeline comes with its steps or not at all, and a step that an installed pipeline
is pinned to waits for a pipeline that takes the new one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from edge_agent.contract.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class Plan:
    """What of the wished-for changes can be made.

    Args:
        groups: Models that swap together, each in order of its names.
        waiting: By model, what it waits for.
    """

    groups: tuple[tuple[str, ...], ...]
    waiting: Mapping[str, str]


class Versions(NamedTuple):
    """The versions of a model on this device.

    Args:
        active: The one that an update would replace; empty where there is none.
        beside: Others, which stay.
    """

    active: str = ""
    beside: frozenset[str] = frozenset()


def plan(
    changing: Mapping[str, Manifest],
    pipelines: Mapping[str, Manifest],
    versions: Mapping[str, Versions],
) -> Plan:
    """The groups that can swap now.

    Args:
        changing: What is to come, by model.
        pipelines: The pipelines that are installed here.
        versions: What is here of each model.
    """
    going, waiting = dict(changing), dict[str, str]()
    while True:
        lacking = _lacking(going, pipelines, versions)
        if not lacking:
            return Plan(_groups(going, pipelines), waiting)
        waiting |= lacking
        for model in lacking:
            del going[model]


def _lacking(
    going: Mapping[str, Manifest], pipelines: Mapping[str, Manifest], versions: Mapping[str, Versions]
) -> dict[str, str]:
    """What of ``going`` has to wait, were the rest to swap: first steps that some pipeline holds, then pipelines."""
    found: dict[str, str] = {}
    for name, manifest in pipelines.items():
        if name in going:
            continue
        for step, version, there in _pins(manifest, going, versions):
            if step in going and version not in there:
                found[step] = (
                    f"pipeline '{name}' {manifest.version}, installed here, is pinned to '{step}' {version}: waits for "
                    f"a version of '{name}' that takes {going[step].version}"
                )
    if found:
        return found
    for name, manifest in going.items():
        for step, version, there in _pins(manifest, going, versions):
            if version not in there:
                here = ", ".join(sorted(there)) or "none"
                found[name] = f"waits for its step '{step}' {version}; here there is: {here}"
    return found


def _pins(
    manifest: Manifest, going: Mapping[str, Manifest], versions: Mapping[str, Versions]
) -> list[tuple[str, str, set[str]]]:
    """Of each step that is pinned: the model, the version, and the versions that there would be."""
    found = []
    for step in manifest.pipeline:
        if step.version is not None:
            here = versions.get(step.model, Versions())
            one = going[step.model].version if step.model in going else here.active
            found.append((step.model, step.version, {one, *here.beside} - {""}))
    return found


def _groups(going: Mapping[str, Manifest], pipelines: Mapping[str, Manifest]) -> tuple[tuple[str, ...], ...]:
    """The connected parts of what changes."""
    groups = {model: {model} for model in going}
    for name, manifest in {**pipelines, **going}.items():
        members = [model for model in (name, *(step.model for step in manifest.pipeline)) if model in going]
        joined = set().union(*(groups[model] for model in members)) if manifest.pipeline else set()
        for model in joined:
            groups[model] = joined
    return tuple(sorted({tuple(sorted(group)) for group in groups.values()}))
