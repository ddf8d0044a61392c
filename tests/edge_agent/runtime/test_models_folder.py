"""The folder of models: which packages of it count, and what is said about the rest."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.runtime.models_folder import ModelsFolder
from edge_agent.runtime.package import Package
from tests.fakes.packages import make_package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "models"
    made.mkdir()
    return made


def scan(folder: Path) -> list[str]:
    packages, broken = ModelsFolder(folder).scan()
    assert broken == []
    return [package.folder.name for package in packages]


def spoil(package: Package) -> None:
    with package.path("model.onnx").open("ab") as file:
        file.write(b"x")


def test_of_two_copies_the_whole_one_counts_whatever_they_are_called(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make_package(folder / "digits-1")
    shutil.copytree(whole.folder, folder / "a-copy")
    spoil(Package.open(folder / "a-copy", verify=False))
    assert scan(folder) == ["digits-1"]
    (record,) = caplog.records
    assert "a-copy is not used: it is damaged" in record.getMessage()
    assert "expected sha256" in record.getMessage()


def test_a_copy_is_ignored_and_that_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(make_package(folder / "digits").folder, folder / "same")
    models = ModelsFolder(folder)
    for _ in range(3):
        packages, broken = models.scan()
        assert ([package.folder.name for package in packages], broken) == (["digits"], [])
    (record,) = caplog.records
    assert "same is not used: it is a copy" in record.getMessage()
    shutil.rmtree(folder / "same")
    models.scan()
    shutil.copytree(folder / "digits", folder / "same")
    models.scan()
    assert len(caplog.records) == 2, "it was right in between"


def test_of_two_different_packages_with_one_version_the_first_counts_and_the_other_is_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_package(folder / "a", seed=1)
    make_package(folder / "b", seed=2)
    assert scan(folder) == ["a"]
    assert "b is not used: it differs" in caplog.text
    assert "digits 1; remove one of them, or give it another version" in caplog.text


def test_a_damaged_twin_that_is_mended_counts_again_though_its_manifest_never_changed(folder: Path) -> None:
    first = make_package(folder / "a", seed=1)
    make_package(folder / "b", seed=2)
    good = first.path("model.onnx").read_bytes()
    models = ModelsFolder(folder)
    spoil(first)
    assert [package.folder.name for package in models.scan()[0]] == ["b"]
    first.path("model.onnx").write_bytes(good)
    assert [package.folder.name for package in models.scan()[0]] == ["a"]


def _nothing(folder: Path) -> None:
    folder.rmdir()


def _a_package(folder: Path) -> None:
    folder.rmdir()
    make_package(folder)


def _triton(folder: Path) -> None:
    (folder / "mymodel/1").mkdir(parents=True)
    (folder / "mymodel/1/model.onnx").write_bytes(b"")


def _one_too_deep(folder: Path) -> None:
    make_package(folder / "digits/1")


def _bare_model(folder: Path) -> None:
    (folder / "digits.onnx").write_bytes(b"")


def _no_manifest(folder: Path) -> None:
    (make_package(folder / "digits").folder / "manifest.json").unlink()
    (folder / "digits/model.onnx").unlink()


@pytest.mark.parametrize(
    ("lay_out", "said"),
    [
        (_nothing, "there is no such folder; make it, or correct the setting"),
        (_a_package, "is a package itself, and is not served"),
        (_triton, "mymodel is no package and is not served.*bare ONNX model.*make a package of it"),
        (_one_too_deep, "there are packages within it: move them up into "),
        (_bare_model, "digits.onnx is no package and is not served.*make a package of it"),
        (_no_manifest, "digits is no package.*complete it with the manifest.json"),
    ],
)
def test_a_folder_laid_out_otherwise_is_named_with_what_was_expected(
    folder: Path, caplog: pytest.LogCaptureFixture, lay_out: Callable[[Path], None], said: str
) -> None:
    lay_out(folder)
    assert scan(folder) == []
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "expected is a folder with one folder per package, each with its manifest.json" in record.getMessage()
    assert re.search(said, record.getMessage())


def test_what_does_no_harm_is_not_spoken_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_package(folder / "digits")
    (folder / ".git").mkdir()
    (folder / "README.md").write_text("ours")
    assert scan(folder) == ["digits"]
    assert caplog.records == []
