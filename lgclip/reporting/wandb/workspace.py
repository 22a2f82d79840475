"""Creates the Weights & Biases view that compares the runs of a sweep: `lgclip dashboard wandb`."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgclip.reporting.wandb.tables import CELL, column_of
from lgclip.store.atomic import atomic_write

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
        axes: Swept keys, as on the command line: the horizontal axis, the vertical axis, and any others.

    Returns:
        Message for the user: the view's address, or the file.

    Raises:
        ValueError: If there are fewer than two axes, the package `wandb-workspaces` or an account is missing, or
            the service refuses.
    """
    if len(axes) < 2 or len(set(axes)) < len(axes):
        raise ValueError(f"axes {', '.join(axes) or 'none'}: name two or more swept keys, each once")
    if dry_run is not None:
        # `_to_model` is private to wandb_workspaces: it has no public way to the JSON that it would send.
        view: Any = view_of(entity or "ENTITY", project, group, axes)._to_model()
        content = {"view": view.model_dump(by_alias=True, exclude_none=True), "charts": charts()}
        with atomic_write(dry_run) as temporary:
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
        # The charts first, as the view refers to them by name.
        for name, spec in charts().items():
            _register(api, entity, name, spec)
        return view_of(entity, project, group, axes).save().url
    except Error as error:
        raise ValueError(f"Weights & Biases refused {entity or 'the account'}/{project}: {error}") from error


def _register(api: Any, entity: str, name: str, spec: Mapping[str, Any]) -> None:
    """Creates a chart that the entity's projects can use; its name holds its hash, so an existing one is equal."""
    from wandb.errors import Error

    try:
        api.create_custom_chart(
            entity=entity, name=name, display_name=name, spec_type="vega2", access="private", spec=dict(spec)
        )
    except Error as error:
        # The API tells the reason only in words.
        if "exist" not in str(error).lower():
            raise


def charts() -> dict[str, dict[str, Any]]:
    """Returns Vega-Lite charts over the table `cell`, by a name that holds their hash.

    W&B puts a panel's columns in place of `${field:...}`. A swept key that is not an axis, such as the seed, is
    averaged over.
    """
    specs = {"grid": _grid(), "lines": _lines()}
    return {_chart_name(kind, spec): spec for kind, spec in specs.items()}


def _chart_name(kind: str, spec: Mapping[str, Any]) -> str:
    # A registered chart cannot be changed by its name alone, so another release of it has to be another name.
    return f"lgclip-{kind}-{hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]}"


def _mean(groups: Sequence[str]) -> list[dict[str, Any]]:
    # `${field:x}` is W&B's placeholder for a column of the table; the doubled braces are those of the f-string.
    metrics = [{"op": "mean", "field": f"${{field:{name}}}", "as": name} for name in ("top1", "low", "high")]
    return [{"aggregate": [*metrics, {"op": "count", "as": "runs"}], "groupby": [f"${{field:{g}}}" for g in groups]}]


def _place(name: str) -> dict[str, Any]:
    # Ordinal, because prompts_per_class=1,5,10,50 is a choice of values: equal steps, not a scale of numbers.
    return {"field": f"${{field:{name}}}", "type": "ordinal", "title": f"${{string:{name}}}"}


def _grid() -> dict[str, Any]:
    """Returns a heat map: one cell per pair of values, with its mean top-1 as color and as text."""
    y_axis = {"field": "top1", "type": "quantitative"}
    tooltip = [_place("x"), _place("y"), {**y_axis, "format": ".2%"}, {"field": "runs", "type": "quantitative"}]
    color = {**y_axis, "title": "top-1", "scale": {"scheme": "viridis", "zero": False}, "legend": {"format": ".1%"}}
    return {
        "$schema": _VEGA,
        "data": {"name": "wandb"},
        "transform": [*_mean("xy"), {"joinaggregate": [{"op": "mean", "field": "top1", "as": "middle"}]}],
        "encoding": {"x": {**_place("x"), "axis": {"labelAngle": 0}}, "y": _place("y"), "tooltip": tooltip},
        "layer": [
            {"mark": "rect", "encoding": {"color": color}},
            {
                "mark": {"type": "text", "fontSize": 14},
                "encoding": {
                    "text": {**y_axis, "format": ".1%"},
                    # Viridis is dark where it is low.
                    "color": {"condition": {"test": "datum.top1 < datum.middle", "value": "white"}, "value": "black"},
                },
            },
        ],
    }


def _lines() -> dict[str, Any]:
    """Returns mean top-1 over the first axis, one line per value of the second, with the mean interval."""
    y_axis = {"type": "quantitative", "scale": {"zero": False}, "axis": {"format": ".0%"}}
    return {
        "$schema": _VEGA,
        "data": {"name": "wandb"},
        "transform": _mean("xy"),
        "encoding": {"x": {**_place("x"), "axis": {"labelAngle": 0}}, "color": {**_place("y"), "type": "nominal"}},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.15},
                "encoding": {"y": {**y_axis, "field": "low", "title": "top-1"}, "y2": {"field": "high"}},
            },
            {"mark": {"type": "line", "point": True}, "encoding": {"y": {**y_axis, "field": "top1", "title": "top-1"}}},
        ],
    }


def view_of(entity: str, project: str, group: str | None, axes: Sequence[str]) -> "Workspace":
    """Returns the view: the grid, metrics by settings, classes and images.

    Args:
        entity: User or team.
        project: The project that the runs are in.
        group: The sweep; None shows every run of the project.
        axes: Swept keys.

    Raises:
        ValueError: If the package `wandb-workspaces` is missing.
    """
    with _tolerant_import():
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
            panels=[
                wr.WeavePanelSummaryTable(table_name=name) for name in ("per_class", "misclassified", "prototypes")
            ],
            is_open=True,
        ),
        ws.Section(name="Runs side by side", panels=[wr.RunComparer(diff_only="split")]),
    ]
    # Comparisons of these objects build filters. Other job types, such as a training, log no table of cells.
    filters = [expr.Metric("JobType") == "evaluate"]
    if group:
        filters.append(expr.Metric("Group") == group)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"lgclip {group or 'all runs'}",
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(*filters),
            order=[expr.Ordering(expr.Summary("top1"), ascending=False)],
            pinned_columns=[f"summary:{name}" for name in _COLUMNS],
        ),
    )


@contextmanager
def _tolerant_import() -> Iterator[None]:
    """Silences the warnings of wandb_workspaces at its import: it is written for an older pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _grid_panels(entity: str, axes: Sequence[str]) -> list[Any]:
    with _tolerant_import():
        import wandb_workspaces.reports.v2 as wr
        from wandb_workspaces.reports.v2.interface import Layout, ParallelCoordinatesPlotColumn

    x, y, *_ = axes
    columns = {"x": column_of(x), "y": column_of(y), "top1": "top1", "low": "top1_low", "high": "top1_high"}
    panels = [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": CELL}},
            chart_name=f"{entity}/{name}",
            chart_fields=columns,
            chart_strings={"x": x, "y": y},
            layout=Layout(w=12, h=8),
        )
        for name in charts()
    ]
    # A group's choice is logged under `choices`, because the group itself holds the values of the part.
    settings = [wr.Config(f"choices.{axis}" if axis in _GROUPS else axis) for axis in axes]
    metrics = [wr.SummaryMetric(name) for name in ("top1", "mean_per_class")]
    columns_of_plot: dict[str, Any] = dict(zip(axes, settings, strict=True))
    columns_of_plot |= {y_axis.name: y_axis for y_axis in metrics}
    return [
        *panels,
        wr.ParallelCoordinatesPlot(
            title="settings and figures",
            columns=[ParallelCoordinatesPlotColumn(metric=m, display_name=name) for name, m in columns_of_plot.items()],
            layout=Layout(w=24, h=8),
        ),
        wr.BarPlot(title=f"top-1 by {y}", metrics=["top1"], groupby=settings[1], groupby_aggfunc="mean",
                   groupby_rangefunc="minmax"),
        wr.ScatterPlot(title="top-1 and seconds", x=wr.SummaryMetric("seconds"), y=metrics[0]),
        wr.ParameterImportancePlot(with_respect_to="top1"),
    ]  # fmt: skip
