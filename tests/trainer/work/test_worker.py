from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.contract.errors import NetworkError
from edge_agent.contract.runs import RunState
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from tests.trainer.conftest import field_rows, run_file
from tests.trainer.fleet_server_double import FleetServerDouble
from trainer.errors import TokenRefused
from trainer.recipe import Recipe
from trainer.server_client import ServerClient
from trainer.work.worker import Timing, Worker


class Shelf:
    """Keeps what is published.

    Attributes:
        away: How many times the server cannot be reached before it can.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages: list[Package] = []
        self.away = 0

    def publish(self, package: Package) -> None:
        if self.away:
            self.away -= 1
            raise NetworkError("the server is away")
        copy = shutil.copytree(package.folder, self.folder / package.digest)
        self.packages.append(Package.open(copy, verify=True))

    def refresh(self) -> None:
        pass


class Workplace:
    """A worker beside a server, with its parts at hand."""

    def __init__(self, server: FleetServerDouble, recipes: Path, folder: Path, *, authorised: bool = True) -> None:
        self.shelf, self.stop, self.folder = Shelf(folder / "shelf"), threading.Event(), folder
        self.client = ServerClient(server.url, "secret" if authorised else "wrong")
        timing = Timing(poll_s=0.05, heartbeat_s=0.05)
        self.worker = Worker(self.client, self.shelf, recipes=recipes, work=folder / "work", timing=timing)


def test_a_run_trains_on_the_field_beats_the_champion_and_is_published(
    recipe: Recipe, recipes: Path, champion: Package, lake_with: Callable[..., Path], tmp_path: Path
) -> None:
    lake = lake_with(*field_rows(recipe, champion, per_device=200, drifted=True))
    with FleetServerDouble(run_file(lake, champion), champion, versions=("1", "2")) as server:
        place = Workplace(server, recipes, tmp_path)
        result = place.worker.once(place.stop)
        place.client.close()
    assert result is not None
    assert result.state is RunState.RELEASED, result.reasons
    assert server.results == [result]
    assert result.fence == 3
    assert result.version == "3", "version 2 is taken"
    assert {"champion", "fit", "publish"} <= {progress.stage for progress in server.progress}
    (released,) = place.shelf.packages
    assert released.digest == result.package
    assert released.manifest.parent == champion.digest
    assert (tmp_path / "work" / "packages" / released.digest).is_dir(), "the next run's champion is at hand"
    world, heldout = recipe.module("world"), recipe.module("data").load("heldout")
    for device, degree in world.DRIFTED.items():
        inputs = {"image": degree.show(heldout.images, np.random.default_rng(9))}
        before, after = (
            (OnnxBackend(package).infer(inputs)["probabilities"].argmax(axis=1) == heldout.labels).mean()
            for package in (champion, released)
        )
        assert after > before, device
        assert after >= 0.85, device


def own_recipes(recipes: Path, folder: Path, code: str) -> Path:
    """The recipes, whose code does something more."""
    copy = Path(shutil.copytree(recipes, folder / "recipes"))
    with (copy / "digits" / "model.py").open("a") as file:
        file.write("\n" + code)
    return copy


_HANDS_BACK = """
import atexit, pathlib, shutil, sys
def _hand_back():
    work = pathlib.Path(sys.argv[sys.argv.index("--work") + 1])
    {}
atexit.register(_hand_back)
sys.exit(0)
"""


def hands_back(recipes: Path, folder: Path, package: Package, answer: str, *, then: str = "pass") -> Path:
    """Recipes whose code hands back a finished package instead of training one."""
    answer = answer.replace("DIGEST", package.digest)
    copied = f"shutil.copytree({str(package.folder)!r}, work / 'package')"
    code = f"(work / 'result.json').write_text({answer!r}); {copied}; {then}"
    return own_recipes(recipes, folder, _HANDS_BACK.format(code))


_RELEASED = '{"fence": 3, "state": "released", "reasons": [], "version": "1", "package": "DIGEST"}'


def test_a_first_model_is_published_and_reported_though_the_server_goes_away(
    recipes: Path, champion: Package, base_lake: Path, tmp_path: Path
) -> None:
    with FleetServerDouble(run_file(base_lake), versions=()) as server:
        place = Workplace(server, hands_back(recipes, tmp_path, champion, _RELEASED), tmp_path)
        place.shelf.away = server.away = 2
        result = place.worker.once(place.stop)
        place.client.close()
    assert result is not None
    assert result.state is RunState.RELEASED, result.reasons
    assert [package.digest for package in place.shelf.packages] == [result.package]
    assert server.results == [result]


def test_a_process_that_is_aborted_after_its_result_was_written_has_done_its_run(
    recipes: Path, champion: Package, base_lake: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = hands_back(
        recipes, tmp_path, champion, _RELEASED, then="import os, signal; os.kill(os.getpid(), signal.SIGABRT)"
    )
    with FleetServerDouble(run_file(base_lake), versions=()) as server:
        place = Workplace(server, own, tmp_path)
        result = place.worker.once(place.stop)
        place.client.close()
    assert result is not None
    assert result.state is RunState.RELEASED, result.reasons
    assert [package.digest for package in place.shelf.packages] == [result.package]
    assert "run run-1: its process was ended by signal 6 after its result was written" in caplog.text


def test_a_run_lost_before_it_is_published_is_not_published(
    recipes: Path, champion: Package, base_lake: Path, tmp_path: Path
) -> None:
    with FleetServerDouble(run_file(base_lake), versions=()) as server:
        server.lost_at = "publish"
        place = Workplace(server, hands_back(recipes, tmp_path, champion, _RELEASED), tmp_path)
        assert place.worker.once(place.stop) is None
        place.client.close()
    assert any(path.name == "result.json" for path in (tmp_path / "work" / "runs" / "run-1").iterdir())
    assert not place.shelf.packages
    assert not server.results


def test_a_recipes_code_is_given_no_token_and_no_passphrase(
    recipes: Path, base_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_TOKEN", "secret")
    monkeypatch.setenv("SHOAL_KEYS_PASSPHRASE", "open sesame")
    code = "import os\nraise RuntimeError(f\"sees {[name for name in os.environ if name.startswith('SHOAL')]}\")\n"
    with FleetServerDouble(run_file(base_lake), versions=()) as server:
        place = Workplace(server, own_recipes(recipes, tmp_path, code), tmp_path)
        result = place.worker.once(place.stop)
        place.client.close()
    assert result is not None
    assert result.state is RunState.FAILED
    assert any("RuntimeError: sees []" in reason for reason in result.reasons), result.reasons


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("{", "is no result"),
        (_RELEASED, "asked for was"),
    ],
)
def test_what_a_recipes_code_hands_back_instead_of_a_result_is_not_signed(
    *, recipes: Path, champion: Package, base_lake: Path, tmp_path: Path, answer: str, reason: str
) -> None:
    with FleetServerDouble(run_file(base_lake), versions=("1",)) as server:
        place = Workplace(server, hands_back(recipes, tmp_path, champion, answer), tmp_path)
        result = place.worker.once(place.stop)
        place.client.close()
    assert result is not None
    assert result.state is RunState.FAILED
    assert result.reasons[0].startswith("ResultRefused: ")
    assert reason in result.reasons[0]
    assert not place.shelf.packages


def test_a_champion_whose_copy_was_cut_short_is_fetched_again(
    recipes: Path, champion: Package, base_lake: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "work" / "packages" / champion.digest
    shutil.copytree(champion.folder, kept)
    (kept / "model.onnx").unlink()
    half = kept.with_name(".half-a-download")
    half.mkdir()
    with FleetServerDouble(run_file(base_lake, champion), champion) as server:
        place = Workplace(server, recipes, tmp_path)
        result = place.worker.once(place.stop)
        place.client.close()
    assert result is not None
    assert result.state is RunState.UNCHANGED
    Package.open(kept, verify=True)
    assert not half.exists()


def test_a_run_without_new_labels_leaves_all_unchanged(
    recipe: Recipe, recipes: Path, champion: Package, base_lake: Path, tmp_path: Path
) -> None:
    with FleetServerDouble(run_file(base_lake, champion), champion) as server:
        place = Workplace(server, recipes, tmp_path)
        result = place.worker.once(place.stop)
        assert place.worker.once(place.stop) is None, "nothing else waits"
        place.client.close()
    assert result is not None
    assert result.state is RunState.UNCHANGED
    assert result.reasons[0].startswith("nothing to learn from: 0 labelled rows")
    assert not place.shelf.packages


def test_a_run_that_fails_is_reported_with_its_last_words(recipes: Path, tmp_path: Path) -> None:
    with FleetServerDouble(run_file(tmp_path / "no-lake"), versions=()) as server:
        place = Workplace(server, recipes, tmp_path)
        result = place.worker.once(place.stop)
        place.client.close()
    assert result is not None
    assert result.state is RunState.FAILED
    assert result.reasons[0] == "the run's process ended with status 1"
    assert any("has no table 'samples' yet" in reason for reason in result.reasons)
    assert server.results == [result]


def test_a_champion_with_other_bytes_than_its_digest_is_not_used(
    recipes: Path, champion: Package, base_lake: Path, tmp_path: Path
) -> None:
    with FleetServerDouble(run_file(base_lake, champion), champion) as server:
        server.tampered = champion.manifest.files["model.onnx.data"].sha256
        place = Workplace(server, recipes, tmp_path)
        result = place.worker.once(place.stop)
        place.client.close()
    assert result is not None
    assert result.state is RunState.FAILED
    assert result.reasons[0].startswith("DigestMismatch: ")
    assert not list((tmp_path / "work" / "packages").iterdir()), "nothing half-downloaded is left"


def test_a_run_whose_lease_was_lost_is_ended_and_not_reported(
    recipes: Path, champion: Package, base_lake: Path, tmp_path: Path
) -> None:
    with FleetServerDouble(run_file(base_lake), champion) as server:
        server.lost = True
        place = Workplace(server, recipes, tmp_path)
        assert place.worker.once(place.stop) is None
        place.client.close()
    assert not server.results
    assert not (tmp_path / "work" / "runs" / "run-1" / "result.json").exists()


def test_a_wrong_token_ends_the_worker_and_says_so(recipes: Path, base_lake: Path, tmp_path: Path) -> None:
    with FleetServerDouble(run_file(base_lake)) as server:
        place = Workplace(server, recipes, tmp_path, authorised=False)
        with pytest.raises(TokenRefused, match=r"the token was refused \(401: no token\)"):
            place.worker.work(place.stop)
        place.client.close()


def test_only_the_packages_used_last_are_kept(recipes: Path, champion: Package, tmp_path: Path) -> None:
    packages = tmp_path / "work" / "packages"
    for at in range(8):
        folder = packages / f"{at}"
        folder.mkdir(parents=True)
        os.utime(folder, (at, at))
    with FleetServerDouble(run_file(tmp_path)) as server:
        place = Workplace(server, recipes, tmp_path)
        copy = shutil.copytree(champion.folder, tmp_path / "copy")
        place.worker._folders.keep(Package.open(copy, verify=False), models=1)
        place.client.close()
    assert {path.name for path in packages.iterdir()} == {"4", "5", "6", "7", champion.digest}


@pytest.mark.parametrize("change", [{"run": "../../home"}, {"model": "../digits"}, {"champion": "../../packages"}])
def test_what_a_stolen_server_names_becomes_no_folder_elsewhere(
    recipes: Path, base_lake: Path, tmp_path: Path, change: dict[str, str]
) -> None:
    precious = tmp_path / "home" / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    with FleetServerDouble(msgspec.structs.replace(run_file(base_lake), **change)) as server:
        place = Workplace(server, recipes, tmp_path)
        with pytest.raises(NetworkError, match=f"the answer is not what was agreed: {next(iter(change))}"):
            place.worker.once(place.stop)
        place.client.close()
    assert precious.read_text() == "mine"
    assert not (tmp_path / "work" / "runs").exists()
