"""What the commands print of a device's machine, and of what its models run on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleet_server.units import gibibytes, joules, minutes, watts

GPU_HEADINGS = ("gpu", "busy", "memory", "temperature", "power", "clock", "throttled")
RUNTIME_HEADINGS = ("model", "runs on", "precision", "getting ready", "why")


def in_short(machine: Mapping[str, Any] | None) -> str | None:
    """A machine in a few words: ``12.4 W, throttled: temperature``; None where its board tells nothing."""
    if machine is None:
        return None
    power_w, reasons = machine["state"]["power_w"], _throttled(machine["state"])
    words = [watts(power_w)] if power_w is not None else []
    words += [f"throttled: {', '.join(reasons)}"] if reasons else []
    return ", ".join(words) or None


def fields(machine: Mapping[str, Any] | None) -> list[tuple[str, object]]:
    """Names and values of what the board tells; nothing of one that does not."""
    if machine is None:
        return []
    state, stretch = machine["state"], minutes(machine["window_s"])
    found: list[tuple[str, object]] = []
    if state["power_w"] is not None or state["power_mode"]:
        power = watts(state["power_w"]) if state["power_w"] is not None else "not measured"
        found.append(("power", power + (f", mode {state['power_mode']}" if state["power_mode"] else "")))
    if machine["joules_per_inference"] is not None:
        each = f"{joules(machine['joules_per_inference'])} of the whole board per inference"
        found.append(("energy", f"{each}, {machine['inferences']:,} in the last {stretch}"))
    elif machine["energy_j"] is not None:
        found.append(
            ("energy", f"{joules(machine['energy_j'])} of the whole board, no inference in the last {stretch}")
        )
    if state["temperature_c"] is not None:
        found.append(("temperature", f"{state['temperature_c']:.0f} °C"))
    if machine["throttled_share"] is not None:
        now = ", ".join(_throttled(state)) or "not now"
        found.append(("throttled", f"{now}; in {machine['throttled_share']:.0%} of the last {stretch}'s reports"))
    return found


def gpu_rows(machine: Mapping[str, Any] | None) -> list[tuple[object, ...]]:
    """A row per GPU, under ``GPU_HEADINGS``."""
    gpus = machine["state"]["gpus"] if machine is not None else []
    return [
        (
            gpu["name"],
            _text(gpu["busy_percent"], "{:.0f}%"),
            _memory(gpu),
            _text(gpu["temperature_c"], "{:.0f} °C"),
            watts(gpu["power_w"]) if gpu["power_w"] is not None else None,
            _clock(gpu),
            ", ".join(gpu["throttled"]) or "no",
        )
        for gpu in gpus
    ]


def runtime_rows(device: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """A row per model that tells what it runs on, under ``RUNTIME_HEADINGS``."""
    return [
        (
            model,
            one["runtime"]["name"],
            one["runtime"]["precision"],
            _building(one["runtime"]),
            one["runtime"]["reason"],
        )
        for model, one in sorted(device["reported"].items())
        if one["runtime"] is not None
    ]


def _building(runtime: Mapping[str, Any]) -> str | None:
    if not runtime["building"]:
        return None
    percent = runtime["building_percent"]
    return str(runtime["building"]) + (f", {percent:.0f}%" if percent is not None else "")


def _throttled(state: Mapping[str, Any]) -> list[str]:
    reasons = [*state["throttled"], *(reason for gpu in state["gpus"] for reason in gpu["throttled"])]
    return list(dict.fromkeys(reasons))


def _memory(gpu: Mapping[str, Any]) -> str | None:
    used, total = gpu["memory_used_bytes"], gpu["memory_total_bytes"]
    if used is None:
        return f"of {gibibytes(total)}" if total is not None else None
    return gibibytes(used) + (f" of {gibibytes(total)}" if total is not None else "")


def _clock(gpu: Mapping[str, Any]) -> str | None:
    now, most = gpu["clock_mhz"], gpu["max_clock_mhz"]
    if now is None:
        return None
    return f"{now:.0f} MHz" if most is None else f"{now:.0f} of {most:.0f} MHz"


def _text(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)
