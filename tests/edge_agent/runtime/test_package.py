"""Packages on disk: written whole or not at all, and every changed byte is noticed."""

from __future__ import annotations

import ast
import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.contract.errors import DigestMismatch, ManifestError, PackageError
from edge_agent.contract.manifest import GOLDEN_FILE, MANIFEST_FILE, REFERENCE_FILE
from edge_agent.runtime.package import Golden, Package, decode_golden, encode_golden
from edge_agent.runtime.package_writer import write_package
from tests.fakes.packages import INPUT, OUTPUT, make_package


def test_a_written_package_opens_with_the_digest_it_was_written_with(tmp_path: Path) -> None:
    written = make_package(tmp_path / "package")
    opened = Package.open(tmp_path / "package", verify=True)
    assert (opened.digest, opened.manifest) == (written.digest, written.manifest)
    assert opened.path("model.onnx").read_bytes()
    assert opened.reference().margin_threshold > 0


def test_the_same_content_gives_the_same_digest_and_another_seed_another(tmp_path: Path) -> None:
    one, same, other = (make_package(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert one.digest == same.digest != other.digest


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", GOLDEN_FILE, REFERENCE_FILE])
def test_a_flipped_bit_in_any_file_is_a_digest_mismatch(tmp_path: Path, name: str) -> None:
    package = make_package(tmp_path / "package", external_data=True)
    path = package.path(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatch, match=rf"{name}: expected .*: copy the package again"):
        Package.open(package.folder, verify=True)
    assert Package.open(package.folder, verify=False).digest == package.digest


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    package.path("model.onnx").unlink()
    with pytest.raises(PackageError, match=r"model\.onnx: the file is missing"):
        Package.open(package.folder, verify=True)


def test_a_folder_without_a_manifest_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"is .* a model package"):
        Package.open(tmp_path, verify=False)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"nonexist: there is no such folder; a package is a folder with a manifest"):
        Package.open(tmp_path / "nonexist", verify=False)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(PackageError, match="file: is a file; a package is a folder"):
        Package.open(tmp_path / "file", verify=False)


def test_a_manifest_that_was_cut_off_is_named_with_its_folder(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    path = package.folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ManifestError, match=r"package/manifest\.json: .*truncated; damaged .* copy the package again"):
        Package.open(package.folder, verify=False)
    path.write_bytes(b'{"format": 1}')
    with pytest.raises(ManifestError, match=r"package/manifest\.json: ") as caught:
        Package.open(package.folder, verify=False)
    assert "copy the package" not in str(caught.value), "a whole manifest that breaks a rule is no better once copied"


def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(b'{"format": "1.0"}')
    with pytest.raises(ManifestError):
        Package.open(tmp_path, verify=False)


def test_a_file_that_the_manifest_lacks_cannot_be_asked_for(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    with pytest.raises(PackageError, match=r"no file '\.\./secret'"):
        package.path("../secret")


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise ManifestError("no")

    with pytest.raises(ManifestError):
        write_package(tmp_path / "package", files={"a": b"1"}, manifest=refuse)  # type: ignore[arg-type]
    with pytest.raises(PackageError, match="relative path"):
        write_package(tmp_path / "package", files={"../a": b"1"}, manifest=refuse)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_existing_package_is_not_overwritten(tmp_path: Path) -> None:
    before = make_package(tmp_path / "package").digest
    with pytest.raises(PackageError, match="already there"):
        make_package(tmp_path / "package", seed=1)
    assert Package.open(tmp_path / "package", verify=True).digest == before


def test_golden_samples_survive_with_text_and_numbers() -> None:
    text = np.array([[b"a"], [b"\xc3\xa9t\xc3\xa9"]], dtype=object)
    numbers = np.arange(6, dtype=np.int64).reshape(2, 3)
    golden = decode_golden(encode_golden(Golden(inputs={"file": text, "n": numbers}, outputs={"y": numbers})))
    assert golden.inputs["file"].tolist() == text.tolist()
    assert golden.inputs["n"].dtype == np.int64
    np.testing.assert_array_equal(golden.outputs["y"], numbers)


def _one_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def test_golden_samples_are_read_though_another_thread_disturbs_the_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, real, told = encode_golden(Golden({"x": np.ones(2)}, {"y": np.zeros(2)})), ast.literal_eval, list[str]()

    def disturbed(text: str) -> Any:
        if len(told) < 2:
            told.append(text)
            raise SystemError("AST constructor recursion depth mismatch (before=33, after=30)")
        return real(text)

    monkeypatch.setattr(ast, "literal_eval", disturbed)
    assert decode_golden(data).inputs["x"].tolist() == [1, 1]
    assert len(told) == 2


_COMPLEX = encode_golden(Golden(inputs={"x": np.zeros(2, np.complex64)}, outputs={"y": np.zeros(2)}))


@pytest.mark.parametrize("data", [b"", b"PK", b"no zip at all", _one_array(), _COMPLEX])
def test_golden_samples_that_are_no_archive_are_refused(data: bytes) -> None:
    with pytest.raises(PackageError, match=r"golden\.npz"):
        decode_golden(data)


@settings(max_examples=200)
@given(at=st.integers(0, 1000), value=st.integers(1, 255))
def test_damaged_golden_samples_are_refused_or_read_but_never_crash(at: int, value: int) -> None:
    data = bytearray(encode_golden(Golden(inputs={"x": np.arange(50.0)}, outputs={"y": np.arange(50.0)})))
    data[at % len(data)] ^= value
    with contextlib.suppress(PackageError):
        decode_golden(bytes(data))


def test_golden_samples_of_a_package_have_inputs_and_outputs(tmp_path: Path) -> None:
    golden = make_package(tmp_path / "package").golden()
    assert golden.inputs[INPUT].shape == (8, 64)
    assert golden.outputs[OUTPUT].shape == (8, 10)
