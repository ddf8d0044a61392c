"""An automatic retrain of a model that asks for an approver: worker, server and approver, each real."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from edge_agent.contract.runs import RunKind, RunState
from tests.fakes.packages import make_package
from tests.fleet_server.running_server import prepared, server, shoal
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder
from trainer.publish.repository import Publisher
from trainer.recipe import recipes_folder
from trainer.server_client import ServerClient
from trainer.work.worker import Worker

_PATIENCE_S = 60.0


def wait_for_rollouts(client: httpx.Client) -> list[dict[str, Any]]:
    until = time.monotonic() + _PATIENCE_S
    while True:
        found: list[dict[str, Any]] = client.get("/api/v1/rollouts").json()
        if found or time.monotonic() > until:
            return found
        time.sleep(0.1)


def test_a_retrain_waits_for_the_approver_and_is_rolled_out_then(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    ImageSigning(keys).create(())
    ImageSigning(keys).add_model("digits", approvers={"ben": None})
    shutil.move(keys.folder / "approvers/ben", tmp_path / "ben")
    package = make_package(tmp_path / "work/prepared", version="1")
    with server(prepared(tmp_path / "data", keys.folder)) as running, running.client() as client:
        trainer, publisher = (
            ServerClient(running.url, running.token),
            Publisher(keys.folder, running.url, running.token),
        )
        modules = {RunKind.TRAIN: "tests.trainer.publish.finished_run"}
        worker = Worker(trainer, publisher, recipes=recipes_folder(None), work=tmp_path / "work", modules=modules)
        stop = threading.Event()
        assert worker.once(stop) is None, "it has said which models it can train"
        run = client.post("/api/v1/runs", json={"model": "digits", "reason": "drift"}).json()["run"]
        result = worker.once(stop)
        assert result is not None
        assert result.state is RunState.RELEASED
        assert result.reasons[-1] == "version 1 waits for approval: 1 of 2 signatures are missing"
        assert client.get(f"/api/v1/runs/{run}").json()["reasons"] == list(result.reasons)
        assert client.get("/api/v1/models").json() == []
        assert trainer.versions("digits") == {"1"}, "the next retrain gets another version"
        listed = shoal("models", "approvals", "--data", running.data).stdout
        assert "1 of 2" in listed
        assert package.digest[:12] in listed

        signed = shoal(
            "models", "approve", "digits", "1", "--key", tmp_path / "ben/approver.pem", "--data", running.data, "--yes"
        )
        assert signed.returncode == 0, signed.stderr
        assert client.get("/api/v1/rollouts").json() == []
        assert publisher.refresh() is False
        (rollout,) = wait_for_rollouts(client)
        assert (rollout["model"], rollout["version"], rollout["automatic"]) == ("digits", "1", True)
        assert client.get("/api/v1/approvals").json() == []
        trainer.close()
        publisher.close()
