"""The step before the swap: candidates that answer live traffic beside what serves, and wait for the verdict."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import msgspec

from edge_agent.contract.errors import ModelUnavailable, UnknownModel
from edge_agent.contract.manifest import Shadow
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.update.candidates import Candidates
from edge_agent.update.journal import Journal
from edge_agent.update.judgement import Good, ShadowReport, Undecided, Verdict, judge_shadow
from edge_agent.update.probation import Stopwatch, worst

Group = tuple[str, ...]


class ShadowRunner(Protocol):
    """Who lets candidates answer what is asked of champions; never on the critical path."""

    def begin(self, champion: LoadedModel, candidate: LoadedModel, rule: Shadow) -> None:
        """Shadow ``champion`` from now on."""

    def report(self, model: str) -> ShadowReport | None:
        """What was found so far; None where nothing is shadowed under that name."""

    def end(self, model: str) -> None:
        """Stop; when this returns the candidate is used no more."""


@dataclasses.dataclass
class _Running:
    candidates: Candidates
    champions: dict[str, LoadedModel]


class ShadowStep:
    """The groups of models that are in their shadow now; their candidates stay loaded meanwhile.

    Args:
        shadows: None leaves the step out.
    """

    def __init__(self, journal: Journal, slots: Slots, shadows: ShadowRunner | None, stopwatch: Stopwatch) -> None:
        self._journal, self._slots, self._shadows, self._stopwatch = journal, slots, shadows, stopwatch
        self._running: dict[Group, _Running] = {}

    def champions(self, candidates: Candidates) -> dict[str, LoadedModel]:
        """What serves in the place of candidates whose manifests ask for a shadow; empty where none is to be.

        What was good here before shadows nothing: what it would be compared with is what is gone back from.
        """
        found: dict[str, LoadedModel] = {}
        if self._shadows is None:
            return found
        for model, candidate in candidates.models.items():
            champion = self._champion(model)
            if champion is None or champion.digest == candidate.digest:  # it has nothing to learn from itself
                continue
            if candidate.manifest.shadow.seconds > 0 and not self._journal.get(model).known:
                found[model] = champion
        return found

    def begin(self, group: Group, candidates: Candidates, champions: dict[str, LoadedModel], now: float) -> None:
        """Let candidates shadow; they are this step's until they are taken back, or where this raises the caller's."""
        self._running[group] = _Running(candidates, champions)
        try:
            for model, champion in champions.items():
                self._stopwatch.begin(model, now)
                self._begin(model, champion, candidates)
        except BaseException:  # no memory for one more thread; what is closed by then is not to be judged
            self.take(group)
            raise

    def is_running(self, model: str) -> bool:
        """Whether a model shadows now, or waits for one that came with it."""
        return any(model in group for group in self._running)

    def groups(self) -> list[Group]:
        """Those that shadow now."""
        return list(self._running)

    def verdict(self, group: Group, now: float) -> tuple[str, Verdict] | None:
        """What follows, and for whose sake; None where what they are compared with serves no more."""
        running = self._running[group]
        verdicts: dict[str, Verdict] = {}
        for model in list(running.champions):
            champion = self._champion(model)
            if champion is None or champion.digest != running.champions[model].digest:
                return None
            if champion is not running.champions[model]:  # loaded once more, and the old one is closed
                running.champions[model] = champion
                self._begin(model, champion, running.candidates)
            verdicts[model] = self._judge(model, running.candidates.models[model], now)
        return worst(verdicts)

    def take(self, group: Group) -> Candidates:
        """End the shadow; the candidates are the caller's again."""
        running = self._running.pop(group)
        for model in running.champions:
            if self._shadows is not None:
                self._shadows.end(model)
            self._stopwatch.end(model)
        return running.candidates

    def break_off(self, model: str) -> None:
        """End the shadow that a model has part in, where there is one, and give the candidates' memory back."""
        for group in [group for group in self._running if model in group]:
            self.take(group).close()

    def close(self) -> None:
        """End all."""
        for group in list(self._running):
            self.take(group).close()

    def _begin(self, model: str, champion: LoadedModel, candidates: Candidates) -> None:
        if self._shadows is not None:
            candidate = candidates.models[model]
            self._shadows.begin(champion, candidate, candidate.manifest.shadow)

    def _judge(self, model: str, candidate: LoadedModel, now: float) -> Verdict:
        report = self._shadows.report(model) if self._shadows is not None else None
        rule, elapsed_s = candidate.manifest.shadow, self._stopwatch.elapsed_s(model, now)
        verdict = judge_shadow(rule, report or ShadowReport(), elapsed_s=elapsed_s)
        record = self._journal.get(model)
        reason = f"{verdict.reason}{_memory(report)}"
        if isinstance(verdict, Undecided):
            self._journal.keep(model, msgspec.structs.replace(record, reason=reason))
            self._stopwatch.note(model, now, rule.seconds)
        return dataclasses.replace(verdict, reason=reason) if isinstance(verdict, Good) else verdict

    def _champion(self, model: str) -> LoadedModel | None:
        try:
            return self._slots.get(model)
        except (UnknownModel, ModelUnavailable):
            return None


def _memory(report: ShadowReport | None) -> str:
    if report is None or not report.candidate_bytes:
        return ""
    return f"; memory {report.candidate_bytes / 2**20:.1f} MiB beside {report.champion_bytes / 2**20:.1f} MiB"
