"""How many requests a device sends home, and for how many of them it asks a label."""

from __future__ import annotations

import msgspec

from edge_agent.contract.quantities import Amount, Share


class SamplingPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A budget, and how it is shared.

    Args:
        samples_per_minute: Budget of requests sent home.
        labels_per_minute: Budget of those for which the application is asked a label; 0 asks for none.
        uniform_share: Share of the budget drawn uniformly; the rest goes to the narrowest margins.
        label_lifetime_s: How long the device remembers a request for late feedback.
    """

    samples_per_minute: Amount = 60.0
    labels_per_minute: Amount = 0.0
    uniform_share: Share = 0.3
    label_lifetime_s: Amount = 86_400.0
