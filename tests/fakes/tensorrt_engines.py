"""Engines of the stand-in for TensorRT, built in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_agent.runtime.package import Package
from edge_agent.runtime.tensorrt.bindings import Bindings, import_bindings
from edge_agent.runtime.tensorrt.profiles import Profile, profiles_for

MODULE = "tests.fakes.tensorrt_module"


def fake_bindings() -> Bindings:
    """The stand-in's."""
    return import_bindings(MODULE, "tensorrt")


def build_plan(
    package: Package, plan: Path, *, bindings: Bindings | None = None, profiles: Sequence[Profile] | None = None
) -> Path:
    """Build an engine of a package, refittable, into the file ``plan``."""
    bindings = bindings or fake_bindings()
    manifest = package.manifest
    if profiles is None:
        golden = {name: array.shape for name, array in package.golden().inputs.items()}
        profiles = profiles_for(manifest.signature, manifest.batching, golden)
    trt, lines = bindings.trt, list[str]()
    logger = bindings.new_logger(lambda severity, line: lines.append(f"{severity}: {line}"))
    builder = trt.Builder(logger)
    network = builder.create_network(bindings.network_flags())
    assert trt.OnnxParser(network, logger).parse_from_file(str(package.path(manifest.variants["fp32"].model))), lines
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REFIT)
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for each in profile:
            shapes.set_shape(each.name, each.minimum, each.optimum, each.maximum)
        config.add_optimization_profile(shapes)
    data = builder.build_serialized_network(network, config)
    assert data is not None, lines
    plan.write_bytes(bytes(data))
    return plan
