"""The tables of docs/device-api.md and docs/operations.md are those of the code: settings, paths, errors, metrics."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from edge_agent.config import (
    AcceleratorSettings,
    AgentConfig,
    ApiSettings,
    AppSettings,
    ReportSettings,
    RuntimeSettings,
)
from edge_agent.contract.errors import CallerError, DeviceError, ShoalError
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.slots import ModelState
from edge_agent.serving import compression
from edge_agent.serving.http import refusals
from edge_agent.serving.json_request import InputParameters, OutputParameters, RequestParameters
from edge_agent.serving.rest import metrics, route, router

_DOCS = Path(__file__).parents[2] / "docs"
API = (_DOCS / "device-api.md").read_text("utf-8")
OPERATIONS = (_DOCS / "operations.md").read_text("utf-8")
# Known so that they can be refused by name.
_SEQUENCES = {"sequence_id", "sequence_start", "sequence_end"}


def in_code(page: str) -> set[str]:
    """The words that stand in code on a page, in a line or in a block."""
    code = re.findall(r"`([^`\n]+)`", page) + re.findall(r"^```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return {word for text in code for word in re.findall(r"[\w-]+", text)}


@pytest.mark.parametrize(
    "settings", [AgentConfig, ApiSettings, AppSettings, ReportSettings, RuntimeSettings, AcceleratorSettings]
)
def test_operations_has_every_setting_with_its_default(settings: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(settings):
        if isinstance(field.default, msgspec.Struct):
            continue  # a table of its own
        row = re.search(rf"^\| [^|]*`(?:\w+\.)*{field.name}`[^|]*\| ([^|]*) \|", OPERATIONS, re.MULTILINE)
        assert row is not None, f"{settings.__name__}.{field.name} has no row on the page"
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"{field.default:g}" in re.findall(r"[\d.]+", row[1]), row[0]
        elif isinstance(field.default, str) and field.default:
            assert f'"{field.default}"' in row[1], row[0]


@pytest.mark.parametrize("settings", [ApiSettings, AppSettings, RuntimeSettings])
def test_the_api_page_names_every_setting_that_concerns_applications(settings: type[msgspec.Struct]) -> None:
    of_operations = {"threads", "threads_per_model"} if settings is RuntimeSettings else set()
    assert {field.name for field in msgspec.structs.fields(settings)} - of_operations <= in_code(API)


def test_the_agents_settings_in_operations_are_settings() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", OPERATIONS.partition("## The agent")[2], re.MULTILINE | re.DOTALL)
    assert msgspec.convert(tomllib.loads(text), AgentConfig).api.apps


def test_the_limits_on_the_page_are_the_defaults() -> None:
    limits = API.partition("## Limits")[2].partition("## Errors")[0]
    settings = ApiSettings()
    for name, default in re.findall(r"^\|[^|]+\| `(\w+)` \| (\d+)", limits, re.MULTILINE):
        assert getattr(settings, name) == int(default), name


def test_every_path_of_the_router_is_on_the_page() -> None:
    assert router.__doc__ is not None
    paths = [path for path in re.findall(r"``(/[^`]*)``", router.__doc__) if "..." not in path]
    assert len(paths) > 10
    shown = API.replace("/v2/cudasharedmemory[/region/R]/...", "/v2/cudasharedmemory[/region/R]/status")
    for path in paths:
        stem, bracket, choices = path.partition("[/ready|")
        assert f"`{stem}`" in shown, path
        for choice in re.findall(r"/(\w+)", f"/ready|{choices}") if bracket else ():
            assert f"`{stem}/{choice}`" in shown, f"{stem}/{choice}"


def test_every_status_of_an_error_is_on_the_page() -> None:
    def all_of(kind: type[ShoalError]) -> set[type[ShoalError]]:
        return {kind}.union(*(all_of(each) for each in kind.__subclasses__()))

    kinds = {kind for kind in all_of(CallerError) | all_of(DeviceError) if kind.__module__.startswith("edge_agent.")}
    for module in (refusals, compression, route):  # whose errors are among them
        assert any(kind.__module__ == module.__name__ for kind in kinds)
    statuses = {kind.http_status for kind in kinds}
    table = API.partition("## Errors")[2].partition("## All paths")[0]
    assert {int(status) for status in re.findall(r"^\| (\d{3}) \|", table, re.MULTILINE)} == statuses


def test_every_series_of_the_metrics_is_on_the_page_and_no_other() -> None:
    source = Path(metrics.__file__).read_text("utf-8")
    written = set(re.findall(r'"((?:shoal|process)_\w+)"', source))
    table = API.partition("## Watching it")[2].partition("## Generated")[0]
    assert set(re.findall(r"`((?:shoal|process)_\w+)`", table)) == written


@pytest.mark.parametrize("parameters", [InputParameters, OutputParameters, RequestParameters])
def test_every_parameter_of_a_request_is_on_the_page(parameters: type[msgspec.Struct]) -> None:
    assert {field.name for field in msgspec.structs.fields(parameters)} - _SEQUENCES <= in_code(API)


def test_datatypes_and_states_are_on_the_page() -> None:
    words = set(re.findall(r"\w+", API))
    assert {datatype.value for datatype in Datatype} | {state.value for state in ModelState} <= words
