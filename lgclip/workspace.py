"""The view in Weights & Biases that compares the runs of a sweep: `lgclip dashboard wandb`."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgclip.wandb_tables import CELL, column_of
from lgclip.whole import write_whole

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

AXES = ("prompts_per_class", "scales")
"""Axes of the default sweep: the first runs to the right."""

_GROUPS = (
    "dataset", "llm", "diffuser", "encoder", "scales", "method", "prototype", "selection", "calibration", "protocol",
    "experiment",
)  # fmt: skip
_COLUMNS = ("top1", "top1_low", "top1_high", "mean_per_class", "clip_text/top1", "seconds")
_VEGA = "https://vega.github.io/schema/vega-lite/v5.json"


def make_dashboard(
    entity: str | None,
    project: str,
    group: str | None,
    dry_run: Path | None = None,
    axes: Sequence[str] = AXES,
) -> str:
    """Saves the view, or writes what would be saved.

    Args:
        entity: User or team; None for the account's own.
        project: The project that the runs are in.
        group: The sweep; None shows every run of the project.
        dry_run: A file to write the view and its charts to, as JSON; nothing is sent.
        axes: Swept keys, as they were on the command line: the horizontal axis, the vertical axis, and any more.

    Returns:
        What to tell the user: the view's address, or the file.

    Raises:
        ValueError: If there are fewer than two axes, the package `wandb-workspaces` or an account is missing, or
            the service refuses.
    """
    if len(axes) < 2 or len(set(axes)) < len(axes):
        raise ValueError(f"axes {', '.join(axes) or 'none'}: name two or more swept keys, each once")
    if dry_run is not None:
        view: Any = view_of(entity or "ENTITY", project, group, axes)._to_model()
        content = {"view": view.model_dump(by_alias=True, exclude_none=True), "charts": charts()}
        with write_whole(dry_run) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return f"{dry_run}: {len(content['charts'])} charts and the view; nothing was sent"
    view_of("", project, group, axes)  # a missing package is said before an account is asked for
    return _save(entity, project, group, axes)


def _save(entity: str | None, project: str, group: str | None, axes: Sequence[str]) -> str:
    import wandb
    from wandb.errors import Error

    if not wandb.login(prompt=False, verify=False):
        raise ValueError(
            "no account of Weights & Biases: set WANDB_API_KEY or run `wandb login`; "
            "--dry-run FILE writes the view without one"
        )
    try:
        api = wandb.Api()
        entity = entity or api.default_entity
        if not entity:
            raise ValueError("this account has no default entity: name one, --entity NAME")
        for name, spec in charts().items():
            _register(api, entity, name, spec)
        return view_of(entity, project, group, axes).save().url
    except Error as error:
        raise ValueError(f"Weights & Biases refused {entity or 'the account'}/{project}: {error}") from error


def _register(api: Any, entity: str, name: str, spec: Mapping[str, Any]) -> None:
    """Makes a chart that the entity's projects can use; its name holds its hash, so one that is there is the same."""
    from wandb.errors import Error

    try:
        api.create_custom_chart(
            entity=entity, name=name, display_name=name, spec_type="vega2", access="private", spec=dict(spec)
        )
    except Error as error:
        if "exist" not in str(error).lower():
            raise


def charts() -> dict[str, dict[str, Any]]:
    """Vega-Lite charts over the table `cell`, by a name that holds their hash.

    W&B puts a panel's columns in place of `${field:...}`. A swept key that is no axis, such as the seed, is averaged
    over.
    """
    return {_chart_name(kind, spec): spec for kind, spec in (("grid", _grid()), ("lines", _lines()))}


def _chart_name(kind: str, spec: Mapping[str, Any]) -> str:
    return f"lgclip-{kind}-{hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]}"


def _mean(groups: Sequence[str]) -> list[dict[str, Any]]:
    figures = [{"op": "mean", "field": f"${{field:{name}}}", "as": name} for name in ("top1", "low", "high")]
    return [{"aggregate": [*figures, {"op": "count", "as": "runs"}], "groupby": [f"${{field:{g}}}" for g in groups]}]


def _place(name: str) -> dict[str, Any]:
    return {"field": f"${{field:{name}}}", "type": "ordinal", "title": f"${{string:{name}}}"}


def _grid() -> dict[str, Any]:
    """A heat map: a cell a pair of values, its mean top-1 as colour and in figures."""
    figure = {"field": "top1", "type": "quantitative"}
    told = [_place("x"), _place("y"), {**figure, "format": ".2%"}, {"field": "runs", "type": "quantitative"}]
    colour = {**figure, "title": "top-1", "scale": {"scheme": "viridis", "zero": False}, "legend": {"format": ".1%"}}
    return {
        "$schema": _VEGA,
        "data": {"name": "wandb"},
        "transform": [*_mean("xy"), {"joinaggregate": [{"op": "mean", "field": "top1", "as": "middle"}]}],
        "encoding": {"x": {**_place("x"), "axis": {"labelAngle": 0}}, "y": _place("y"), "tooltip": told},
        "layer": [
            {"mark": "rect", "encoding": {"color": colour}},
            {
                "mark": {"type": "text", "fontSize": 14},
                "encoding": {
                    "text": {**figure, "format": ".1%"},
                    # Viridis is dark where it is low.
                    "color": {"condition": {"test": "datum.top1 < datum.middle", "value": "white"}, "value": "black"},
                },
            },
        ],
    }


def _lines() -> dict[str, Any]:
    """Mean top-1 over the first axis, a line a value of the second, with the mean interval."""
    figure = {"type": "quantitative", "scale": {"zero": False}, "axis": {"format": ".0%"}}
    return {
        "$schema": _VEGA,
        "data": {"name": "wandb"},
        "transform": _mean("xy"),
        "encoding": {"x": {**_place("x"), "axis": {"labelAngle": 0}}, "color": {**_place("y"), "type": "nominal"}},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.15},
                "encoding": {"y": {**figure, "field": "low", "title": "top-1"}, "y2": {"field": "high"}},
            },
            {"mark": {"type": "line", "point": True}, "encoding": {"y": {**figure, "field": "top1", "title": "top-1"}}},
        ],
    }


def view_of(entity: str, project: str, group: str | None, axes: Sequence[str]) -> "Workspace":
    """The view: the grid, how figures go with settings, classes and pictures.

    Args:
        entity: User or team.
        project: The project that the runs are in.
        group: The sweep; None shows every run of the project.
        axes: Swept keys.

    Raises:
        ValueError: If the package `wandb-workspaces` is missing.
    """
    with warnings.catch_warnings():  # it is written for an older pydantic, which pydantic says at its import
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            import wandb_workspaces.reports.v2 as wr
            from wandb_workspaces import expr
            from wandb_workspaces import workspaces as ws
        except ModuleNotFoundError as error:
            raise ValueError(f"package {error.name} is missing: pip install 'lgclip[dashboard]'") from error
    sections = [
        ws.Section(name="Grid", panels=_grid_panels(entity, axes), is_open=True),
        ws.Section(
            name="Classes and pictures",
            panels=[wr.WeavePanelSummaryTable(table_name=name) for name in ("per_class", "misjudged", "prototypes")],
            is_open=True,
        ),
        ws.Section(name="Runs side by side", panels=[wr.RunComparer(diff_only="split")]),
    ]
    shown = [expr.Metric("JobType") == "evaluate", *([expr.Metric("Group") == group] if group else [])]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"lgclip {group or 'all runs'}",
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(*shown),
            order=[expr.Ordering(expr.Summary("top1"), ascending=False)],
            pinned_columns=[f"summary:{name}" for name in _COLUMNS],
        ),
    )


def _grid_panels(entity: str, axes: Sequence[str]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2.interface import Layout, ParallelCoordinatesPlotColumn

    x, y, *_ = axes
    columns = {"x": column_of(x), "y": column_of(y), "top1": "top1", "low": "top1_low", "high": "top1_high"}
    drawn = [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": CELL}},
            chart_name=f"{entity}/{name}",
            chart_fields=columns,
            chart_strings={"x": x, "y": y},
            layout=Layout(w=12, h=8),
        )
        for name in charts()
    ]
    settings = [wr.Config(f"choices.{axis}" if axis in _GROUPS else axis) for axis in axes]
    figures = [wr.SummaryMetric(name) for name in ("top1", "mean_per_class")]
    shown = {**dict(zip(axes, settings, strict=True)), **{figure.name: figure for figure in figures}}
    return [
        *drawn,
        wr.ParallelCoordinatesPlot(
            title="settings and figures",
            columns=[ParallelCoordinatesPlotColumn(metric=m, display_name=name) for name, m in shown.items()],
            layout=Layout(w=24, h=8),
        ),
        wr.BarPlot(title=f"top-1 by {y}", metrics=["top1"], groupby=settings[1], groupby_aggfunc="mean",
                   groupby_rangefunc="minmax"),
        wr.ScatterPlot(title="top-1 and seconds", x=wr.SummaryMetric("seconds"), y=figures[0]),
        wr.ParameterImportancePlot(with_respect_to="top1"),
    ]  # fmt: skip
