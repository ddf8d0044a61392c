"""A schedule's graph of steps: what each is, whether it can be carried out, what follows from how one ended. Pure."""

from __future__ import annotations

import graphlib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from edge_agent.contract.batch import JOB_OPTION, decode_job
from edge_agent.contract.errors import CallerError, ConfigurationError
from edge_agent.contract.names import is_name
from edge_agent.contract.runs import RunKind, RunState

MOST_STEPS = 50
_LONGEST_S = 366 * 86_400.0
_MOST_OPTIONS_BYTES = 64 << 10
SEED_OPTION = "seed"

# What lets the steps that need it begin: a verdict was reached, whichever; a model that is not better is no failure.
SUCCEEDED = frozenset({RunState.RELEASED, RunState.REFUSED, RunState.UNCHANGED, RunState.DONE})
FAILED = frozenset({RunState.FAILED, RunState.CANCELLED, RunState.SKIPPED})
ENDED = SUCCEEDED | FAILED
# What a worker may say of how a run ended.
RESULTS = SUCCEEDED | {RunState.FAILED}


class ScheduleRefused(CallerError):
    """The schedule, or a run that was asked for, makes no sense; the text says what and how to write it."""


Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=_LONGEST_S)]


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run takes of its worker while it is under way; 0: nothing that counts."""

    cpus: Annotated[float, msgspec.Meta(ge=0.0, le=1e5)] = 0.0
    gpus: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of a graph.

    Args:
        name: Empty where it is the only one.
        model: Empty: the schedule's.
        needs: Steps that must have come to a verdict first.
        retries: How often it is tried again after a failure that another try may mend.
        backoff_s: Pause before the first retry; it doubles with each.
        timeout_s: After which an attempt is ended; None: the worker's own limit.
        priority: The higher goes first.
        options: What it asks for besides: a batch's ``job``, a training's ``seed`` and engine, an upkeep's ``task``.
    """

    name: str = ""
    kind: RunKind = RunKind.TRAIN
    model: str = ""
    needs: tuple[str, ...] = ()
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    backoff_s: Seconds = 60.0
    timeout_s: Annotated[float, msgspec.Meta(gt=0.0, le=_LONGEST_S)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    resources: Resources = Resources()
    options: dict[str, Any] = {}

    def lane(self, model: str) -> str:
        """What of which one run at a time is under way: a model's training, a batch job's output, the lake's upkeep."""
        if self.kind is RunKind.UPKEEP:
            return "upkeep"
        if self.kind is RunKind.TRAIN:
            return f"train:{self.model or model}"
        job = self.options.get(JOB_OPTION)
        name = job.get("name") if isinstance(job, Mapping) else None
        return f"batch:{name or self.model or model}"

    def pause_ms(self, failures: int) -> int:
        """How long to wait after so many failures."""
        return round(1000 * min(_LONGEST_S, self.backoff_s * 2.0 ** min(failures, 30)))


# What a schedule without steps does.
TRAINING = (Step(),)


def steps_from(what: str, value: Any) -> tuple[Step, ...]:
    """The steps in plain values, checked.

    Args:
        what: Whose they are, for the text of an error.
    Raises:
        ScheduleRefused: They are no graph that can be carried out.
    """
    try:
        steps = msgspec.convert(value, tuple[Step, ...])
    except msgspec.ValidationError as error:
        raise ScheduleRefused(f"{what}: steps: {error}") from error
    check_steps(what, steps)
    return steps


def plain(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The steps as plain values, as they are stored and shown."""
    found: list[dict[str, Any]] = msgspec.to_builtins(list(steps))
    return found


def models_of(model: str, steps: Sequence[Mapping[str, Any]]) -> set[str]:
    """The models that steps, as they are shown, train or answer with; ``model``: the schedule's.

    An upkeep needs none, and a batch whose job names a package needs no model of the fleet.
    """
    found = set()
    for step in steps:
        if step["kind"] == RunKind.TRAIN.value:
            found.add(step["model"] or model)
        elif step["kind"] == RunKind.BATCH.value:
            found.add(step["options"].get(JOB_OPTION, {}).get("model", {}).get("name"))
    return {str(name) for name in found if name}


def check_steps(what: str, steps: Sequence[Step]) -> None:
    """Refuse what could never be carried out.

    Raises:
        ScheduleRefused: A name is no name or stands twice, a need is not there, steps wait for each other in a circle,
            or options are not what the kind takes.
    """
    if len(steps) > MOST_STEPS:
        raise ScheduleRefused(f"{what}: {len(steps)} steps; a graph has at most {MOST_STEPS}")
    names = [step.name for step in steps]
    for step in steps:
        if len(steps) > 1 and not step.name:
            raise ScheduleRefused(f"{what}: a step without a name; where there are several, each has its own")
        if step.name and not is_name(step.name):
            raise ScheduleRefused(f"{what}: step {step.name!r}: use 1 to 63 of a-z, 0-9, '-' and '_'")
        if names.count(step.name) > 1:
            raise ScheduleRefused(f"{what}: two steps are called {step.name!r}")
        if missing := sorted(set(step.needs) - set(names)):
            raise ScheduleRefused(f"{what}: step {step.name!r} needs {missing}; there are {sorted(names)}")
        _check_step(f"{what}: step {step.name!r}" if step.name else what, step)
    in_order(what, steps)


def in_order(what: str, steps: Sequence[Step]) -> list[str]:
    """The names of the steps, each behind those that it needs.

    Raises:
        ScheduleRefused: They wait for each other in a circle.
    """
    try:
        return list(graphlib.TopologicalSorter({step.name: sorted(step.needs) for step in steps}).static_order())
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ScheduleRefused(f"{what}: steps wait for each other in a circle: {circle}") from error


def settle(graph: Mapping[str, tuple[RunState, Sequence[str]]]) -> dict[str, tuple[RunState, str]]:
    """What becomes of the steps that are blocked.

    Args:
        graph: By step its state and the steps that it needs.
    Returns:
        Of those that are blocked no more: ``queued`` or ``skipped``, and the reason of the latter.
    """
    states = {name: state for name, (state, _) in graph.items()}
    changed: dict[str, tuple[RunState, str]] = {}
    waiting = [name for name, state in states.items() if state is RunState.BLOCKED]
    progress = True
    while progress:
        progress = False
        for name in [one for one in waiting if one not in changed]:
            needs = {need: states.get(need) for need in graph[name][1]}
            if lost := [need for need, state in needs.items() if state is None or state in FAILED]:
                changed[name] = RunState.SKIPPED, f"not begun: {_lost(lost, states)}"
            elif all(state in SUCCEEDED for state in needs.values()):
                changed[name] = RunState.QUEUED, ""
            else:
                continue
            states[name], progress = changed[name][0], True
    return changed


def _lost(steps: Sequence[str], states: Mapping[str, RunState]) -> str:
    return ", ".join(f"step '{step}', which it needs, {_fate(states.get(step))}" for step in steps)


def _fate(state: RunState | None) -> str:
    if state is None:
        return "has no run at this time"
    return {RunState.FAILED: "failed", RunState.CANCELLED: "was cancelled"}.get(state, "was skipped")


def _check_step(what: str, step: Step) -> None:
    if step.model and not is_name(step.model):
        raise ScheduleRefused(f"{what}: model {step.model!r}: use 1 to 63 of a-z, 0-9, '-' and '_'")
    if not all(math.isfinite(number) for number in (step.backoff_s, step.timeout_s or 0.0, step.resources.cpus)):
        raise ScheduleRefused(f"{what}: seconds and processors are finite numbers")
    if len(msgspec.json.encode(step.options)) > _MOST_OPTIONS_BYTES:
        raise ScheduleRefused(f"{what}: options of more than {_MOST_OPTIONS_BYTES >> 10} KiB")
    if step.kind is RunKind.BATCH:
        if JOB_OPTION not in step.options:
            raise ScheduleRefused(f"{what}: a batch has its job among its options, as {JOB_OPTION!r}")
        try:
            decode_job(step.options[JOB_OPTION])
        except ConfigurationError as error:
            raise ScheduleRefused(f"{what}: {error}") from error
    seed = step.options.get(SEED_OPTION, 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ScheduleRefused(f"{what}: {SEED_OPTION} {seed!r} is no whole number from 0 to 2147483647")
