"""The device's own tests, on the oldest Python that it supports."""

from __future__ import annotations

import pytest

from tests.background import Background


@pytest.mark.timeout(600)
def test_the_devices_own_tests_pass_on_the_oldest_python(device_tests: Background | None) -> None:
    if device_tests is None:
        pytest.skip("no Python 3.10 on this machine")
    assert device_tests.wait(580) == 0, device_tests.said[-20_000:]
    assert " passed" in device_tests.said
