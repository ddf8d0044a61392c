"""What a device's machine and a model's runtime look like on the page. Pure."""

from __future__ import annotations

from edge_agent.contract.messages import DeviceMetrics, GpuMetrics, Hardware, ReportedRuntime
from fleet_server.console.badges import Badge, Tone
from fleet_server.console.board_views import BoardView, GpuView, RuntimeView
from fleet_server.monitoring.machines import MachineRecord
from fleet_server.units import gibibytes, joules, minutes, watts


def runtime_view(runtime: ReportedRuntime | None) -> RuntimeView | None:
    """A model's runtime; None from agents that do not tell."""
    if runtime is None:
        return None
    return RuntimeView(
        text=f"{runtime.name} {runtime.precision}",
        why=runtime.reason,
        building=runtime.building,
        percent=runtime.building_percent,
    )


def board_view(machine: MachineRecord | None) -> BoardView:
    """A machine's board."""
    if machine is None:
        return BoardView()
    state, stretch = machine.state, minutes(machine.window_s)
    energy, why = "", ""
    if machine.joules_per_inference is not None:
        energy = joules(machine.joules_per_inference)
        why = f"what the whole board took in {stretch}, divided by its {machine.inferences:,} inferences"
    often = ""
    if machine.throttled_share is not None:
        often = f"in {machine.throttled_share:.0%} of the last {stretch}'s reports" if machine.throttled_share else "no"
    return BoardView(
        power="" if state.power_w is None else watts(state.power_w),
        mode=state.power_mode,
        temperature=_degrees(_hottest(state)),
        energy=energy,
        energy_why=why,
        throttled=_throttled(machine.throttled),
        reasons=machine.throttled,
        throttled_often=often,
    )


def gpu_views(machine: MachineRecord | None) -> tuple[GpuView, ...]:
    """A machine's GPUs."""
    return () if machine is None else tuple(_gpu(gpu) for gpu in machine.state.gpus)


def machine_facts(hardware: Hardware, machine: MachineRecord | None) -> tuple[tuple[str, str], ...]:
    """Names and values of what a machine is and how it fares, those that are known."""
    state = DeviceMetrics() if machine is None else machine.state
    memory = [] if state.memory_available_bytes is None else [f"{gibibytes(state.memory_available_bytes)} free"]
    memory += [f"of {gibibytes(hardware.memory_bytes)}"] if hardware.memory_bytes else []
    facts = (
        ("Machine", f"{hardware.system} {hardware.architecture}, {hardware.accelerator}"),
        ("Runtimes", ", ".join(f"{name} {version}" for name, version in sorted(hardware.runtimes.items()))),
        ("Processors", f"{hardware.cpus}" if hardware.cpus else ""),
        ("CPU busy", "" if state.cpu_percent is None else f"{state.cpu_percent:.0f}\N{NO-BREAK SPACE}%"),
        ("Memory", " ".join(memory)),
        ("Disk", "" if state.disk_free_bytes is None else f"{gibibytes(state.disk_free_bytes)} free"),
        ("Waiting to be sent", f"{state.outbox_messages:,} messages" if state.outbox_messages else ""),
    )
    return tuple((name, value) for name, value in facts if value)


def _gpu(gpu: GpuMetrics) -> GpuView:
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    known = used is not None and total
    return GpuView(
        name=gpu.name,
        busy=None if gpu.busy_percent is None else min(100.0, max(0.0, gpu.busy_percent)),
        memory_percent=min(100.0, 100 * used / total) if known and used is not None and total else None,
        memory=_memory(used, total),
        temperature=_degrees(gpu.temperature_c),
        power="" if gpu.power_w is None else watts(gpu.power_w),
        clock=_clock(gpu),
        throttled=_throttled(gpu.throttled),
        reasons=gpu.throttled,
    )


def _memory(used: int | None, total: int | None) -> str:
    parts = [] if used is None else [gibibytes(used)]
    parts += [f"of {gibibytes(total)}"] if total else []
    return " ".join(parts)


def _clock(gpu: GpuMetrics) -> str:
    if gpu.clock_mhz is None:
        return ""
    most = f" of {gpu.max_clock_mhz:.0f}" if gpu.max_clock_mhz is not None else ""
    return f"{gpu.clock_mhz:.0f}{most} MHz"


def _hottest(state: DeviceMetrics) -> float | None:
    if state.temperature_c is not None:
        return state.temperature_c
    return max((gpu.temperature_c for gpu in state.gpus if gpu.temperature_c is not None), default=None)


def _degrees(celsius: float | None) -> str:
    return "" if celsius is None else f"{celsius:.0f}\N{NO-BREAK SPACE}°C"


def _throttled(reasons: tuple[str, ...]) -> Badge | None:
    if not reasons:
        return None
    return Badge(text="throttled", tone=Tone.WARN, why=f"it runs slower than it could: {', '.join(reasons)}")
