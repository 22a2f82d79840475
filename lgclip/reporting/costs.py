"""Computes the cost of a result: now, when its parts were computed, and the number of images until it amortizes."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lgclip.reporting.result_schema import ReusedPart, RunResult, StageRecord
from lgclip.runtime.regular_files import read_text
from lgclip.store.cost_log import Line, StageStats, StoreUsage, rate, read_cost_log

_OF_DATA = ("text", "real")
"""Parts that depend only on the data set, not on prompts or seed."""


@dataclass(frozen=True)
class StageTotal:
    """Holds the work of one stage in several runs."""

    unit: str
    computed: int
    seconds: float
    tokens: Mapping[str, int] | None


@dataclass(frozen=True)
class ReusedSet:
    """Holds the items that several runs reused of one store, each once, with the past cost; None if unknown."""

    name: str
    key: str
    unit: str
    count: int
    seconds: float | None


@dataclass(frozen=True)
class TotalCost:
    """Holds the total cost of several runs.

    Attributes:
        runs: Number of runs.
        stages: Work of each stage.
        seconds: Duration of the runs.
        reused: Reused sets.
        reused_seconds: Past cost of that; None where no cost log has it.
        total_seconds: The sum of both.
    """

    runs: int
    stages: Mapping[str, StageTotal]
    seconds: float
    reused: Sequence[ReusedSet]
    reused_seconds: float | None
    total_seconds: float | None


def towers_at(path: Path) -> dict[str, Any] | None:
    """Returns what `encoder.profiling.measure` has written about an encoder; None if it has not, or the file is
    damaged.

    Args:
        path: `FeatureStore.towers`.
    """
    # Measuring is optional and a result must not fail without it, whatever is wrong with the file.
    try:
        towers = json.loads(read_text(path))
        return {name: towers[name] for name in ("image", "text")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def cost_of(
    stage_stats: Sequence[StageStats],
    parts: Mapping[str, Sequence[StoreUsage]],
    *,
    towers: Mapping[str, Any] | None,
    views: int,
) -> dict[str, Any]:
    """Returns the cost of one run, in the form that result.json records.

    Existing items count at the rate of their cost log: seconds of all lines / items of all lines x items used. A run
    that computes everything and one that computes nothing thus have the same `total_seconds`, except for the lookup
    and the evaluation, which both do.

    Args:
        stage_stats: Statistics of each stage.
        parts: Each stage's use of each store.
        towers: Parameters, FLOPs and seconds of the encoder's towers, see `towers_at`.
        views: Views per evaluated image.
    """
    all_parts = list(chain.from_iterable(parts.values()))
    # Each log is read once: several stages may use one store.
    logs = {part.key: read_cost_log(part.cost_log) for part in all_parts}
    cost_lines = {key: log.lines for key, log in logs.items()}
    # What this run computed itself has a cost, whatever happened to an earlier one.
    reused = [part for part in all_parts if part.used > part.computed]
    before = {}
    for stats in stage_stats:
        if stats.stage in parts:
            before[stats.stage] = _computed_before(stats, parts[stats.stage], cost_lines)
    spent = sum(stats.seconds for stats in stage_stats)
    return {
        "stages": [asdict(stats) for stats in stage_stats],
        "computed_before": before,
        "seconds": round(spent, 3),
        "total_seconds": _rounded(_sum([spent, *(stage["seconds"] for stage in before.values())])),
        "complete": not any(logs[part.key].unfinished for part in reused),
        "towers": towers,
        "payback": _payback({part.name: part for part in all_parts}, cost_lines, towers, views),
    }


def _computed_before(
    stats: StageStats, parts: Sequence[StoreUsage], cost_lines: Mapping[str, Sequence[Line]]
) -> dict[str, Any]:
    """Returns the past cost of the reused items of one stage; None where no cost log has it."""
    records: dict[str, Any] = {}
    for part in parts:
        lines = cost_lines[part.key]
        # A mean over the whole log, not the cost of the reused items alone: the log does not record which line is of
        # which item.
        seconds_per_item = rate(lines)
        records[part.name] = {
            "key": part.key,
            "unit": part.unit,
            "used": part.used,
            "computed": part.computed,
            "seconds_each": _rounded(seconds_per_item, 9),
            "seconds": _rounded(_times(part.used - part.computed, seconds_per_item)),
            "device": _devices(lines),
        }
    if parts:
        reused = sum(part.used - part.computed for part in parts)
        seconds = _sum([record["seconds"] for record in records.values()])
    else:
        # A stage that keeps no log, such as a folder of images: the cost of what it reused is unknown.
        reused = stats.reused
        seconds = None if reused else 0.0
    devices = dict.fromkeys(record["device"] for record in records.values() if record["device"])
    return {
        "seconds": _rounded(seconds),
        "count": reused,
        "device": ", ".join(devices) or None,
        "parts": records,
    }


def _payback(
    parts: Mapping[str, StoreUsage],
    cost_lines: Mapping[str, Sequence[Line]],
    towers: Mapping[str, Any] | None,
    views: int,
) -> dict[str, Any] | None:
    """Returns after how many evaluated images prototypes amortize; None without them, or without a text tower."""
    if not {"text", "real", "synthetic"} <= parts.keys():
        return None
    lines = {name: cost_lines[part.key] for name, part in parts.items()}
    # The cost of all items used, computed now or before: what the prototypes cost from scratch.
    once: dict[str, float | None] = {}
    for name in ("prompts", "images", "synthetic", "text"):
        once[name] = _times(parts[name].used, rate(lines[name])) if name in parts else None
    once_all = _sum([once[name] for name in ("prompts", "images", "synthetic")])
    image, text = ((towers or {}).get(name) or {} for name in ("image", "text"))
    # The cost per evaluated image: with prototypes the image tower alone; a method that conditions the text on each
    # image runs the text tower as well.
    per_view = {quantity: _times(views, image.get(quantity)) for quantity in ("seconds", "flops")}
    two = {quantity: _sum([per_view[quantity], text.get(quantity)]) for quantity in ("seconds", "flops")}
    # Text features that are kept cost an image nothing, so against them prototypes save nothing per image: they pay
    # back at once or never.
    more_than_text = None
    if once["text"] is not None and once_all is not None:
        more_than_text = once_all - once["text"]
    return {
        "views": views,
        "once": {
            "seconds": {
                "prompts": _rounded(once["prompts"]),
                "images": _rounded(once["images"]),
                "encoding": _rounded(once["synthetic"]),
                "all": _rounded(once_all),
            },
            # The FLOPs of image and prompt generation are not counted, so neither is the sum.
            "flops": {"encoding": _times(parts["synthetic"].used, image.get("flops")), "all": None},
            "device": {name: _devices(lines[name]) for name in parts if name in once and name != "text"},
        },
        "each": {
            "one_tower": _per_image(per_view),
            "two_towers": _per_image(two),
            "device": image.get("device"),
        },
        "text_tower_per_image": {
            "saved": {"seconds": text.get("seconds"), "flops": text.get("flops")},
            **_paid(once_all, text.get("seconds")),
        },
        "text_features_kept": {
            "saved": {"seconds": 0.0, "flops": 0},
            "text_once_seconds": _rounded(once["text"]),
            **_paid(more_than_text, 0.0),
        },
    }


def _paid(extra: float | None, saved: float | None) -> dict[str, Any]:
    """Returns the number of images after which saving `saved` seconds per image compensates a one-time extra cost.

    None if it never does.
    """
    if extra is None or saved is None:
        return {"pays_back": None, "images": None}
    if extra <= 0:
        return {"pays_back": True, "images": 0}
    if not saved:
        return {"pays_back": False, "images": None}
    return {"pays_back": True, "images": math.ceil(extra / saved)}


def add_up(results: Sequence[RunResult]) -> TotalCost:
    """Adds up the cost of several runs; what was computed before counts once.

    Runs share what they reuse. Of the items that runs of the same data set, prompts and seed take from one store,
    the smaller set is assumed to be a subset of the larger: this holds for more prompts, images and scales of one kind.
    Where sets only overlap (prompt_order_seed, other scales), the value is a lower bound.

    Args:
        results: Content of each run's result.json.
    """
    costs = [result.cost for result in results]
    records = list(chain.from_iterable(cost.stages for cost in costs))
    stages: dict[str, list[StageRecord]] = {}
    for stage in records:
        stages.setdefault(stage.stage, []).append(stage)
    spent = sum(stage.seconds for stage in records)
    before = [_once(shared) for shared in _shared(results).values()]
    # A stage without a cost log, such as a folder of images, has an unknown cost.
    reused_stages = chain.from_iterable(cost.computed_before.values() for cost in costs)
    earlier = None
    if all(stage.parts or stage.seconds == 0 for stage in reused_stages):
        earlier = _sum([part.seconds for part in before])
    return TotalCost(
        runs=len(costs),
        stages={name: _added(records) for name, records in stages.items()},
        seconds=round(spent, 3),
        reused=before,
        reused_seconds=_rounded(earlier),
        total_seconds=_rounded(_sum([spent, earlier])),
    )


def _added(stages: Sequence[StageRecord]) -> StageTotal:
    """Adds up one stage of several runs; tokens are known if those of each run that computed something are."""
    tokens = [stage.tokens for stage in stages if stage.computed]
    available = [count for count in tokens if count]
    total = None
    if available and len(available) == len(tokens):
        total = {kind: sum(count[kind] for count in available) for kind in ("prompt", "completion")}
    seconds = round(sum(stage.seconds for stage in stages), 3)
    return StageTotal(stages[0].unit, sum(stage.computed for stage in stages), seconds, total)


def _shared(results: Sequence[RunResult]) -> dict[str, list[tuple[str, ReusedPart]]]:
    """Groups the entries of `computed_before` whose sets contain one another."""
    shared: dict[str, list[tuple[str, ReusedPart]]] = {}
    for result in results:
        dataset = asdict(result.dataset)
        # Prompts of another language model or seed are other items even in one store, so they are not subsets of
        # each other; what depends on the data set alone is the same for all.
        for stage in result.cost.computed_before.values():
            for name, part in stage.parts.items():
                source = [dataset] if name in _OF_DATA else [dataset, result.llm, result.seed]
                shared.setdefault(json.dumps([part.key, source], sort_keys=True), []).append((name, part))
    return shared


def _once(shared: Sequence[tuple[str, ReusedPart]]) -> ReusedSet:
    """Returns the items that several runs reused of one set: the largest set, without the items that they computed.

    A run that found nothing of it was the first one: what others reuse was computed by one of them, perhaps more than
    it needed, since a language model may write more sentences in a round than requested.
    """
    name, part = shared[-1]  # the cost log was longest then
    began = any(reused.computed == reused.used > 0 for _, reused in shared)
    largest = max(reused.used for _, reused in shared)
    computed = sum(reused.computed for _, reused in shared)
    count = 0 if began else max(0, largest - computed)
    return ReusedSet(name, part.key, part.unit, count, _rounded(_times(count, part.seconds_each)))


def _sum(values: Sequence[float | None]) -> float | None:
    # A sum over what is known would be too small and look exact.
    available = [value for value in values if value is not None]
    if len(available) < len(values):
        return None
    return sum(available)


def _times(count: int, cost_per_item: float | None) -> float | None:
    """Returns the cost of a number of items; 0 for none, whether or not the rate is known."""
    if not count:
        return 0.0
    if cost_per_item is None:
        return None
    return count * cost_per_item


def _rounded(value: float | None, digits: int = 6) -> float | None:
    if value is None:
        return None
    return round(value, digits)


def _per_image(cost: Mapping[str, float | None]) -> dict[str, float | None]:
    return {"seconds": _rounded(cost["seconds"], 9), "flops": cost["flops"]}


def _devices(lines: Sequence[Line]) -> str | None:
    """Returns the devices that computed the items of some lines; None without any."""
    names = [line.device if line.devices == 1 else f"{line.devices} x {line.device}" for line in lines]
    return ", ".join(dict.fromkeys(names)) or None
