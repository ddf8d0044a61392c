from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.constraint import Constraint
from edge_agent.contract.errors import ManifestError, PackageError
from edge_agent.contract.manifest import (
    Classification,
    FileEntry,
    Manifest,
    decode_manifest,
    digest_of,
    encode_manifest,
)
from edge_agent.contract.repository import parse_target, target_name
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from tests.edge_agent.contract.golden_files import MANIFEST, remade
from tests.edge_agent.contract.strategies import fast, texts

ENTRY = FileEntry(sha256="a1" * 32, size_bytes=1)


def changed(**changes: Any) -> Manifest:
    return remade(MANIFEST, **changes)


def with_path(path: str) -> Manifest:
    return changed(files={**MANIFEST.files, path: ENTRY})


def as_json(**changes: Any) -> bytes:
    return msgspec.json.encode({**msgspec.to_builtins(MANIFEST), **changes})


@pytest.mark.parametrize(
    "path",
    [
        "", ".", "..", "/etc/passwd", "../x", "a/../x", "a/..", "./a", "a/./b", "a//b", "a/", "/", "a\\b", "a\x00b",
        "a\n", "ä", "a b", "manifest.json", "manifest.json/x", "model.onnx/x", "int8", "x" * 256, "/".join("x" * 300),
    ],
)  # fmt: skip
def test_a_path_that_leaves_the_package_or_cannot_be_laid_out_is_refused(path: str) -> None:
    with pytest.raises(ManifestError, match=r"^file "):
        with_path(path)


@pytest.mark.parametrize(
    "path", ["a", "a/b/c.onnx", "model.onnx.data.0", ".hidden", "A-Z_0+1=2@3", "model.onnx2", "..a"]
)
def test_ordinary_paths_are_allowed(path: str) -> None:
    assert path in with_path(path).files


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "Digits"}, "model 'Digits'"),
        ({"name": "a/b"}, "model 'a/b'"),
        ({"name": "x" * 64}, "use 1 to 63"),
        ({"version": ""}, "version ''"),
        ({"version": "../1"}, "version '../1'"),
        ({"version": ".."}, "version '..'"),
        ({"version": "1\n"}, "version '1\\n'"),
        ({"parent": "latest"}, "parent: 'latest' is no SHA-256"),
        ({"parent": "A1" * 32}, "is no SHA-256"),
        ({"files": {**MANIFEST.files, "a": FileEntry(sha256="a1", size_bytes=1)}}, "a: 'a1' is no SHA-256"),
        ({"files": {**MANIFEST.files, "a": FileEntry(sha256="a1" * 32, size_bytes=-1)}}, "size_bytes -1 is negative"),
        ({"variants": {}}, "'fp32' is missing"),
        ({"variants": {**MANIFEST.variants, "Int 8": MANIFEST.variants["fp32"]}}, "variant 'Int 8'"),
        ({"files": {"model.onnx": ENTRY}}, "variant 'fp32' names 'model.onnx.data', which is not among the files"),
        ({"task": Classification(output="scores", labels=("a",))}, "output 'scores' is not in the signature"),
        ({"task": Classification(output="probabilities", labels=("a",))}, "1 labels for a last axis of 2"),
        ({"task": Classification(output="probabilities", labels=("a", "a"))}, "none twice"),
        ({"task": Classification(output="probabilities", labels=())}, "at least one label"),
        ({"task": Classification(output="probabilities", labels=("nö", "ja"))}, "differ from those of output"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused_when_it_is_made_and_when_it_is_read(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ManifestError) as refused:
        changed(**changes)
    assert says in str(refused.value)
    with pytest.raises(ManifestError, match=r"^manifest\.json: ") as read:
        decode_manifest(as_json(**{name: msgspec.to_builtins(value) for name, value in changes.items()}))
    assert says in str(read.value) or "`int` >= 0" in str(read.value)


@pytest.mark.parametrize(("datatype", "shape"), [(Datatype.INT64, (None, 2)), (Datatype.FP32, (2,))])
def test_probabilities_are_floats_per_row_and_class(datatype: Datatype, shape: tuple[int | None, ...]) -> None:
    output = TensorSpec(name="probabilities", datatype=datatype, shape=shape)
    with pytest.raises(ManifestError, match=r"probabilities are floats of shape \[N, classes\]"):
        changed(signature=remade(MANIFEST.signature, outputs=(output,)))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `format`"),
        (b'{"format": 1}', "Expected `str`, got `int`"),
        (b'{"format": "\xff"}', "utf-8"),
        (as_json() + b"x", "malformed"),
        (as_json(extra=1)[:-1], "truncated"),
        (b'{"x": ' + b"[" * 100_000, "recursion"),
        (as_json(format="2.0"), "format '2.0' is not known here; this code reads 1.x: update the agent"),
        (as_json(format=""), "format '' is not known here"),
        (as_json(lineage={}), "`$.lineage`"),
        (as_json(task={"kind": "regression"}), "Invalid value 'regression' - at `$.task.kind`"),
        (as_json(probation={"seconds": -1}), "at `$.probation.seconds`"),
        (as_json(sampling={"uniform_share": 1.5}), "at `$.sampling.uniform_share`"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said(data: bytes, says: str) -> None:
    with pytest.raises(ManifestError, match=r"^manifest\.json: ") as refused:
        decode_manifest(data)
    assert says in str(refused.value)
    assert isinstance(refused.value, PackageError)


def test_a_rule_of_the_signature_is_a_manifest_error_with_the_tensor_s_name() -> None:
    signature = msgspec.to_builtins(MANIFEST.signature)
    signature["inputs"][0]["constraint"]["minimum"] = 2
    with pytest.raises(ManifestError, match=r"^manifest\.json: image: minimum 2\.0 is above maximum 1\.0$"):
        decode_manifest(as_json(signature=signature))


def test_members_that_we_do_not_know_are_ignored_in_the_same_major_format() -> None:
    assert decode_manifest(as_json(format="1.7", energy={"j": 3})) == changed(format="1.7")


def test_equal_manifests_have_one_digest_whatever_the_order_and_however_numbers_were_given() -> None:
    def build(minimum: float, files: list[str]) -> Manifest:
        limits = Constraint(minimum=minimum, maximum=1.0, allowed=(minimum, 1))
        image = TensorSpec(name="image", datatype=Datatype.FP32, shape=(None, 1), constraint=limits)
        signature = Signature(inputs=(image,), outputs=MANIFEST.signature.outputs)
        return changed(signature=signature, files={name: MANIFEST.files[name] for name in files})

    a, b = build(0, sorted(MANIFEST.files)), build(0.0, sorted(MANIFEST.files, reverse=True))
    assert a == b
    assert digest_of(encode_manifest(a)) == digest_of(encode_manifest(b))
    assert encode_manifest(decode_manifest(encode_manifest(a))) == encode_manifest(a)


def test_a_manifest_that_could_not_be_read_back_is_not_written() -> None:
    with pytest.raises(ManifestError, match=r"`\$\.probation\.max_error_rate`"):
        encode_manifest(changed(probation=remade(MANIFEST.probation, max_error_rate=2.0)))


def test_size_is_that_of_all_files() -> None:
    assert MANIFEST.size_bytes == 4_096 + 1_048_576 + 262_144


@fast
@given(texts, st.integers(0, 2**40))
def test_a_manifest_comes_back_as_it_was(word: str, size: int) -> None:
    manifest = changed(
        slices=(word,),
        lineage=remade(MANIFEST.lineage, run=word),
        files={**MANIFEST.files, "a": remade(ENTRY, size_bytes=size)},
    )
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_a_target_is_named_after_model_and_version() -> None:
    assert parse_target(target_name("digits", "1.2-rc")) == ("digits", "1.2-rc")
    for wrong in (
        "digits/1",
        "digits/1/model.onnx",
        "digits/../manifest.json",
        "/1/manifest.json",
        "a/b/c/manifest.json",
    ):
        with pytest.raises(ManifestError):
            parse_target(wrong)
