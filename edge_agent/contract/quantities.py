"""Numbers and words as they may stand in a message: what lies outside is refused on decoding, before anyone stores it.

The upper bounds are those of where the numbers end: 64-bit integer columns, calendar dates, clock arithmetic.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_agent.contract.names import NAME_PATTERN

# A count or a size: what a signed 64-bit column holds.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# Unix time in milliseconds, up to the last day that a calendar date can name (9999-12-31).
TimeMs = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999)]
# A rate or a duration: zero or more, finite.
Amount = Annotated[float, msgspec.Meta(ge=0.0, le=1e15)]
# A part of a whole, both ends included.
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
# A probability that something is divided by.
Probability = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
# A fleet, a device or a model; see :func:`edge_agent.contract.names.is_name`.
Name = Annotated[str, msgspec.Meta(pattern=f"^{NAME_PATTERN}\\Z")]
# An identifier that a program of ours made up: an epoch.
Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
