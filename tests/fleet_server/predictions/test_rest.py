from __future__ import annotations

from pathlib import Path

from tests.fakes.packages import make_package
from tests.fleet_server.running_server import prepared, server, shoal
from tests.trainer.batch.jobs import expected, images, table, write

JOB = """
name = "nightly"
key = ["camera", "frame"]
keep = ["camera"]

[model]
package = "{folder}/digits"

[input]
kind = "parquet"
path = "{folder}/in"

[output]
kind = "delta"
path = "{folder}/out"
"""


def test_a_job_run_by_hand_is_served_by_key_over_rest_and_on_the_command_line(tmp_path: Path, keys: Path) -> None:
    make_package(tmp_path / "digits")
    pixels = images(20)
    rows = table([""] * 20, pixels, camera=["cam-1"] * 20, frame=list(range(20))).drop_columns(["id"])
    write(tmp_path / "in", "a.parquet", rows)
    (tmp_path / "job.toml").write_text(JOB.format(folder=tmp_path))
    (tmp_path / "shoal.toml").write_text(f'[predictions]\nfolders = ["{tmp_path}/out"]\n')
    data, options = prepared(tmp_path / "data", keys), ("--config", str(tmp_path / "shoal.toml"))
    with server(data, *options) as running, running.client() as client:
        there = {"SHOAL_SERVER": running.url, "SHOAL_TOKEN": running.token}
        command = ("trainer", "batch", tmp_path / "job.toml", "--work", tmp_path / "work")
        planned = shoal(*command, "--dry-run", "--logical-time", "2026-11-23", environment=there)
        assert "2026-11-23T00:00:00Z: 20 rows of" in planned.stdout, planned.stderr
        done = shoal(*command, "--logical-time", "2026-11-23", environment=there)
        assert done.returncode == 0, done.stderr
        assert "batch 1: 20 rows answered, 0 set aside" in done.stdout

        one = client.get("/api/v1/predictions/nightly/cam-1/7").raise_for_status().json()
        assert (one["prediction"], one["columns"]) == (expected(pixels)[7], {"camera": "cam-1"})
        many = client.post("/api/v1/predictions/nightly", json={"keys": ["cam-1/3", "cam-9/3"]}).raise_for_status()
        assert (list(many.json()["found"]), many.json()["missing"]) == (["cam-1/3"], ["cam-9/3"])
        nobody = client.get("/api/v1/predictions/nightly/cam-9/3")
        assert (nobody.status_code, nobody.json()["error"]) == (
            404,
            "job 'nightly' has no answer for the key 'cam-9/3'",
        )
        assert client.get("/api/v1/predictions/weekly/a").status_code == 404
        elsewhere = client.put("/api/v1/predictions/x", json={"kind": "delta", "path": str(tmp_path / "in")})
        assert (elsewhere.status_code, elsewhere.json()["error"].split(":")[0]) == (400, str(tmp_path / "in"))
        shown = shoal("batch", "get", "nightly", "cam-1/7", environment=there)
        assert f"prediction    {expected(pixels)[7]}" in shown.stdout
        assert shoal("batch", "list", environment=there).stdout.split() == ["JOB", "nightly"]


def test_a_job_whose_answers_the_server_may_not_read_is_done_all_the_same(tmp_path: Path, keys: Path) -> None:
    make_package(tmp_path / "digits")
    rows = table([""] * 3, images(3), camera=["cam-1"] * 3, frame=list(range(3))).drop_columns(["id"])
    write(tmp_path / "in", "a.parquet", rows)
    (tmp_path / "job.toml").write_text(JOB.format(folder=tmp_path))
    with server(prepared(tmp_path / "data", keys)) as running:
        there = {"SHOAL_SERVER": running.url, "SHOAL_TOKEN": running.token}
        done = shoal("trainer", "batch", tmp_path / "job.toml", "--work", tmp_path / "work", environment=there)
    assert done.returncode == 0, done.stderr
    assert "3 rows answered" in done.stdout
    assert "not served by key: " in done.stdout
    assert "add the folder or URI above it to `folders` under [predictions]" in done.stdout
