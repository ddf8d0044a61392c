"""docs/jetson.md against the code: its reasons, settings, commands and files are those that there are."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.config import read_config
from edge_agent.runtime.accelerator import BUILDS_FOLDER, ENGINES_FOLDER
from edge_agent.runtime.choice import Candidate, Measured, choose
from edge_agent.runtime.runtimes import RUNTIMES_FILE
from tests.docs.examples import sections


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs" / "jetson.md").read_text("utf-8")


def texts(folder: Path) -> Iterator[str]:
    """Every text in the source; where a value is put in, it has three dots."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_reason_in_the_table_is_one_that_the_code_gives(page: str, repository: Path) -> None:
    table = page.partition("\n## When it stays on the processors\n")[2].partition("\n## ")[0]
    reasons = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)
    assert len(reasons) > 20
    known = [*texts(repository / "edge_agent" / "runtime"), *texts(repository / "edge_agent" / "contract")]
    # The parts between the dots, in this order: what a value fills, and where the page leaves the rest out.
    patterns = {reason: ".*".join(re.escape(part) for part in reason.split("...")) for reason in reasons}
    gone = [
        reason for reason, pattern in patterns.items() if not any(re.search(pattern, text, re.DOTALL) for text in known)
    ]
    assert gone == []


def test_what_the_index_goes_through_is_what_the_code_says(page: str, repository: Path) -> None:
    cpu, engine = Candidate("onnxruntime-cpu"), Candidate("tensorrt", "fp16")
    swapped = choose([Measured(cpu, 6_120.0, 8, 41_000.0), Measured(engine, 911.0, 8, 2_900.0)])
    stays = choose([Measured(cpu, 40.0), Measured(engine, 90.0)])
    assert f"`{swapped.reason}`" in page
    assert f"`{stays.reason}`" in page
    known = list(texts(repository / "edge_agent" / "runtime"))
    for text in (
        "building a ... ... engine",
        "... (...)",
        "measuring it on each runtime",
        "..., as version ..., whose engine was refitted",
    ):
        assert text in known


def test_its_settings_are_accepted(page: str, repository: Path, tmp_path: Path) -> None:
    (example,) = [
        one.code
        for section in sections(repository / "docs" / "jetson.md")
        for one in section.examples
        if one.language == "toml"
    ]
    file = tmp_path / "agent.toml"
    file.write_text(example)
    assert read_config(file).accelerator.build_memory_mib == 3072
    for name in re.findall(r"accelerator\.(\w+)", page):
        assert hasattr(read_config(None).accelerator, name), name


def test_files_and_folders_that_it_names_are_those_of_the_code(page: str, repository: Path) -> None:
    for name in (ENGINES_FOLDER, BUILDS_FOLDER, RUNTIMES_FILE):
        assert f"`STATE/{name}`" in page
    for name in ("install-pycuda", "shoal-agent.service"):
        assert f"packaging/device/{name}" in page
        assert (repository / "packaging" / "device" / name).is_file()
    assert os.access(repository / "packaging" / "device" / "install-pycuda", os.X_OK)


def test_the_unit_starts_the_agent_as_the_page_installs_it(page: str, repository: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(repository / "packaging" / "device" / "shoal-agent.service")
    service = unit["Service"]
    assert service["ExecStart"] == "/opt/shoal/bin/shoal-agent run --config /etc/shoal/agent.toml"
    assert f"--groups video,render --home-dir /var/lib/shoal {service['User']}\n" in page
    assert service["SupplementaryGroups"] == "video render"
    assert f"/run/{service['RuntimeDirectory']}/api.sock" in page
    assert "PrivateDevices" not in service  # the GPU is one


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give the virtual environment"),
        (
            ("/nowhere",),
            "/nowhere is no virtual environment: python3 -m venv --system-site-packages /nowhere makes one",
        ),
    ],
)
def test_pycuda_is_not_built_where_something_is_missing(
    arguments: tuple[str, ...], words: str, repository: Path
) -> None:
    script = repository / "packaging" / "device" / "install-pycuda"
    done = subprocess.run([script, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert words in done.stderr
