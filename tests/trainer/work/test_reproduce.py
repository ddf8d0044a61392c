from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edge_agent.contract.manifest import Lineage, decode_manifest, encode_manifest
from edge_agent.runtime.package import Package
from trainer.cli import trainer


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(trainer, ["reproduce", *arguments], env={"SHOAL_SERVER": "", "SHOAL_TOKEN": ""})
    return done.exit_code, done.output


def with_lineage(package: Package, folder: Path, **changes: object) -> Path:
    """The package as if it had been made of something else."""
    shutil.copytree(package.folder, folder)
    path = folder / "manifest.json"
    manifest = decode_manifest(path.read_bytes())
    lineage: Lineage = msgspec.structs.replace(manifest.lineage, **changes)
    path.write_bytes(encode_manifest(msgspec.structs.replace(manifest, lineage=lineage)))
    return folder


def test_training_again_proves_every_byte_and_a_changed_comment_is_said(
    champion: Package, base_lake: Path, recipes: Path, tmp_path: Path
) -> None:
    shutil.copytree(recipes, tmp_path / "recipes")
    code = tmp_path / "recipes" / "digits" / "model.py"
    code.write_text(code.read_text() + "\n# A remark.\n")
    status, output = run(str(champion.folder), "--lake", str(base_lake), "--recipes", str(tmp_path / "recipes"))
    assert status == 0, output
    assert "equal   model.onnx.data" in output
    if "int8" in champion.manifest.variants:
        assert "equal   int8/model.onnx" in output
    assert "changed since: the recipe's code: " in output
    assert f"proved: digits 1, package {champion.digest}, follows from its lineage, byte for byte" in output


def test_other_bytes_end_with_what_differs_and_an_exit_status_of_their_own(
    champion: Package, base_lake: Path, recipes: Path, tmp_path: Path
) -> None:
    other = with_lineage(champion, tmp_path / "other", seed=2, lock_sha256="0" * 64)
    status, output = run(str(other), "--lake", str(base_lake), "--recipes", str(recipes))
    assert status == 8, output
    assert "DIFFERS model.onnx.data" in output
    assert "features.0.weight: 216 of 216 values differ, by at most 0." in output
    assert "training again gave other bytes; what has changed since: the libraries: " in output


def test_a_single_weight_that_is_another_is_found_and_named(
    champion: Package, base_lake: Path, recipes: Path, tmp_path: Path
) -> None:
    shutil.copytree(champion.folder, tmp_path / "other")
    name = "model.onnx.data"
    data = bytearray((tmp_path / "other" / name).read_bytes())
    data[0] ^= 1  # the last bit of the first weight
    (tmp_path / "other" / name).write_bytes(data)
    status, output = run(str(tmp_path / "other"), "--lake", str(base_lake), "--recipes", str(recipes))
    assert status not in {0, 8}, "bytes that are not those of the manifest are no package"
    assert "fit" not in output
    manifest = decode_manifest((tmp_path / "other" / "manifest.json").read_bytes())
    entry = msgspec.structs.replace(manifest.files[name], sha256=hashlib.sha256(data).hexdigest())
    signed = msgspec.structs.replace(manifest, files=manifest.files | {name: entry})
    (tmp_path / "other" / "manifest.json").write_bytes(encode_manifest(signed))
    status, output = run(str(tmp_path / "other"), "--lake", str(base_lake), "--recipes", str(recipes))
    assert status == 8, output
    assert "equal   model.onnx " in output
    assert "DIFFERS model.onnx.data" in output
    assert ": 1 of " in output


def test_a_version_that_the_lake_has_no_more_is_said_before_anything_is_trained(
    champion: Package, base_lake: Path, recipes: Path, tmp_path: Path
) -> None:
    later = with_lineage(champion, tmp_path / "later", samples_version=77)
    status, output = run(str(later), "--lake", str(base_lake), "--recipes", str(recipes))
    assert status != 0
    assert "77" in output.splitlines()[-1]
    assert "fit" not in output


@pytest.mark.parametrize("name", ["digits", "digits@3"])
def test_a_models_name_needs_a_server(name: str, base_lake: Path) -> None:
    status, output = run(name, "--lake", str(base_lake))
    assert status == 2
    assert "no such folder; to take a model of that name from a fleet server give --server and --token" in output


def test_the_package_that_it_was_trained_from_is_asked_for(
    champion: Package, base_lake: Path, recipes: Path, tmp_path: Path
) -> None:
    folder = with_lineage(champion, tmp_path / "later")
    path = folder / "manifest.json"
    path.write_bytes(encode_manifest(msgspec.structs.replace(decode_manifest(path.read_bytes()), parent="a" * 64)))
    status, output = run(str(folder), "--lake", str(base_lake), "--recipes", str(recipes))
    assert status == 2
    assert "it was trained from package aaaaaaaaaaaa: give its folder with --champion" in output
    status, output = run(str(folder), "--lake", str(base_lake), "--champion", str(champion.folder))
    assert status == 2
    assert "the model was trained from package aaaaaaaaaaaa" in output
