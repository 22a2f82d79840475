"""The short table at the end of a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from lgclip.runs import RESULT
from lgclip.shown import one_line

_SHOWN = 5


def table(result: Mapping[str, Any]) -> str:
    """The short table at the end of a run.

    Args:
        result: Content of its result.json.
    """
    lines = [f"{'method':<10} {'n':>6} {'top-1':>7} {'95% interval':>15} {'top-5':>7} {'per class':>10}"]
    lines += _rows(result)
    for name, test in result["paired"].items():
        low, high = (100 * bound for bound in test["ci95"])
        p = "p < 0.001" if test["p"] < 0.001 else f"p = {test['p']:.3f}"
        lines.append(f"against {name}: {100 * test['difference']:+.2f} points ({low:+.2f} to {high:+.2f}), {p}")
    if result["baseline"] is None:
        lines.append("clip_text: none, this encoder has no text tower")
    data = result["dataset"]
    where = one_line(f"{data['name']}, {data['split']}")
    lines.append(f"{where}: {result['num_classes']} classes, {_counted(result)}")
    for name, shifted in (result.get("ood") or {}).items():
        lines += _shifted(name, shifted, result["method"])
    lines += _of_a_student(result)
    if templated := sum(result.get("templated_prompts", ())):
        lines.append(f"{templated} prompts are template sentences in place of the language model's")
    if gone := result.get("missing_images"):
        lines.append(f"{len(gone)} synthetic images of {len({one['class'] for one in gone})} classes could not be had")
    for stage in result["stages"]:
        # Of shifted sets only what had to be made, or there would be six lines a set.
        if not any(stage["stage"].endswith(f" {name}") for name in result.get("ood") or ()) or (
            stage["made"] and not stage["stage"].startswith("judging")
        ):
            lines.append(
                f"{stage['stage']:<9} made {stage['made']:>6}, re-used {stage['reused']:>6}, {stage['seconds']:>6.1f} s"
            )
    return "\n".join(lines)


def _rows(result: Mapping[str, Any]) -> Iterator[str]:
    for name, m in {result["method"]: result["metrics"], **result["beside"]}.items():
        low, high = m["top1_ci95"]
        interval = f"{100 * low:.1f} - {100 * high:.1f}"
        yield (
            f"{name:<10} {result['n']:>6} {100 * m['top1']:>6.1f}% {interval:>15} {100 * m['top5']:>6.1f}% "
            f"{100 * m['mean_per_class']:>9.1f}%"
        )


def _shifted(name: str, shifted: Mapping[str, Any], method: str) -> Iterator[str]:
    """The figures of an out-of-distribution set."""
    yield f"out of distribution, {one_line(name)}: {shifted['num_classes']} classes"
    yield from _rows({**shifted, "method": method})
    before, change = shifted["in_distribution"]["top1"], shifted["shift"]["difference"]
    yield f"{method} {100 * before:.1f}% in distribution on the same classes: {100 * change:+.1f} points"


def _of_a_student(result: Mapping[str, Any]) -> Iterator[str]:
    if (student := result.get("student")) and student["selected_on"] == "real":
        yield "the student's checkpoint was chosen by labels of the test images (student.select_on=real)"
    if found := result.get("membership"):
        yield f"membership: AUROC {found['auroc']:.3f}, best balanced accuracy {found['balanced_accuracy']:.3f}"


def _counted(result: Mapping[str, Any]) -> str:
    """The denominator, and what it lacks."""
    skipped = result.get("skipped", ())
    if not skipped:
        return f"{result['n']} images"
    shown = "; ".join(one_line(f"{one['file']} ({one['reason']})") for one in skipped[:_SHOWN])
    more = f"; and {len(skipped) - _SHOWN} more, listed in {RESULT}" if len(skipped) > _SHOWN else ""
    return f"{result['n']:,} of {result['images_in_dataset']:,} images, {len(skipped)} could not be read: {shown}{more}"
