from __future__ import annotations

import functools
from pathlib import Path

import pytest

from edge_agent.runtime.tensorrt import bindings
from tests.edge_agent.runtime.tensorrt.api_surface import Use, complaints, fits, recordings, uses

SOURCE = Path(bindings.__file__).parent
# In which variables our source holds TensorRT's objects; "*" is every file.
RECEIVERS = {
    "*": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "context": "IExecutionContext",
        "native": "ICudaEngine",
        "network": "INetworkDefinition",
        "parser_refitter": "OnnxParserRefitter",
        "refitter": "Refitter",
        "serialization": "ISerializationConfig",
    },
    "bindings.py": {"engine": "ICudaEngine", "runtime": "Runtime"},
    "build.py": {"parser": "OnnxParser"},
    "network.py": {
        "error": "ParserError",
        "layer": "ILayer",
        "parser": "OnnxParser",
        "profile": "IOptimizationProfile",
        "tensor": "ITensor",
    },
    "timing_cache.py": {"cache": "ITimingCache"},
}
RECORDINGS = recordings()


@functools.cache
def all_uses() -> list[Use]:
    return [
        use
        for file in sorted(SOURCE.glob("*.py"))
        for use in uses(file, {**RECEIVERS["*"], **RECEIVERS.get(file.name, {})})
    ]


def required_uses() -> list[Use]:
    return [use for use in all_uses() if use.name not in bindings.OPTIONAL_NAMES]


def test_the_recordings_are_those_of_the_versions_that_are_claimed() -> None:
    assert set(RECORDINGS) == {
        "10.3.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106", "rtx", "lean", "dispatch",
    }  # fmt: skip


@pytest.mark.parametrize("version", sorted(RECORDINGS))
def test_every_name_and_argument_that_the_source_uses_exists_in(version: str) -> None:
    wrong = [each for use in required_uses() for each in complaints(use, version, RECORDINGS[version])]

    assert wrong == []


def test_names_that_only_some_versions_have_are_used_in_the_bindings_alone_and_are_really_missing_somewhere() -> None:
    for name in bindings.OPTIONAL_NAMES:
        missing = [
            version for version, recording in RECORDINGS.items() if list(complaints(Use("", name), version, recording))
        ]
        assert missing, f"{name} is in every version: it is not optional"
        assert len(missing) < len(RECORDINGS), f"{name} is in no version"
        text = name.rpartition(".")[2]
        users = [file.name for file in SOURCE.glob("*.py") if f".{text}" in file.read_text()]
        assert users == ["bindings.py"], f"{name} is used in {users}"


def test_what_is_looked_up_by_its_name_as_text_exists_in_every_version() -> None:
    for version, recording in RECORDINGS.items():
        assert set(bindings._SEVERITIES) <= set(recording["ILogger"]["class"]), version
        assert set(bindings._NUMPY) <= set(recording["DataType"]["enum"]), version


def test_the_walk_over_the_source_sees_what_there_is() -> None:
    names = {use.name for use in all_uses()}

    assert {
        "Builder", "BuilderFlag.REFIT", "Builder.build_serialized_network", "IBuilderConfig.progress_monitor",
        "ICudaEngine.refittable", "IOptimizationProfile.set_shape", "IProgressMonitor.step_complete", "ILogger.log",
        "INetworkDefinition.num_inputs", "ITimingCache.serialize", "LayerType.QUANTIZE", "OnnxParser.parse_from_file",
        "OnnxParserRefitter.refit_from_file", "Refitter.refit_cuda_engine", "Runtime.deserialize_cuda_engine",
        "SerializationFlag.INCLUDE_REFIT", "IExecutionContext.execute_async_v3", "ICudaEngine.get_tensor_mode",
    } <= names  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("builder.build_engine(network, config)", "no such member"),
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16"),
        ("config.set_timing_cache(cache)", "set_timing_cache(self"),
        ("config.set_timing_cache(cache, ignore=False)", "set_timing_cache(self"),
        ("trt.Builder()", "__init__(self"),
        ("network.num_inputs = 3", "lets nobody set it"),
        ("flags = trt.NetworkDefinitionCreationFlag\nflags.EXPLICIT_BATCH", "EXPLICIT_BATCH"),
        ("class Log(trt.ILogger):\n    def log(self, line):\n        pass", "log(self"),
    ],
)
def test_what_a_version_lacks_is_found(text: str, wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "source.py"
    file.write_text(text)

    found = [each for use in uses(file, RECEIVERS["*"]) for each in complaints(use, "11", RECORDINGS["11.4.0.106"])]

    assert len(found) == 1
    assert wrong in found[0]


def test_arguments_are_held_against_recorded_signatures() -> None:
    signature = "f(self: a.B, first: int, strategy: a.S = <S.STATIC: 0>) -> a.B"

    assert fits(signature, 1, ())
    assert fits(signature, 1, ("strategy",))
    assert fits(signature, 0, ("first",))
    assert not fits(signature, 0, ())
    assert not fits(signature, 3, ())
    assert not fits(signature, 1, ("first",))
    assert fits("f(*args, **kwargs)", 7, ("any",))
    assert not fits("property", 0, ())
