"""Tests the saved W&B view without a server, and its error for a missing package."""

import builtins
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from wandb.errors import CommError

from lgclip.reporting.wandb import workspace
from lgclip.reporting.wandb.tables import CELL
from lgclip.reporting.wandb.workspace import charts, make_dashboard

pytest_plugins = ("wandb_fixtures",)
pytestmark = pytest.mark.usefixtures("no_account")


def written(path: Path, *axes: str, group: str | None = "grid") -> dict[str, Any]:
    """Returns the content of a dry run."""
    message = make_dashboard("team", "lgclip", group, path, axes or workspace.AXES)
    assert message == f"{path}: 2 charts and the view; nothing was sent"
    return json.loads(path.read_text())


def panels(content: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Returns the settings of the panels of a kind."""
    sections = content["view"]["spec"]["section"]["panelBankConfig"]["sections"]
    return [panel["config"] for section in sections for panel in section["panels"] if panel["viewType"] == kind]


def test_view_filters_one_sweep(tmp_path: Path) -> None:
    view = written(tmp_path / "view.json")["view"]
    assert (view["entity"], view["project"], view["displayName"]) == ("team", "lgclip", "lgclip grid")
    (runs,) = view["spec"]["section"]["runSets"]
    filters = [(f["key"]["name"], f["op"], f["value"]) for f in runs["filters"]["filters"]]
    assert filters == [("jobType", "=", "evaluate"), ("group", "=", "grid")]
    assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": "top1"}, "ascending": False}]
    assert "summary:clip_text/top1" in runs["runFeed"]["columnOrder"]


def test_view_without_sweep_shows_all_runs(tmp_path: Path) -> None:
    (runs,) = written(tmp_path / "view.json", group=None)["view"]["spec"]["section"]["runSets"]
    assert [f["key"]["name"] for f in runs["filters"]["filters"]] == ["jobType"]


def test_grid_uses_logged_tables(tmp_path: Path) -> None:
    content = written(tmp_path / "view.json", "llm.temperature", "scales", "seed")
    grid, lines = panels(content, "Vega2")
    assert [grid["panelDefId"], lines["panelDefId"]] == [f"team/{name}" for name in content["charts"]]
    for panel in (grid, lines):
        (query,) = [f for f in panel["userQuery"]["queryFields"][0]["fields"] if f["name"] == "summaryTable"]
        assert query["args"] == [{"name": "tableKey", "value": CELL}]
        assert panel["fieldSettings"] == {
            "x": "llm_temperature", "y": "scales", "top1": "top1", "low": "top1_low", "high": "top1_high",
        }  # fmt: skip
        assert panel["stringSettings"] == {"x": "llm.temperature", "y": "scales"}


def test_chart_fields_are_provided_by_panels(tmp_path: Path) -> None:
    panel = panels(written(tmp_path / "view.json"), "Vega2")[0]
    for chart in charts().values():
        text = json.dumps(chart)
        assert set(re.findall(r"\$\{field:(\w+)\}", text)) <= panel["fieldSettings"].keys()
        assert set(re.findall(r"\$\{string:(\w+)\}", text)) <= panel["stringSettings"].keys()


def test_group_and_value_keys_are_resolved(tmp_path: Path) -> None:
    content = written(tmp_path / "view.json", "prompts_per_class", "scales", "llm.temperature")
    (coordinates,) = panels(content, "Parallel Coordinates Plot")
    assert [column["accessor"] for column in coordinates["columns"]] == [
        "config:prompts_per_class.value", "config:choices.value.scales", "config:llm.value.temperature",
        "summary:top1", "summary:mean_per_class",
    ]  # fmt: skip
    (bars,) = panels(content, "Bar Chart")
    assert bars["groupBy"] == "choices.value.scales"


def test_view_has_class_and_image_tables(tmp_path: Path) -> None:
    text = json.dumps(panels(written(tmp_path / "view.json"), "Weave"))
    assert all(f'"val": "{name}"' in text for name in ("per_class", "misclassified", "prototypes"))


def test_changed_chart_has_a_new_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(charts())
    monkeypatch.setattr(workspace, "_VEGA", "https://example.org/other.json")
    assert not before & set(charts())


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(), ("scales",), ("scales", "scales")])
def test_invalid_axes_are_one_line(axes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="name two or more swept keys, each once"):
        make_dashboard(None, "lgclip", "grid", None, axes)


def test_missing_account_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"set WANDB_API_KEY or run `wandb login`; --dry-run FILE") as raised:
        make_dashboard(None, "lgclip", "grid")
    assert "\n" not in str(raised.value)


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("wandb_workspaces"):
            raise ModuleNotFoundError("No module named 'wandb_workspaces'", name="wandb_workspaces")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"wandb_workspaces is missing: pip install 'lgclip\[dashboard\]'"):
        make_dashboard(None, "lgclip", "grid", tmp_path / "view.json")
    assert list(tmp_path.glob("*.json")) == []


class Service:
    """Mimics W&B's service: accepts new charts, rejects existing ones."""

    def __init__(self, entity: str | None = "me", refusal: str = "") -> None:
        self.default_entity = entity
        self.refusal = refusal
        self.charts: dict[str, Any] = {}

    def create_custom_chart(self, *, entity: str, name: str, spec: dict[str, Any], **rest: str) -> str:
        if self.refusal:
            raise CommError(self.refusal)
        self.charts[f"{entity}/{name}"] = spec
        return f"{entity}/{name}"


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Sets an account and returns the saved views."""
    from wandb_workspaces.workspaces import Workspace

    views: list[Any] = []

    def save(view: Any) -> Any:
        views.append(view)
        return SimpleNamespace(url=f"https://example.org/{view.entity}/{view.project}")

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(Workspace, "save", save)
    return views


def test_view_is_saved_under_the_account(saved: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setattr(wandb, "Api", lambda: service)
    assert make_dashboard(None, "lgclip", "grid") == "https://example.org/me/lgclip"
    assert service.charts == {f"me/{name}": spec for name, spec in charts().items()}
    assert [view.name for view in saved] == ["lgclip grid"]


def test_existing_charts_are_accepted(saved: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "Api", lambda: Service(refusal="a chart of this name already exists"))
    make_dashboard("team", "lgclip", None)
    assert len(saved) == 1


def test_service_error_is_one_line(saved: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "Api", lambda: Service(refusal="permission denied"))
    with pytest.raises(ValueError, match="Weights & Biases refused team/lgclip: permission denied"):
        make_dashboard("team", "lgclip", None)
    assert saved == []


def test_account_without_entity_is_one_line(saved: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "Api", lambda: Service(entity=None))
    with pytest.raises(ValueError, match="--entity NAME"):
        make_dashboard(None, "lgclip", None)
    assert saved == []
