"""KServe's clients, unchanged, over REST and gRPC; they live in an environment of their own (``make clients``)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.config import ApiSettings
from tests.fakes.packages import answer, make_package, model_weights, reference_images
from tests.fakes.serving_device import Device, serving

PYTHON = Path(__file__).parents[2] / "build" / "clients" / "kserve" / "bin" / "python"
SCRIPT = Path(__file__).with_name("ask_with_kserve.py")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    (tmp_path / "models").mkdir()
    make_package(tmp_path / "models" / "digits")
    with serving(tmp_path, ApiSettings(port=0, grpc_port=0)) as device:
        yield device


@pytest.mark.skipif(not PYTHON.exists(), reason="KServe's clients are not installed: make clients")
def test_its_clients_get_the_right_answers(device: Device) -> None:
    images = reference_images(3)
    addresses = device.api.addresses
    command = [str(PYTHON), str(SCRIPT), addresses["api"], addresses["grpc"]]
    done = subprocess.run(
        command, input=json.dumps(images.tolist()), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for answers, forms in ((found["rest"], ("json", "binary")), (found["grpc"], ("contents", "raw"))):
        assert (answers["live"], answers["ready"], answers["model_ready"]) == (True, True, True)
        for form in forms:
            assert (answers[form]["model"], answers[form]["id"]) == ("digits", "by-kserve")
            np.testing.assert_allclose(
                answers[form]["outputs"]["probabilities"], answer(*model_weights(), images), atol=1e-6
            )
