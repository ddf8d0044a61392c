"""The console's templates: escaped everywhere, strict about names that are not there."""

from __future__ import annotations

import json
from urllib.parse import quote, urlencode

import jinja2

from fleet_server.console import formats
from fleet_server.console.accuracy import as_json
from fleet_server.console.approvals import ApprovalView
from fleet_server.console.assets import Assets
from fleet_server.console.run_pages import RunPage, RunsPage
from fleet_server.console.views import Console, DevicePage
from fleet_server.updates import approving

REFRESH_S = 2


def _teach(server: str) -> dict[str, str]:
    """What an empty page teaches: the next command, for this server."""
    return {
        "claim": "shoal devices claim --device camera-1\n"
        f"shoal-agent enrol --server {server} --claim TOKEN --device camera-1\nshoal-agent run",
        "feedback": "POST /v2/models/MODEL/feedback",
        "rollout": "shoal rollouts create MODEL VERSION",
        "worker": f"shoal trainer work --server {server} --token TOKEN --keys KEYS --work FOLDER",
        "run": "shoal runs start MODEL",
        "schedule": 'shoal schedules put nightly --model MODEL --cron "0 3 * * *"\n'
        "shoal schedules put fresh --model MODEL --labels 500",
    }


class Pages:
    """Renders the page and its live part."""

    def __init__(self, assets: Assets) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("fleet_server.console"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.globals.update(asset=assets.url, refresh_s=REFRESH_S)
        names = ("percent", "digest", "rate", "milliseconds", "ago", "utc", "clock", "iso")
        self._environment.filters.update({name: getattr(formats, name) for name in names})

    def page(self, console: Console, *, server: str) -> str:
        """The whole page; ``server`` is the address that the viewer reached us by."""
        return self._render("page.html", console, server)

    def live(self, console: Console, *, server: str) -> str:
        """What changes: the inside of the page's main part."""
        return self._render("live.html", console, server)

    def device(self, one: DevicePage, *, server: str) -> str:
        """The whole page of one device."""
        return self._device("device.html", one, server)

    def device_live(self, one: DevicePage, *, server: str) -> str:
        """What changes of it."""
        return self._device("device_live.html", one, server)

    def runs(self, one: RunsPage, *, server: str, live: bool = False) -> str:
        """The page of schedules and runs, or what changes of it."""
        template = self._environment.get_template("runs_page_live.html" if live else "runs_page.html")
        return template.render(one=one, teach=_teach(server), live_url="/console/runs")

    def run(self, one: RunPage, *, server: str, live: bool = False) -> str:
        """The page of one run, or what changes of it."""
        template = self._environment.get_template("run_page_live.html" if live else "run_page.html")
        live_url = f"/console/runs/{quote(one.run.id, safe='')}"
        return template.render(one=one, teach=_teach(server), live_url=live_url)

    def reference(self) -> str:
        """The page of the REST API, which reads ``/api/v1/openapi.json``."""
        return self._environment.get_template("reference.html").render()

    def _device(self, template: str, one: DevicePage, server: str) -> str:
        live_url = f"/console/devices/{quote(one.device, safe='')}"
        return self._environment.get_template(template).render(one=one, teach=_teach(server), live_url=live_url)

    def _render(self, template: str, console: Console, server: str) -> str:
        def page_url(**changed: str) -> str:
            return "/" + _query({"model": console.model, "span": console.span} | changed)

        def approve_commands(one: ApprovalView) -> list[str]:
            return approving.commands(one.model, one.version, one.missing, one.unsigned, server=server)

        def reject_command(one: ApprovalView) -> str:
            return approving.reject_command(one.model, one.version, server=server)

        return self._environment.get_template(template).render(
            console=console,
            reject_command=reject_command,
            approve_commands=approve_commands,
            teach=_teach(server),
            chart_json=json.dumps(as_json(console.chart), separators=(",", ":")),
            page_url=page_url,
            live_url="/console/live" + _query({"model": console.model, "span": console.span}),
        )


def _query(values: dict[str, str]) -> str:
    given = {name: value for name, value in values.items() if value and value != "auto"}
    return "?" + urlencode(given) if given else ""
