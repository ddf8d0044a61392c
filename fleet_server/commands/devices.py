"""``shoal devices``."""

from __future__ import annotations

from typing import Any

import click

from fleet_server.commands import machines
from fleet_server.commands.rest import Rest, connects, part
from fleet_server.commands.tables import ago, as_json, show_fields, show_json, show_table, when


@click.group("devices")
def devices_group() -> None:
    """See the fleet's devices, let new ones in, shut others out.

    \b
    A new device:
      shoal devices claim --device press-7       here; prints a one-time token
      shoal-agent enrol --claim TOKEN ...        there
    """  # noqa: D301  click wants the \b itself


@devices_group.command("list")
@as_json
@connects
def list_devices(rest: Rest, *, json_: bool) -> None:
    """List all devices: connected or not, what they serve and on what, what they are asked to, their power."""
    found = rest.get("devices")
    if json_:
        show_json(found)
        return
    boards = {one["device"]: one for one in rest.get("machines")}
    rows = [
        (
            one["name"],
            _status(one),
            ago(one["last_seen_ms"]),
            machines.in_short(boards.get(one["name"])) if one["online"] else None,  # else it would be an old one
            _models(one),
        )
        for one in found
    ]
    headings = ("device", "status", "seen", "board", "models")
    show_table(headings, rows, empty="no device has enrolled: shoal devices claim")


@devices_group.command("show")
@click.argument("device")
@as_json
@connects
def show_device(rest: Rest, device: str, *, json_: bool) -> None:
    """Show one device: its machine, its models and what they run on, its latest events."""
    one = rest.get(f"devices/{part(device)}")
    events = rest.get(f"devices/{part(device)}/events", limit=10)
    machine = next(iter(rest.get("machines", device=one["name"])), None)
    if json_:
        show_json({**one, "machine": machine, "events": events})
        return
    _show_fields(one, machine)
    if gpus := machines.gpu_rows(machine):
        click.echo()
        show_table(machines.GPU_HEADINGS, gpus, empty="")
    click.echo()
    rows = [_model_row(one, model) for model in sorted({*one["desired"], *one["reported"]})]
    show_table(("model", "serves", "asked for", "step", "reason"), rows, empty="no models")
    if runtimes := machines.runtime_rows(one):
        click.echo()
        show_table(machines.RUNTIME_HEADINGS, runtimes, empty="")
    click.echo()
    versions = _versions(rest) if any(event["package"] for event in events) else {}
    rows = [_event_row(event, versions) for event in events]
    show_table(("when", "event", "model", "detail", "reason"), rows, empty="no events")


def _show_fields(one: dict[str, Any], machine: dict[str, Any] | None) -> None:
    hardware = one["hardware"]
    behind = one["desired_revision"] - one["reported_revision"]
    show_fields(
        [
            ("device", one["name"]),
            ("status", f"{_status(one)}, seen {ago(one['last_seen_ms'])}"),
            ("enrolled", when(one["enrolled_at_ms"])),
            ("hardware", f"{hardware['system']} {hardware['architecture']}, {hardware.get('accelerator', 'cpu')}"),
            ("agent", one["agent_version"]),
            ("local API", one["api"]),
            ("twin", "acted on" if behind <= 0 else f"{behind} changes behind"),
            *machines.fields(machine),
        ]
    )


def _event_row(event: dict[str, Any], versions: dict[str, str]) -> tuple[object, ...]:
    return (
        when(event["received_at_ms"]),
        event["kind"],
        _package(event, versions),
        _detail(event),
        event["reason"] or None,
    )


@devices_group.command("claim")
@click.option("--device", help="Only a device of this name may use the token; needed to enrol an old name anew.")
@click.option("--ttl", "ttl_s", type=click.FloatRange(min=1), default=3600.0, show_default=True, help="Seconds.")
@as_json
@connects
def claim_device(rest: Rest, device: str | None, ttl_s: float, *, json_: bool) -> None:
    """Print a one-time token with which a device enrols."""
    created = rest.post("claims", {"device": device, "ttl_s": ttl_s})
    show_json(created) if json_ else click.echo(created["claim"])


@devices_group.command("revoke")
@click.argument("device")
@connects
def revoke_device(rest: Rest, device: str) -> None:
    """Ignore a device from now on, for instance a stolen one."""
    rest.post(f"devices/{part(device)}/revoke")
    click.echo(f"{device} is revoked; `shoal devices claim --device {device}` lets it come back")


def _status(one: dict[str, Any]) -> str:
    if one["revoked"]:
        return "revoked"
    if one["online"]:
        return "online"
    return "offline" if one["last_seen_ms"] is not None else "enrolled"  # never connected: as the console says


def _versions(rest: Rest) -> dict[str, str]:
    return {version["digest"]: version["version"] for model in rest.get("models") for version in model["versions"]}


def _package(event: dict[str, Any], versions: dict[str, str]) -> str | None:
    digest = event["package"]
    return f"{event['model']} {versions.get(digest, digest[:12])}".strip() or None


def _detail(event: dict[str, Any]) -> str | None:
    """The step first, alone; the rest by name."""
    named = [f"{name} {value}" for name, value in event["detail"].items() if name != "step"]
    return ", ".join([*([str(event["detail"]["step"])] if "step" in event["detail"] else []), *named]) or None


def _models(one: dict[str, Any]) -> str:
    parts = []
    for model in sorted({*one["desired"], *one["reported"]}):
        wanted, actual = one["desired"].get(model), one["reported"].get(model)
        text = f"{model} {actual['version'] or 'none' if actual else 'none'}"
        if actual is not None and actual["runtime"] is not None:
            text += f" on {actual['runtime']['name']} {actual['runtime']['precision']}"
        if wanted is not None and (actual is None or actual["package"] != wanted["package"]):
            text += f" -> {wanted['version']}" + (f" ({actual['step']})" if actual is not None else "")
        parts.append(text)
    return ", ".join(parts) or "-"


def _model_row(one: dict[str, Any], model: str) -> tuple[object, ...]:
    wanted, actual = one["desired"].get(model), one["reported"].get(model)
    return (
        model,
        actual["version"] if actual else None,
        wanted["version"] if wanted else None,
        actual["step"] if actual else None,
        actual["reason"] if actual else None,
    )
