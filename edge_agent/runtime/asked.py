"""What was asked of a model lately, and what of it another version would refuse. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from edge_agent.contract.quantities import Count, TimeMs
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype

#: Versions that are remembered to have been asked for by name.
MOST_VERSIONS = 256

Range = tuple[Count, Count]


class Window(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What was asked of one model in a time.

    Args:
        axes: By input, the shortest and the longest of each axis; axis 0 is the rows.
        outputs: Those that were asked for by name; ``all_outputs``: requests came that named none, and got all.
        versions: Those that were asked for by name.
    """

    axes: dict[str, tuple[Range, ...]] = {}
    outputs: set[str] = set()
    all_outputs: bool = False
    versions: Annotated[set[str], msgspec.Meta(max_length=MOST_VERSIONS)] = set()


class Asked(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What was asked of one model lately.

    Args:
        version: That answered last.
        takes: Its inputs' datatypes; ``gives``: its outputs'.
        since_ms: When the window ``now`` began; ``before`` is the one before it.
    """

    version: str = ""
    takes: dict[str, Datatype] = {}
    gives: dict[str, Datatype] = {}
    since_ms: TimeMs = 0
    now: Window = msgspec.field(default_factory=Window)
    before: Window | None = None

    @property
    def windows(self) -> Sequence[Window]:
        """Both."""
        return (self.now,) if self.before is None else (self.now, self.before)


def still_fits(signature: Signature, asked: Asked | None) -> list[str]:
    """What of all that applications have sent lately a new version would refuse, or answer otherwise.

    Args:
        signature: The new version's.
        asked: None where nobody has asked: everything fits.
    Returns:
        Reasons in words; empty where applications would not notice.
    """
    if asked is None:
        return []
    sent = {name for window in asked.windows for name in window.axes}
    if not sent:
        return []
    specs = {spec.name: spec for spec in signature.inputs}
    reasons = [
        f"applications send input '{name}', which it does not have; it has: {', '.join(specs)}"
        for name in sorted(sent - specs.keys())
    ]
    for name, spec in specs.items():
        if name not in sent:
            reasons.append(f"it requires input '{name}', which no application sends")
            continue
        reasons += _misfits(spec, asked)
    return [*reasons, *_missed(signature, asked)]


def pinned(asked: Asked | None) -> str:
    """What the end of the version that answers now means to those who ask for it by its name; empty where nobody does.

    It is no reason to refuse another version: else one such request would end all updates of its model.
    """
    if asked is None or not any(asked.version in window.versions for window in asked.windows):
        return ""
    return (
        f"applications ask for version '{asked.version}' by its name, which is not found any more once another takes "
        "its place: let them ask without a version"
    )


def _misfits(spec: TensorSpec, asked: Asked) -> list[str]:
    sent = asked.takes.get(spec.name, spec.datatype)
    reasons = []
    if sent is not spec.datatype:
        reasons.append(f"applications send input '{spec.name}' as {sent.value}, it takes {spec.datatype.value}")
    ranges = [window.axes[spec.name] for window in asked.windows if spec.name in window.axes]
    if any(not _within(axes, spec) for axes in ranges):
        shapes = " and ".join(dict.fromkeys(_shown(axes) for axes in ranges))
        wanted = ", ".join("-1" if axis is None else str(axis) for axis in spec.shape)
        limits = "".join(
            f", axis {limit.axis} of {limit.minimum} to {limit.maximum or 'any length'}"
            for limit in spec.constraint.axes
        )
        reasons.append(f"applications send input '{spec.name}' in shapes of {shapes}, it takes [{wanted}]{limits}")
    return reasons


def _within(axes: Sequence[Range], spec: TensorSpec) -> bool:
    if len(axes) != len(spec.shape):
        return False
    if any(want is not None and axis != (want, want) for axis, want in zip(axes, spec.shape, strict=True)):
        return False
    return all(
        limit.minimum <= axes[limit.axis][0] and (limit.maximum is None or axes[limit.axis][1] <= limit.maximum)
        for limit in spec.constraint.axes
    )


def _missed(signature: Signature, asked: Asked) -> list[str]:
    """Outputs that are read, and would be gone or of another datatype."""
    given = {spec.name: spec.datatype for spec in signature.outputs}
    named = {name for window in asked.windows for name in window.outputs}
    reads_all = any(window.all_outputs for window in asked.windows)
    reasons = []
    for name in sorted(named | (asked.gives.keys() if reads_all else set())):
        how = "ask for" if name in named else "get, as they ask for all,"
        if name not in given:
            reasons.append(f"applications {how} output '{name}', which it does not give; it gives: {', '.join(given)}")
        elif name in asked.gives and asked.gives[name] is not given[name]:
            reasons.append(
                f"applications {how} output '{name}' as {asked.gives[name].value}, it gives {given[name].value}"
            )
    return reasons


def _shown(axes: Sequence[Range]) -> str:
    lengths = (str(low) if low == high else f"{low} to {high}" for low, high in axes)
    return f"[{', '.join(lengths)}]"
