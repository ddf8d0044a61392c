"""What a rollout is made of."""

from __future__ import annotations

import pytest

from edge_agent.contract.errors import MalformedRequest
from fleet_server.rollouts.rollout import check_waves, wave_size


def test_waves_count_devices_or_shares_and_the_last_is_the_whole_fleet() -> None:
    assert check_waves([1, 0.5, 1.0]) == (1, 0.5, 1.0)
    for wrong in ([], [1], [1, 1], [0, 1.0], [-1.0, 1.0], [1.5, 1.0], [0.9, 0.5, 1.0]):
        with pytest.raises(MalformedRequest, match="wave"):
            check_waves(wrong)


def test_a_wave_is_so_many_devices_and_never_more_than_there_are() -> None:
    assert [wave_size(wave, 5) for wave in (1, 7, 0.5, 0.6, 1.0)] == [1, 5, 3, 3, 5]
