from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.training.conftest import Blobs, weights
from trainer.data.dataset import Dataset
from trainer.errors import RecipeError
from trainer.recipe_file import Loggers
from trainer.training.fit import fit
from trainer.training.loggers import open_loggers
from trainer.training.plan import Compute, Plan

# Of libraries that are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_metrics_go_to_tensorboard(blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    compute = Compute(loggers=Loggers(tensorboard=str(tmp_path / "board")))
    fit(blobs(), blobs_dataset, seed=1, compute=compute, run="night-7")
    events = EventAccumulator(str(tmp_path / "board" / "blobs" / "night-7"))
    events.Reload()
    assert {"val_loss", "train_loss", "learning_rate"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("val_loss")) == 4


def test_metrics_go_to_mlflow(blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    fit(blobs(), blobs_dataset, seed=1, compute=Compute(loggers=Loggers(mlflow=uri, experiment="dots")), run="night-7")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("dots")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "night-7"
    assert run.data.params["learning_rate"] == "0.01"
    assert len(client.get_metric_history(run.info.run_id, "val_loss")) == 4


def test_a_logger_whose_place_is_away_is_left_alone(
    blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    away = Compute(loggers=Loggers(tensorboard=str(tmp_path / "file" / "board")))
    fitted = fit(blobs(), blobs_dataset, seed=1, compute=away)
    assert weights(fitted) == weights(fit(blobs(), blobs_dataset, seed=1))
    assert caplog.text.count("TensorBoard is left alone") == 1


def test_a_logger_that_is_not_installed_is_named(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    plan = Plan.make(blobs(), content="", seed=1, start=None, loggers=Loggers(mlflow="http://127.0.0.1:1"))
    with pytest.raises(RecipeError, match=r"mlflow is not installed: pip install 'shoal\[loggers\]'"):
        open_loggers(plan)
