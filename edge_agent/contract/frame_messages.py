"""The messages in frames, one class each; :mod:`edge_agent.contract.frames` turns them into bytes.

``docs/frames.md`` describes every byte.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype

VERSION = 1

Id = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Values(msgspec.Struct, omit_defaults=True, gc=False):
    """One tensor.

    Args:
        shape: Axis sizes.
        data: The values; absent where they lie in shared memory.
        region: Registered shared memory that holds them, from ``offset`` on, in ``size`` bytes.
    """

    name: str
    type: Datatype
    shape: tuple[int, ...]
    data: memoryview | msgspec.UnsetType = msgspec.UNSET
    region: str = ""
    offset: Count = 0
    size: Count = 0


class Wanted(msgspec.Struct, omit_defaults=True, gc=False):
    """One output that a request wants.

    Args:
        region: Shared memory that takes its values, from ``offset`` on, where there are ``size`` bytes of room.
    """

    name: str
    region: str = ""
    offset: Count = 0
    size: Count = 0


class Infer(msgspec.Struct, tag_field="op", tag="infer", omit_defaults=True, kw_only=True):
    """Ask a model.

    Args:
        v: Version of this protocol.
        id: Chosen by the client, from 1 on; 0 stands in errors that belong to no request.
        version: Of the model; empty asks the one that serves by default.
        request: Name of the request, which feedback refers to; the agent makes one where it is empty.
        group: What the rows of one subject share.
        priority: 1 is the most urgent; 0 ranks below all others.
        timeout_us: Microseconds after which the answer is not wanted any more; 0 sets no limit.
        monitor: False for a probe, which is neither counted nor sampled.
        outputs: Those wanted; absent for all.
    """

    v: int
    id: Id
    model: str
    version: str = ""
    request: str = ""
    group: str = ""
    priority: Count = 0
    timeout_us: Count = 0
    monitor: bool = True
    outputs: list[Wanted] | None = None
    inputs: list[Values]


class Feedback(msgspec.Struct, tag_field="op", tag="feedback", omit_defaults=True, kw_only=True):
    """Tell the true label of an earlier request.

    Args:
        request: Its name.
        label: A class by name or by index.
        source: Who says so.
        row: Of a request of several rows.
    """

    v: int
    id: Id
    model: str
    request: str
    label: str | int
    source: str = "application"
    row: Count | None = None


class ListModels(msgspec.Struct, tag_field="op", tag="models", kw_only=True):
    """Ask which models serve."""

    v: int
    id: Id


class Describe(msgspec.Struct, tag_field="op", tag="metadata", omit_defaults=True, kw_only=True):
    """Ask for a model's signature."""

    v: int
    id: Id
    model: str
    version: str = ""


class Ping(msgspec.Struct, tag_field="op", tag="ping", kw_only=True):
    """Ask whether somebody is there."""

    v: int
    id: Id


class BrokenRule(msgspec.Struct, gc=False):
    """A constraint that values broke, and what was done; see :class:`edge_agent.contract.checking.Violation`."""

    tensor: str
    rule: str
    policy: str
    rows: int
    first_row: int
    value: str


class Inferred(msgspec.Struct, tag_field="op", tag="infer", omit_defaults=True, kw_only=True):
    """What a model said.

    Args:
        package: SHA-256 of the package.
        request: Name of the request, for feedback.
        label_wanted: Whether the application is asked for a label.
        violations: Values that broke a constraint and were let through.
    """

    id: int
    model: str
    version: str
    package: str
    request: str
    label_wanted: bool
    violations: list[BrokenRule] = []
    outputs: list[Values]


class Accepted(msgspec.Struct, tag_field="op", tag="feedback", omit_defaults=True, kw_only=True):
    """The label is safe on this device.

    Args:
        sampled: Whether the row itself goes home: only then can models learn from the label.
    """

    id: int
    model: str
    request: str
    sampled: bool = True


class ServedModel(msgspec.Struct, gc=False):
    """One version of a model that serves.

    Args:
        default: Whether it answers requests that name no version.
    """

    name: str
    version: str
    package: str
    default: bool


class Models(msgspec.Struct, tag_field="op", tag="models", kw_only=True):
    """The models that serve."""

    id: int
    models: list[ServedModel]


class Metadata(msgspec.Struct, tag_field="op", tag="metadata", kw_only=True):
    """A model's signature, written as in its package's manifest."""

    id: int
    model: str
    version: str
    package: str
    platform: str
    signature: Signature


class Pong(msgspec.Struct, tag_field="op", tag="ping", kw_only=True):
    """The agent is there.

    Args:
        agent: Its version.
    """

    id: int
    agent: str


class Failure(msgspec.Struct, tag_field="op", tag="error", omit_defaults=True, kw_only=True):
    """A request was not answered.

    Args:
        id: The request's; 0 where the frame was no request, and the connection is closed.
        status: As HTTP would have it: 400 and above blames the request, 500 and above the device.
        kind: Name of the error's class in :mod:`edge_agent.contract.errors`.
        error: For a person: what was wrong, where, what to do.
        retry_after_s: Seconds after which it may help to ask again.
        tensor, rule, row: Of values that break the signature.
    """

    id: int
    status: int
    kind: str
    error: str
    retry_after_s: float = 0.0
    tensor: str = ""
    rule: str = ""
    row: int | None = None


Request = Infer | Feedback | ListModels | Describe | Ping
Answer = Inferred | Accepted | Models | Metadata | Pong | Failure
A = TypeVar("A", Inferred, Accepted, Models, Metadata, Pong)
