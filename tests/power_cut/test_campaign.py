"""An even share of what `make power-cut` tries: enough to see that each kind of trial still goes well."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.power_cut.campaign import run, table
from tests.power_cut.power import compiler

KINDS = {
    "killed before an operation", "killed within a write", "disk full from an operation on", "un-synced writes lost",
    "a bit flipped",
}  # fmt: skip


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(0.02, marks=pytest.mark.timeout(600)),
        pytest.param(1.0, marks=[pytest.mark.slow, pytest.mark.timeout(7200)], id="all"),
    ],
)
def test_an_agent_whose_power_is_cut_serves_the_old_or_the_new_model_and_completes_the_update(
    tmp_path: Path, share: float
) -> None:
    if compiler() is None:
        pytest.skip("there is no C compiler here: power cuts are NOT tried")
    outcomes = run(tmp_path, share=share, workers=2, say=lambda _line: None)
    assert {outcome.kind for outcome in outcomes} == KINDS
    assert [outcome for outcome in outcomes if outcome.wrong] == [], table(outcomes)
