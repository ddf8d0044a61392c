"""The two pyproject.toml files and the constraints say the same thing."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def whole(repository: Path) -> dict[str, Any]:
    return _read(repository / "pyproject.toml")


@pytest.fixture(scope="module")
def device(repository: Path) -> dict[str, Any]:
    return _read(repository / "packaging" / "device" / "pyproject.toml")


def _read(path: Path) -> dict[str, Any]:
    project = tomllib.loads(path.read_text())["project"]
    assert isinstance(project, dict)
    return project


def test_the_device_wheel_needs_exactly_the_base_dependencies(whole: dict[str, Any], device: dict[str, Any]) -> None:
    assert device["dependencies"] == whole["dependencies"]


def test_the_device_wheel_has_the_same_extras_for_devices(whole: dict[str, Any], device: dict[str, Any]) -> None:
    extras = ("grpc", "tensorrt", "cuda-graphs")
    assert device["optional-dependencies"] == {name: whole["optional-dependencies"][name] for name in extras}


def test_both_projects_carry_the_same_version_and_licence(whole: dict[str, Any], device: dict[str, Any]) -> None:
    assert device["version"] == whole["version"]
    assert device["license"] == whole["license"] == "Apache-2.0"


def test_the_device_command_is_the_same_in_both_projects(whole: dict[str, Any], device: dict[str, Any]) -> None:
    assert device["scripts"] == {"shoal-agent": whole["scripts"]["shoal-agent"]}


def test_every_declared_dependency_is_pinned_for_ci(repository: Path, whole: dict[str, Any]) -> None:
    pinned = {
        _normal(line.split("==")[0])
        for line in (repository / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    declared = {
        _normal(re.split(r"[\[<>=;]", requirement)[0])
        for requirement in chain(whole["dependencies"], *whole["optional-dependencies"].values())
    }
    assert declared - pinned == set()


def test_constraints_name_versions_only(repository: Path) -> None:
    for line in (repository / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+(; python_version [<>=]+ '3\.11')?", line), line


def test_folders_named_like_packages_of_others_are_no_packages(repository: Path) -> None:
    for folder in ("packaging", "models"):
        assert not (repository / folder / "__init__.py").exists(), f"{folder}/ would shadow the one on PyPI"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
