"""What a result cost: spent now, spent when its parts were made, and after how many images it has paid back."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lgclip.ledger import Account, Line, Part, lines_of, rate

_OF_DATA = ("text", "real")
"""Parts that depend on the data set alone, not on prompts or seed."""


def towers_at(path: Path) -> dict[str, Any] | None:
    """What `encoder.measure` has counted of an encoder; None if it has not, or the file is damaged.

    Args:
        path: `FeatureStore.towers`.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("image", "text")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def cost_of(
    accounts: Sequence[Account],
    parts: Mapping[str, Sequence[Part]],
    *,
    towers: Mapping[str, Any] | None,
    views: int,
) -> dict[str, Any]:
    """What one run cost, as result.json tells it.

    What was there before counts at the rate of its ledger: seconds of all lines / things of all lines x things used.
    So a run that makes everything and one that makes nothing come to the same `total_seconds`, but for what both
    spend: looking, and judging.

    Args:
        accounts: What each stage did.
        parts: What each stage did in each store.
        towers: Parameters, FLOPs and seconds of the encoder's towers, see `towers_at`.
        views: Views of a judged image.
    """
    books = {part.key: lines_of(part.ledger) for own in parts.values() for part in own}
    before = {
        account.stage: _made_before(account, parts[account.stage], books)
        for account in accounts
        if account.stage in parts
    }
    spent = sum(account.seconds for account in accounts)
    return {
        "stages": [asdict(account) for account in accounts],
        "made_before": before,
        "seconds": round(spent, 3),
        "total_seconds": _rounded(_sum([spent, *(stage["seconds"] for stage in before.values())])),
        "towers": towers,
        "payback": _payback({part.name: part for own in parts.values() for part in own}, books, towers, views),
    }


def _made_before(account: Account, parts: Sequence[Part], books: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
    """What the re-used things of one stage cost when they were made; None where no ledger tells."""
    told: dict[str, Any] = {}
    for part in parts:
        lines = books[part.key]
        each = rate(lines)
        told[part.name] = {
            "key": part.key,
            "unit": part.unit,
            "used": part.used,
            "made": part.made,
            "seconds_each": _rounded(each, 9),
            "seconds": _rounded(_times(part.used - part.made, each)),
            "device": _devices(lines),
        }
    reused = sum(part.used - part.made for part in parts) if parts else account.reused
    unknown = None if account.reused else 0.0  # of a stage that keeps no ledger, such as a folder of images
    return {
        "seconds": _rounded(_sum([one["seconds"] for one in told.values()]) if parts else unknown),
        "count": reused,
        "device": ", ".join(dict.fromkeys(one["device"] for one in told.values() if one["device"])) or None,
        "parts": told,
    }


def _payback(
    parts: Mapping[str, Part], books: Mapping[str, Sequence[Line]], towers: Mapping[str, Any] | None, views: int
) -> dict[str, Any] | None:
    """After how many judged images prototypes have paid back; None without them, or without a text tower."""
    if not {"text", "real", "synthetic"} <= parts.keys():
        return None
    lines = {name: books[part.key] for name, part in parts.items()}
    once = {
        name: _times(parts[name].used, rate(lines[name])) if name in parts else None
        for name in ("prompts", "images", "synthetic", "text")
    }
    once_all = _sum([once[name] for name in ("prompts", "images", "synthetic")])
    image, text = ((towers or {}).get(name) or {} for name in ("image", "text"))
    one = {what: _times(views, image.get(what)) for what in ("seconds", "flops")}
    two = {what: _sum([one[what], text.get(what)]) for what in ("seconds", "flops")}
    return {
        "views": views,
        "once": {
            "seconds": {
                "prompts": _rounded(once["prompts"]),
                "images": _rounded(once["images"]),
                "encoding": _rounded(once["synthetic"]),
                "all": _rounded(once_all),
            },
            # What drawing and writing compute is not counted, so neither is the sum.
            "flops": {"encoding": _times(parts["synthetic"].used, image.get("flops")), "all": None},
            "device": {name: _devices(lines[name]) for name in parts if name in once and name != "text"},
        },
        "each": {
            "one_tower": _each(one),
            "two_towers": _each(two),
            "device": image.get("device"),
        },
        "text_tower_per_image": {
            "saved": {"seconds": text.get("seconds"), "flops": text.get("flops")},
            **_paid(once_all, text.get("seconds")),
        },
        "text_features_kept": {
            "saved": {"seconds": 0.0, "flops": 0},
            "text_once_seconds": _rounded(once["text"]),
            **_paid(None if once["text"] is None or once_all is None else once_all - once["text"], 0.0),
        },
    }


def _paid(more: float | None, saved: float | None) -> dict[str, Any]:
    """Images after which `saved` seconds an image make up for `more` seconds once; none if they never do."""
    if more is None or saved is None:
        return {"pays_back": None, "images": None}
    if more > 0 and not saved:
        return {"pays_back": False, "images": None}
    return {"pays_back": True, "images": math.ceil(more / saved) if more > 0 else 0}


def add_up(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several runs cost together; what was made before, and once, counts once.

    Runs share what they re-use. Of the things that runs of the same data set, prompts and seed take from one store,
    the smaller set is taken to lie in the larger: so it is with more prompts, images and scales of one kind. Where
    sets only overlap (prompt_order_seed, other scales), the figure is a lower bound.

    Args:
        results: Content of each run's result.json.

    Raises:
        ValueError: If a result does not tell its cost.
    """
    costs = []
    for result in results:
        if not result.get("cost"):
            raise ValueError("a result does not tell its cost: run it again with rerun=true")
        costs.append(result["cost"])
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for stage in (stage for cost in costs for stage in cost["stages"]):
        stages.setdefault(stage["stage"], []).append(stage)
    spent = sum(stage["seconds"] for cost in costs for stage in cost["stages"])
    before = [_once(shared) for shared in _shared(results).values()]
    # A stage that keeps no ledger, such as a folder of images, cost what nobody knows.
    known = all(stage["parts"] or stage["seconds"] == 0 for cost in costs for stage in cost["made_before"].values())
    earlier = _sum([part["seconds"] for part in before]) if known else None
    return {
        "runs": len(costs),
        "stages": {name: _added(own) for name, own in stages.items()},
        "seconds": round(spent, 3),
        "made_before": {"seconds": _rounded(earlier), "parts": before},
        "total_seconds": _rounded(_sum([spent, earlier])),
    }


def _added(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One stage of several runs."""
    tokens = [stage["tokens"] for stage in stages if stage["made"]]
    return {
        "unit": stages[0]["unit"],
        "made": sum(stage["made"] for stage in stages),
        "seconds": round(sum(stage["seconds"] for stage in stages), 3),
        "tokens": {kind: sum(one[kind] for one in tokens) for kind in ("prompt", "completion")}
        if tokens and all(tokens)
        else None,
    }


def _shared(results: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """Names and parts of `made_before`, those together that are sets of one another."""
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for result in results:
        for stage in result["cost"]["made_before"].values():
            for name, part in stage["parts"].items():
                of = {key: result[key] for key in (("dataset",) if name in _OF_DATA else ("dataset", "llm", "seed"))}
                found.setdefault(json.dumps([part["key"], of], sort_keys=True), []).append((name, part))
    return found


def _once(shared: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What several runs re-used of one set: the largest, without what they made of it themselves.

    A run that found nothing of it is where it began: what another re-uses was made by one of them, perhaps beside
    what it needed, as a language model writes more sentences in a round than are asked for.
    """
    name, part = shared[-1]  # the ledger was longest then
    began = any(one["made"] == one["used"] > 0 for _, one in shared)
    count = 0 if began else max(0, max(one["used"] for _, one in shared) - sum(one["made"] for _, one in shared))
    told = {"name": name, "key": part["key"], "unit": part["unit"], "count": count}
    return {**told, "seconds": _rounded(_times(count, part["seconds_each"]))}


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _times(count: int, each: float | None) -> float | None:
    """What so many cost; nothing costs nothing, whether or not the rate is known."""
    if not count:
        return 0.0
    return None if each is None else count * each


def _rounded(value: float | None, digits: int = 6) -> float | None:
    return None if value is None else round(value, digits)


def _each(cost: Mapping[str, float | None]) -> dict[str, float | None]:
    return {"seconds": _rounded(cost["seconds"], 9), "flops": cost["flops"]}


def _devices(lines: Sequence[Line]) -> str | None:
    """What made the things of some lines; None without any."""
    told = [line.device if line.devices == 1 else f"{line.devices} x {line.device}" for line in lines]
    return ", ".join(dict.fromkeys(told)) or None
