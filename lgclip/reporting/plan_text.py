"""Formats the plan of a run for the terminal."""

from lgclip.reporting.text_tables import text_table
from lgclip.stages.plan import Plan


def plan_text(plan: Plan) -> str:
    """Returns a table of the stages, then a line per model and per note.

    Args:
        plan: The plan.
    """
    rows = []
    for stage in plan.stages:
        stored = "?" if stage.stored is None else str(stage.stored)
        missing = f"up to {stage.total}" if stage.stored is None else str(stage.total - stage.stored)
        rows.append((stage.stage, stage.unit, str(stage.total), stored, missing))
    lines = [text_table(("stage", "unit", "total", "stored", "to compute"), rows, left_columns=2)]
    lines += [
        f"{model.group}: {model.repository}, {_size(model.size)}, {'cached' if model.is_cached else 'to download'}"
        for model in plan.models
    ]
    if not plan.models:
        lines.append("no model to download")
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def _size(count: int | None) -> str:
    if count is None:
        return "size unknown without the hub"
    return f"{count / 1e9:.2f} GB"
