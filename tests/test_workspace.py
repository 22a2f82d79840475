"""The saved view in W&B: its content, without a server, and what it needs in one line."""

import builtins
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from wandb.errors import CommError

from lgclip import workspace
from lgclip.wandb_tables import CELL
from lgclip.workspace import charts, make_dashboard

pytest_plugins = ("wandb_fixtures",)
pytestmark = pytest.mark.usefixtures("no_account")


def written(path: Path, *axes: str, group: str | None = "grid") -> dict[str, Any]:
    """A dry run's content."""
    said = make_dashboard("team", "lgclip", group, path, axes or workspace.AXES)
    assert said == f"{path}: 2 charts and the view; nothing was sent"
    return json.loads(path.read_text())


def panels(content: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The settings of the panels of a kind."""
    sections = content["view"]["spec"]["section"]["panelBankConfig"]["sections"]
    return [panel["config"] for section in sections for panel in section["panels"] if panel["viewType"] == kind]


def test_the_view_shows_the_runs_of_one_sweep(tmp_path: Path) -> None:
    view = written(tmp_path / "view.json")["view"]
    assert (view["entity"], view["project"], view["displayName"]) == ("team", "lgclip", "lgclip grid")
    (runs,) = view["spec"]["section"]["runSets"]
    asked = [(f["key"]["name"], f["op"], f["value"]) for f in runs["filters"]["filters"]]
    assert asked == [("jobType", "=", "evaluate"), ("group", "=", "grid")]
    assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": "top1"}, "ascending": False}]
    assert "summary:clip_text/top1" in runs["runFeed"]["columnOrder"]


def test_without_a_sweep_it_shows_all_runs(tmp_path: Path) -> None:
    (runs,) = written(tmp_path / "view.json", group=None)["view"]["spec"]["section"]["runSets"]
    assert [f["key"]["name"] for f in runs["filters"]["filters"]] == ["jobType"]


def test_the_grid_is_drawn_over_the_tables_that_runs_log(tmp_path: Path) -> None:
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


def test_a_chart_asks_for_no_field_that_a_panel_does_not_give(tmp_path: Path) -> None:
    panel = panels(written(tmp_path / "view.json"), "Vega2")[0]
    for chart in charts().values():
        text = json.dumps(chart)
        assert set(re.findall(r"\$\{field:(\w+)\}", text)) <= panel["fieldSettings"].keys()
        assert set(re.findall(r"\$\{string:(\w+)\}", text)) <= panel["stringSettings"].keys()


def test_a_group_is_looked_up_by_its_choice_and_a_value_by_its_key(tmp_path: Path) -> None:
    content = written(tmp_path / "view.json", "prompts_per_class", "scales", "llm.temperature")
    (coordinates,) = panels(content, "Parallel Coordinates Plot")
    assert [column["accessor"] for column in coordinates["columns"]] == [
        "config:prompts_per_class.value", "config:choices.value.scales", "config:llm.value.temperature",
        "summary:top1", "summary:mean_per_class",
    ]  # fmt: skip
    (bars,) = panels(content, "Bar Chart")
    assert bars["groupBy"] == "choices.value.scales"


def test_tables_of_classes_and_pictures_are_there(tmp_path: Path) -> None:
    text = json.dumps(panels(written(tmp_path / "view.json"), "Weave"))
    assert all(f'"val": "{name}"' in text for name in ("per_class", "misjudged", "prototypes"))


def test_a_chart_that_changes_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(charts())
    monkeypatch.setattr(workspace, "_VEGA", "https://example.org/other.json")
    assert not before & set(charts())


@pytest.mark.parametrize("axes", [(), ("scales",), ("scales", "scales")])
def test_axes_that_make_no_grid_are_one_line(axes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="name two or more swept keys, each once"):
        make_dashboard(None, "lgclip", "grid", None, axes)


def test_no_account_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"set WANDB_API_KEY or run `wandb login`; --dry-run FILE") as raised:
        make_dashboard(None, "lgclip", "grid")
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    """W&B's service: takes charts, refuses those that it has."""

    def __init__(self, entity: str | None = "me", refusal: str = "") -> None:
        self.default_entity, self.refusal = entity, refusal
        self.charts: dict[str, Any] = {}

    def create_custom_chart(self, *, entity: str, name: str, spec: dict[str, Any], **rest: str) -> str:
        if self.refusal:
            raise CommError(self.refusal)
        self.charts[f"{entity}/{name}"] = spec
        return f"{entity}/{name}"


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An account, and the views that are saved."""
    from wandb_workspaces.workspaces import Workspace

    views: list[Any] = []

    def save(view: Any) -> Any:
        views.append(view)
        return SimpleNamespace(url=f"https://example.org/{view.entity}/{view.project}")

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(Workspace, "save", save)
    return views


def test_charts_and_view_are_saved_under_the_accounts_own_name(
    saved: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service()
    monkeypatch.setattr(wandb, "Api", lambda: service)
    assert make_dashboard(None, "lgclip", "grid") == "https://example.org/me/lgclip"
    assert service.charts == {f"me/{name}": spec for name, spec in charts().items()}
    assert [view.name for view in saved] == ["lgclip grid"]


def test_charts_that_are_there_already_do_no_harm(saved: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "Api", lambda: Service(refusal="a chart of this name already exists"))
    make_dashboard("team", "lgclip", None)
    assert len(saved) == 1


def test_a_refusal_is_one_line(saved: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "Api", lambda: Service(refusal="permission denied"))
    with pytest.raises(ValueError, match="Weights & Biases refused team/lgclip: permission denied"):
        make_dashboard("team", "lgclip", None)
    assert saved == []


def test_an_account_without_an_entity_is_one_line(saved: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "Api", lambda: Service(entity=None))
    with pytest.raises(ValueError, match="--entity NAME"):
        make_dashboard(None, "lgclip", None)
    assert saved == []
