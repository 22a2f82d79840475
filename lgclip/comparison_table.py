"""A comparison for the terminal and as JSON."""

import os
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any

from lgclip.comparison import (
    Compared,
    ComparisonError,
    OverSeeds,
    Side,
    compare,
    over_groups,
    read_sides,
    read_spec,
    seed_groups,
)

_WIDTH = 24
_COLUMNS = 6


def compare_command(places: Sequence[str], reference: str | None = None, json: bool = False) -> str:
    """What `lgclip compare` prints.

    Args:
        places: Runs and sweeps, each with `:METHOD` if a method beside is meant.
        reference: What they are compared with, `RUN` or `RUN:METHOD`; None for the first run of the first place.
        json: Whether to print JSON in place of tables.

    Raises:
        RunError: If there is no finished run in a place.
        ComparisonError: If the runs cannot be compared.
    """
    sides = read_sides(places)
    compared = compare(sides, None if reference is None else read_spec(reference))
    against = compared[0].reference
    seeds, refused = [], None
    try:
        seeds = over_groups(seed_groups([against, *sides]), against)
    except ComparisonError as error:
        # The same config before and after a change of the code: to be tested in pairs, but no repetition.
        refused = str(error)
    if json:
        return dumps(as_json(compared, seeds, refused), indent=2, ensure_ascii=False)
    return table(compared, seeds, refused)


def as_json(
    compared: Sequence[Compared], seeds: Sequence[OverSeeds] = (), refused: str | None = None
) -> dict[str, Any]:
    """Plain values of a comparison, unrounded.

    Args:
        compared: Judgements against the same reference.
        seeds: Means over seeds.
        refused: Why there are none.
    """
    return {
        "reference": {**_plain(compared[0].reference), "settings": dict(compared[0].reference_settings)},
        "compared": [
            {**_plain(one.side), "settings": dict(one.settings), **one.test, "p_holm": one.p_holm} for one in compared
        ],
        "seeds": [
            {
                "settings": dict(one.group.settings),
                "method": one.group.sides[0].method,
                "runs": [str(side.run.folder) for side in one.group.sides],
                "unit": one.group.unit,
                "values": one.group.values,
                **one.summary,
                "against_reference": None if one.test is None else {**one.test, "p_holm": one.p_holm},
            }
            for one in seeds
        ],
        "seeds_refused": refused,
    }


def _plain(side: Side) -> dict[str, Any]:
    figures = {key: side.figures[key] for key in ("top1", "top1_ci95", "mean_per_class")}
    return {"run": str(side.run.folder), "method": side.method, "n": side.run.result["n"], **figures}


def table(compared: Sequence[Compared], seeds: Sequence[OverSeeds] = (), refused: str | None = None) -> str:
    """The comparison for the eye: shares in percent, differences in points.

    Args:
        compared: Judgements against the same reference.
        seeds: Means over seeds.
        refused: Why there are none.
    """
    reference, n = compared[0].reference, compared[0].reference.run.result["n"]
    sides = [reference, *(one.side for one in compared)]
    names = _short([side.run.folder for side in sides])
    base = compared[0].reference_settings
    keys, left_out = _shown([base, *(one.settings for one in compared)])
    test = ["difference", "95% interval", "only it", "only ref.", "p", "Holm"]
    lines = [["run", *keys, "method", "top-1", "95% interval", *test]]
    for name, one in zip(names[1:], compared, strict=True):
        counts = (str(one.test["only_this"]), str(one.test["only_other"]))
        tested = (*_difference(one.test), *counts, _p(one.test["p"]), _p(one.p_holm))
        lines.append([name, *_values(one.settings, keys), one.side.method, *_top1(one.side), *tested])
    share, interval = _top1(reference)
    told = "".join(f" {key}={value}" for key, value in zip(keys, _values(base, keys), strict=True) if key in base)
    parts = [
        f"{n} images; the reference is {names[0]}, {reference.method}{told}: top-1 {share} ({interval})",
        _aligned(lines, left=1),
        f"difference: in points, minus the reference; p: McNemar's exact test; Holm: p for a family of {len(compared)}",
    ]
    if left_out:
        parts.append(f"they differ in {', '.join(left_out)} too")
    if seeds:
        parts += ["", _over_seeds(seeds)]
    if refused:
        parts += ["", f"no means over seeds: {refused}"]
    return "\n".join(parts)


def _over_seeds(seeds: Sequence[OverSeeds]) -> str:
    keys, _ = _shown([one.group.settings for one in seeds])
    tested = any(one.test is not None for one in seeds)
    lines = [[*keys, "method", "seeds", "mean", "std", "95% interval"]]
    lines[0] += ["difference", "95% interval", "p", "Holm"] if tested else []
    for one in seeds:
        low, high = one.summary["ci95"]
        spread = (f"{100 * one.summary['mean']:.2f}", f"{100 * one.summary['std']:.2f}", _range(low, high))
        line = [*_values(one.group.settings, keys), one.group.sides[0].method, str(one.summary["n"]), *spread]
        if tested:
            line += [""] * 4 if one.test is None else [*_difference(one.test), _p(one.test["p"]), _p(one.p_holm)]
        lines.append(line)
    told = ["means over seeds, with t intervals"]
    told[0] += "; difference: Welch's test, the seeds are the sample" if tested else ""
    if any(one.group.unit == "prompt_order_seed" for one in seeds):
        told.append("where the seed is one, the orders of the prompts are the sample")
    if not tested:
        told.append("no difference is tested: that needs two settings of two seeds each, the reference's and another")
    return "\n".join([_aligned(lines, left=len(keys) + 1), *told])


def _short(folders: Sequence[Path]) -> list[str]:
    """Names without what all of them share."""
    whole = [folder.resolve() for folder in folders]
    root = Path(os.path.commonpath([folder.parent for folder in whole]))
    return [str(folder.relative_to(root)) for folder in whole]


def _shown(settings: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The settings that are shown, and those for which there is no room."""
    keys = list(dict.fromkeys(key for values in settings for key in values))
    return keys[:_COLUMNS], keys[_COLUMNS:]


def _values(settings: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    texts = [str(settings[key]) if key in settings else "" for key in keys]
    return [text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…" for text in texts]


def _top1(side: Side) -> tuple[str, str]:
    low, high = side.figures["top1_ci95"]
    return f"{100 * side.figures['top1']:.1f}%", f"{100 * low:.1f} - {100 * high:.1f}"


def _difference(test: Mapping[str, Any]) -> tuple[str, str]:
    interval = "" if test["ci95"] is None else " to ".join(f"{100 * bound:+.2f}" for bound in test["ci95"])
    return f"{100 * test['difference']:+.2f}", interval


def _range(low: float, high: float) -> str:
    return f"{100 * low:.2f} - {100 * high:.2f}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns as wide as their widest cell; the first `left` start at the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
