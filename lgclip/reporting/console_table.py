"""Formats the short table at the end of a run."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from lgclip.reporting.data_seen import NAMES
from lgclip.reporting.result_schema import Metrics, RunResult, ShiftedResult
from lgclip.reporting.run_folder import RESULT
from lgclip.reporting.text_tables import text_table
from lgclip.runtime.terminal import single_line

CONTACT_SHEET = "prototypes.png"
"""Name of the sheet of synthetic images in a run's folder."""

_MAX_LISTED = 5  # images that could not be read
_HEADER = ("method", "n", "top-1", "95% interval", "top-5", "per class")


def table(result: RunResult) -> str:
    """Returns the short table at the end of a run.

    Args:
        result: Content of its result.json.
    """
    methods = {result.method: result.metrics, **result.baselines}
    # Only where they differ: a column that says "names" in each row would say nothing.
    seen = {name: result.seen[name].label for name in methods}
    lines = [_metrics_table(methods, result.n, seen if set(seen.values()) != {NAMES} else None)]
    for name, test in result.paired.items():
        low, high = (100 * bound for bound in test.ci95)
        # "p = 0.000" would claim what no test can show.
        p = "p < 0.001" if test.p < 0.001 else f"p = {test.p:.3f}"
        lines.append(f"against {name}: {100 * test.difference:+.2f} points ({low:+.2f} to {high:+.2f}), {p}")
    if result.baseline is None:
        lines.append("clip_text: none, this encoder has no text tower")
    dataset = single_line(f"{result.dataset.name}, {result.dataset.split}")
    lines.append(f"{dataset}: {result.num_classes} classes, {_count(result)}")
    for name, shifted in result.ood.items():
        lines += _shifted(name, shifted, result.method)
    if result.pools:
        # Imports torch, which the table of a repeated run does without.
        from lgclip.reporting.pool_table import pool_table

        lines.append(pool_table(result.pools))
    lines += _student(result)
    lines += _warnings(result)
    if templated := sum(result.templated_prompts):
        lines.append(f"{templated} prompts are template sentences in place of the language model's")
    if missing := result.missing_images:
        classes = {image["class"] for image in missing}
        lines.append(f"{len(missing)} synthetic images of {len(classes)} classes could not be generated")
    return "\n".join([*lines, _stages(result)])


def _warnings(result: RunResult) -> Iterator[str]:
    """Formats what may make a metric meaningless."""
    if noted := result.noted_images:
        examples = "; ".join(single_line(f"{image.file} ({image.note})") for image in noted[:_MAX_LISTED])
        more = f"; and {len(noted) - _MAX_LISTED} more, listed in {RESULT}" if len(noted) > _MAX_LISTED else ""
        yield f"{len(noted)} test images are unusual: {examples}{more}"
    for method, ties in result.ties.items():
        if ties:
            yield f"{method}: {ties} images have several classes of the same highest score; the first one counts"


def _metrics_table(methods: Mapping[str, Metrics], n: int, seen: Mapping[str, str] | None = None) -> str:
    header = (*_HEADER, "data seen") if seen else _HEADER
    rows = []
    for name, metrics in methods.items():
        low, high = metrics.top1_ci95
        rows.append([
            name,
            str(n),
            f"{100 * metrics.top1:.1f}%",
            f"{100 * low:.1f} - {100 * high:.1f}",
            f"{100 * metrics.top5:.1f}%",
            f"{100 * metrics.mean_per_class:.1f}%",
            *([seen[name]] if seen else []),
        ])  # fmt: skip
    return text_table(header, rows)


def _shifted(name: str, shifted: ShiftedResult, method: str) -> Iterator[str]:
    """Formats the metrics on an out-of-distribution set."""
    yield f"out of distribution, {single_line(name)}: {shifted.num_classes} classes"
    yield _metrics_table({method: shifted.metrics, **shifted.baselines}, shifted.n)
    before = 100 * shifted.in_distribution.top1
    change = 100 * shifted.shift.difference
    yield f"{method} {before:.1f}% in distribution on the same classes: {change:+.1f} points"


def _student(result: RunResult) -> Iterator[str]:
    if result.student is not None and result.student.selected_on == "real":
        yield "the student's checkpoint was chosen by labels of the test images (student.select_on=real)"
    if membership := result.membership:
        yield f"membership: AUROC {membership.auroc:.3f}, best balanced accuracy {membership.balanced_accuracy:.3f}"


def _count(result: RunResult) -> str:
    """Formats the number of images, and how many of them are missing."""
    skipped = result.skipped
    if not skipped:
        return f"{result.n} images"
    named = "; ".join(single_line(f"{image.file} ({image.reason})") for image in skipped[:_MAX_LISTED])
    if len(skipped) > _MAX_LISTED:
        named += f"; and {len(skipped) - _MAX_LISTED} more, listed in {RESULT}"
    return f"{result.n:,} of {result.images_in_dataset:,} images, {len(skipped)} could not be read: {named}"


def _stages(result: RunResult) -> str:
    rows = []
    for stage in result.stages:
        is_shifted = any(stage.stage.endswith(f" {name}") for name in result.ood)
        # Of shifted sets only what had to be made, or there would be six lines a set.
        if is_shifted and (not stage.computed or stage.stage.startswith("evaluation")):
            continue
        rows.append([stage.stage, str(stage.computed), str(stage.reused), f"{stage.seconds:.1f}"])
    return text_table(("stage", "computed", "reused", "seconds"), rows)


def next_steps(folder: Path) -> str:
    """Names the contact sheet of a run, and the commands for its report and its classifier."""
    steps = []
    if (folder / CONTACT_SHEET).is_file():
        steps.append(f"images   {folder / CONTACT_SHEET}")
    steps.append(f"report   lgclip report {shlex.quote(str(folder))}")
    steps.append(f"classify lgclip classify {shlex.quote(str(folder))} PHOTOS")
    return "\n".join(steps)
