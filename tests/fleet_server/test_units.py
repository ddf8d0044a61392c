from __future__ import annotations

import pytest

from fleet_server.units import gibibytes, joules, minutes, watts


@pytest.mark.parametrize(
    ("value", "text"),
    [(1240.4, "1,240 J"), (2.44, "2.4 J"), (0.0031, "3.1 mJ"), (0.12, "120 mJ"), (4.2e-5, "42.0 µJ"), (0.0, "0 µJ")],
)
def test_an_energy_is_told_in_its_own_unit(value: float, text: str) -> None:
    assert joules(value) == text


def test_power_memory_and_time_are_told_shortly() -> None:
    assert [watts(one) for one in (0.314, 12.43, 250.0)] == ["0.31 W", "12.4 W", "250 W"]
    assert gibibytes(8e9) == "7.5 GiB"
    assert [minutes(one) for one in (45, 600)] == ["45 s", "10 min"]
