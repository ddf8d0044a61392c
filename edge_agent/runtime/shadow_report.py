"""What a candidate did beside the model that serves."""

from __future__ import annotations

import msgspec

from edge_agent.contract.quantities import Amount, Count


class ShadowReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a candidate did with live rows beside the model that serves, the champion.

    Args:
        champion, candidate: Versions.
        rows: Rows that both answered; ``agreed``: those on which both name the same class.
        failed: Runs in which the candidate failed or hung, or gave what is no answer; ``refused``: requests that its
            signature refuses and the champion's does not; ``why``: what was wrong with the first of either.
        skipped: Requests on which nothing could be compared, through no fault of the candidate.
        dropped: Requests that found no room in the queue.
        timed: Runs of both on the same rows; ``slower``: those in which the candidate took more than the rule's
            ``max_latency_ratio`` times what the champion did.
        champion_us, candidate_us: Median times of these runs in microseconds, of the last ones where there are many.
        mean_difference, largest_difference: Of the probabilities that both give to a class, row by row the largest.
        champion_bytes, candidate_bytes: Memory that they take; 0 where nobody measured.
    """

    champion: str = ""
    candidate: str = ""
    rows: Count = 0
    agreed: Count = 0
    failed: Count = 0
    refused: Count = 0
    why: str = ""
    skipped: Count = 0
    dropped: Count = 0
    timed: Count = 0
    slower: Count = 0
    champion_us: Amount = 0.0
    candidate_us: Amount = 0.0
    mean_difference: Amount = 0.0
    largest_difference: Amount = 0.0
    champion_bytes: Count = 0
    candidate_bytes: Count = 0

    @property
    def agreement(self) -> float:
        """Share of the rows on which both name the same class; 1 where there is none."""
        return self.agreed / self.rows if self.rows else 1.0
