"""Several processes: lost and started anew, and still the weights of a training that lost none."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_agent.contract.errors import ConfigurationError
from tests.trainer.training.conftest import Blobs, weights
from trainer.data.dataset import Dataset
from trainer.errors import RecipeError, RecipeHung, WorkersLost
from trainer.training.fit import fit
from trainer.training.plan import ENGINE, LAUNCH, MLFLOW, PROCESSES, Compute

TORCHRUN = shlex.join([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])
LAUNCHED = Compute(engine="launch", launch=f"{TORCHRUN} -m trainer.training.worker")
Weights = dict[str, list[float]]
# Each starts several processes that import torch, on machines with much else to do.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def undisturbed(blobs_lake: Path, blobs_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """What two processes come to that an operator's command has started, and that nothing happens to."""
    from tests.trainer.training.conftest import make_blobs

    recipe = make_blobs(tmp_path_factory.mktemp("undisturbed"), fault="die", fault_rank=1, marker="/")
    return weights(fit(recipe, blobs_dataset, seed=1, compute=LAUNCHED))


def test_a_process_that_is_killed_is_replaced_and_the_weights_are_those_of_an_undisturbed_training(
    blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path, undisturbed: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What lies in the current folder is not run instead of ours.
    (tmp_path / "here/trainer").mkdir(parents=True)
    (tmp_path / "here/trainer/__init__.py").write_text("raise SystemExit('code of the current folder was run')\n")
    monkeypatch.chdir(tmp_path / "here")
    marker = tmp_path / "died"
    recipe = blobs(fault="die", fault_rank=1, marker=marker)
    told: list[str] = []
    fitted = fit(
        recipe,
        blobs_dataset,
        seed=1,
        compute=Compute(processes=2),
        checkpoints=tmp_path / "kept",
        progress=lambda _fraction, message, _metrics: told.append(message),
    )
    assert marker.exists()
    assert any(message.startswith("going on from checkpoint step-") for message in told)
    assert told[-1].startswith("epoch 4 of 4")
    assert weights(fitted) == undisturbed


def test_a_recipe_that_hangs_in_one_process_ends_all_of_them(blobs: Blobs, blobs_dataset: Dataset) -> None:
    recipe = blobs(fault="hang", fault_rank=1, step_timeout_s=3.0, fault_epoch=0)
    with pytest.raises(RecipeHung, match="nothing went on for 3 s in epoch 1, batch 4"):
        fit(recipe, blobs_dataset, seed=1, compute=Compute(processes=2))


def test_a_run_that_is_killed_takes_its_processes_along(blobs: Blobs, blobs_lake: Path, tmp_path: Path) -> None:
    recipe = blobs(fault="hang", fault_epoch=0)
    code = (
        "import sys; from pathlib import Path; from trainer.recipe import Recipe; "
        "from trainer.data.dataset import read_dataset; from trainer.training.fit import fit; "
        "from trainer.training.plan import Compute; recipe = Recipe.load(Path(sys.argv[1])); "
        "fit(recipe, read_dataset(recipe, sys.argv[2]), seed=1, compute=Compute(processes=2), "
        "checkpoints=Path(sys.argv[3]))"
    )
    run = subprocess.Popen([sys.executable, "-c", code, recipe.folder, blobs_lake, tmp_path / "kept"])
    try:
        ranks = _within(60, lambda: _of(tmp_path / "kept", "trainer.training.worker", count=3))
    finally:
        run.kill()
        run.wait()
    _within(30, lambda: not any(process.is_running() and process.status() != "zombie" for process in ranks))


def test_a_recipe_that_raises_in_another_process_is_blamed_here(blobs: Blobs, blobs_dataset: Dataset) -> None:
    message = r"model\.py: Model failed in training: ValueError: the recipe has a fault"
    with pytest.raises(RecipeError, match=message) as found:
        fit(blobs(fault="raise", fault_rank=1, fault_epoch=0), blobs_dataset, seed=1, compute=Compute(processes=2))
    assert "go_wrong" in found.value.__notes__[0]  # its traceback there


def test_a_launch_that_fails_says_with_what_words(blobs: Blobs, blobs_dataset: Dataset) -> None:
    with pytest.raises(ConfigurationError, match="SHOAL_TRAINING_LAUNCH: no-such-command cannot be started"):
        fit(blobs(), blobs_dataset, seed=1, compute=Compute(engine="launch", launch="no-such-command"))
    script = shlex.join(["sh", "-c", "echo no partition is free; exit 3"])
    with pytest.raises(WorkersLost, match=r"ended with status 3, .* ends with: no partition is free"):
        fit(blobs(), blobs_dataset, seed=1, compute=Compute(engine="launch", launch=script))


def test_a_cluster_that_is_not_there_is_named(blobs: Blobs, blobs_dataset: Dataset) -> None:
    with pytest.raises(ConfigurationError, match=r"no Ray cluster at '127\.0\.0\.1:1' .*start one with `ray start"):
        fit(blobs(), blobs_dataset, seed=1, compute=Compute(engine="ray", ray_address="127.0.0.1:1"))


def test_where_a_training_runs_is_said_by_the_run_then_by_its_operator_then_by_the_recipe(blobs: Blobs) -> None:
    recipe = blobs(processes=2)
    assert Compute.of(recipe) == Compute(processes=2, loggers=Compute.of(recipe).loggers)
    environment = {PROCESSES: "3", ENGINE: "launch", LAUNCH: "srun torchrun", MLFLOW: "http://tracking"}
    operated = Compute.of(recipe, environment)
    assert (operated.engine, operated.processes, operated.launch) == ("launch", 3, "srun torchrun")
    assert (operated.loggers.mlflow, operated.loggers.experiment) == ("http://tracking", "blobs")
    asked = Compute.of(recipe, environment, {"engine": "local", "processes": 4})
    assert (asked.engine, asked.processes) == ("local", 4)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({PROCESSES: "many"}, "SHOAL_TRAINING_PROCESSES must be a number, got 'many'"),
        ({PROCESSES: "0"}, "at least one process"),
        ({ENGINE: "cloud"}, "engine 'cloud' of training is unknown; there are: local, ray, launch"),
        ({ENGINE: "launch"}, "engine launch needs a command in SHOAL_TRAINING_LAUNCH"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(blobs: Blobs, environment: Mapping[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Compute.of(blobs(), environment)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray on two machines, which are this one."""
    import ray
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
    found.add_node(num_cpus=1, object_store_memory=80 << 20)
    yield found
    ray.shutdown()
    found.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_loses_a_process_and_comes_to_the_same_weights(
    cluster: Any, blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path, undisturbed: Weights
) -> None:
    marker = tmp_path / "died"
    told: list[str] = []
    fitted = fit(
        blobs(fault="die", fault_rank=1, marker=marker),
        blobs_dataset,
        seed=1,
        compute=Compute(engine="ray", processes=2, ray_address=cluster.address),
        checkpoints=tmp_path / "kept",
        progress=lambda _fraction, message, _metrics: told.append(message),
    )
    assert marker.exists()
    assert any(message.startswith("a process was lost") for message in told)
    assert any(message.startswith("going on from checkpoint step-") for message in told)
    assert weights(fitted) == undisturbed
    with pytest.raises(RecipeError, match="ValueError: the recipe has a fault"):
        fit(
            blobs(fault="raise", fault_epoch=0),
            blobs_dataset,
            seed=1,
            compute=Compute(engine="ray", processes=2, ray_address=cluster.address),
        )


def _of(folder: Path, module: str, *, count: int) -> list[psutil.Process]:
    """Processes that train there, once they are all there and one of them has begun."""
    if not list(folder.glob("*/progress.jsonl")) and not list(folder.glob("*/processes.log")):
        return []
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if module in line and any(str(folder) in part for part in line):
            found.append(process)
    return found if len(found) >= count else []


def _within(seconds: float, found: Any) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s; processes of {os.getpid()}")
