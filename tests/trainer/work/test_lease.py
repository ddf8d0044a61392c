"""A lease is renewed from two threads: what a run has written arrives once."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.trainer.conftest import run_file
from tests.trainer.fleet_server_double import FleetServerDouble
from trainer.server_client import ServerClient
from trainer.work.lease import Lease
from trainer.work.run_log import RunLog


def test_a_piece_of_the_log_that_two_threads_send_arrives_once(tmp_path: Path) -> None:
    run, path = run_file(tmp_path), tmp_path / "log"
    written = RunLog(path)
    written.begin()
    with FleetServerDouble(run) as server:
        client = ServerClient(server.url, "secret")
        lease = Lease(client, run, threading.Event(), heartbeat_s=60, retry_s=1, written=written)
        for at in range(10):
            with path.open("a") as file:
                file.write(f"line {at}\n")
            threads = [threading.Thread(target=lease.renew) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        client.close()
    text = "".join(progress.log for progress in server.progress)
    assert text.splitlines() == [f"line {at}" for at in range(10)]
