"""The builder and its worker, a real process, over the stand-in for TensorRT and its faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edge_agent.contract.errors import EngineBuildCancelled, EngineBuildFailed
from edge_agent.runtime.gpu.survey import TensorRtLibrary
from edge_agent.runtime.tensorrt.builder import BuildRequest, EngineBuilder
from edge_agent.runtime.tensorrt.engine_cache import KeptEngine
from edge_agent.runtime.tensorrt.job import Progress
from edge_agent.runtime.tensorrt.worker_process import WorkerLimits
from tests.edge_agent.runtime.tensorrt.onnx_models import (
    IMAGE,
    convolutions,
    golden_file,
    image_profiles,
    images,
    perceptron,
    quantised,
)
from tests.fakes.tensorrt_engines import MODULE

LIBRARY = TensorRtLibrary(module=MODULE, flavour="tensorrt", version=(10, 13, 3, 9))
Fault = Callable[[str, str], None]


@pytest.fixture
def builder(tmp_path: Path) -> EngineBuilder:
    return EngineBuilder(LIBRARY, tmp_path / "builds", conditions="orin", limits=WorkerLimits())


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return lambda name, value: monkeypatch.setenv(f"SHOAL_FAKE_TENSORRT_{name}", value)


def request(model: Path, **settings: object) -> BuildRequest:
    return BuildRequest(**{"model": model, "profiles": image_profiles(), **settings})  # type: ignore[arg-type]


def nothing(_: Progress) -> None: ...


def left(tmp_path: Path) -> list[str]:
    """Unfinished files of builds; timings and what is known of graphs may stay."""
    return [path.name for path in (tmp_path / "builds").glob(".*")]


def test_an_engine_is_built_and_tells_how_far_it_is(builder: EngineBuilder, tmp_path: Path) -> None:
    told: list[Progress] = []

    built = builder.build(request(convolutions(tmp_path / "a.onnx")), told.append, threading.Event())

    assert built.plan.stat().st_size > 1000
    assert built.facts.precision == "fp32"
    assert built.facts.refittable
    assert built.facts.seconds > 0.0
    assert built.facts.peak_bytes > 1 << 20
    percents = [each.percent for each in told]
    assert percents == sorted(percents)
    assert told[0].phase == "reading the model"
    assert 0.0 <= percents[0] < percents[-1] <= 100.0
    assert left(tmp_path) == [built.plan.name]


def test_an_fp16_engine_is_cast_checked_and_says_so(builder: EngineBuilder, tmp_path: Path) -> None:
    model = convolutions(tmp_path / "a.onnx")
    golden = golden_file(tmp_path / "golden.npz", model, {IMAGE: images()})

    built = builder.build(request(model, precision="fp16", golden=golden), nothing, threading.Event())

    assert (built.facts.precision, built.facts.was_cast, built.facts.kept_fp32) == ("fp16", True, ())
    assert built.facts.difference is not None
    assert 0.0 < built.facts.difference < 1e-2


def test_a_quantised_model_gives_an_int8_engine(builder: EngineBuilder, tmp_path: Path) -> None:
    built = builder.build(request(quantised(tmp_path / "a.onnx")), nothing, threading.Event())

    assert built.facts.precision == "int8"


def test_a_second_model_of_the_same_graph_is_refitted(builder: EngineBuilder, tmp_path: Path) -> None:
    old, new = (convolutions(tmp_path / f"{seed}.onnx", seed=seed) for seed in (1, 2))
    built = builder.build(request(old, precision="fp16"), nothing, threading.Event())

    refitted = builder.refit(KeptEngine("a", built.plan, built.facts), new, nothing, threading.Event())

    assert refitted.facts.refitted
    assert refitted.facts.refittable
    assert (refitted.facts.precision, refitted.facts.was_cast) == ("fp16", True)
    assert refitted.plan.read_bytes() != built.plan.read_bytes()


def test_a_model_of_another_graph_is_not_refitted(builder: EngineBuilder, tmp_path: Path) -> None:
    built = builder.build(request(convolutions(tmp_path / "a.onnx")), nothing, threading.Event())
    other = perceptron(tmp_path / "b.onnx")

    with pytest.raises(EngineBuildFailed):
        builder.refit(KeptEngine("a", built.plan, built.facts), other, nothing, threading.Event())
    assert left(tmp_path) == [built.plan.name]


def test_an_engine_of_another_version_is_refused_with_what_tensorrt_says(
    builder: EngineBuilder, tmp_path: Path, fault: Fault
) -> None:
    model = convolutions(tmp_path / "a.onnx")
    built = builder.build(request(model), nothing, threading.Event())
    fault("DESERIALIZE", "none")

    with pytest.raises(EngineBuildFailed, match="refuses the engine; it must be built again on this machine: "):
        builder.refit(KeptEngine("a", built.plan, built.facts), model, nothing, threading.Event())


def test_an_operator_that_tensorrt_does_not_know_is_named_and_final(
    builder: EngineBuilder, tmp_path: Path, fault: Fault
) -> None:
    fault("REFUSED", "GlobalAveragePool")

    with pytest.raises(EngineBuildFailed, match=r"TensorRT does not take the model: .*GlobalAveragePool") as caught:
        builder.build(request(convolutions(tmp_path / "a.onnx")), nothing, threading.Event())
    assert caught.value.is_final
    assert left(tmp_path) == []


def test_a_build_that_gives_nothing_may_be_tried_again(builder: EngineBuilder, tmp_path: Path, fault: Fault) -> None:
    fault("BUILD", "fail")

    with pytest.raises(EngineBuildFailed, match="TensorRT gives no engine") as caught:
        builder.build(request(convolutions(tmp_path / "a.onnx")), nothing, threading.Event())
    assert not caught.value.is_final
    assert left(tmp_path) == []


def test_a_crash_of_tensorrt_is_a_reason_and_not_ours(builder: EngineBuilder, tmp_path: Path, fault: Fault) -> None:
    fault("BUILD", "crash")

    with pytest.raises(EngineBuildFailed, match="the build worker was ended by SIGSEGV"):
        builder.build(request(convolutions(tmp_path / "a.onnx")), nothing, threading.Event())
    assert left(tmp_path) == []


def test_a_module_that_cannot_be_imported_is_a_reason(tmp_path: Path) -> None:
    missing = TensorRtLibrary(module="tensorrt_of_nowhere", flavour="tensorrt", version=(10,))
    builder = EngineBuilder(missing, tmp_path / "builds", limits=WorkerLimits())

    with pytest.raises(EngineBuildFailed, match="tensorrt_of_nowhere cannot be imported"):
        builder.build(request(convolutions(tmp_path / "a.onnx")), nothing, threading.Event())


def test_a_build_that_takes_too_much_memory_is_ended_and_says_which_setting_to_raise(
    tmp_path: Path, fault: Fault
) -> None:
    fault("BUILD_MIB", "700")
    fault("BUILD_S", "60")
    builder = EngineBuilder(LIBRARY, tmp_path / "builds", limits=WorkerLimits(memory_bytes=400 << 20))

    with pytest.raises(EngineBuildFailed, match=r"its limit is 400 MiB; raise accelerator\.build_memory_mib"):
        builder.build(request(convolutions(tmp_path / "a.onnx")), nothing, threading.Event())
    assert left(tmp_path) == []


def test_a_cancelled_build_ends_soon_and_leaves_nothing(builder: EngineBuilder, tmp_path: Path, fault: Fault) -> None:
    fault("BUILD_S", "60")
    cancelled, workers = threading.Event(), list[psutil.Process]()
    others = set(psutil.Process().children())

    def cancel_once_it_builds(progress: Progress) -> None:
        if progress.percent >= 8.0:
            workers.extend(set(psutil.Process().children()) - others)
            cancelled.set()

    begun = time.monotonic()
    with pytest.raises(EngineBuildCancelled):
        builder.build(request(convolutions(tmp_path / "a.onnx")), cancel_once_it_builds, cancelled)

    assert time.monotonic() - begun < 50.0
    assert workers
    assert not any(worker.is_running() for worker in workers)
    assert left(tmp_path) == []


def test_a_build_that_is_cancelled_before_it_begins_starts_no_process(builder: EngineBuilder, tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()

    with pytest.raises(EngineBuildCancelled):
        builder.build(request(convolutions(tmp_path / "a.onnx")), nothing, cancelled)
    assert left(tmp_path) == []


def test_a_worker_that_does_not_listen_is_killed_after_its_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native code that does not come back: nothing of Python runs then, whatever signal comes."""
    marker = tmp_path / "imported"
    (tmp_path / "deaf_tensorrt.py").write_text(
        f"import ctypes\nopen({str(marker)!r}, 'w').close()\nctypes.PyDLL(None).sleep(600)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    deaf = TensorRtLibrary(module="deaf_tensorrt", flavour="tensorrt", version=(10,))
    builder = EngineBuilder(deaf, tmp_path / "builds", limits=WorkerLimits(grace_s=0.3))
    cancelled = threading.Event()

    def cancel_once_it_is_deaf() -> None:
        while not marker.exists():
            time.sleep(0.05)
        cancelled.set()

    thread = threading.Thread(target=cancel_once_it_is_deaf)
    thread.start()
    with pytest.raises(EngineBuildCancelled):
        builder.build(request(convolutions(tmp_path / "a.onnx")), nothing, cancelled)
    thread.join()
    assert left(tmp_path) == []


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 11)", "ctypes.PyDLL(None).sleep(600)"])
def test_an_engine_that_was_written_counts_though_tensorrt_crashes_or_hangs_on_its_way_out(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unsteady_tensorrt.py").write_text(
        f"import atexit, ctypes, os\natexit.register(lambda: {end})\n"
        "from tests.fakes.tensorrt_module import *\nfrom tests.fakes.tensorrt_module import __version__\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    unsteady = TensorRtLibrary(module="unsteady_tensorrt", flavour="tensorrt", version=(10,))
    builder = EngineBuilder(unsteady, tmp_path / "builds", limits=WorkerLimits(grace_s=0.3))

    built = builder.build(request(convolutions(tmp_path / "a.onnx")), nothing, threading.Event())

    assert built.plan.stat().st_size > 1000


def test_what_tensorrt_prints_does_not_disturb_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud_tensorrt.py").write_text(
        "import os\nprint('a banner')\nos.write(1, b'from native code')\n"
        "from tests.fakes.tensorrt_module import *\nfrom tests.fakes.tensorrt_module import __version__\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    loud = TensorRtLibrary(module="loud_tensorrt", flavour="tensorrt", version=(10,))
    builder = EngineBuilder(loud, tmp_path / "builds", limits=WorkerLimits())

    assert builder.build(request(convolutions(tmp_path / "a.onnx")), nothing, threading.Event()).plan.exists()


def test_the_worker_gives_way_to_what_serves(builder: EngineBuilder, tmp_path: Path, fault: Fault) -> None:
    fault("BUILD_S", "2")
    seen: list[tuple[int, int]] = []
    others = set(psutil.Process().children())

    def look(progress: Progress) -> None:
        if progress.percent >= 8.0 and not seen:
            [worker] = set(psutil.Process().children()) - others
            score = int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text())
            seen.append((worker.nice(), score))

    builder.build(request(convolutions(tmp_path / "a.onnx")), look, threading.Event())

    assert seen == [(min(psutil.Process().nice() + 10, 19), 900)]


def test_no_worker_outlives_the_agent(tmp_path: Path) -> None:
    """The parent is killed in the middle of a build; its worker must end with it."""
    code = f"""
        import threading, psutil
        from pathlib import Path
        from edge_agent.runtime.gpu.survey import TensorRtLibrary
        from edge_agent.runtime.tensorrt.builder import BuildRequest, EngineBuilder
        from edge_agent.runtime.tensorrt.profiles import ShapeProfile
        from edge_agent.runtime.tensorrt.worker_process import WorkerLimits

        def tell(progress):
            if progress.percent >= 8.0:
                print(psutil.Process().children()[0].pid, flush=True)

        library = TensorRtLibrary(module={MODULE!r}, flavour="tensorrt", version=(10,))
        builder = EngineBuilder(library, Path({str(tmp_path / "builds")!r}), limits=WorkerLimits())
        shapes = ShapeProfile({IMAGE!r}, *[(1, 3, 32, 32)] * 3)
        model = Path({str(convolutions(tmp_path / "a.onnx"))!r})
        builder.build(BuildRequest(model=model, profiles=((shapes,),)), tell, threading.Event())
    """
    environment = {**os.environ, "SHOAL_FAKE_TENSORRT_BUILD_S": "120", "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, env=environment, text=True
    )
    with parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)

        assert psutil.wait_procs([worker], timeout=30)[1] == []


def test_timings_are_kept_for_the_next_build(builder: EngineBuilder, tmp_path: Path) -> None:
    builder.build(request(convolutions(tmp_path / "a.onnx")), nothing, threading.Event())

    assert (tmp_path / "builds" / "timings-orin").stat().st_size > 32


def test_what_is_known_of_a_graph_is_asked_of_a_worker_once(builder: EngineBuilder, tmp_path: Path) -> None:
    model = convolutions(tmp_path / "a.onnx")
    facts = builder.graph(model, ["a" * 64, "c" * 64], threading.Event())
    model.unlink()

    assert builder.graph(model, ["a" * 64, "c" * 64], threading.Event()) == facts
    assert len(facts.graph) == 64
    assert facts.precision == "fp32"
    with pytest.raises(EngineBuildFailed, match="cannot be read"):
        builder.graph(model, ["a" * 64, "d" * 64], threading.Event())


def test_unfinished_plans_of_a_crash_are_removed(builder: EngineBuilder, tmp_path: Path) -> None:
    (tmp_path / "builds").mkdir()
    for name in (".new-1.plan", ".new-1.plan.part", "graphs.json"):
        (tmp_path / "builds" / name).write_bytes(b"")
    (tmp_path / "builds" / ".job-1").mkdir()

    builder.clean()

    assert [path.name for path in (tmp_path / "builds").iterdir()] == ["graphs.json"]
