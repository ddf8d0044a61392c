"""The templates for clusters: they parse, and what they call is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from click.testing import CliRunner

from trainer.cli import trainer
from trainer.training import plan, worker

FOLDER = Path(__file__).parents[2] / "packaging" / "training"
TEMPLATES = ("kubernetes-job.yaml", "slurm.sbatch")


def test_the_scripts_are_shell() -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sbatch"], check=True)
    job = list(yaml.safe_load_all((FOLDER / "kubernetes-job.yaml").read_text()))[1]
    [container] = job["spec"]["template"]["spec"]["containers"]
    subprocess.run(["sh", "-n"], input=container["args"][0].encode(), check=True)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(container["env"][2]["value"])


def test_what_the_templates_set_and_call_is_there() -> None:
    known = {plan.ENGINE, plan.PROCESSES, plan.LAUNCH, worker.__name__}
    options = CliRunner().invoke(trainer, ["train", "--help"]).output
    for name in TEMPLATES:
        text = (FOLDER / name).read_text()
        assert set(re.findall(r"SHOAL_TRAINING_[A-Z]+", text)) | {worker.__name__} == known
        assert worker.__name__ in text
        [command] = re.findall(
            r"shoal trainer train (.*)", "\n".join(line for line in text.splitlines() if "$" in line)
        )
        assert set(re.findall(r"--[a-z]+", command)) <= set(re.findall(r"--[a-z]+", options))
